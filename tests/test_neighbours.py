"""The rivals of DSS: exact landscapes, what they count, and what they refuse."""

import math
import re
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch

import dss
from dss.geometry import neighbours
from dss.geometry.attempt import pair_of
from dss.geometry.neighbours import (
    Curve,
    _bernstein,
    _hat,
    _points,
    _slope_across,
    _slope_at_uniform_t,
    auto_neb,
    bezier,
    layer_wise,
    one_bend,
)
from dss.problems import PROBLEMS
from dss.status import OF_STRINGS, Status
from dss.task import Landscape

METHODS = [bezier, one_bend, auto_neb]
FAST = {"max_steps": 1500, "patience": 300}
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda f: f.__name__)
plain_or_averaged = pytest.mark.parametrize("averaged", [False, True], ids=["plain", "averaged"])


@dataclass(frozen=True, eq=False)
class Counting(Landscape):
    """A landscape that counts networks whose gradient or metric is taken."""

    n: dict = field(default_factory=lambda: {"gradients": 0, "losses": 0})

    def _gradients(self, thetas, batch, generator):
        self.n["gradients"] += len(thetas)
        return super()._gradients(thetas, batch, generator)

    def _losses(self, thetas, split):
        self.n["losses"] += len(thetas)
        return super()._losses(thetas, split)


def counting(name):
    return Counting(**vars(PROBLEMS[name].task(name)))


def networks_of(path):
    """The networks of a string, or those at 1,000 steps of a curve."""
    return path.polygon(1000) if isinstance(path, Curve) else path.thetas


def highest_on(task, path):
    """The largest loss on a grid ten times finer than that of the search."""
    if isinstance(path, Curve):
        return float(task.losses(path.polygon(1000)).max())
    return dss.Gamma_tilde(task, path.thetas, 321)


@every_method
@plain_or_averaged
def test_where_the_straight_line_is_low_nothing_is_done(linear, seeded, method, averaged):
    ends = dss.train_to(linear, linear.init(2, seeded(1)), 0.01, lr=0.05).thetas
    path = method(linear, *ends, 0.5, averaged=averaged)
    assert path.connected and path.gradient_steps == 0 and path.detail == ""
    assert path.normalized_length == pytest.approx(1, abs=1e-12)
    if isinstance(path, dss.String):
        assert torch.equal(path.thetas, ends)
    else:
        torch.testing.assert_close(path.controls[1], ends.mean(dim=0), rtol=0, atol=1e-12)


@every_method
@plain_or_averaged
def test_around_the_hole_of_a_ring(method, averaged, seeded):
    task, ends = PROBLEMS["ring"].task("ring"), PROBLEMS["ring"].ends()
    for L0 in [0.3] if method is one_bend else [0.3, 0.05]:
        path = method(task, *ends, L0, averaged=averaged, generator=seeded(2), **FAST)
        assert path.connected, path.detail
        assert path.gradient_steps > 0
        assert highest_on(task, path) <= L0 * 1.001
        assert path.Gamma_tilde <= L0
        # Every path at or below L0 is longer than half of the hole's rim, of radius r.
        r = math.sqrt(1 - math.sqrt(L0))
        assert path.normalized_length > (2 * math.sqrt(1 - r**2) + 2 * r * math.asin(r)) / 2 - 1e-3


@plain_or_averaged
def test_one_bend_cannot_go_round_below_its_pass(averaged):
    """Two segments of the least maximum, (sqrt 2 - 1)^2 = .1716: tangents from beyond the rim."""
    task, ends = PROBLEMS["ring"].task("ring"), PROBLEMS["ring"].ends()
    path = one_bend(task, *ends, 0.17, averaged=averaged, **FAST)
    assert path.status is Status.TRAINING_STALLED
    assert (math.sqrt(2) - 1) ** 2 <= path.Gamma_tilde + 1e-3
    assert path.Gamma_tilde < 0.25, "the best bend is kept"


