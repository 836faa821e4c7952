"""DSS by hand: the page's search is that of dss, and everybody can use the page."""

import json
import math
import re

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from browser import ROOT, hear

import dss
from dss.problems import PROBLEMS

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "notebooks" / "_static" / "landscape.js"
TASKS = {name: PROBLEMS[name].task(name) for name in ("valley", "unit")}
VALLEY, UNIT = (PROBLEMS[name].ends().tolist() for name in ("valley", "unit"))
# Landscape, endpoints, L0, alpha, max_depth, and how the search ends.
CASES = [
    ("valley", *VALLEY, 0.1, 0.5, 8, "connected"),  # 01_definitions
    ("valley", *VALLEY, 0.1, 1.0, 8, "connected"),
    ("valley", *VALLEY, 0.1, 0.1, 8, "connected"),
    ("valley", *VALLEY, 0.05, 0.9, 8, "connected"),
    ("valley", [0.37, 1.4], [0.41, 1.37], 0.1, 0.5, 8, "connected"),  # no bead is needed
    ("valley", [1.2, 0.5], [1.2, 0.5], 0.1, 0.5, 4, "connected"),  # no distance either
    ("valley", [-2.2, -0.9], [2.3, -1.1], 0.5, 0.3, 5, "connected"),
    ("valley", *VALLEY, 2.7999409, 0.5, 0, "depth exhausted"),  # low on the grid, not at t*
    ("valley", *VALLEY, 0.1, 0.5, 1, "depth exhausted"),
    ("valley", *VALLEY, 0.1, 0.5, 0, "depth exhausted"),
    ("valley", *VALLEY, 0.05, 0.05, 3, "connected"),
    ("valley", *VALLEY, 0.02, 0.5, 8, "endpoint above L0"),
    ("valley", [0.0, 0.0], [1.7, -0.1], 0.1, 0.5, 8, "endpoint above L0"),
    ("unit", *UNIT, 0.3, 0.5, 8, "depth exhausted"),
    ("unit", *UNIT, 1.1, 0.5, 8, "connected"),
    ("unit", *UNIT, 1.1, 1.0, 6, "connected"),
    ("unit", [1.0, 1.0], [-1.0, -1.0], 0.3, 0.5, 8, "depth exhausted"),  # t* at the saddle
    ("unit", [1.5, 0.5], [-0.5, -1.5], 0.3, 0.5, 8, "training stalled"),  # slides into the saddle
    ("unit", [1.5, 1.0], [1.0, 1.0], 0.25 * (1 - 2**-53), 0.5, 0, "connected"),  # but for rounding
]
TRACE = """([name, theta_1, theta_2, options]) => {
    const found = DSS.findString(DSS.LANDSCAPES[name], theta_1, theta_2, options);
    return JSON.stringify({...found, networks: found.networks.map(v => v.theta)});
}"""


@pytest.fixture
def search(page):
    """A blank page with the script alone."""
    page.add_script_tag(path=SCRIPT)
    return page


@pytest.fixture
def play(page, site):
    """The page, opened from the disk."""
    page.goto((site / "landscape.html").as_uri())
    page.wait_for_selector("#dss-string tr")
    return page


def says(page):
    return page.inner_text("#dss-says")


def fill(page, **values):
    for name, value in values.items():
        page.fill(f"#dss-{name}", str(value))


def press_until_end(page, press, limit=40):
    for _ in range(limit):
        press()
        if page.inner_text("#dss-status") != "searching":
            return page.inner_text("#dss-status")
    raise AssertionError(f"no end after {limit} steps: {says(page)}")


def pixel(page, i):
    page.locator("#dss-landscape").scroll_into_view_if_needed()
    box = page.locator(f'#dss-landscape use[data-end="{i}"]').bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def point(page, i):
    return [float(page.input_value(f"#dss-{axis}{i + 1}")) for axis in "xy"]


