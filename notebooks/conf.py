"""The read-along page: Sphinx over the committed, executed notebooks, which it never runs.

`make site` writes it to build/site/; it opens from the disk and asks no other host for anything.
"""

import copy
import json
import re
import shutil
from dataclasses import is_dataclass
from pathlib import Path

import mathjax
from bs4 import BeautifulSoup
from docutils import nodes
from PIL import Image
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

import dss

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
FIGURES = HERE.parent / "figures"
SIZES = ("quick", "paper")

project = "The DSS companion"
copyright = "the authors of the companion, MIT licence"
version = release = dss.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["assignments/source", "assignments/lecture", "params", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

default_role = "code"  # docstrings put names in single backticks
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "The DSS companion"
html_logo = html_favicon = "_static/string.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
templates_path = ["_templates"]
html_sidebars = {"**": ["brand.html", "search-button-field.html", "sbt-sidebar-nav.html"]}
html_css_files = ["companion.css"]
html_js_files = [(name, {"defer": "defer"}) for name in ("card_texts.js", "cards.js")]
html_assets_policy = "always"  # a card may hold a formula where the page has none
html_show_sphinx = False
html_show_search_summary = False  # it fetches pages, which a browser refuses from the disk
html_theme_options = {
    "logo": {"text": "The DSS companion"},
    "navbar_persistent": [],
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": {"map": [], "**": ["page-toc"]},  # its table is wide
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
    """Where prose or a docstring names Eq. (4), or Eqs. (1) and (4), it leads to the equation."""

    default_priority = 900
    target = "01_definitions"
    named = re.compile(r"(Eqs?\. \(\d\)(?:(?:, | and | to )\(\d\))*)")

    def run(self, **kwargs) -> None:
        page = self.app.builder.get_relative_uri(self.env.docname, self.target)
        for text in list(self.document.findall(nodes.Text)):
            parts = self.named.split(text.astext())
            if len(parts) == 1 or is_apart(text):
                continue
            pieces = [nodes.Text(parts[0])]
            for names, rest in zip(parts[1::2], parts[2::2], strict=True):
                for piece in re.split(r"((?:Eqs?\. )?\(\d\))", names):
                    uri = f"{page}#eq-{piece[-2:-1]}"
                    link = nodes.reference(piece, piece, internal=True, refuri=uri)
                    pieces.append(link if piece.endswith(")") else nodes.Text(piece))
                pieces.append(nodes.Text(rest))
            text.parent.replace(text, pieces)


# The name by which references.md has each entry, "Garipov et al. 2018", and its anchor.
ENTRIES = {
    name: nodes.make_id(f"ref-{name}")
    for name in re.findall(r"^\*\*(.+ \d{4})\.\*\* ", (HERE / "references.md").read_text(), re.M)
}


class ReferenceAnchors(SphinxTransform):
    """Every entry of the references answers to its anchor."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        if self.env.docname == "references":
            for name in self.document.findall(nodes.strong):
                anchor = ENTRIES[name.astext().removesuffix(".")]
                name.parent["ids"].append(anchor)
                self.document.ids[anchor] = name.parent


class ReferenceLinks(SphinxPostTransform):
    """What is cited leads to its own entry: by a link to the page, by name in a docstring."""

    default_priority = 900
    by_authors = {name[:-5]: anchor for name, anchor in ENTRIES.items()}
    cited = re.compile(rf"\b({'|'.join(by_authors)})((?:, [^;()]*)?\s\(?\d{{4}}\b\)?)")

    def run(self, **kwargs) -> None:
        page = self.app.builder.get_relative_uri(self.env.docname, "references")
        for link in self.document.findall(nodes.reference):
            if link.get("refuri") == page and (says := link.astext()) != "references":
                if says not in ENTRIES:
                    logger.warning("references.md has no entry for %r", says, location=link)
                link["refuri"] += f"#{ENTRIES.get(says)}"
        for text in list(self.document.findall(nodes.Text)):
            if self.env.docname != "references" and not is_apart(text):
                replace_parts(text, self.cited, lambda m: f"{page}#{self.by_authors[m[1]]}")


# Terms of the glossary, `code` or words, and words that elsewhere than on these pages mean
# something else.
GLOSSARY = (HERE / "glossary.md").read_text().partition("```{glossary}")[2]
TERMS = re.findall(r"^[^\s`].*|^`[^`]+`$", GLOSSARY, re.M)
ONLY_ON = {
    "aligned": ["12_symmetry", "results"],
    "bar": ["11_topology"],
    "barrier": ["03_mnist", "12_symmetry", "results", "assignments/README"],
    "height": ["11_topology", "13_saddles", "14_sgd"],
    "index": ["13_saddles", "14_sgd", "results"],
    "pass": ["01_definitions", "11_topology", "13_saddles", "14_sgd", "landscape", "map"],
    "piece": ["01_definitions", "11_topology", "map", "results"],
    "position": ["02_quad", "03_mnist"],
    "slack": ["10_later_paper"],
}


class GlossaryLinks(SphinxPostTransform):
    """The first mention of a term on a page, where nothing is folded, leads to the glossary."""

    default_priority = 950
    spelled = {w: t for t in TERMS if "`" not in t for w in (t, t[0].upper() + t[1:])}
    words = re.compile(
        r"(?<![\w-])(?<!Dynamic )(?<!ully )"
        rf"({'|'.join(sorted(spelled, key=len)[::-1])})(?:e?s)?(?![\w-])"
    )

    def run(self, **kwargs) -> None:
        name = self.env.docname
        if self.app.builder.name != "html" or name in ("glossary", "references"):
            return
        page = self.app.builder.get_relative_uri(name, "glossary")
        objects = self.env.domains.standard_domain.objects
        uris = {
            term: f"{page}#{objects['term', term.strip('`')][1]}"
            for term in TERMS
            if name in ONLY_ON.get(term, [name])
        }
        for node in unfolded(self.document):
            if isinstance(node, nodes.literal):
                uri = uris.pop(f"`{node.astext()}`", None) or uris.pop(node.astext(), None)
                if uri:
                    link = nodes.reference("", "", internal=True, refuri=uri, classes=["dss-term"])
                    node.replace_self(link)
                    link += node
            else:
                replace_parts(
                    node, self.words, lambda m: uris.pop(self.spelled[m[1]], None), ["dss-term"]
                )


class ShortAnchors(SphinxPostTransform):
    """`dss.theta.flatten` answers to `dss.flatten` too, which pages of source link to."""

    default_priority = 900

    def run(self, **kwargs) -> None:
        signatures = list(self.document.findall(addnodes.desc_signature))
        taken = {
            *self.document.ids,
            *(name for signature in signatures for name in signature["ids"]),
        }
        for signature in signatures:
            for name in list(signature["ids"]):
                short = ".".join(["dss", *name.split(".")[2:]])
                if name.count(".") > 1 and short not in taken:
                    signature["ids"].append(short)
                    taken.add(short)


class CellOutputs(SphinxPostTransform):
    """Every picture has its size, so that a page does not jump; tables have no empty headers."""

    default_priority = 900

    def run(self, **kwargs) -> None:
        for image in self.document.findall(nodes.image):
            path = Path(self.app.srcdir, image["uri"])
            if path.suffix == ".png" and not image.get("width"):
                with Image.open(path) as picture:
                    image["width"], image["height"] = map(str, picture.size)
        for raw in self.document.findall(nodes.raw):
            if "<th></th>" in raw.astext():  # pandas, above the index
                html = raw.astext().replace("<th></th>", "<td></td>")
                raw.replace_self(nodes.raw("", html, format="html"))


APART = (nodes.reference, nodes.literal, nodes.literal_block, nodes.title, nodes.math)


def is_apart(node) -> bool:
    """In a place that gets no link."""
    while node := node.parent:
        if isinstance(node, APART):
            return True
    return False


def unfolded(document) -> list:
    """Texts and names of code that may become a link, outside of <details>."""
    depth, found = 0, []
    for node in document.findall(lambda n: isinstance(n, nodes.Text | nodes.literal | nodes.raw)):
        if isinstance(node, nodes.raw):
            depth += len(re.findall("<details", node.astext()))
            depth -= len(re.findall("</details", node.astext()))
        elif depth == 0 and not is_apart(node) and not isinstance(node.parent, nodes.raw):
            found.append(node)
    return found


def replace_parts(text: nodes.Text, pattern: re.Pattern, uri_of, classes=()) -> None:
    """Make links of what a pattern finds in a text, where `uri_of` the match gives an address."""
    pieces, end = [], 0
    for found in pattern.finditer(text.astext()):
        if uri := uri_of(found):
            before = text.astext()[end : found.start()]
            link = nodes.reference(
                found[0], found[0], internal=True, refuri=uri, classes=list(classes)
            )
            pieces, end = [*pieces, nodes.Text(before), link], found.end()
    if pieces:
        text.parent.replace(text, [*pieces, nodes.Text(text.astext()[end:])])


def alternative_text(entry: dict, name: str) -> str:
    """What the cell that draws a figure says of it."""
    cells = json.loads((HERE / entry["notebook"]).read_text())["cells"]
    for cell in cells:
        drawn = re.search(r'run\.figure\(.*"(\w+)",?\s*\)', "".join(cell["source"]), re.S)
        if drawn and name.endswith(f"_{drawn[1]}"):
            return cell["metadata"]["mystnb"]["image"]["alt"]
    raise ValueError(f"no cell of {entry['notebook']} draws {name}")


def gallery() -> str:
    """Every figure of the manifests, by notebook, in MyST."""
    manifests = {size: json.loads((FIGURES / size / "manifest.json").read_text()) for size in SIZES}
    parts, notebook = [], ""
    order = sorted(manifests["quick"], key=lambda name: manifests["quick"][name]["notebook"])
    for name in order:
        stem = Path(name).stem
        entries = {size: found[name] for size, found in manifests.items() if name in found}
        if notebook != (notebook := entries["quick"]["notebook"]):
            parts.append(f"## [{Path(notebook).stem}]({notebook})")
        parts.append(f"(fig-{stem})=\n### {stem}")
        for size, entry in entries.items():
            alt = alternative_text(entry, stem)
            caption = alt if size == "quick" else "The same at paper size."
            parts.append(
                f":::{{figure}} ../figures/{size}/{name}\n:alt: {alt}\n\n{caption}\n:::\n"
                + _made_by(size, entry)
            )
    return "\n\n".join(parts)


def _made_by(size: str, entry: dict) -> str:
    """Parameters, environment and tables of a figure, folded."""
    parameters = ", ".join(f"`{k}={v!r}`" for k, v in entry["parameters"].items())
    tables = ", ".join(f"{{download}}`{t} <../figures/{size}/{t}>`" for t in entry["tables"])
    read = ", ".join(f"`{t}`" for t in entry.get("tables_read", {}))
    rows = {
        "parameters": parameters,
        "numbers": tables or "none",
        **({"numbers of others": read} if read else {}),
        "made": f"{entry['started'][:10]} on {entry['cpu']}, {entry['device']}, "
        f"{entry['threads']} thread(s), in {entry['seconds']:.0f} s (of the last attempt, where a "
        "stopped run went on)",
        "with": f"`dss` {entry['dss']} at commit `{(entry['git_commit'] or 'unknown')[:12]}`, "
        f"torch {entry['torch']}, Python {entry['python']}",
        "sha256": f"`{entry['sha256'][:16]}…`, of the lock `{entry['lock_sha256'][:16]}…`",
    }
    lines = "\n".join(f"- {k}: {v}" for k, v in rows.items())
    return f"<details><summary>How it was made ({size})</summary>\n\n{lines}\n\n</details>"


def as_fields(app, what, name, obj, options, lines: list[str]) -> None:
    """`Paper:`, `Source:` and `Differs:` of a docstring become fields beside its parameters."""
    for i, line in enumerate(lines):
        lines[i] = re.sub(r"^(Paper|Source|Differs): ", r":\1: ", line)


def hide_fields(app, what, name, obj, options, signature, returns) -> tuple[str, None] | None:
    """The fields of a dataclass are listed below it; a signature would repeat them."""
    return ("", None) if is_dataclass(obj) else None


def read_source(app, docname: str, source: list[str]) -> None:
    if docname == "gallery":
        source[0] = source[0].replace("<!-- figures -->", gallery())


def serve_mathjax(app, exception) -> None:
    """MathJax from the installed wheel, so that no page asks another host for it."""
    if exception is None:
        es5 = Path(mathjax.__file__).parent / "static" / "mathjax" / "es5"
        shutil.copytree(es5, Path(app.outdir, "_static", "mathjax", "es5"), dirs_exist_ok=True)


# Where the site has what cards show: a page, and what a card of each anchor is made from.
CARDS = {
    "01_definitions": ("[id^=eq-]", lambda tag: tag),
    "glossary": ("dt[id^=term-]", lambda tag: tag.find_next_sibling("dd")),
    "references": ("[id^=ref-]", lambda tag: tag),
}


def write_cards(app, exception) -> None:
    """What links to equations, terms and references show: a script, as no page may read another."""
    if exception or app.builder.name != "html":
        return
    cards = {}
    for name, (anchored, body_of) in CARDS.items():
        soup = BeautifulSoup(Path(app.outdir, f"{name}.html").read_text(), "html.parser")
        for tag in soup.select(anchored):
            anchor, body = tag["id"], copy.copy(body_of(tag))
            del body["id"]
            for link in body.select("a"):  # a card is read, and leads nowhere
                link.unwrap()
            whole = name == "01_definitions"  # MathJax looks for its class
            cards[f"{name}.html#{anchor}"] = str(body) if whole else body.decode_contents()
    script = f"globalThis.DSS_CARDS = {json.dumps(cards, ensure_ascii=False)};\n"
    Path(app.outdir, "_static", "card_texts.js").write_text(script, encoding="utf-8")


def setup(app) -> dict:
    app.add_transform(NumberedEquations)
    app.add_transform(ReferenceAnchors)
    app.add_post_transform(EquationLinks)
    app.add_post_transform(ReferenceLinks)
    app.add_post_transform(GlossaryLinks)
    app.add_post_transform(ShortAnchors)
    app.add_post_transform(CellOutputs)
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", as_fields)
    app.connect("autodoc-process-signature", hide_fields)
    app.connect("build-finished", serve_mathjax)
    app.connect("build-finished", write_cards)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
