"""The companion as one PDF: the pages of the site, bound in one document that Chromium prints.

`make pdf` writes build/pdf/dss-companion.pdf.  Where no browser starts, it says so and writes
nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import matplotlib
from bs4 import BeautifulSoup, Tag
from PIL import Image

import dss
from dss.files import write

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = (
    "NO PDF WAS MADE, as no browser started: {why}. Install Chromium (`apt-get install chromium`, "
    "or `playwright install chromium`), or set DSS_BROWSER to the path of a Chromium or Chrome."
)
TITLE = """
<header id="title-page">
<img src="{logo}" alt="">
<h1>The DSS companion</h1>
<p>to C. Daniel Freeman and Joan Bruna,<br>
<em>How nonconvex is it? Exploring neural network geometry through Dynamic String Sampling</em><br>
(draft of July 15, 2016)</p>
<p>{edition}</p>
</header>
"""
STILL = """
<figure class="still"><img src="{name}.png" alt="The page as it begins.">
<figcaption>This part of the page moves, and here is how it begins. <code>make site</code> writes
it to <code>build/site/{name}.html</code>, which opens in a browser.</figcaption></figure>
"""
FACES = {
    "STIXGeneral": "font-family: Book",
    "STIXGeneralBol": "font-family: Book; font-weight: bold",
    "STIXGeneralItalic": "font-family: Book; font-style: italic",
    "STIXGeneralBolIta": "font-family: Book; font-weight: bold; font-style: italic",
    "DejaVuSansMono": "font-family: Code",
    "DejaVuSansMono-Bold": "font-family: Code; font-weight: bold",
    "DejaVuSansMono-Oblique": "font-family: Code; font-style: italic",
}
# What the screen needs, and paper does not.
ON_SCREEN = (
    ".headerlink, .viewcode-link, .viewcode-back, .toctree-wrapper, script, noscript, link, "
    "details.admonition > summary"
)
LAID_OUT = """async () => {
  await MathJax.startup.promise;
  for (const formula of document.querySelectorAll(":is(h1, h2, h3) mjx-container"))
    formula.replaceWith(formula.querySelector("math")); // whose letters come into the outline
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode()));
  for (const block of document.querySelectorAll("table, div.math")) { // wide ones get smaller
    let size = parseFloat(getComputedStyle(block).fontSize), fits;
    while ((fits = block.parentElement.clientWidth / block.scrollWidth) < 1 && size > 6)
      block.style.fontSize = `${size *= 0.99 * fits}px`;
  }
}"""
NUMBERED = """(numbers) => {
  for (const link of document.querySelectorAll(".number"))
    link.textContent = numbers[link.getAttribute("href").slice(1)];
}"""
WIDTH = 672  # of the text, in pixels of which 96 are an inch: A4 without the margins of print.css
PRINTED = {
    "prefer_css_page_size": True,
    "print_background": True,
    "outline": True,
    "tagged": True,
}


def order(site: Path) -> list[tuple[str, list[str]]]:
    """Parts of the site with their pages, as its sidebar has them."""
    nav = BeautifulSoup((site / "index.html").read_text(), "html.parser").select_one("nav.bd-links")
    parts = [("", ["index"])]
    for tag in nav.select(".caption, a"):
        if tag.name == "a":
            parts[-1][1].append(tag["href"].removesuffix(".html"))
        else:
            parts.append((tag.text, []))
    return parts


def chapter(site: Path, name: str, names: list[str]) -> Tag:
    """The text of a page.  Its anchors begin with its name, and its links lead into the book."""
    soup = BeautifulSoup((site / f"{name}.html").read_text(), "html.parser")
    article = soup.find("article")
    article.name, article["id"] = "section", name
    for tag in article.find_all("noscript"):
        still = BeautifulSoup(STILL.format(name=name), "html.parser")
        tag.find_next_sibling("div").replace_with(still)
    for tag in article.select(ON_SCREEN):
        tag.decompose()
    for tag in article.find_all("details"):
        tag["open"] = ""
    anchors = set()
    for tag in article.find_all(id=True):
        anchor = f"{name}:{tag['id']}"
        if anchor in anchors:
            del tag["id"]  # links lead to the first
        else:
            tag["id"] = anchor
            anchors.add(anchor)
    for tag in article.find_all("a", href=True):
        if not urlsplit(tag["href"]).scheme:
            url, anchor = urldefrag(unquote(urljoin(f"{name}.html", tag["href"])))
            if (page := url.removesuffix(".html")) in names:
                tag["href"] = f"#{page}:{anchor}" if anchor else f"#{page}"
            else:
                tag.unwrap()
    for tag in article.find_all("img"):
        if not tag.find_parent(class_="still"):
            path = (site / name).parent.joinpath(unquote(tag["src"])).resolve()
            with Image.open(path) as picture:
                inches = picture.width / picture.info.get("dpi", (96, 96))[0]
            tag["src"], tag["style"] = path.as_uri(), f"width: {inches:.2f}in"
    return article


def contents(parts: list, chapters: dict[str, Tag]) -> str:
    """Titles that lead to their chapters, each with room for the number of its page."""
    rows = []
    for part, names in parts:
        rows.append(f"<h2>{part}</h2>" if part else "")
        for name in names:
            title = chapters[name].find("h1").decode_contents()
            rows.append(
                f'<p><a href="#{name}">{title}</a><a class="number" href="#{name}"></a></p>'
            )
    return f'<nav id="contents"><h1>Contents</h1>{"".join(rows)}</nav>'


def styles(site: Path, chapters: dict[str, Tag]) -> str:
    """Fonts that come with matplotlib, the style of print, and at the foot the chapter's title."""
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    rules = [
        f'@font-face {{ {face}; src: url("{(fonts / name).as_uri()}.ttf"); }}'
        for name, face in FACES.items()
    ]
    for number, chapter_ in enumerate(chapters.values()):
        title = json.dumps(chapter_.find("h1").get_text(), ensure_ascii=False)
        rules.append(f"@page chapter{number} {{ @bottom-left {{ content: {title}; }} }}")
        chapter_["style"] = f"page: chapter{number}"
    sheets = [(site / "_static" / name).read_text() for name in ("pygments.css", "print.css")]
    return "\n".join([*sheets, *rules])