@pytest.mark.parametrize("name, theta_1, theta_2, L0, alpha, max_depth, status", CASES)
def test_the_string_is_that_of_dss(search, name, theta_1, theta_2, L0, alpha, max_depth, status):
    options = {"L0": L0, "alpha": alpha, "max_depth": max_depth, "n_t": 33, "lr": 0.01}
    ours = json.loads(search.evaluate(TRACE, [name, theta_1, theta_2, options]))
    ends = torch.tensor([[theta_1], [theta_2]], dtype=torch.float64)
    (string,) = dss.find_strings(TASKS[name], *ends, optimizer="sgd", **options)
    assert ours["status"] == string.status == status
    assert ours["n_beads"] == string.n_beads
    assert ours["gradient_steps"] == string.gradient_steps
    networks = torch.tensor(ours["networks"], dtype=torch.float64)
    assert networks.shape == string.thetas.shape
    off = float((networks - string.thetas).abs().max())
    print(f"largest difference: {off:.1e}")
    # Rounding grows at the saddle of the linear unit, level by level.
    assert off < (1e-10 if name == "valley" else 1e-6)
    assert ours["normalized_length"] == pytest.approx(string.normalized_length, abs=1e-6)
    if status == "endpoint above L0":
        assert ours["Gamma_tilde"] is None and math.isnan(string.Gamma_tilde)
    else:
        assert ours["Gamma_tilde"] == pytest.approx(string.Gamma_tilde, abs=1e-9)


def test_parts_of_the_search_are_those_of_dss(search):
    theta_1, theta_2 = (torch.tensor(v, dtype=torch.float64) for v in VALLEY)
    ours = search.evaluate(
        "([a, b]) => { const L = DSS.LANDSCAPES.valley; return [DSS.gamma(L, a, b),"
        " DSS.tStar(L, a, b).t_star, DSS.interpolate(a, b, 0), DSS.interpolate(a, b, 1)]; }",
        VALLEY,
    )
    expected = dss.interpolated_loss(TASKS["valley"], theta_1, theta_2, 33)
    assert ours[0] == pytest.approx(expected.tolist(), abs=1e-14)
    assert ours[1] == pytest.approx(float(dss.t_star(TASKS["valley"], theta_1, theta_2)), abs=1e-10)
    assert ours[2:] == list(VALLEY)


@pytest.mark.parametrize("options, why", [({"max_steps": 3}, "budget spent"), ({"lr": 9}, "not")])
def test_a_descent_says_why_it_ended(search, options, why):
    call = "o => DSS.descend(DSS.LANDSCAPES.unit, [1.5, -1.5], .1, o).status"
    assert search.evaluate(call, options).startswith(why)


@pytest.mark.parametrize("name", TASKS)
def test_gradients_are_those_of_the_losses(search, name):
    points = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(12, 2)
    call = f"points => points.map(v => DSS.LANDSCAPES.{name}.gradient(v))"
    ours = torch.tensor(search.evaluate(call, points.tolist()), dtype=torch.float64)
    torch.testing.assert_close(ours, TASKS[name].gradients(points)[1], rtol=1e-12, atol=1e-12)


def test_by_clicks_alone(play):
    assert "has loss 0.0406" in says(play) and "0.0376" in says(play)
    play.click("#dss-step")
    assert re.fullmatch(r"Depth 0, test; .*: 1\. t\* = 0\.506, loss 2\.8 > L0 = 0\.1\.", says(play))
    assert play.locator("#dss-landscape .dss-high").count() == 1
    assert play.locator("#dss-landscape use[href='#dss-star']").count() == 1
    play.click("#dss-step")
    assert says(play).startswith("Depth 1: t* = 0.506, loss 2.8 > L0 = 0.1; beads inserted: 1")
    play.click("#dss-step")
    assert "descent to α L0 = 0.05: reached after 96 steps" in says(play)
    assert press_until_end(play, lambda: play.click("#dss-step")) == "connected"
    assert says(play) == "Connected at depth 3: no segment is above L0 = 0.1."
    assert play.inner_text("#dss-n_beads") == "4"
    assert play.locator("#dss-string tr").count() == 6
    for figure in ("landscape", "gamma"):
        assert play.locator(f"#dss-{figure} .dss-low").count() == 5
        assert play.locator(f"#dss-{figure} .dss-high").count() == 0
    play.click("#dss-reset")
    assert play.inner_text("#dss-status") == "searching"
    assert play.locator("#dss-landscape .dss-untested").count() == 1


def drawn(play, figure):
    """Paths by class, names and stars of a figure, in the data's numbers, which its ticks give."""
    across, up, paths, names, stars = play.evaluate(
        """id => {
        const all = kind => [...document.getElementById(id).querySelectorAll(kind)];
        const at = (e, axis) => +e.getAttribute(axis);
        const isNumber = e => e.textContent == +e.textContent;
        const ticks = (kind, axis, off) => all(`text.${kind}`).filter(isNumber)
            .map(e => [+e.textContent, at(e, axis) - off]);
        return [ticks("dss-middle", "x", 0), ticks("dss-end", "y", 4), all("path").map(e =>
            [e.className.baseVal, e.getAttribute("d").slice(1).split("L").map(s => s.split(","))]),
            all("text.dss-name").map(e => [at(e, "x"), at(e, "y") + 11]),
            all("use[href='#dss-star']").map(e => [at(e, "x"), at(e, "y")])]; }""",
        f"dss-{figure}",
    )
    if figure == "gamma":
        up = [(math.log10(v), p) for v, p in up]
    scales = [(a, p, (b - a) / (q - p)) for (a, p), *_, (b, q) in (across, up)]

    def numbers(points):
        return [[a + (float(v) - p) * k for v, (a, p, k) in zip(point, scales, strict=True)]
                for point in points]  # fmt: skip

    lines = {"name": numbers(names)}
    for kind, points in paths:
        lines.setdefault(kind.removeprefix("dss-"), []).append(numbers(points))
    return lines, numbers(stars)


def near(numbers, expected, within=0.01):
    expected = torch.as_tensor(expected).double()
    torch.testing.assert_close(torch.tensor(numbers).double(), expected, rtol=0, atol=within)


def test_the_pictures_and_the_table_show_the_string_of_dss(play):
    task, ends = TASKS["valley"], torch.tensor(VALLEY, dtype=torch.float64)
    play.click("#dss-step")
    t_star = float(dss.t_star(task, *ends))
    star = dss.interpolate(*ends, t_star)
    near(drawn(play, "landscape")[1], [star.tolist()])
    near(drawn(play, "gamma")[1], [[t_star, math.log10(task.losses(star[None]))]])
    assert play.inner_text("#dss-string tr:first-child td:last-child") == "2.8 > L0"
    for depth in (1, 8):
        fill(play, max_depth=depth)
        press_until_end(play, lambda: play.click("#dss-step"))
        settings = {"alpha": 0.5, "max_depth": depth, "n_t": 33, "optimizer": "sgd", "lr": 0.01}
        (string,) = dss.find_strings(task, *ends[:, None], 0.1, **settings)
        segments = torch.stack([string.thetas[:-1], string.thetas[1:]], dim=1)
        position, gamma = dss.losses_along(task, string.thetas)
        is_low = gamma.amax(dim=1) <= 0.1
        lines = drawn(play, "landscape")[0]
        gammas = drawn(play, "gamma")[0]
        near(lines["name"], ends)
        curves = torch.stack([position, gamma.clamp(min=0.01).log10()], dim=-1)
        for kind, rows in (("low", is_low), ("high", ~is_low)):
            assert len(lines.get(kind, [])) == len(gammas.get(kind, [])) == rows.sum()
            if rows.any():
                near(lines[kind], segments[rows])
                near(gammas[kind], curves[rows])
        near(gammas["edge"], [[[0, -1], [1, -1]]])
        near(gammas["target"], [[[0, math.log10(0.05)], [1, math.log10(0.05)]]])
        cells = [row.split("\t") for row in play.inner_text("#dss-string").splitlines()]
        near([[float(v) for v in row[1:3]] for row in cells], string.thetas, 1e-3)
        near([float(row[3]) for row in cells], task.losses(string.thetas), 1e-3)
        assert max(int(row[4]) for row in cells) == string.depth
        assert ["≤" in row[5] for row in cells[:-1]] == is_low.tolist()


