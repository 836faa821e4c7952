"""One PDF of the whole companion: complete, inside its margins, and leading nowhere outside."""

import json
import os
import re
import subprocess
import sys

import pytest
from browser import NO_BROWSER, ROOT, executable
from bs4 import BeautifulSoup

pytestmark = pytest.mark.slow
sys.path.insert(0, str(ROOT / "notebooks"))
import pdf  # noqa: E402

PAGES = [p for p in (ROOT / "notebooks").iterdir() if p.suffix in (".md", ".ipynb")]


def make(folder, browser):
    """What `make pdf` says, in a folder; the browser of this machine, or none."""
    return subprocess.run(
        [sys.executable, "notebooks/pdf.py", str(folder)],
        cwd=ROOT,
        env=os.environ | {"DSS_BROWSER": browser, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that `make pdf` writes to."""
    path, why = executable()
    if path is None:
        pytest.skip(NO_BROWSER + why)
    folder = tmp_path_factory.mktemp("pdf")
    done = make(folder, path)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def book(made):
    """The page that was printed."""
    return BeautifulSoup((made / "site" / "index.html").read_text(), "html.parser")


@pytest.fixture
def shown(page, made):
    """The same in a browser, as it goes to the printer."""
    return pdf.opened(page, made / "site" / "index.html")


def test_it_is_a_whole_file_with_many_pages(made):
    content = (made / pdf.NAME).read_bytes()
    assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", content)) > 200
    assert b"/Outlines" in content and b"file:///" not in content
    assert not list(made.glob("*.part"))


def test_every_page_of_the_site_is_a_chapter_with_an_entry_in_the_contents(book):
    entries = {link["href"].removeprefix("#"): link.get_text() for link in book.select("nav a")}
    expected = {path.stem for path in PAGES} | {"assignments/README"}
    assert set(entries) == expected
    for name, title in entries.items():
        chapter = book.find(id=name)
        assert "chapter" in chapter["class"] and title in chapter.get_text(), name


def test_every_figure_of_a_manifest_is_in_it(book):
    names = {image["alt"] for image in book.select("img")}
    for size in ("quick", "paper"):
        manifest = json.loads((ROOT / "figures" / size / "manifest.json").read_text())
        assert len(book.select("[id^='gallery--fig']")) >= len(manifest)
    assert all(names)


def test_every_link_leads_to_a_place_of_the_book_or_to_another_host(book):
    ids = [tag["id"] for tag in book.select("[id]")]
    assert len(ids) == len(set(ids))
    for link in book.select("a[href]"):
        href = link["href"]
        assert href.startswith(("http://", "https://")) or href.removeprefix("#") in ids, href
    equations = {a["href"] for a in book.select("a") if a.get_text().startswith("Eq. (4)")}
    assert equations == {"#01_definitions--eq-4"}


def test_nothing_is_left_that_only_a_screen_can_do(book):
    assert not book.select("main :is(button, script, canvas, input, select, form)")
    assert not book.select("details:not([open])")
    assert len(book.find_all(string=re.compile("Interactive: "))) == len(pdf.INTERACTIVE)


def test_formulas_are_set_and_pictures_are_there(shown):
    assert shown.locator("mjx-container").count() > 500
    assert shown.locator("mjx-merror, [data-mjx-error]").count() == 0
    raw = shown.evaluate(
        "[...document.querySelectorAll('main :is(p, li, td, dd)')]"
        ".map(tag => tag.innerText).filter(text => /\\\\\\(|\\$\\$|\\\\tilde/.test(text))"
    )
    assert raw == []
    broken = "[...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
    assert shown.evaluate(broken) == []


def test_nothing_is_wider_than_the_page(shown):
    wide = shown.evaluate(
        """() => {
            const main = document.querySelector("main").getBoundingClientRect();
            return [...document.querySelectorAll("p, pre, table, img, li, dt, h2, h3, h4")]
                .filter(tag => tag.getBoundingClientRect().right > main.right + 2)
                .map(tag => tag.outerHTML.slice(0, 200));
        }"""
    )
    assert wide == []


def test_without_a_browser_it_says_so_and_leaves_what_was_there(tmp_path):
    (tmp_path / pdf.NAME).write_bytes(b"older")
    done = make(tmp_path, "/no/such/browser")
    assert done.returncode == 0 and done.stdout.strip() == pdf.NO_BROWSER
    assert [path.name for path in tmp_path.iterdir()] == [pdf.NAME]
    assert (tmp_path / pdf.NAME).read_bytes() == b"older"


def test_a_browser_that_does_not_start_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    (tmp_path / "site").mkdir()
    (tmp_path / pdf.NAME).write_bytes(b"older")
    (tmp_path / "site" / "index.html").write_text("page")
    monkeypatch.setenv("DSS_BROWSER", "true")  # a program that prints nothing and ends
    monkeypatch.setattr(pdf, "build_main", lambda arguments: 0)
    monkeypatch.setattr(pdf, "as_book", lambda html: html)
    assert pdf.main(str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith(pdf.NO_BROWSER)
    assert (tmp_path / pdf.NAME).read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == [pdf.NAME, "site"]


def test_a_site_that_cannot_be_built_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DSS_BROWSER", "true")
    monkeypatch.setattr(pdf, "build_main", lambda arguments: 2)
    assert pdf.main(str(tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []
