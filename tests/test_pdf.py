"""The companion as one PDF: what is in it, where links lead, and what is said without a browser."""

import json
import os
import re
import subprocess
import sys

import pytest
from browser import ROOT, executable
from bs4 import BeautifulSoup

sys.path.insert(0, str(ROOT / "notebooks"))

import pdf  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def make(site, out, **environment):
    """`notebooks/pdf.py` in a process of its own, with the browser of the tests."""
    chosen = {"DSS_BROWSER": executable()[0] or "none"} | environment
    path = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))
    return subprocess.run(
        [sys.executable, str(ROOT / "notebooks/pdf.py"), str(site), str(out)],
        env=os.environ | chosen | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="module")
def printed(browser, site, tmp_path_factory):
    """Bytes of the PDF."""
    out = tmp_path_factory.mktemp("pdf") / "new" / "companion.pdf"
    done = make(site, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"open {out}\n"
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return out.read_bytes()


@pytest.fixture(scope="module")
def numbers(printed):
    """The page of each anchor."""
    return pdf.page_numbers(printed)


@pytest.fixture(scope="module")
def opened(browser, site, tmp_path_factory):
    """The page that is printed."""
    folder = tmp_path_factory.mktemp("book")
    pdf.take_stills(browser, site, folder)
    return pdf.open_book(browser, site, folder)


@pytest.fixture(scope="module")
def outline(printed):
    """Titles of the outline, and the number of the page that each leads to."""
    pages = pdf.leaves(printed)
    text = r"\((?:[^()\\]|\\.)*\)|<[0-9A-Fa-f]*>"
    found = re.findall(rf"/Title ({text})\n/Dest \[(\d+) 0 R", printed.decode("latin-1"), re.S)
    return [(readable(title), pages[leaf.encode()]) for title, leaf in found]


def readable(title):
    """A string of a PDF, as text."""
    if title[0] == "<":
        return bytes.fromhex(title[1:-1]).decode("utf-16")
    return re.sub(r"\\(.)", r"\1", title[1:-1])


def words(title):
    """Without quotation marks, which Sphinx makes round."""
    return tuple(re.findall(r"\w+", title))


def title_of(notebook):
    cell = "".join(json.loads(notebook.read_text())["cells"][0]["source"])
    return re.search(r"^# (.+)$", cell, re.M)[1]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_in_the_outline_on_the_page_that_the_contents_name(
    outline, numbers, notebook
):
    pages = {words(title): page for title, page in outline}
    assert pages[words(title_of(notebook))] == numbers[notebook.stem] > 2


@pytest.mark.slow
def test_titles_are_in_the_outline_once(outline):
    titles = [title for title, _ in outline]
    assert len(titles) > 8 * len(NOTEBOOKS)
    twice = [title for title in titles if title[: len(title) // 2] * 2 == title and len(title) > 3]
    assert twice == []


@pytest.mark.slow
def test_links_lead_into_the_book_or_to_the_web(printed, numbers):
    assert printed.endswith(b"%%EOF\n") and b"file:" not in printed
    urls = re.findall(rb"/URI \((.*?)\)", printed)
    assert urls and [url for url in urls if not url.startswith(b"https://")] == []
    named = {pdf.unescaped(name) for name in re.findall(rb"/Dest /(\S+)", printed)}
    assert len(named) > 100 and named - set(numbers) == set()


@pytest.mark.slow
def test_all_links_of_the_page_lead_to_one_place(opened, site):
    soup = BeautifulSoup(opened.content(), "html.parser")
    ids = [tag["id"] for tag in soup.select("body [id]")]
    assert sorted(set(ids)) == sorted(ids)
    links = [tag["href"] for tag in soup.select("a[href]") if not tag["href"].startswith("https:")]
    assert [link for link in links if link[0] != "#" or link[1:] not in ids] == []
    equations = [link for link in links if ":eq-" in link]
    assert len(equations) > 30
    assert {link.partition(":")[0] for link in equations} == {"#01_definitions"}
    chapters = [name for _, names in pdf.order(site) for name in names]
    assert chapters == [tag["id"] for tag in soup.select("body > section")]
    assert {path.stem for path in NOTEBOOKS} < set(chapters)
    assert not any("_modules" in link or "_downloads" in link for link in links)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["quick", "paper"])
def test_every_figure_is_there(printed, opened, size):
    shown = opened.evaluate("""[...document.querySelectorAll("#gallery img")].map(
        (image) => [image.src.split("/").at(-1), image.naturalWidth > 0])""")
    manifest = json.loads((ROOT / f"figures/{size}/manifest.json").read_text())
    for name in manifest:
        stem = name.removesuffix(".png")
        assert any(re.fullmatch(rf"{stem}\d*\.png", file) and seen for file, seen in shown), name
    sources = opened.evaluate("new Set([...document.images].map((image) => image.src)).size")
    assert printed.count(b"/Subtype /Image") > 0.9 * sources > len(manifest)


@pytest.mark.slow
def test_formulas_are_set(opened):
    left = "m => m.querySelector('mjx-container, math') ? [] : [m.textContent]"
    formulas = opened.evaluate(f"[...document.querySelectorAll('.math')].map({left})")
    assert len(formulas) > 500 and sum(formulas, []) == []
    assert opened.evaluate("document.querySelectorAll('mjx-merror').length") == 0
    text = opened.evaluate("document.body.innerText")
    assert "$$" not in text and "Math input error" not in text and r"\[" not in text


WIDER = f"""() => [...document.querySelectorAll("body *:not(math, mjx-assistive-mml, math *, "
    + "mjx-assistive-mml *)")].filter((tag) => {{
        const box = tag.getBoundingClientRect();
        return box.width && (box.right > {pdf.WIDTH} + 1 || box.left < -1);
    }}).map((tag) => `${{tag.outerHTML.slice(0, 200)}}`)"""


@pytest.mark.slow
def test_nothing_is_wider_than_the_page(opened):
    assert opened.evaluate("document.body.clientWidth") == pdf.WIDTH
    assert opened.evaluate(WIDER) == []


@pytest.mark.slow
def test_everything_that_is_folded_is_open_and_nothing_is_to_be_pressed(opened):
    folded = "[...document.querySelectorAll('details')].map((tag) => tag.open)"
    assert set(opened.evaluate(folded)) == {True}
    assert opened.evaluate("document.querySelectorAll('button, input, select').length") == 0
    assert "Hide code cell" not in opened.evaluate("document.body.innerText")


@pytest.mark.slow
def test_pages_that_move_are_still_and_named(opened, site):
    moving = {path.stem for path in site.glob("*.html") if "<noscript><p>" in path.read_text()}
    assert moving
    for name in moving:
        text = opened.evaluate(f"document.getElementById('{name}').innerText")
        assert f"build/site/{name}.html" in text


@pytest.fixture
def older(tmp_path):
    """A PDF of another day."""
    (tmp_path / "companion.pdf").write_bytes(b"older")
    return tmp_path / "companion.pdf"


def no_pdf(done, out):
    """What was said where no PDF was made, in one line."""
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == b"older" and list(out.parent.glob("*.pdf")) == [out]
    (line,) = done.stdout.splitlines()
    assert line.startswith("NO PDF WAS MADE") and "apt-get install chromium" in line
    return line


@pytest.mark.parametrize("chosen", ["/no/such/program", "false", "no-such-program"])
def test_without_a_browser_that_starts_it_says_so_and_leaves_the_older_one(older, chosen, tmp_path):
    no_pdf(make(tmp_path, older, DSS_BROWSER=chosen), older)


def test_without_playwright_it_says_so_and_leaves_the_older_one(older, tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "playwright.py").write_text("raise ImportError('taken away')")
    done = make(tmp_path, older, PYTHONPATH=str(tmp_path / "without"))
    assert "Playwright is not installed" in no_pdf(done, older)


def test_without_a_site_it_fails_and_leaves_the_older_one(browser, older, tmp_path):
    done = make(tmp_path / "no_site", older)
    assert done.returncode != 0 and "no_site" in done.stderr
    assert older.read_bytes() == b"older"