def test_a_failure_says_that_it_proves_nothing(play):
    play.select_option("#dss-choice", "unit")
    assert press_until_end(play, lambda: play.click("#dss-step")) == "depth exhausted"
    assert "does not say that there is no path" in says(play)
    assert play.locator("#dss-landscape .dss-high").count() == 1
    assert play.inner_text("#dss-Gamma_tilde") == "1"
    fill(play, x1=1.5, y1=0.5, x2=-0.5, y2=-1.5)
    assert press_until_end(play, lambda: play.click("#dss-step")) == "training stalled"
    fill(play, x1=0)
    assert press_until_end(play, lambda: play.click("#dss-step")) == "endpoint above L0"
    assert "θ₁ has loss 1" in says(play)


def test_by_keyboard_alone(play):
    def focused():
        return play.evaluate("document.activeElement.id")

    def tab_to(name):
        for _ in range(200):
            if focused() == name:
                return
            play.keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {name}")

    tab_to("dss-landscape")
    outline = play.evaluate("getComputedStyle(document.activeElement).outline")
    assert "solid" in outline and "3px" in outline
    play.keyboard.press("ArrowUp")
    play.keyboard.press("ArrowRight")
    assert point(play, 0) == pytest.approx([-1.75, -0.2])
    play.keyboard.press("2")
    play.keyboard.press("Shift+ArrowLeft")
    play.keyboard.press("ArrowDown")
    assert point(play, 1) == pytest.approx([1.45, -0.15])
    assert play.is_checked("#dss-move2")
    assert focused() == "dss-landscape"
    for _ in range(20):  # not out of the window
        play.keyboard.press("Shift+ArrowRight")
    assert point(play, 1)[0] == 2.4
    play.keyboard.press("1")
    before = point(play, 0)
    play.evaluate("addEventListener('keydown', e => { window.taken = e.defaultPrevented; })")
    play.keyboard.press("Alt+ArrowUp")
    assert point(play, 0) == before and not play.evaluate("taken")
    play.keyboard.press("ArrowUp")
    assert point(play, 0) != before and play.evaluate("taken")
    play.reload()
    tab_to("dss-step")
    assert press_until_end(play, lambda: play.keyboard.press("Enter")) == "connected"


def test_a_point_is_dragged(play):
    x, y = pixel(play, 0)
    play.mouse.move(x + 3, y)
    play.mouse.down()
    play.mouse.move(x + 60, y - 40, steps=5)
    play.mouse.move(x + 80, y - 60)
    assert pixel(play, 0) == pytest.approx((x + 80, y - 60), abs=2)  # on the way, not by a click
    play.mouse.up()
    assert pixel(play, 0) == pytest.approx((x + 80, y - 60), abs=2)
    assert point(play, 0)[0] > -1.4 and point(play, 0)[1] > 0
    moved = point(play, 0)
    play.mouse.move(x, y)  # let go
    assert point(play, 0) == moved and point(play, 1) == list(VALLEY[1])
    play.check("#dss-move2")
    play.mouse.click(x, y)
    assert pixel(play, 1) == pytest.approx((x, y), abs=2)
    play.mouse.click(*pixel(play, 0))  # chooses it, and leaves it where it is
    assert play.is_checked("#dss-move1") and point(play, 0) == moved
    play.mouse.down()
    play.mouse.move(0, 0)  # at once outside, and let go there
    play.mouse.up()
    play.mouse.move(x, y)
    assert point(play, 0) == moved


def test_by_touch(browser, site):
    context = browser.new_context(has_touch=True, viewport={"width": 360, "height": 740})
    play = context.new_page()
    play.goto((site / "landscape.html").as_uri())
    x, y = pixel(play, 0)
    play.touchscreen.tap(x + 50, y - 30)
    assert pixel(play, 0) == pytest.approx((x + 50, y - 30), abs=2)
    grip = "getComputedStyle(document.querySelector('[data-end]')).touchAction"
    assert play.evaluate(grip) == "none"
    assert play.evaluate(grip.replace("[data-end]", "#dss-landscape")) != "none"
    play.tap("#dss-step")
    assert says(play).startswith("Endpoint above L0 = 0.1: θ₁ has loss")
    context.close()


