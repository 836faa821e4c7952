"""A walk along a string: the page shows what dss computes, and everybody can use it."""

import re

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from browser import ROOT

import dss
from dss.runs.examples import PAGE, WALKED
from dss.runs.walk import N_STATIONS, first_layer, script, walk

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "notebooks" / "_static" / "walk.js"
LAST = N_STATIONS - 1


@pytest.fixture(scope="module")
def found():
    """The task and the string that the page walks along."""
    return dss.examples.load(WALKED)


@pytest.fixture
def walked(page, site):
    """The page, opened from the disk."""
    page.goto((site / "walk.html").as_uri())
    page.wait_for_selector("#dss-walk-digits li")
    return page


def go(page, i):
    call = (
        "v => { const s = document.getElementById('dss-walk-slider'); s.value = v; s.oninput(); }"
    )
    page.evaluate(call, i)


def at(page):
    return int(page.input_value("#dss-walk-slider"))


def points(string, i):
    """The networks at a station, on the string and on the straight line."""
    both = string.thetas, string.thetas[[0, -1]]
    return torch.cat([dss.theta.points_along(v, torch.tensor([i / LAST])) for v in both])


def shown(value):
    return f"{float(f'{value:.3g}'):g}"


@pytest.mark.parametrize("i", [0, 13, 38, 50, 99, 100])
def test_the_numbers_are_those_of_dss(walked, found, i):
    task, string = found
    go(walked, i)
    x, y = task.splits["test"]
    thetas = points(string, i)
    losses, classes = task.losses(thetas), task.outputs(thetas, x).argmax(dim=2)
    at_first = task.outputs(string.thetas[:1], x).argmax(dim=2)
    for k, path in enumerate(("string", "straight")):
        cells = walked.eval_on_selector_all(
            f"#dss-walk-{path} td", "cells => cells.map(c => c.textContent)"
        )
        # Another machine may round the last digit, or a digit's class, otherwise.
        assert float(cells[0]) == pytest.approx(float(losses[k]), rel=6e-3)
        error = float((classes[k] != y).double().mean())
        assert float(cells[1].split()[0]) == pytest.approx(100 * error, abs=0.21)
        n_changed = int((classes[k] != at_first[0]).sum())
        assert abs(int(cells[2].split()[0]) - n_changed) <= 2
        assert cells[2].endswith(" of 1,000")
    says = walked.inner_text("#dss-walk-says")
    assert f"Position {shown(i / LAST)}: " in says
    place = {0: "θ₁", 13: "between θ₁ and bead 1", 38: "between bead 1 and bead 2, t = 0.506"}
    assert place.get(i, "θ₂" if i > 75 else "bead") in says
    text = walked.get_attribute("#dss-walk-slider", "aria-valuetext")
    assert text.startswith(f"{shown(i / LAST)}, ")


@pytest.mark.parametrize("i", [0, 27, 50, 100])
def test_the_filters_are_those_of_dss(walked, found, i):
    task, string = found
    call = """([p, straight]) => { const data = DSS_WALKING.read(DSS_WALK);
        return [data.largest, [...DSS_WALKING.filters(data, p, straight)]]; }"""
    expected = first_layer(task, points(string, i)).flatten(1)
    for row, is_straight in zip(expected, (False, True), strict=True):
        largest, ours = walked.evaluate(call, [i / LAST, is_straight])
        assert float((torch.tensor(ours) - row).abs().max()) < 0.51 * largest / 127


def test_the_digits_are_those_whose_class_changes(walked, found):
    task, string = found
    x, y = task.splits["test"]
    stations = torch.linspace(0, 1, N_STATIONS, dtype=torch.float64)
    read = task.outputs(dss.theta.points_along(string.thetas, stations), x).argmax(dim=2)
    n_digits = int((read != read[0]).any(dim=0).sum())
    items = walked.locator("#dss-walk-digits li")
    assert abs(items.count() - n_digits) <= 2
    assert walked.locator("#dss-walk-digits li[data-string='dss-changed']").count() == 0
    for i in (38, 100):
        go(walked, i)
        framed = walked.locator("#dss-walk-digits li[data-string='dss-changed']").count()
        cell = walked.inner_text("#dss-walk-string td:nth-of-type(3)")
        assert framed == int(cell.split()[0])
        assert abs(framed - int((read[i] != read[0]).sum())) <= 2
    labels = [re.search(r"is (\d)", t)[1] for t in items.all_inner_texts()]
    assert set(labels) <= {str(int(v)) for v in y}