@every_method
@plain_or_averaged
@pytest.mark.parametrize("name", ["unit", "plateau"])
def test_where_no_path_exists_the_status_says_so(name, method, averaged):
    task, ends = PROBLEMS[name].task(name), PROBLEMS[name].ends()
    path = method(task, *ends, 0.5, averaged=averaged, **FAST)
    assert not path.connected
    assert path.Gamma_tilde > 0.95
    ending = r"stalled|budget spent"
    assert re.match(
        rf"({ending}) after \d+ gradients: the largest loss is .*, L0 is 0.5", path.detail
    )
    if isinstance(path, dss.String):
        assert path.status in OF_STRINGS
    assert torch.equal(networks_of(path)[[0, -1]], ends)
    if isinstance(path, Curve):
        assert path.Gamma_tilde == float(task.losses(path.polygon(100)).max())
    else:
        assert path.Gamma_tilde == dss.Gamma_tilde(task, path.thetas)


@every_method
def test_a_budget_ends_a_search_and_is_not_exceeded(method, ring):
    ends = PROBLEMS["ring"].ends()
    for most in (0, 1, 25):
        path = method(ring, *ends, 0.05, max_steps=most, lr=1e-3)
        assert path.detail.startswith("budget spent after")
        assert path.gradient_steps == (most if method is not auto_neb else most // 3 * 3)
        assert path.Gamma_tilde == pytest.approx(1, abs=0.05)


@every_method
def test_a_rate_that_explodes_is_a_status_and_leaves_a_finite_path(method, ring):
    path = method(ring, *PROBLEMS["ring"].ends(), 0.05, lr=1e3, max_steps=500)
    assert not path.connected and path.detail.startswith("not finite after")
    assert networks_of(path).isfinite().all()


@every_method
@plain_or_averaged
@pytest.mark.parametrize("name, L0", [("ring", 0.3), ("unit", 0.5), ("valley", 0.1)])
def test_gradients_and_forward_passes_are_those_that_were_made(name, L0, method, averaged):
    task, ends = counting(name), PROBLEMS[name].ends()
    path = method(task, *ends, L0, averaged=averaged, max_steps=200)
    assert path.gradient_steps == task.n["gradients"] > 0
    assert path.forward_passes == task.n["losses"] > 0


@every_method
@plain_or_averaged
def test_two_runs_are_one_to_the_last_bit_and_ends_stay(
    quad64, quad_pairs, seeded, method, averaged
):
    ends = quad_pairs.theta_1[3], quad_pairs.theta_2[3]
    options = {"averaged": averaged, "optimizer": "adam", "lr": 1e-2, "max_steps": 60}
    runs = [method(quad64, *ends, 0.003, generator=seeded(4), **options) for _ in range(2)]
    first, second = map(networks_of, runs)
    assert torch.equal(first, second)
    assert runs[0].forward_passes == runs[1].forward_passes
    assert torch.equal(first[[0, -1]], torch.stack(ends))
    other = method(quad64, *ends, 0.003, generator=seeded(5), **options)
    assert other.gradient_steps > 0 and not torch.equal(networks_of(other), first)


@every_method
@plain_or_averaged
def test_quad(method, averaged, seeded):
    task = dss.quad()
    ends = dss.train_endpoints(task, 4, [0.01], seeded(7), lr=1e-2, max_steps=2000).thetas[0]
    for theta_1, theta_2 in (ends[:2], ends[2:]):
        options = {"averaged": averaged, "optimizer": "adam", "lr": 1e-2, "max_steps": 3000}
        path = method(task, theta_1, theta_2, 0.01, **options)
        assert torch.equal(networks_of(path)[[0, -1]], torch.stack([theta_1, theta_2]))
        assert path.connected and path.gradient_steps > 0, path.detail
        assert highest_on(task, path) <= 0.01 * 1.02


@every_method
def test_minibatches_are_used_and_noise_is_drawn_from_the_generator(digits64, seeded, method):
    ends = dss.train_endpoints(digits64, 2, [0.5], seeded(1), **digits64.train_settings).thetas[0]
    path = method(digits64, *ends, 0.6, generator=seeded(), averaged=True, max_steps=1500)
    assert path.connected, path.detail
    assert highest_on(digits64, path) <= 0.6 * 1.005


def test_one_network_more_is_inserted_where_the_chain_is_high(ring):
    """With one pivot the chain has one bend, which cannot do it; with two more it can."""
    ends = PROBLEMS["ring"].ends()
    options = {"n_pivots": 1, "sweeps": 100, **FAST}
    path = auto_neb(ring, *ends, 0.05, **options)
    assert path.connected and path.n_beads > 1
    assert [row["beads_trained"] for row in path.trace][:2] == [0, 1]
    assert path.trace[1]["gradient_steps"] == 100
    stuck = auto_neb(ring, *ends, 0.05, max_pivots=1, **options)
    assert not stuck.connected and stuck.n_beads == 1


def test_pivots_keep_equal_distances(ring):
    path = auto_neb(ring, *PROBLEMS["ring"].ends(), 0.05, n_pivots=5, check_every=200)
    steps = path.thetas.diff(dim=0).norm(dim=1)
    assert path.connected and float(steps.max() / steps.min()) < 1.1


@pytest.fixture
def a_pair(ring, seeded):
    ends = PROBLEMS["ring"].ends()
    return pair_of(ring, *ends, 0.1, False, seeded(8), {})


@pytest.mark.parametrize(
    "weights, n",
    [(partial(_bernstein, 2), 1), (partial(_bernstein, 3), 2), (_hat, 1)],
    ids=["quadratic", "cubic", "bend"],
)
def test_the_slope_of_a_curve_is_that_of_autograd(a_pair, seeded, weights, n):
    inner = torch.randn(n, 2, generator=seeded(3), dtype=torch.float64).requires_grad_()
    t = torch.rand(1, generator=seeded(8), dtype=torch.float64)
    PROBLEMS["ring"].loss(_points(a_pair.through(inner), weights, t)).sum().backward()
    slope = _slope_at_uniform_t(a_pair, weights, inner.detach(), slice(None))
    torch.testing.assert_close(slope, inner.grad)
    assert float(slope.abs().max()) > 0


def test_the_slope_of_pivots_is_across_the_chain(a_pair, point):
    inner = torch.stack([point(0.4, 0.5), point(-0.1, 0.3), point(-0.5, 0.9)])
    losses, gradients = a_pair.task.gradients(inner)
    assert losses[1] > losses[0] and losses[1] > losses[2]
    slope = _slope_across(a_pair, inner, slice(None))
    higher = torch.stack([inner[1] - inner[0], inner[1] - inner[0], inner[2] - inner[1]])
    if losses[2] > losses[0]:
        higher[1] = inner[2] - inner[1]
    assert (slope * higher).sum(dim=1).abs().max() < 1e-12
    along = higher / higher.norm(dim=1, keepdim=True)
    rest = slope + (gradients * along).sum(dim=1, keepdim=True) * along
    torch.testing.assert_close(rest, gradients)


@every_method
def test_means_begin_where_the_descent_begins(ring, monkeypatch, method):
    """At a rate next to nothing all means of the iterates are the start, 1 % off the line."""
    seen = []
    for name in ("test_chain", "_test_curve"):
        test = getattr(neighbours, name)

        def spy(*arguments, test=test, **keywords):
            seen.append(arguments[-1])
            return test(*arguments, **keywords)

        monkeypatch.setattr(neighbours, name, spy)
    method(ring, *PROBLEMS["ring"].ends(), 0.1, averaged=True, lr=1e-12, max_steps=30)
    start, tested = seen[1], seen[2:-1]
    assert len(tested) >= 4
    assert float(start.norm(dim=1).max()) < 0.6 and float(start[:, 1].abs().max()) > 1e-3
    for inner in tested:
        torch.testing.assert_close(inner, start, rtol=0, atol=1e-3)


def test_a_curve_is_its_formula(point, seeded):
    controls = torch.randn(3, 4, generator=seeded(), dtype=torch.float64)
    curve = Curve(controls, Status.CONNECTED, 1.0, 0.5, 0, 0)
    t = point(0.0, 0.3, 1.0)
    a, b, c = controls
    expected = (1 - t[:, None]) ** 2 * a + 2 * (t * (1 - t))[:, None] * b + t[:, None] ** 2 * c
    torch.testing.assert_close(curve.at(t), expected)
    assert torch.equal(curve.at(t)[[0, 2]], controls[[0, 2]])
    assert curve.polygon(8).shape == (9, 4)
    fine = dss.theta.normalized_length(curve.polygon(20_000))
    assert curve.normalized_length == pytest.approx(fine, rel=1e-6)
    for n in (3, 10):  # the bound that `polygon` states, which a parabola attains
        middle = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        polygon = curve.polygon(n)
        gap = (curve.at(middle) - (polygon[:-1] + polygon[1:]) / 2).norm(dim=1)
        bound = float((a - 2 * b + c).norm()) * 2 / (8 * n**2)
        assert gap.max() == pytest.approx(bound)


def test_the_length_of_a_curve_counts_what_the_mask_counts(seeded):
    controls = torch.randn(4, 6, generator=seeded(), dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, False, False])
    one = Curve(controls, Status.CONNECTED, 1.0, 0.5, 0, 0, length_mask=mask)
    other = Curve(controls[:, mask], Status.CONNECTED, 1.0, 0.5, 0, 0)
    assert one.normalized_length == pytest.approx(other.normalized_length)