def shaded(play):
    """The share of the canvas that has the colour of the level set."""
    return play.evaluate("""() => {
        const canvas = document.querySelector(".dss-field canvas");
        const pen = new OffscreenCanvas(canvas.width, canvas.height)
            .getContext("2d", { willReadFrequently: true });
        pen.drawImage(canvas, 0, 0);
        pen.fillStyle = getComputedStyle(canvas).getPropertyValue("--dss-shade");
        const colour = pen.fillStyle.match(/[0-9a-f]{2}/g).map(v => parseInt(v, 16));
        const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
        let count = 0;
        for (let i = 0; i < data.length; i += 4) count += colour.every((v, k) => data[i + k] === v);
        return 4 * count / data.length; }""")


def test_the_shaded_set_is_that_of_the_loss(play):
    """Against the share of the picture where dss finds the loss at most L0."""
    box = play.evaluate("(() => { const c = document.querySelector('.dss-field canvas'); return "
                        "[c.clientWidth, c.clientHeight]; })()")  # fmt: skip
    plot = (box[0] - 44 - 14) * (box[1] - 30 - 40) / (box[0] * box[1])  # margins of the axes
    axes = torch.linspace(-2.4, 2.4, 401), torch.linspace(-1.8, 2, 401)
    points = torch.cartesian_prod(*axes).double()
    for name, L0 in (("valley", 0.1), ("valley", 3), ("unit", 0.3)):
        play.select_option("#dss-choice", name)
        fill(play, L0=L0)
        expected = plot * (TASKS[name].losses(points) <= L0).double().mean().item()
        assert shaded(play) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_follows_the_theme(play, theme):
    play.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    play.wait_for_timeout(100)
    assert shaded(play) > 0.05


def test_choosing_a_landscape_sets_everything_back(play):
    fill(play, L0=3, alpha=1, max_depth=1, x1=0)
    play.select_option("#dss-choice", "unit")
    values = [float(play.input_value(f"#dss-{name}")) for name in ("L0", "alpha", "max_depth")]
    assert values == [0.3, 0.5, 8] and point(play, 0) == UNIT[0]


def test_L0_changes_the_picture_and_the_search(play):
    small = shaded(play)
    play.click("#dss-step")
    fill(play, L0=3)
    assert play.inner_text("#dss-status") == "searching"
    assert shaded(play) > 2 * small
    play.click("#dss-step")
    assert says(play) == "Connected at depth 0: no segment is above L0 = 3."
    assert play.inner_text("#dss-normalized_length") == "1"


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("L0", "0", "L0 is 0; a number from 0.01 to 10 is needed."),
        ("alpha", "1.5", "α is 1.5; a number from 0.05 to 1 is needed."),
        ("max_depth", "9", "max depth is 9; a whole number from 0 to 8 is needed."),
        ("max_depth", "2.5", "max depth is 2.5; a whole number from 0 to 8 is needed."),
        ("x1", "7", "θ₁⁽¹⁾ is 7; a number from -2.4 to 2.4 is needed."),
        ("y2", "", "θ₂⁽²⁾ is no number; a number from -1.8 to 2 is needed."),
    ],
)
def test_inputs_out_of_range_are_refused_in_words(play, name, value, message):
    fill(play, **{name: value})
    assert says(play) == message
    assert play.get_attribute(f"#dss-{name}", "aria-invalid") == "true"
    for button in ("step", "run"):
        play.click(f"#dss-{button}")
        assert says(play) == message
    assert play.locator("#dss-landscape .dss-untested").count() == 1, "nothing was searched"
    play.select_option("#dss-choice", "unit")
    play.select_option("#dss-choice", "valley")
    if name in ("x1", "y2", "L0"):
        assert play.locator("[aria-invalid=true]").count() == 0


def test_run_goes_on_by_itself_and_pauses(play):
    play.click("#dss-run")
    assert play.inner_text("#dss-run") == "Pause"
    play.wait_for_function("document.getElementById('dss-says').textContent.startsWith('Depth 1')")
    play.click("#dss-run")
    before = says(play)
    play.wait_for_timeout(1500)
    assert says(play) == before and play.inner_text("#dss-run") == "Run"