def edition() -> str:
    """Version, and in a clone the commit, marked where files differ from it, and its day."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists() or not shutil.which("git"):
        return f"Version {dss.__version__}"

    def git(*words):
        return subprocess.check_output(["git", "-C", str(here), *words], text=True).strip()

    commit = git("describe", "--always", "--exclude=*", "--dirty= with changes")
    return f"Version {dss.__version__}, commit {commit}, {git('log', '-1', '--format=%cs')}"


def book(site: Path) -> str:
    """All pages of the site as one page."""
    parts = order(site)
    names = [name for _, chapters in parts for name in chapters]
    chapters = {name: chapter(site, name, names) for name in names}
    chapters["index"].find("h1").string = "Introduction"
    head = f"<title>The DSS companion</title><style>{styles(site, chapters)}</style>"
    mathjax = (site / "_static/mathjax/es5/tex-mml-chtml.js").as_uri()
    title = TITLE.format(logo=(site / "_static/string.svg").as_uri(), edition=edition())
    body = "".join([title, contents(parts, chapters), *map(str, chapters.values())])
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">{head}'
        f'<script>MathJax = {{options: {{processHtmlClass: "math", enableMenu: false}}}}</script>'
        f'<script src="{mathjax}"></script></head><body>{body}</body></html>'
    )


@contextmanager
def chromium():
    """A browser without a window; SystemExit(0) with a sentence where none starts."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        print(NO_BROWSER.format(why="Playwright is not installed (`make env` does it)"))
        raise SystemExit(0) from None
    chosen = os.environ.get("DSS_BROWSER")
    found = next(filter(None, map(shutil.which, [chosen] if chosen else BROWSERS)), chosen)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found)
        except Error as error:
            print(NO_BROWSER.format(why=error.message.splitlines()[0]))
            raise SystemExit(0) from None
        yield browser
        browser.close()


def take_stills(browser, site: Path, folder: Path) -> None:
    """Pictures of what moves on the site, as it begins."""
    page = browser.new_page(viewport={"width": 760, "height": 850}, device_scale_factor=2)
    for path in site.glob("*.html"):
        if "<noscript><p>" in path.read_text():
            page.goto(path.as_uri(), wait_until="networkidle")
            place = page.locator("article noscript + div").bounding_box() | {"height": 850}
            page.screenshot(path=folder / f"{path.stem}.png", full_page=True, clip=place)
    page.close()


def leaves(pdf: bytes) -> dict[bytes, int]:
    """Objects of a PDF, as Chromium writes it, that are its pages, with their numbers."""
    pages = set(re.findall(rb"\n(\d+) 0 obj\n<</Type /Page\n", pdf))
    kids = b" ".join(re.findall(rb"/Kids \[(.*?)\]", pdf)).split()
    return {leaf: number for number, leaf in enumerate((k for k in kids if k in pages), start=1)}


def unescaped(name: bytes) -> str:
    return unquote(name.decode().replace("#", "%"))


def page_numbers(pdf: bytes) -> dict[str, int]:
    """On which page each anchor is that a link leads to."""
    (table,) = re.findall(rb"/Dests (\d+) 0 R", pdf)
    (body,) = re.findall(rb"\n" + table + rb" 0 obj\n<<(.*?)>>\nendobj", pdf, re.S)
    numbers = leaves(pdf)
    return {
        unescaped(name): numbers[leaf] for name, leaf in re.findall(rb"/(\S+) \[(\d+) 0 R", body)
    }


def open_book(browser, site: Path, folder: Path):
    """The page of all pages, as wide as on paper: formulas set, pictures loaded, and what is wide
    made smaller.  It is written to the folder of the stills."""
    (folder / "book.html").write_text(book(site), encoding="utf-8")
    page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
    page.emulate_media(media="print")
    page.goto((folder / "book.html").as_uri())
    page.evaluate(LAID_OUT)
    return page


def printed(page) -> bytes:
    """The book, printed twice: the first time says on which pages the chapters begin."""
    numbers = page_numbers(page.pdf(**PRINTED))
    page.evaluate(NUMBERED, numbers)
    pdf = page.pdf(**PRINTED)
    if page_numbers(pdf) != numbers:
        raise RuntimeError("the numbers in the contents moved the chapters to other pages")
    return pdf


def main(site: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with chromium() as browser, TemporaryDirectory() as folder:
        take_stills(browser, site, Path(folder))
        write(out, printed(open_book(browser, site, Path(folder))))
    print(f"open {out}")


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