def test_the_data_are_those_of_the_string(found):
    """Where a class is a matter of rounding another machine may write another digit."""
    made, there = script(walk(*found)).decode(), PAGE.read_text()
    assert abs(len(made) - len(there)) < 0.05 * len(there)
    for name in ("weights", "networks", "scale", "largest"):
        value = rf'"{name}":("[^"]*"|\[[^\]]*\]|[\d.]+)'
        assert re.search(value, made)[1] == re.search(value, there)[1]


def test_by_keyboard_alone(walked):
    for _ in range(200):
        if walked.evaluate("document.activeElement.id") == "dss-walk-slider":
            break
        walked.keyboard.press("Tab")
    assert "3px" in walked.evaluate("getComputedStyle(document.activeElement).outline")
    steps = {"ArrowRight": 1, "ArrowUp": 2, "ArrowLeft": 1, "PageUp": 11, "PageDown": 1}
    for key, expected in (steps | {"End": LAST, "Home": 0}).items():
        walked.keyboard.press(key)
        assert at(walked) == expected, key
        assert f"Position {shown(expected / LAST)}:" in walked.inner_text("#dss-walk-says")
    walked.keyboard.press("Shift+Tab")
    walked.keyboard.press("Enter")
    assert walked.inner_text("#dss-walk-play") == "Pause"


def test_play_goes_on_and_pauses(walked):
    walked.click("#dss-walk-play")
    assert walked.get_attribute("#dss-walk-says", "aria-live") == "off"
    walked.wait_for_function("document.getElementById('dss-walk-slider').value >= 3")
    walked.click("#dss-walk-play")
    before = at(walked)
    walked.wait_for_timeout(500)
    assert at(walked) == before and walked.inner_text("#dss-walk-play") == "Play"
    assert walked.get_attribute("#dss-walk-says", "aria-live") == "polite"
    go(walked, LAST - 1)
    walked.click("#dss-walk-play")
    walked.wait_for_function("document.getElementById('dss-walk-play').textContent === 'Play'")
    assert at(walked) == LAST


def test_motion_is_reduced_where_it_is_asked_for(walked):
    walked.emulate_media(reduced_motion="reduce")
    walked.click("#dss-walk-play")
    walked.wait_for_timeout(800)
    assert at(walked) == 0
    walked.wait_for_function("document.getElementById('dss-walk-slider').value > 0")
    assert at(walked) == 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nobody_is_shut_out(walked, scheme, width):
    walked.add_style_tag(content="* { transition: none !important }")  # contrast of what stays
    walked.emulate_media(color_scheme=scheme)
    walked.set_viewport_size({"width": width, "height": 800})
    walked.wait_for_function(f"document.documentElement.dataset.theme == '{scheme}'")
    go(walked, 38)
    assert walked.evaluate("document.documentElement.scrollWidth") <= width
    beside = "(e => e.scrollWidth - e.clientWidth)(document.getElementById('dss-walk-digits'))"
    assert walked.evaluate(beside) <= 0, "no digit lies beside the list"
    found = Axe().run(walked, context="article", options={"preload": False})
    assert found.violations_count == 0, found.generate_report()
    drawn = """() => { const c = document.getElementById('dss-walk-string-filters');
        return c.getContext('2d').getImageData(0, 0, 1, 1).data[0]; }"""
    walked.wait_for_function(f"v => ({drawn})() {'>' if scheme == 'light' else '<'} 128")


def test_the_script_is_short_and_alone():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 300
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"\b(import|require|fetch|eval|XMLHttpRequest)\b", text)
    assert "http" not in PAGE.read_text()
