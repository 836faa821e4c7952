"""Faster ways give what the plain ones give: by hand, in groups, interpolated."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_modules import MODULES
from torch import nn
from torch.func import functional_call

import dss
from dss import sampling, train
from dss import task as task_module
from dss.curve import segment_maxima
from dss.networks import losses, stacks
from dss.networks.memory import Budget, free_memory

LOSSES = {
    "mse": losses.LOSSES["mse"],
    "mae": losses.LOSSES["mae"],
    "huber": losses.LOSSES["huber"],
    "cross_entropy": losses.LOSSES["cross_entropy"],
    "a function": lambda output, y: ((output - y) ** 4).mean(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("n", [1, 3])
def test_gradients_equal_autograd_one_by_one(kind, loss, n, seeded):
    module = MODULES[kind]().double()
    theta = dss.flatten(module)
    thetas = theta + 0.3 * torch.randn(n, len(theta), dtype=theta.dtype, generator=seeded(1))
    x = torch.randn(6, 3, dtype=theta.dtype, generator=seeded(2))
    shape = module(x).shape
    y = torch.rand(shape, dtype=theta.dtype, generator=seeded(3))
    y = y.argmax(dim=1) if loss == "cross_entropy" else y
    values, gradients = stacks.stacked_gradients(module, LOSSES[loss], thetas, x, y)
    for i in range(n):
        leaf = thetas[i].clone().requires_grad_()
        output = functional_call(
            module, dss.theta.unflatten(leaf, dss.theta.shapes_of(module)), (x,)
        )
        value = LOSSES[loss](output, y)
        expected = torch.autograd.grad(value, leaf)[0]
        torch.testing.assert_close(values[i], value.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradients[i], expected, rtol=1e-10, atol=1e-13)


@pytest.fixture(scope="module")
def digits_cnn():
    return dss.digits("cnn", n_eval=60).to(dtype=torch.float64)


@pytest.mark.parametrize("which", ["quad64", "digits64", "digits_cnn"])
@pytest.mark.parametrize("n_segments", [1, 3])
def test_losses_between_are_those_of_interpolated_networks(which, n_segments, request, seeded):
    task = request.getfixturevalue(which)
    a, b = (task.init(n_segments, seeded(seed)) for seed in (1, 2))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    gamma = task.losses_between(a, b, t)
    points = dss.interpolate(a[:, None], b[:, None], t)
    expected = torch.stack([task.losses(row) for row in points])
    torch.testing.assert_close(gamma, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_images_are_joined_with_the_settings_of_their_task(network, seeded):
    task = dss.digits(network, n_eval=60)
    strings, table = dss.study(task, [1.0, 0.6], 2, seeded(), **task.settings)
    assert table.connected.all() and task.settings["t_star"] == "coarse"
    for string in strings:
        gamma = dss.losses_along(task, string.thetas, string.n_t)[1]
        assert string.Gamma_tilde == pytest.approx(float(gamma.max()), rel=1e-6)
        assert string.Gamma_tilde <= string.L0 * (1 + 1e-6)
    nothing = task.losses_between(*task.init(2)[:, None][:, :0], torch.linspace(0, 1, 5))
    assert nothing.shape == (0, 5)
    above = dss.find_strings(task, *task.init(2)[:, None], 0.1, **task.settings)
    assert above[0].status == "endpoint above L0"


def test_only_plain_sequences_are_split_after_their_first_layer():
    wide = nn.Linear(9, 9)
    hooked = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))
    hooked[1].register_forward_hook(lambda *_: None)
    first, rest = stacks.split_after_first(nn.Sequential(nn.Flatten(), wide, nn.Linear(9, 1)))
    assert [type(layer) for layer in first] == [nn.Flatten, nn.Linear]
    assert [type(layer) for layer in rest] == [nn.Linear]
    for other in (
        hooked,
        nn.Linear(9, 9),
        nn.Sequential(wide, wide),
        nn.Sequential(nn.Linear(9, 4), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.ReLU(), nn.Linear(9, 4), nn.Linear(4, 2)),
        dss.networks.architectures.authors_cnn(28),
    ):
        assert stacks.split_after_first(other) is None


def test_weights_shared_between_layers_are_left_to_torch(seeded):
    module = nn.Sequential(nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 9))
    module[2].weight = module[0].weight
    x = torch.randn(5, 9, generator=seeded())
    task = dss.Task.from_module(module, "mse", (x, x), (x, x))
    thetas = dss.flatten(task.module).expand(2, -1)
    assert task.n_params == 81 + 9 + 9
    gamma = task.losses_between(thetas, thetas, torch.tensor([0.0, 0.5]))
    plain = (task.module(x) - x).square().mean().detach()
    torch.testing.assert_close(gamma, plain.expand(2, 2))
    assert task.gradients(thetas)[1].shape == (2, 99)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_groups_of_networks_are_trained_alike(quad64, seeded, monkeypatch, batch_size):
    settings = {"batch_size": batch_size, "lr": 1e-2, "max_steps": 130, "optimizer": "adam"}
    start = quad64.init(7, seeded(3))
    # The longest descent is in the middle group: neither the first nor the last one counts.
    target = torch.tensor([0.1, 0.1, 0.1, 0.1, 1e-9, 0.1, 0.1], dtype=torch.float64)
    whole, parts = seeded(5), seeded(5)
    expected = dss.train_to(quad64, start, target, generator=whole, **settings)
    assert expected.steps.argmax() == 4
    monkeypatch.setattr(Budget, "rows_that_fit", lambda *_: 3)
    sizes, descend = [], train._descend

    def counted(task, thetas, *arguments):
        sizes.append(len(thetas))
        return descend(task, thetas, *arguments)

    monkeypatch.setattr(train, "_descend", counted)
    grouped = dss.train_to(quad64, start, target, generator=parts, **settings)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(grouped.thetas, expected.thetas, rtol=1e-10, atol=1e-12)
    assert torch.equal(grouped.steps, expected.steps) and grouped.status == expected.status
    assert torch.equal(whole.get_state(), parts.get_state())
    assert torch.equal(whole.get_state(), seeded(5).get_state()) == (batch_size is None)


def test_a_small_budget_gives_the_same_strings(quad64, quad_pairs):
    pairs = quad_pairs.theta_1[:6], quad_pairs.theta_2[:6]
    expected = dss.find_strings(quad64, *pairs, **quad_pairs.search)
    tiny = quad64.to(memory=0.01)
    assert tiny.budget.rows_that_fit(9, torch.float64) == 4
    for a, b in zip(expected, dss.find_strings(tiny, *pairs, **quad_pairs.search), strict=True):
        torch.testing.assert_close(a.thetas, b.thetas, rtol=1e-9, atol=1e-9)
        assert (a.status, a.gradient_steps) == (b.status, b.gradient_steps)


@pytest.fixture
def points_measured(monkeypatch):
    """How many points of how many segments `losses_between` was asked for, call by call."""
    seen, between = [], dss.Task.losses_between

    def counted(task, theta_1, theta_2, t):
        seen.append((len(theta_1), t.shape[-1]))
        return between(task, theta_1, theta_2, t)

    monkeypatch.setattr(dss.Task, "losses_between", counted)
    return seen


def test_coarse_to_fine_finds_the_same_maxima_with_half_the_points(
    quad64, quad_pairs, points_measured
):
    ends = quad_pairs.theta_1, quad_pairs.theta_2
    plain, grid = segment_maxima(quad64, *ends), segment_maxima(quad64, *ends, rule="grid")
    limit = float(grid.grid_max.median()) * 1.05
    high = segment_maxima(quad64, *ends, rule="coarse", limit=-1.0)
    points_measured.clear()
    mixed = segment_maxima(quad64, *ends, rule="coarse", limit=limit)
    n_high = int((mixed.grid_max > limit).sum())
    assert points_measured == [(32, 7), (32 - n_high, 24), (n_high, 6)]
    assert 5 < n_high < 27
    is_high = mixed.grid_max > limit
    for name in ("t_star", "gamma_max", "grid_max"):
        rows = getattr(mixed, name)
        assert torch.equal(rows[is_high], getattr(high, name)[is_high])
        assert torch.equal(rows[~is_high], getattr(plain, name)[~is_high])
    # Segments with two summits may be climbed at the lower one; there are few.
    assert (high.t_star == grid.t_star).float().mean() > 0.9
    assert (high.grid_max <= grid.grid_max).all()


def test_known_losses_of_the_ends_are_not_measured_again(quad64, quad_pairs, points_measured):
    ends = quad_pairs.theta_1, quad_pairs.theta_2
    values = torch.stack([quad64.losses(v) for v in ends], dim=1)
    for rule in ("max", "coarse"):
        plain = segment_maxima(quad64, *ends, rule=rule)
        assert torch.equal(
            segment_maxima(quad64, *ends, rule=rule, ends=values).grid_max, plain.grid_max
        )
        above = segment_maxima(quad64, *ends, rule=rule, ends=values + 100)
        assert (
            torch.equal(above.grid_max, values.amax(dim=1) + 100) and (above.t_star % 1 == 0).all()
        )
    assert {n for _, n in points_measured} <= {31, 7, 24}


def test_a_summit_between_coarse_points_is_not_missed():
    def curve(theta):
        t = theta[..., 0]
        return torch.where((t - 7 / 32).abs() < 1e-9, 2.0, torch.exp(-((t - 0.22) ** 2)))

    task = dss.landscape(curve, 1)
    ends = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    found = segment_maxima(task, *ends, rule="coarse", limit=0.5)
    assert (float(found.t_star), float(found.grid_max)) == (7 / 32, 2.0)
    assert float(segment_maxima(task, *ends, rule="coarse", limit=1.5).grid_max) == 2.0


@pytest.fixture
def two_summits():
    """A ridge between (0, 0) and (1, 0) with a broad summit and, off coarse points, a higher one.

    Descent leaves the broad one at y > 0.  The narrow one, all along y, is a wall.
    """

    def function(theta):
        x, y = theta[..., 0], theta[..., 1]
        broad = 2 * torch.exp(-(((x - 0.5) / 0.1) ** 2) - (y / 0.2) ** 2 + 0.1 * y)
        return broad + 10 * torch.exp(-(((x - 6 / 32) / 0.01) ** 2))

    ends = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    return dss.landscape(function, 2, "two summits"), ends


@pytest.mark.parametrize("max_depth", [0, 1, 2, 3])
@pytest.mark.parametrize("max_steps", [3, 400])
def test_the_last_gamma_tilde_rests_on_whole_grids(two_summits, max_depth, max_steps):
    task, ends = two_summits
    settings = {"lr": 1e-2, "max_steps": max_steps, "t_star": "coarse", "max_depth": max_depth}
    string = dss.find_string(task, *ends, 0.5, **settings)
    gamma = dss.losses_along(task, string.thetas, string.n_t)[1]
    assert not string.connected
    assert string.Gamma_tilde == string.trace[-1]["Gamma_tilde"] == float(gamma.max()) > 0.5
    line = dss.interpolated_loss(task, *ends)
    assert string.trace[0]["Gamma_tilde"] == float(line.max()), "the straight line in full"


def test_segments_of_a_search_that_has_ended_count_on_whole_grids(quad64, quad_pairs, monkeypatch):
    calls = []

    def spy(task, theta_1, theta_2, n_t, rule, limit=torch.inf, *ends):
        calls.append((rule, torch.as_tensor(limit).expand(len(theta_1))))
        return segment_maxima(task, theta_1, theta_2, n_t, rule, limit, *ends)

    monkeypatch.setattr(sampling, "segment_maxima", spy)
    search = quad_pairs.search | {"max_steps": 30, "max_depth": 4, "t_star": "coarse"}
    strings = dss.find_strings(quad64, quad_pairs.theta_1, quad_pairs.theta_2, **search)
    stalled = sum(s.status == "training stalled" for s in strings)
    assert 0 < stalled < 32
    levels = [limit for rule, limit in calls if rule == "coarse"]
    assert sum(len(limit) for rule, limit in calls if rule == "grid") >= stalled
    assert torch.isinf(levels[0]).all() and torch.isinf(levels[-1]).all()
    # Halves that other beads of a stalled pair have left are tested once more, at the next level.
    halves = [int(torch.isinf(limit).sum()) for limit in levels[1:-1]]
    assert sum(halves) > 0 and any(0 < n < len(v) for n, v in zip(halves, levels[1:], strict=False))


@pytest.mark.parametrize("n_t", [3, 16, 33])
def test_a_reversed_segment_gives_one_minus_t_star_coarse_to_fine(n_t, seeded):
    weights = torch.randn(40, 5, dtype=torch.float64, generator=seeded())
    ramps = torch.linspace(1, 9, 5, dtype=torch.float64)
    for w in weights:
        task = dss.landscape(lambda v, w=w: 3 + (w * torch.sin(ramps * v[..., :1] * 3)).sum(-1), 1)
        zero, one = (torch.full((1, 1), v, dtype=torch.float64) for v in (0.0, 1.0))
        there, back = (
            segment_maxima(task, *ends, n_t, "coarse", -1.0) for ends in ((zero, one), (one, zero))
        )
        assert float(back.t_star) == pytest.approx(1 - float(there.t_star), abs=1e-9)


def test_no_path_holds_more_networks_than_fit(quad64, quad_pairs, monkeypatch):
    """Rows that losses and gradients are asked for at a time, under a budget of a few networks."""
    tiny, seen = quad64.to(memory=0.02), []

    def counted(method):
        def call(task, thetas, *rest, **more):
            seen.append(len(thetas))
            return method(task, thetas, *rest, **more)

        return call

    for name in ("losses", "gradients"):
        monkeypatch.setattr(dss.Task, name, counted(getattr(dss.Task, name)))
    dss.interpolated_loss(tiny, quad_pairs.theta_1, quad_pairs.theta_2, n_t=101)
    assert 1 < max(seen) <= tiny.budget.rows_that_fit(3, torch.float64) == 26
    seen.clear()
    segment_maxima(tiny, quad_pairs.theta_1, quad_pairs.theta_2)
    assert 1 < max(seen) <= 26
    seen.clear()
    dss.train_to(tiny, quad_pairs.theta_1, 1e-9, max_steps=3)
    assert 1 < max(seen) <= tiny.budget.rows_that_fit(9, torch.float64) == 8
    assert tiny.budget.chunk_elements(torch.float64) < 0.02 * 2**20 / 8


def test_images_between_are_reduced_point_by_point(digits64, monkeypatch):
    """Outputs of all points of a segment never exist together."""
    seen, losses = [], stacks.stacked_losses

    def counted(loss, outputs, y):
        seen.append(outputs.shape[0])
        return losses(loss, outputs, y)

    monkeypatch.setattr(stacks, "stacked_losses", counted)
    a, b = digits64.init(2)[:, None]
    dss.interpolated_loss(digits64, a, b, n_t=101)
    assert seen == [1] * 101


def test_values_have_the_dtype_of_thetas_whatever_the_metric_returns(seeded):
    x, y = torch.rand(20, 9, generator=seeded()), torch.arange(20) % 2
    module = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))

    def wrong(output, y):
        return (output.argmax(1) != y).float().mean()

    task = dss.Task.from_module(module, "cross_entropy", (x, y), (x, y), metric=wrong)
    task = task.to(torch.float64)
    a, b = task.init(2, seeded())[:, None]
    assert task.losses(a).dtype == torch.float64
    assert segment_maxima(task, a, b, rule="coarse", limit=0.1).grid_max.dtype == torch.float64


def test_losses_of_any_kind(seeded):
    @dataclasses.dataclass
    class Weighted:  # unhashable
        weight: float = 2.0

        def __call__(self, output, y):
            return self.weight * output.sub_(y).square().mean()  # in place

    x = torch.rand(20, 3, generator=seeded())
    task = dss.Task.from_module(nn.Linear(3, 1), Weighted(), (x, x[:, :1]), (x, x[:, :1]))
    plain = dss.Task.from_module(nn.Linear(3, 1), "mse", (x, x[:, :1]), (x, x[:, :1]))
    thetas = plain.init(3, seeded())
    for value, wanted in zip(task.gradients(thetas), plain.gradients(thetas), strict=True):
        torch.testing.assert_close(value, 2 * wanted)
    truth = stacks.stacked_losses(losses.LOSSES["mse"], torch.ones(2, 4, 1), torch.ones(4, 1) > 0)
    assert truth.tolist() == [0, 0]


def test_parameters_beside_the_layers_are_left_to_torch(seeded):
    module = nn.Sequential(nn.Linear(3, 2))
    module.register_parameter("scale", nn.Parameter(torch.ones(1)))
    x = torch.rand(5, 3, generator=seeded())
    task = dss.Task.from_module(module, "mse", (x, x[:, :2]), (x, x[:, :2]))
    assert task.n_params == 9
    assert task.losses(dss.flatten(task.module)[None].repeat(2, 1)).shape == (2,)


def test_networks_that_rarely_succeed_are_drawn_often_enough(seeded, monkeypatch):
    chance = seeded(7)

    def rarely(task, thetas, target, generator, **training):
        n = len(thetas)
        reached = torch.rand(n, generator=chance) < 0.1
        nothing = torch.zeros(n)
        return train.Trained(thetas, reached, nothing.long(), nothing.double(), ["stalled"] * n)

    monkeypatch.setattr(train, "train_to", rarely)
    ends = dss.train_endpoints(dss.quad(), 100, [0.1], batch_size=16)
    assert ends.thetas.shape == (1, 100, 33)
    assert 500 < int(ends.n_drawn) < 2_500


def test_memory_is_a_property_of_the_task():
    task = dss.quad()
    assert task.memory is None and task.to(memory=64).memory == 64
    assert task.to(memory=64).to(torch.float64).memory == 64
    assert task.to(memory=1).budget.rows_that_fit(1, torch.float32) == 2**20 // (4 * 33)
    assert task.to(memory=1e-9).budget.rows_that_fit(1, torch.float32) == 1
    with pytest.raises(ValueError, match="memory is 0; MiB, > 0 is needed"):
        task.to(memory=0)
    assert 2**26 <= free_memory(torch.device("cpu")) < 2**50


def test_out_of_memory_halves_the_chunk_and_goes_on(seeded, monkeypatch):
    quad64, other = dss.quad().to(torch.float64), dss.quad()
    thetas = quad64.init(11, seeded())
    expected, sizes = quad64.gradients(thetas), []
    gradients = task_module.stacked_gradients

    def small(module, loss, thetas, *rest):
        sizes.append(len(thetas))
        if len(thetas) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients(module, loss, thetas, *rest)

    monkeypatch.setattr(task_module, "stacked_gradients", small)
    for value, wanted in zip(quad64.gradients(thetas), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-14)
    assert sizes == [11, 6, 3, 3, 3, 2]
    sizes.clear()
    quad64.gradients(thetas)
    assert max(sizes) == 3, "what was learned is kept"
    monkeypatch.setattr(task_module, "stacked_gradients", gradients)
    assert other.budget.most == quad64.to().budget.most == math.inf, "by this task alone"

    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(task_module, "stacked_gradients", none)
    with pytest.raises(torch.OutOfMemoryError):
        quad64.gradients(thetas)


def test_endpoints_of_minibatch_tasks_are_drawn_as_needed(digits64, seeded):
    ends = dss.train_endpoints(digits64, 3, [1.5], seeded(), **digits64.train_settings)
    assert ends.n_drawn.tolist() == [3]
    whole = dataclasses.replace(digits64, batch_size=None)
    settings = digits64.train_settings | {"batch_size": None}
    assert dss.train_endpoints(whole, 3, [1.5], seeded(), **settings).n_drawn.tolist() == [4]


def test_pandas_waits_until_a_table_is_made():
    code = "import sys; from dss import *; "
    code += "assert 'torch' in sys.modules; sys.exit('pandas' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