BAD = [
    ("L0", 0.0, ValueError, ["L0", "0.0", "> 0"]),
    ("L0", math.nan, ValueError, ["L0", "nan", "finite"]),
    ("L0", "low", TypeError, ["L0", "'low'", "number"]),
    ("L0", [0.1, 0.2], ValueError, ["L0", "(2,)", "one value"]),
    ("averaged", 1, TypeError, ["averaged", "1", "True or False"]),
    ("generator", 3, TypeError, ["generator", "3", "torch.Generator"]),
    ("optimizer", "lion", ValueError, ["optimizer", "'lion'", "nesterov"]),
    ("lr", -1.0, ValueError, ["lr", "-1.0", "> 0"]),
    ("momentum", 0.9, TypeError, ["'momentum'", "optimizer, lr, batch_size"]),
    ("batch_size", 0, ValueError, ["batch_size", "0", ">= 1"]),
    ("theta_1", torch.zeros(1, 2), ValueError, ["theta_1", "(1, 2)", "2"]),
    ("theta_2", torch.zeros(3), ValueError, ["theta_2", "(3,)", "2"]),
    ("theta_2", torch.tensor([math.nan, 0.0]), ValueError, ["theta_2", "NaN or inf"]),
    ("theta_1", torch.tensor([1, 0]), TypeError, ["theta_1", "int64", "floating point"]),
    ("theta_2", torch.zeros(2).double(), ValueError, ["float32", "float64", "the same"]),
    ("theta_1", torch.tensor([2.0, 0.0]), ValueError, ["theta_1", "loss 9", "L0 = 0.1"]),
    ("task", torch.nn.Linear(1, 1), TypeError, ["task", "Linear", "dss.Task"]),
]
OWN = [
    (bezier, "degree", 4, ["degree", "4", "2 to 3"]),
    (bezier, "degree", 1, ["degree", "1", "2 to 3"]),
    (one_bend, "n_t", 2, ["n_t", "2", "at least 3"]),
    (auto_neb, "n_t", 2, ["n_t", "2", "at least 3"]),
    (auto_neb, "n_pivots", 0, ["n_pivots", "0", ">= 1"]),
    (auto_neb, "sweeps", 0, ["sweeps", "0", ">= 1"]),
    (auto_neb, "max_pivots", 2, ["max_pivots", "2", ">= 3"]),
]


