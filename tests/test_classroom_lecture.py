"""The slides of the lecture: their number, notes and minutes, and what they must not tell."""

import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from classes import ASSIGNMENTS
from nbconvert import SlidesExporter
from traitlets.config import Config

PATH = ASSIGNMENTS / "lecture" / "lecture.ipynb"


@pytest.fixture(scope="module")
def lecture():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def slides(lecture):
    """The cells of each slide, without those that are not shown."""
    parts = []
    for cell in lecture.cells:
        if kind_of(cell) == "slide":
            parts.append([])
        if kind_of(cell) != "skip":
            parts[-1].append(cell)
    return parts


def kind_of(cell):
    return cell.metadata.slideshow.slide_type


def test_slides_and_minutes(slides):
    assert 10 <= len(slides) <= 12
    notes = [[cell.source for cell in slide if kind_of(cell) == "notes"] for slide in slides]
    assert [len(found) for found in notes] == [1] * len(slides)
    minutes = [re.match(r"\*\*(\d+) minutes", found[0]) for found in notes]
    assert sum(int(found[1]) for found in minutes) == 45


def test_it_was_run_from_top_to_bottom(lecture):
    code = [cell for cell in lecture.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [cell for cell in code for output in cell.outputs if output.output_type == "error"]
    assert not [c for c in lecture.cells if {"papermill", "execution"} & set(c.metadata)]
    assert lecture.metadata.kernelspec.name == "python3"


def test_what_is_shown_is_short_enough_for_a_slide(slides):
    """Looked at in a browser of 1280 x 720; longer lines were cut off there."""
    for slide in slides:
        shown = [cell for cell in slide if kind_of(cell) != "notes"]
        code = [line for c in shown if c.cell_type == "code" for line in c.source.splitlines()]
        prose = [line for c in shown if c.cell_type == "markdown" for line in c.source.splitlines()]
        assert len(code) <= 5 and max(map(len, code), default=0) <= 70
        assert len([line for line in prose if line]) <= 12


def test_pictures_are_described(slides):
    cells = [cell for slide in slides for cell in slide if cell.cell_type == "code"]
    drawn = [c for c in cells if any("image/png" in o.get("data", {}) for o in c.outputs)]
    assert len(drawn) == 5
    assert all(len(cell.metadata.mystnb.image.alt) > 80 for cell in drawn)


def test_it_does_not_tell_what_the_assignments_ask(lecture):
    """Not the valley at a small threshold (2), not the landscapes of 3, no value of alpha (4)."""
    text = "\n".join(cell.source for cell in lecture.cells)
    assert set(re.findall(r'PROBLEMS\["(.+?)"\]', text)) == {"valley"}
    assert "threshold = 0.6" in text and "0.5 * threshold" in text
    assert "alpha=" not in text and "max_depth=" not in text
    for word in ("disconnected", "not found", "proves", "mixes"):
        assert word not in text, word


def test_the_slides_as_a_page(lecture, slides):
    html, _ = SlidesExporter().from_notebook_node(lecture)
    page = BeautifulSoup(html, "html.parser")
    sections = page.select(".slides > section")
    assert len(sections) == len(slides)
    assert all(len(section.select("aside.notes")) == 1 for section in sections)
    assert len(page.select(".slides img")) == 5
    assert "plt.subplots" not in page.select_one(".slides").get_text()


def test_offline_every_script_is_beside_the_page(lecture):
    """All but mermaid's, which no slide uses; the scripts are of the packages that README names."""
    code = (PATH.parent / "offline.py").read_text()
    config = Config()
    exec(code, {"get_config": lambda: config})
    html, _ = SlidesExporter(config=config).from_notebook_node(lecture)
    page = BeautifulSoup(html, "html.parser")
    named = [tag.get("src") or tag.get("href") for tag in page.select("script[src], link[href]")]
    named += re.findall(r"['\"](\S+/(?:reveal|notes)\.js)['\"]", html)
    assert len(named) > 4 and all(name.startswith("node_modules/") for name in named), named
    readme = (ASSIGNMENTS / "README.md").read_text()
    for package in {name.split("/")[1] for name in named}:
        assert f" {package}@" in readme
    assert "mermaid" not in "".join(cell.source for cell in lecture.cells)
