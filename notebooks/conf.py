"""The read-along page: Sphinx over the committed, executed notebooks, which it never runs.

`make site` writes it to build/site/; it opens from the disk and asks no other host for anything.
"""

import json
import re
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

import dss

HERE = Path(__file__).parent
FIGURES = HERE.parent / "figures"

project = "The DSS companion"
author = "the authors of the companion"
copyright = "the authors of the companion, MIT licence"
version = release = dss.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["assignments/source", "params", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

default_role = "code"  # docstrings put names in single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "The DSS companion"
html_logo = html_favicon = "_static/string.svg"
html_static_path = ["_static"]
html_css_files = ["companion.css"]
html_show_sphinx = False
html_theme_options = {
    "path_to_docs": "notebooks",
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "extra_footer": "Beside C. D. Freeman and J. Bruna, <em>How nonconvex is it?</em> (2016).",
}
mathjax_path = "mathjax/es5/tex-mml-chtml.js"


class NumberedEquations(SphinxTransform):
    r"""An anchor `eq-4` for the equation with `\tag{4}`; the first of a page that has it."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        for block in self.document.findall(nodes.math_block):
            if tag := re.search(r"\\tag\{(\d)\}", block.astext()):
                anchor = f"eq-{tag[1]}"
                if anchor not in self.document.ids:
                    block["ids"].append(anchor)
                    self.document.ids[anchor] = block


class EquationLinks(SphinxPostTransform):
    """ "Eq. (4)", anywhere in prose or a docstring, leads to the equation in 01_definitions."""

    default_priority = 900
    target = "01_definitions"

    def run(self, **kwargs) -> None:
        for text in list(self.document.findall(nodes.Text)):
            inside = (nodes.reference, nodes.literal, nodes.literal_block, nodes.title, nodes.math)
            parts = re.split(r"(Eqs?\. \(\d\))", text.astext())
            if len(parts) == 1 or any(isinstance(p, inside) for p in ancestors(text)):
                continue
            page = self.app.builder.get_relative_uri(self.env.docname, self.target)
            text.parent.replace(text, [
                nodes.reference(part, part, internal=True, refuri=f"{page}#eq-{part[-2]}")
                if part.startswith("Eq") else nodes.Text(part)
                for part in parts
            ])  # fmt: skip


class ImageSizes(SphinxPostTransform):
    """Width and height of every picture, so that a page does not jump while it loads."""

    default_priority = 900

    def run(self, **kwargs) -> None:
        for image in self.document.findall(nodes.image):
            path = Path(self.app.srcdir, image["uri"])
            if path.suffix == ".png" and not image.get("width"):
                with Image.open(path) as picture:
                    image["width"], image["height"] = map(str, picture.size)


def ancestors(node):
    while node := node.parent:
        yield node


def alternative_text(entry: dict, name: str) -> str:
    """What the cell that draws a figure says of it."""
    short = name.split("_")[-1]
    cells = json.loads((HERE / entry["notebook"]).read_text())["cells"]
    for cell in cells:
        if re.search(rf'run\.figure\(.*"{short}"\)', "".join(cell["source"])):
            return cell["metadata"]["mystnb"]["image"]["alt"]
    raise ValueError(f"no cell of {entry['notebook']} draws {name}")