@pytest.mark.parametrize(
    "method, argument, value, error, parts",
    [(method, *row) for row in BAD for method in METHODS]
    + [(method, name, value, ValueError, parts) for method, name, value, parts in OWN],
)
def test_bad_input_is_refused_by_name_before_a_gradient(method, argument, value, error, parts):
    task = counting("ring")
    ends = {"theta_1": torch.tensor([1.0, 0.0]), "theta_2": torch.tensor([0.0, 1.0])}
    message = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    with pytest.raises(error, match=message):
        method(**({"task": task, "L0": 0.1} | ends | {argument: value}))
    assert task.n["gradients"] == 0 and task.n["losses"] <= 2


@pytest.mark.parametrize("t", [-0.1, 1.5, [0.2, math.nan], [[0.5]]])
def test_places_off_a_curve_are_refused(t, seeded):
    curve = Curve(torch.zeros(3, 2), Status.CONNECTED, 1.0, 0.5, 0, 0)
    with pytest.raises(ValueError, match=r"t is .*numbers in \[0, 1\]"):
        curve.at(t)


def test_strings_of_rivals_serve_where_strings_do(tmp_path, ring):
    string = auto_neb(ring, *PROBLEMS["ring"].ends(), 0.1)
    tight = dss.tighten(ring, string)
    assert tight.normalized_length <= string.normalized_length
    again = dss.String.load(string.save(tmp_path / "chain.safetensors"))
    assert torch.equal(again.thetas, string.thetas) and again.trace == string.trace


