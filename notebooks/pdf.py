"""One PDF of the whole companion: all pages of the site on one, printed by Chromium.

    python notebooks/pdf.py build/pdf

`make pdf` calls it.  Chromium or Chrome is taken from the path, or from DSS_BROWSER.  Where there
is none, nothing is written and one sentence says so.
"""

import os
import shutil
import sys
from datetime import date
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Error, Page, sync_playwright
from sphinx.cmd.build import build_main

import dss
from dss.provenance import environment

HERE = Path(__file__).resolve().parent
NAME = "dss-companion.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = (
    "No PDF was written: it is printed by a browser, and there is none here. Install Chromium or "
    "Chrome, or set DSS_BROWSER to the path of one."
)
# Parts of a page that mean nothing on paper.
SCREEN_ONLY = (
    "a.headerlink, a.viewcode-link, button, script, noscript, link, style, .toctree-wrapper > p"
)
INTERACTIVE = {".dss-play": "landscape", ".dss-walk": "walk"}
FOOTER = (
    '<div style="width:100%; font: 8px sans-serif; color: #555; text-align: center">'
    '<span class="pageNumber"></span></div>'
)
MARGINS = {"top": "18mm", "bottom": "18mm", "left": "17mm", "right": "17mm"}
# Waits for formulas and pictures, and shrinks what is wider than the page.
SETTLE = """async () => {
    await MathJax.startup.promise;
    await Promise.all([...document.images].map(picture => picture.decode().catch(() => null)));
    const width = document.querySelector("main").clientWidth;
    const excess = tag => Math.max(
        tag.getBoundingClientRect().width / width, tag.scrollWidth / Math.max(1, tag.clientWidth));
    for (const tag of document.querySelectorAll("table, mjx-container[display], .cell_output pre"))
        for (let zoom = 1, k = 0; k < 4 && excess(tag) > 1; k++)
            tag.style.zoom = zoom = Math.max(0.4, zoom / excess(tag));
}"""


def main(folder: str) -> int:
    browser = find_browser()
    if browser is None:
        print(NO_BROWSER)
        return 0
    site, target = Path(folder, "site"), Path(folder, NAME)
    arguments = ["-W", "--keep-going", "-q", "-b", "singlehtml", str(HERE), str(site)]
    if status := build_main(arguments):
        return status
    page = site / "index.html"
    page.write_text(as_book(page.read_text(encoding="utf-8")), encoding="utf-8")
    try:
        printed = print_page(page, browser)
    except Error as error:
        print(f"{NO_BROWSER} {browser} says: {error.message.splitlines()[0]}")
        return 0
    partial = target.with_suffix(".part")
    partial.write_bytes(printed)
    partial.replace(target)
    print(f"open {target}")
    return 0


def find_browser() -> str | None:
    """Path of a Chromium, or None."""
    if chosen := os.environ.get("DSS_BROWSER"):
        return shutil.which(chosen)
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def as_book(html: str) -> str:
    """The page of all pages as a book: a title, contents, and chapters whose links lead inside."""
    whole = BeautifulSoup(html, "html.parser")
    article = whole.select_one("article.bd-article")
    for tag in article.select(SCREEN_ONLY):
        tag.decompose()
    for selector, page in INTERACTIVE.items():
        for tag in article.select(selector):
            tag.replace_with(paragraph(whole, f"(Interactive: {page}.html of the site.)"))
    for tag in article.select("details"):
        tag["open"] = ""
    for tag in article.select("details.hide summary"):
        tag.string = "Solution"
    chapters = {"index": article.find("section", recursive=False)}
    for mark in article.select("span[id^=document-]"):
        chapters[mark["id"].removeprefix("document-")] = mark.find_next_sibling("section").extract()
        mark.decompose()
    for name, chapter in chapters.items():
        chapter["class"] = ["chapter"]
        own_ids(chapter, name)
    known = {tag["id"] for chapter in chapters.values() for tag in chapter.select("[id]")}
    known |= set(chapters)
    for chapter in chapters.values():
        lead_inside(chapter, known)
    main = whole.new_tag("main")
    main.extend([title_page(whole), contents(whole, chapters), *chapters.values()])
    body = whole.body
    scripts = [tag.extract() for tag in whole.select("script") if is_for_formulas(tag)]
    body.clear()
    body.extend([main, *scripts])
    for tag in whole.head.select("script, link:not([href*=pygments])"):
        tag.decompose()
    style = whole.new_tag("link", rel="stylesheet", href="_static/book.css")
    whole.head.append(style)
    return str(whole)


def is_for_formulas(tag: Tag) -> bool:
    return "mathjax" in (tag.get("src") or "").lower() or "MathJax" in (tag.string or "")


def paragraph(whole: BeautifulSoup, text: str, kind: str = "p") -> Tag:
    tag = whole.new_tag(kind)
    tag.string = text
    return tag


def own_ids(chapter: Tag, name: str) -> None:
    """Ids of a chapter begin with its name: several pages have a section `check`."""
    for tag in chapter.select("[id]"):
        tag["id"] = f"{name}--{tag['id']}"
    chapter["id"] = name
    for link in chapter.select("a[href^='#']"):
        page, _, anchor = link["href"].removeprefix("#").rpartition("#")
        if page.startswith("document-"):
            link["href"] = f"#{page.removeprefix('document-')}--{anchor}"
        elif anchor.startswith("document-"):
            link["href"] = f"#{anchor.removeprefix('document-')}"
        else:
            link["href"] = f"#{name}--{anchor}"


def lead_inside(chapter: Tag, known: set[str]) -> None:
    """Keep links to places of the book and to other hosts; the text of all others stays."""
    for link in chapter.select("a"):
        href = link.get("href", "")
        if not href.startswith(("http://", "https://")) and href.removeprefix("#") not in known:
            link.unwrap()


def title_page(whole: BeautifulSoup) -> Tag:
    commit = (environment()["git_commit"] or "unknown")[:12]
    page = whole.new_tag("header")
    page.extend(
        [
            paragraph(whole, "The DSS companion", "h1"),
            paragraph(
                whole,
                "beside C. Daniel Freeman and Joan Bruna, How nonconvex is it? Exploring neural "
                "network geometry through Dynamic String Sampling (draft of July 15, 2016)",
            ),
            paragraph(whole, f"Version {dss.__version__}, commit {commit}, {date.today()}"),
        ]
    )
    return page


def contents(whole: BeautifulSoup, chapters: dict[str, Tag]) -> Tag:
    """The titles of the chapters, each a link."""
    page = whole.new_tag("nav")
    page.append(paragraph(whole, "Contents", "h1"))
    entries = whole.new_tag("ul")
    for name, chapter in chapters.items():
        entry, link = whole.new_tag("li"), whole.new_tag("a", href=f"#{name}")
        link.string = chapter.find(["h1", "h2", "h3"]).get_text()
        entry.append(link)
        entries.append(entry)
    page.append(entries)
    return page


def print_page(path: Path, browser: str) -> bytes:
    """The PDF of a page on this disk, with an outline and numbered pages."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened(started.new_page(), path)
        printed = page.pdf(
            format="A4",
            margin=MARGINS,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
            outline=True,
            tagged=True,
        )
        started.close()
    return printed


def opened(page: Page, path: Path) -> Page:
    """The page as it will be printed, 176 mm wide, with formulas set and pictures loaded."""
    page.set_viewport_size({"width": 665, "height": 900})
    page.emulate_media(media="print", color_scheme="light")
    page.goto(path.resolve().as_uri())
    page.evaluate(SETTLE)
    return page


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
