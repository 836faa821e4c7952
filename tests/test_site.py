"""The read-along page in a real browser, and its links, without one."""

import functools
import json
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import ROOT, hear
from bs4 import BeautifulSoup

import dss

PAGES = sorted(
    str(path.relative_to(ROOT / "notebooks").with_suffix(".html"))
    for pattern in ("*.md", "*.ipynb", "assignments/*.md")
    for path in (ROOT / "notebooks").glob(pattern)
)
PAGES += ["genindex.html", "search.html"]
pytestmark = pytest.mark.slow


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def url(site):
    """Address of the built site on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def soup_of(site, name):
    return BeautifulSoup((site / name).read_text(), "html.parser")


def test_every_link_and_anchor_resolves(site):
    anchors = {}
    for path in site.rglob("*.html"):
        soup = BeautifulSoup(path.read_text(), "html.parser")
        anchors[path] = soup, {tag["id"] for tag in soup.find_all(id=True)}
    broken = []
    for path, (soup, own) in anchors.items():
        for tag in soup.find_all("a", href=True):
            url, anchor = urldefrag(unquote(tag["href"]))
            if urlsplit(url).scheme:
                continue
            target = (path.parent / url).resolve() if url else path
            there = anchors.get(target, (None, set()))[1] if url else own
            if not target.exists() or (anchor and anchor not in there):
                broken.append(f"{path.relative_to(site)}: {tag['href']}")
    assert len(anchors) > len(PAGES)
    assert broken == []


def test_nothing_is_asked_of_another_host(site):
    for path in site.rglob("*.html"):
        soup = BeautifulSoup(path.read_text(), "html.parser")
        loaded = [tag.get("src") for tag in soup.find_all(src=True)]
        loaded += [tag.get("href") for tag in soup.find_all("link", href=True)]
        assert [url for url in loaded if urlsplit(url).netloc] == [], path.name


def test_equations_have_the_numbers_of_the_paper(site):
    soup = soup_of(site, "01_definitions.html")
    for number, begin in enumerate((r"\Theta(", r"\gamma(", r"\Gamma(", r"\tilde\Gamma("), start=1):
        (block,) = soup.find_all(id=f"eq-{number}")
        assert block.get_text().strip().removeprefix(r"\[").strip().startswith(begin)
        assert f"\\tag{{{number}}}" in block.get_text()


def test_names_of_equations_lead_to_them(site):
    links = [tag for name in PAGES for tag in soup_of(site, name).select("a[href*='#eq-']")]
    assert len(links) > 30
    assert [tag for tag in links if not tag.text.endswith(f"({tag['href'][-1]})")] == []
    for name in PAGES:
        page = soup_of(site, name)
        for tag in page.select("nav, a, code, pre, .math"):
            tag.decompose()
        assert re.findall(r"Eqs?\.\s\(\d\)", page.body.get_text()) == [], name


@pytest.mark.parametrize("name", PAGES)
def test_no_formula_is_left_as_it_was_written(site, name):
    soup = soup_of(site, name)
    for tag in soup.select("code, pre, script, .math"):
        tag.decompose()
    assert re.findall(r".*(?:\$.*\$|\\[a-zA-Z]+).*", soup.body.get_text()) == []


def test_the_module_is_documented_in_full(site):
    soup = soup_of(site, "api.html")
    assert [name for name in dss.__all__ if not soup.find(id=f"dss.{name}")] == []
    (field,) = [t for t in soup.find(id="dss.t_star").parent.find_all("dt") if t.text == "Paper:"]
    assert "Sec. II.A" in field.find_next("dd").text


@pytest.mark.parametrize("size", ["quick", "paper"])
def test_the_gallery_holds_every_figure_with_what_made_it(site, size):
    soup = soup_of(site, "gallery.html")
    manifest = json.loads((ROOT / f"figures/{size}/manifest.json").read_text())
    text = soup.find("article").get_text()
    for name, entry in manifest.items():
        section = soup.find(id=f"fig-{name.removesuffix('.png')}".replace("_", "-"))
        assert section, name
        assert f"How it was made ({size})" in section.get_text(), name
        pictures = [Path(tag["src"]).name for tag in section.find_all("img")]
        assert all(picture.startswith(name.removesuffix(".png")) for picture in pictures), name
        assert len(set(pictures)) == section.get_text().count("How it was made"), name
        assert entry["git_commit"][:12] in text and entry["sha256"][:16] in text


def typeset(page):
    """Wait until MathJax has done what there is to do."""
    page.evaluate("() => window.MathJax && MathJax.startup && MathJax.startup.promise")


@pytest.fixture(scope="module", params=PAGES)
def opened(browser, url, request):
    """Every page, opened once for the tests that follow."""
    context = browser.new_context(color_scheme="light")
    complaints, page = hear(context), context.new_page()
    page.goto(f"{url}/{request.param}")
    typeset(page)
    yield page
    context.close()
    assert not complaints, "\n".join(complaints)


def test_formulas_and_pictures_of_every_page(opened):
    left = "m => m.querySelector('mjx-container') ? [] : [m.textContent]"
    assert opened.evaluate(f"[...document.querySelectorAll('.math')].flatMap({left})") == []
    assert opened.evaluate("document.querySelectorAll('mjx-merror').length") == 0
    images = opened.evaluate("""[...document.querySelectorAll('article img')].map(i =>
        [i.src, i.getAttribute('width'), i.getAttribute('height'), i.alt, i.naturalWidth])""")
    for source, width, height, alt, natural in images:
        assert width and height and natural, source
        assert len(alt) > 20 and ".png" not in alt, source
    assert opened.evaluate("document.title")


# Colours alone differ between the two; preloading would look for imports in the wrong folder.
RULES = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}


@pytest.mark.parametrize("theme", RULES)
def test_everybody_can_read_every_page(opened, theme):
    opened.add_style_tag(content="* { transition: none !important }")  # contrast of what stays
    opened.emulate_media(color_scheme=theme)
    opened.wait_for_function(f"document.documentElement.dataset.theme == '{theme}'")
    options = {"preload": False, "resultTypes": ["violations"], "elementRef": False}
    found = Axe().run(opened, options=options | RULES[theme])
    assert found.violations_count == 0, found.generate_report()


def test_narrow_screens(opened):
    opened.set_viewport_size({"width": 360, "height": 740})
    typeset(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    # What hangs over the left edge of a box cannot be scrolled to.
    left = "e.firstElementChild.getBoundingClientRect().left - e.getBoundingClientRect().left"
    hang = opened.evaluate(f"[...document.querySelectorAll('div.math')].map(e => {left})")
    assert min(hang, default=0) >= 0


def test_a_reader_finds_equation_4_its_function_and_its_figure(page, site):
    """From the disk, without a server."""
    page.goto((site / "index.html").as_uri())
    page.get_by_role("link", name="the map").click()
    row = page.get_by_role("row").filter(has_text="Sec. II.B, Eq. (4)")
    row.get_by_role("link", name="Eq. (4)").click()
    assert page.url.endswith("01_definitions.html#eq-4")
    typeset(page)
    page.locator("#eq-4").wait_for(state="visible")
    page.go_back()
    row.get_by_role("link", name="losses_along").click()
    assert page.url.endswith("api.html#dss.losses_along")
    page.go_back()
    row.get_by_role("link", name="along the string").click()
    assert "gallery.html" in page.url
    page.locator("img[src*='01_definitions_along']").first.wait_for(state="visible")


def test_search_finds_without_a_server(page, site):
    page.goto((site / "search.html").as_uri() + "?q=Gamma_tilde")
    page.wait_for_selector("ul.search li a")
    assert page.locator("ul.search li a").count() >= 5


@pytest.mark.parametrize(
    "word, anchor",
    [("alpha", "alpha"), ("Gamma", "Gamma"), ("bead", "bead"), ("valley", "valley")]
    + [("certificate", "certificate"), ("L0", "L0"), ("normalized length", "normalized-length")],
)
def test_search_leads_to_the_glossary(page, site, word, anchor):
    page.goto((site / "search.html").as_uri() + f"?q={word}")
    page.wait_for_selector("ul.search li a")
    page.wait_for_function(
        "document.querySelector('.search-summary')?.textContent.includes('found')"
    )
    found = page.eval_on_selector_all("ul.search li a", "links => links.map(a => a.href)")
    assert any(link.endswith(f"glossary.html#term-{anchor}") for link in found[:3]), found[:5]


def test_light_and_dark_by_hand(page, url):
    page.goto(f"{url}/index.html")
    for theme in ("dark", "light", "dark"):
        page.get_by_role("button", name="Color mode").click()
        page.get_by_role("button", name=theme.capitalize(), exact=True).click()
        assert page.evaluate("document.documentElement.dataset.theme") == theme
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_every_citation_leads_to_its_entry(site):
    pages = [(name, soup_of(site, name)) for name in PAGES]
    links = [(name, tag) for name, soup in pages for tag in soup.select("article a[href]")]
    cited = [(name, tag) for name, tag in links if "references.html" in tag["href"]]
    assert len(cited) > 50
    assert [x for x in cited if not re.search("#(ref-|the-paper)", x[1]["href"])] == []
    for field in soup_of(site, "api.html").find_all("dt", string=re.compile("^Source")):
        text = field.find_next("dd")
        years = re.findall(r"\b(?:19|20)\d\d\b", text.get_text())
        assert len(years) == len(text.select("a[href*='#ref-']")), text.get_text()


def test_cards_by_keyboard_and_by_pointer(page, site):
    page.goto((site / "map.html").as_uri())
    link = page.locator("article a[href*='#eq-4']").first
    link.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    page.wait_for_selector("#dss-card mjx-container")
    assert link.get_attribute("aria-describedby") == "dss-card"
    page.keyboard.press("Escape")
    assert page.is_hidden("#dss-card") and link.get_attribute("aria-describedby") is None
    link.hover()
    page.wait_for_selector("#dss-card", state="visible")
    page.hover("#dss-card")
    page.wait_for_timeout(400)
    assert page.is_visible("#dss-card")
    page.mouse.move(0, 0)
    page.wait_for_selector("#dss-card", state="hidden")


@pytest.mark.parametrize("theme", RULES)
@pytest.mark.parametrize("anchor", ["01_definitions.html#eq-4", "#term-", "#ref-"])
def test_everybody_can_read_an_open_card(page, site, anchor, theme):
    page.goto((site / "03_mnist.html").as_uri())
    page.emulate_media(color_scheme=theme)
    page.wait_for_function(f"document.documentElement.dataset.theme == '{theme}'")
    page.add_style_tag(content="* { transition: none !important }")
    page.locator(f"article a[href*='{anchor}']").first.hover()
    page.wait_for_selector("#dss-card", state="visible")
    options = {"preload": False, "resultTypes": ["violations"], "elementRef": False}
    found = Axe().run(page, "#dss-card", options=options | RULES[theme])
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("anchor", ["01_definitions.html#eq-4", "#term-", "#ref-"])
def test_cards_fit_a_narrow_screen(page, site, anchor):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto((site / "03_mnist.html").as_uri())
    link = page.locator(f"article a[href*='{anchor}']").first
    link.hover()
    page.wait_for_selector("#dss-card", state="visible")
    box = page.locator("#dss-card").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] > 20
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