def test_motion_is_reduced_where_it_is_asked_for(play):
    def animations():
        for _ in range(3):
            play.click("#dss-step")
        assert "descent" in says(play)
        return play.evaluate("document.getAnimations().length")

    assert animations() > 0
    play.emulate_media(reduced_motion="reduce")
    play.click("#dss-reset")
    assert animations() == 0
    x, y = (play.locator(".dss-bead").bounding_box()[k] for k in "xy")
    play.click("#dss-step")
    dots = play.locator("#dss-landscape use[href='#dss-dot']").all()
    assert any(math.dist((b["x"], b["y"]), (x, y)) < 2 for b in (d.bounding_box() for d in dots))
    play.click("#dss-reset")
    play.click("#dss-run")
    play.wait_for_function("document.getElementById('dss-status').textContent === 'connected'",
                           timeout=2000)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nobody_is_shut_out(play, scheme, width):
    play.emulate_media(color_scheme=scheme)
    play.set_viewport_size({"width": width, "height": 800})
    assert play.evaluate("document.documentElement.dataset.theme") == scheme
    for _ in range(5):
        play.click("#dss-step")
    assert play.evaluate("document.documentElement.scrollWidth") <= width
    scroll = "(e => e.scrollWidth - e.clientWidth)(document.querySelector('.dss-scroll'))"
    assert play.evaluate(scroll) <= 0
    # axe would fetch the style sheets a second time, which a page from the disk may not.
    found = Axe().run(play, context="article", options={"preload": False})
    assert found.violations_count == 0, found.generate_report()
    assert play.locator("#dss-landscape[tabindex='0'][aria-label]").count() == 1
    assert play.locator("#dss-says[role='status'][aria-live='polite']").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_stand_out_from_what_is_behind_them(play, scheme):
    """WCAG 1.4.11, which axe does not measure: 3:1 for what has to be seen."""
    play.emulate_media(color_scheme=scheme)
    names = ["shade", "high", "low", "edge", "ink", "grey", "back"]
    colours = play.evaluate(
        """names => { const made = document.createElement("i"); document.querySelector(".dss-play")
        .append(made); return names.map(name => { made.style.color = `var(--dss-${name})`;
        return getComputedStyle(made).color.match(/[\\d.]+/g).slice(0, 3).map(Number); }); }""",
        names,
    )
    light = dict(zip(names, map(luminance, colours), strict=True))
    for line in ("high", "low", "edge", "ink"):
        for behind in ("back", "shade"):
            high, low = sorted([light[line], light[behind]], reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3, (line, behind)


def luminance(rgb):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
              for v in (c / 255 for c in rgb)]  # fmt: skip
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_picture_is_drawn_anew_when_its_size_changes(play):
    wide = play.get_attribute("#dss-landscape", "viewBox")
    play.set_viewport_size({"width": 500, "height": 800})
    play.wait_for_function(f"document.getElementById('dss-landscape').getAttribute('viewBox')"
                           f" !== '{wide}'")  # fmt: skip
    box = play.locator("#dss-landscape").bounding_box()
    drawn = [float(v) for v in play.get_attribute("#dss-landscape", "viewBox").split()]
    assert drawn == pytest.approx([0, 0, box["width"], box["height"]], abs=1)


def test_complaints_of_a_page_are_heard(browser, site):
    heard = hear(context := browser.new_context())
    opened = context.new_page()
    opened.goto((site / "landscape.html").as_uri())
    assert heard == []
    opened.evaluate("console.warn('ouch'); setTimeout(() => { throw Error('worse') })")
    opened.evaluate("fetch('https://example.org/').catch(() => 0)")
    opened.evaluate(
        "new Promise(done => Object.assign(new Image(), {src: 'no.png', onerror: done}))"
    )
    context.close()
    for words in ("ouch", "worse", "another host: https://example.org/", "no.png"):
        assert any(words in complaint for complaint in heard), words


def test_the_script_is_short_and_alone():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 300
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"\b(import|require|fetch|eval|XMLHttpRequest)\b", text)