@pytest.fixture
def quad_pair(seeded):
    task = dss.quad()
    return task, dss.train_endpoints(task, 2, [0.01], seeded(7), lr=1e-2, max_steps=2000).thetas[0]


@plain_or_averaged
def test_layers_arrive_one_after_the_other(quad_pair, averaged, seeded):
    task, ends = quad_pair
    options = {"averaged": averaged, "optimizer": "adam", "lr": 1e-2, "max_steps": 6000}
    string = layer_wise(task, *ends, 0.01, **options)
    assert string.connected and string.gradient_steps > 0, string.detail
    assert highest_on(task, string) <= 0.01 * 1.02
    assert torch.equal(string.thetas[[0, -1]], ends)
    first, _, last = neighbours._layers_of(task)
    has_arrived = (string.thetas[:, first] == ends[1, first]).all(dim=1)
    arrival = int(has_arrived.int().argmax())
    assert has_arrived[arrival:].all() and 0 < arrival < len(string.thetas)
    assert (
        arrival == len(string.thetas) - 1
        or (string.thetas[arrival:-1, last] != ends[1, last]).any()
    )


def test_layers_with_minibatches_and_a_budget(digits64, seeded):
    ends = dss.train_endpoints(digits64, 2, [0.5], seeded(1), **digits64.train_settings).thetas[0]
    options = {"averaged": True, "lr": 0.05}
    string = layer_wise(digits64, *ends, 0.6, generator=seeded(), **options)
    assert string.connected, string.detail
    again = layer_wise(digits64, *ends, 0.6, generator=seeded(), **options)
    assert torch.equal(again.thetas, string.thetas)
    cut = layer_wise(digits64, *ends, 0.6, max_steps=10, generator=seeded(), **options)
    assert cut.status is Status.TRAINING_STALLED and cut.gradient_steps <= 10
    assert "budget spent" in cut.detail and torch.equal(cut.thetas[[0, -1]], ends)
    rows = cut.trace
    assert sum(row["gradient_steps"] for row in rows) == cut.gradient_steps


def test_a_layer_keeps_the_spread_of_both_ends(a_pair):
    begin, end = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([-2.0, 2.0, 0.0])
    moved = neighbours._part_of_the_way(begin, end, 0.75)
    assert float(moved.std(correction=0)) == pytest.approx(1.75 * float(begin.std(correction=0)))
    assert torch.equal(neighbours._part_of_the_way(begin, end, 1.0), end)
    assert neighbours._part_of_the_way(begin, begin * 0 + 1, 0.5).isfinite().all()


def test_layers_are_needed_and_moves_are_counted(ring, quad_pair):
    with pytest.raises(ValueError, match="ring has no module"):
        layer_wise(ring, *PROBLEMS["ring"].ends(), 0.3)
    task, ends = quad_pair
    with pytest.raises(ValueError, match="n_moves is 0"):
        layer_wise(task, *ends, 0.01, n_moves=0)


def test_a_curve_read_as_a_string_is_certified(quad_pair, tmp_path):
    task, ends = quad_pair
    curve = bezier(task, *ends, 0.01, optimizer="adam", lr=1e-2)
    string = curve.string(task)
    assert string.connected and torch.equal(string.thetas, curve.polygon(100))
    assert string.gradient_steps == curve.gradient_steps
    assert string.forward_passes > curve.forward_passes
    proof = dss.certify(task, string)
    assert set(proof.status) <= {"proved", "undecided"} and "proved" in proof.status
    assert dss.String.load(string.save(tmp_path / "curve.safetensors")).detail == string.detail
    tight = dss.tighten(task, string)
    assert tight.n_beads < string.n_beads
    high = replace(curve, L0=1e-6).string(task, n=3)
    assert high.status is Status.DEPTH_EXHAUSTED and high.trace[0]["open_segments"] == 3
    with pytest.raises(ValueError, match="controls has shape"):
        curve.string(PROBLEMS["ring"].task("ring"))
