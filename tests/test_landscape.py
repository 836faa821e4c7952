"""DSS by hand: the page's search is that of dss, and everybody can use the page."""

import json
import math
import re

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from browser import ROOT, hear

import dss
from dss.geometry.noise import cloud
from dss.problems import PROBLEMS

pytestmark = pytest.mark.slow

SCRIPT, CLOUD = (ROOT / "notebooks" / "_static" / f"{name}.js" for name in ("landscape", "cloud"))
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
    """A blank page with the scripts alone."""
    for script in (SCRIPT, CLOUD):
        page.add_script_tag(path=script)
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
    numbers, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (numbers, expected))
    torch.testing.assert_close(numbers, expected, rtol=0, atol=within)


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


def focused(play):
    return play.evaluate("document.activeElement.id")


def tab_to(play, name):
    for _ in range(200):
        if focused(play) == name:
            return
        play.keyboard.press("Tab")
    raise AssertionError(f"Tab does not lead to {name}")


def test_by_keyboard_alone(play):
    tab_to(play, "dss-landscape")
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
    assert focused(play) == "dss-landscape"
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
    tab_to(play, "dss-step")
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
    play.wait_for_function(f"document.documentElement.dataset.theme == '{scheme}'")
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
    names = ["shade", "high", "low", "edge", "cloud", "ink", "grey", "back"]
    colours = play.evaluate(
        """names => { const made = document.createElement("i"); document.querySelector(".dss-play")
        .append(made); return names.map(name => { made.style.color = `var(--dss-${name})`;
        return getComputedStyle(made).color.match(/[\\d.]+/g).slice(0, 3).map(Number); }); }""",
        names,
    )
    light = dict(zip(names, map(luminance, colours), strict=True))
    for line in ("high", "low", "edge", "cloud", "ink"):
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


def cloud_facts(play):
    """What the page says of the cloud, by name."""
    names = "steps mean rest low low_rest across reached inside".split()
    return {name: play.inner_text(f"#dss-cloud-{name}") for name in names}


def set_temperature(play, value):
    """By the keyboard, from where the slider is."""
    play.focus("#dss-cloud-T")
    play.keyboard.press("Home")
    for _ in range(round(value / 0.01)):
        play.keyboard.press("ArrowRight")
    assert float(play.input_value("#dss-cloud-T")) == pytest.approx(value)


def test_a_step_of_the_cloud_is_that_of_notebook_14(search):
    """With the noise given, for both landscapes: theta - lr * gradient + sqrt(2 lr T) * xi."""
    xi = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = torch.linspace(-1.5, 1.5, 10, dtype=torch.float64).reshape(5, 2)
    call = """([name, points, xi]) => { let k = 0; const cloud = { points, reached: [], steps: 0,
        ends: [[0, 0], [1, 1]], draw: () => xi[k++] };
        return DSS.cloud.move(cloud, DSS.LANDSCAPES[name], 0.3, 1).points; }"""
    for name, task in TASKS.items():
        ours = search.evaluate(call, [name, points.tolist(), xi.tolist()])
        expected = points - 0.01 * task.gradients(points)[1] + (2 * 0.01 * 0.3) ** 0.5 * xi
        near(ours, expected, 1e-12)


def test_without_temperature_the_cloud_is_that_of_dss(search):
    call = """name => DSS.cloud.move(DSS.cloud.gather(DSS.LANDSCAPES[name].ends, 0),
        DSS.LANDSCAPES[name], 0, 300).points"""
    for name, task in TASKS.items():
        start = PROBLEMS[name].ends()[:1]
        near(search.evaluate(call, name), cloud(task, start, 0, 0.01, 300).thetas.expand(400, 2))


def test_the_noise_is_normal(search):
    draws = "seed => Array.from({length: 50000}, DSS.cloud.normals(seed))"
    xi = torch.tensor(search.evaluate(draws, 0), dtype=torch.float64)
    moments = [float((xi**k).mean()) for k in (1, 2, 3, 4)]
    errors = [math.sqrt(v / xi.numel()) for v in (1, 2, 15, 96)]
    off = [abs(m - e) / s for m, e, s in zip(moments, (0, 1, 0, 3), errors, strict=True)]
    assert max(off) < 4, moments
    assert abs(float((xi[:, 0] * xi[:, 1]).mean())) < 4 / math.sqrt(len(xi))
    assert abs(float((xi[1:, 0] * xi[:-1, 0]).mean())) < 4 / math.sqrt(len(xi))
    assert search.evaluate(draws, 1) != xi.tolist()


def test_the_cloud_spreads_as_that_of_dss(search):
    """Means and variances after 600 steps at T = 0.1, within their sampling errors."""
    call = """name => DSS.cloud.move(DSS.cloud.gather(DSS.LANDSCAPES[name].ends, 3),
        DSS.LANDSCAPES[name], 0.1, 600).points"""
    for name, task in TASKS.items():
        ours = torch.tensor(search.evaluate(call, name), dtype=torch.float64)
        theirs = cloud(task, PROBLEMS[name].ends()[:1].expand(400, 2), 0.1, 0.01, 600).thetas
        centre = theirs.mean(0)
        for a, b in ((ours, theirs), ((ours - centre) ** 2, (theirs - centre) ** 2)):
            error = ((a.var(0) + b.var(0)) / 400).sqrt()
            assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all(), name


def test_a_cloud_in_the_valley_rests_at_a_mean_loss_of_T(search):
    """Looked at 12 times after 20,000 steps; x forgets where it was in about as many."""
    call = """T => { const L = DSS.LANDSCAPES.valley, found = [];
        const cloud = DSS.cloud.move(DSS.cloud.gather(L.ends, 1), L, T, 20000);
        for (let k = 0; k < 12; k++) found.push(DSS.cloud.measure(
            DSS.cloud.move(cloud, L, T, 2000), L, 0.1));
        return found.map(f => [f.mean, f.error, f.low]); }"""
    for T in (0.05, 0.1):
        mean, error, low = torch.tensor(search.evaluate(call, T)).mean(0).tolist()
        print(f"T {T}: mean loss {mean:.4f}, low {low:.3f} ({1 - math.exp(-0.1 / T):.3f})")
        assert abs(mean - T) < 4 * error / math.sqrt(3) + 0.02 * T
        assert abs(low - (1 - math.exp(-0.1 / T))) < 0.03


def test_without_temperature_points_only_descend(play):
    losses = []
    for _ in range(12):
        play.click("#dss-cloud-step")
        facts = cloud_facts(play)
        mean, error = map(float, facts["mean"].split(" ± "))
        assert error < 1e-12 and facts["rest"] == facts["low_rest"] == "noise is off"
        losses.append(mean)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] < 0.0406
    assert facts["steps"] == "240"


def test_the_cloud_by_keyboard_alone(play):
    assert play.inner_text("#dss-cloud-says") == "400 points at θ₁."
    tab_to(play, "dss-cloud-T")
    for _ in range(5):
        play.keyboard.press("ArrowRight")
    assert play.inner_text("#dss-cloud-T-is") == "0.05"
    tab_to(play, "dss-cloud-step")
    for _ in range(10):
        play.keyboard.press("Enter")
    first = cloud_facts(play)
    assert first["steps"] == "200" and first["rest"] == "0.05" and first["low_rest"] == "86 %"
    assert play.inner_text("#dss-cloud-says").startswith("After 200 steps: mean loss 0.0")
    tab_to(play, "dss-cloud-reset")
    play.keyboard.press("Enter")
    assert cloud_facts(play)["steps"] == "0"
    play.focus("#dss-cloud-step")
    for _ in range(10):
        play.keyboard.press("Enter")
    assert cloud_facts(play) == first, "the same seed gives the same numbers"
    fill(play, **{"cloud-seed": 7})
    for _ in range(10):
        play.click("#dss-cloud-step")
    other = cloud_facts(play)
    assert other["steps"] == "200" and other["mean"] != first["mean"]
    assert play.inner_text("#dss-status") == "searching", "the search has not moved"


def test_a_seed_out_of_range_is_refused_in_words(play):
    fill(play, **{"cloud-seed": "1.5"})
    for button in ("step", "run"):
        play.click(f"#dss-cloud-{button}")
        says = play.inner_text("#dss-cloud-says")
        assert says == "seed is 1.5; a whole number from 0 to 9999 is needed."
    assert cloud_facts(play)["steps"] == "0"
    assert play.get_attribute("#dss-cloud-seed", "aria-invalid") == "true"


def test_the_cloud_begins_anew_where_its_landscape_does(play):
    play.click("#dss-cloud-step")
    play.click("#dss-step")
    fill(play, L0=0.05)
    assert cloud_facts(play)["steps"] == "20", "neither the search nor L0 moves it"
    fill(play, x1=-1.5)
    assert cloud_facts(play)["steps"] == "0"
    play.click("#dss-cloud-step")
    play.select_option("#dss-choice", "unit")
    set_temperature(play, 0.3)
    facts = cloud_facts(play)
    assert facts["steps"] == "0" and facts["rest"] == facts["low_rest"] == "never at rest"


def test_the_cloud_runs_pauses_and_comes_to_the_other_end(play):
    set_temperature(play, 0.2)
    assert coloured(play) == 0
    play.click("#dss-cloud-run")
    assert play.inner_text("#dss-cloud-run") == "Pause"
    play.wait_for_function("+document.getElementById('dss-cloud-steps').textContent > 400")
    play.click("#dss-cloud-run")
    before = cloud_facts(play)
    assert int(before["steps"]) % 20 == 0 and coloured(play) > 0.002
    play.wait_for_timeout(300)
    assert cloud_facts(play) == before and play.inner_text("#dss-cloud-run") == "Run"
    play.emulate_media(reduced_motion="reduce")
    play.click("#dss-cloud-run")  # at once, and no picture on the way
    after = cloud_facts(play)
    assert int(after["steps"]) == int(before["steps"]) + 2000
    assert play.inner_text("#dss-cloud-run") == "Run"
    assert float(after["reached"].split()[0]) > 0 < float(after["across"].split()[0])


def test_a_cloud_that_leaves_for_good_is_named(play):
    play.evaluate("() => { DSS.LANDSCAPES.valley.gradient = ([x, y]) => [-1e300 * x, y]; }")
    for _ in range(2):
        play.click("#dss-cloud-step")
    says = play.inner_text("#dss-cloud-says")
    assert says == "A point is no longer finite: a step of 0.01 is too large where it was."


def coloured(play):
    """The share of the second canvas that is not transparent."""
    return play.evaluate("""() => {
        const canvas = document.querySelectorAll(".dss-field canvas")[1];
        const { width, height } = canvas, pen = new OffscreenCanvas(width, height)
            .getContext("2d", { willReadFrequently: true });
        pen.drawImage(canvas, 0, 0);
        const { data } = pen.getImageData(0, 0, width, height);
        return data.filter((v, k) => k % 4 === 3 && v > 0).length / (width * height); }""")


@pytest.mark.parametrize("script", [SCRIPT, CLOUD], ids=lambda path: path.name)
def test_the_script_is_short_and_alone(script):
    text = script.read_text()
    assert len(text.splitlines()) < 300
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"\b(import|require|fetch|eval|XMLHttpRequest)\b", text)
