"""`method="averaged"`: what it promises, on landscapes whose answer is known and on networks."""

import pytest
import torch
from torch import nn

import dss
from dss import averaged
from dss.networks.batchnorm import batch_statistics
from dss.problems import PROBLEMS
from dss.status import Status


@pytest.fixture
def spent(monkeypatch):
    """Gradients and forward passes of one network that tasks compute from now on."""
    counts, inside = {"gradients": 0, "passes": 0}, []

    def counting(method, name, n_of):
        def counted(self, *arguments, **others):
            if not inside:  # some go through each other
                counts[name] += n_of(*arguments)
            inside.append(name)
            try:
                return method(self, *arguments, **others)
            finally:
                inside.pop()

        return counted

    for method, name, n_of in (
        ("gradients", "gradients", lambda thetas, *_: len(thetas)),
        ("losses", "passes", lambda thetas, *_: len(thetas)),
        ("losses_between", "passes", lambda a, b, t: len(a) * t.shape[-1]),
    ):
        monkeypatch.setattr(dss.Task, method, counting(getattr(dss.Task, method), name, n_of))
    return counts


@pytest.fixture(scope="module")
def quad_ends(quad64):
    """32 networks at L0 = .003."""
    return dss.train_endpoints(quad64, 32, [0.003], optimizer="adam", lr=0.01).thetas[0]


@pytest.fixture(scope="module")
def quad_strings(quad64, quad_ends):
    return dss.find_strings(quad64, quad_ends[::2], quad_ends[1::2], 0.003, method="averaged")


@pytest.fixture(scope="module")
def digits_search(digits64):
    training = {"optimizer": "adam", "lr": 3e-3, "batch_size": 64}
    thetas = dss.train_endpoints(digits64, 8, [0.3], **training).thetas[0]
    return {
        "theta_1": thetas[::2],
        "theta_2": thetas[1::2],
        "L0": 0.3,
        "method": "averaged",
        "batch_size": 64,
    }


@pytest.mark.parametrize("name", ["valley", "ring", "two units"])
def test_a_path_is_found_where_there_is_one(name):
    problem = PROBLEMS[name]
    task, ends = problem.task(name), problem.ends()
    L0 = 1.05 * float(task.losses(ends).max()) + 0.02
    string = dss.find_string(task, *ends, L0, method="averaged")
    assert string.connected and string.n_beads >= 1
    assert torch.equal(string.thetas[[0, -1]], ends)
    gamma = dss.interpolated_loss(task, string.thetas[:-1], string.thetas[1:], 257)
    assert float(gamma.max()) <= L0


@pytest.mark.parametrize("name", ["unit", "plateau"])
@pytest.mark.parametrize("factor", [0.3, 0.9])
def test_none_is_found_where_there_is_none(name, factor):
    problem = PROBLEMS[name]
    string = dss.find_string(
        problem.task(name),
        *problem.ends(),
        factor * problem.Gamma,
        method="averaged",
        max_steps=400,
    )
    assert string.status in (Status.TRAINING_STALLED, Status.DEPTH_EXHAUSTED)
    assert string.detail or string.status is Status.DEPTH_EXHAUSTED


def test_a_low_line_costs_no_gradient(ring, point):
    ends = point(1.0, 0.0), point(0.99, 0.01)
    string = dss.find_string(ring, *ends, 0.5, method="averaged")
    assert (string.connected, string.n_beads, string.gradient_steps) == (True, 0, 0)


def test_networks_connect_and_stay_below_L0_between_grid_points(quad64, quad_strings, quad_ends):
    assert sum(string.connected for string in quad_strings) >= 14
    for m, string in enumerate(quad_strings):
        assert torch.equal(string.thetas[[0, -1]], quad_ends[2 * m : 2 * m + 2])
        if string.connected:
            gamma = dss.interpolated_loss(quad64, string.thetas[:-1], string.thetas[1:], 321)
            assert float(gamma.max()) <= string.L0 * (1 + 1e-12)
            assert string.Gamma_tilde == pytest.approx(
                float(dss.Gamma_tilde(quad64, string.thetas)), rel=1e-12
            )


def test_fewer_gradients_than_the_paper(digits64, digits_search):
    strings = dss.find_strings(digits64, **digits_search)
    paper = {"optimizer": "adam", "lr": 1e-3, "check_every": 30, "patience": 3000}
    of_paper = dss.find_strings(digits64, **digits_search | {"method": "paper"} | paper)
    assert all(string.connected for string in [*strings, *of_paper])
    ours, theirs = (sum(s.gradient_steps for s in found) for found in (strings, of_paper))
    assert 2 * ours < theirs


@pytest.mark.parametrize("method", ["paper", "averaged"])
def test_the_trace_counts_what_was_computed(method, quad64, quad_ends, spent):
    arguments = {"method": method, "max_steps": 300, "max_depth": 4}
    strings = dss.find_strings(quad64, quad_ends[:8:2], quad_ends[1:8:2], 0.003, **arguments)
    assert sum(string.n_beads for string in strings) > 8
    steps = sum(string.gradient_steps for string in strings)
    n_starts = sum(row["beads_trained"] for s in strings for row in s.trace)
    # Of each start one more gradient, which tells whether it is stationary.
    assert spent["gradients"] == steps + n_starts
    assert sum(string.forward_passes for string in strings) == spent["passes"]


@pytest.mark.parametrize("method", ["paper", "averaged"])
def test_the_trace_counts_minibatches(method, digits64, digits_search, spent):
    strings = dss.find_strings(digits64, **digits_search | {"method": method, "max_steps": 200})
    assert sum(string.gradient_steps for string in strings) == spent["gradients"]
    assert sum(string.forward_passes for string in strings) == spent["passes"]


def test_a_bead_above_its_target_is_done_once_both_halves_pass(ring, point):
    ends = point(1.0, 0.0), point(0.0, 1.0)
    found = dss.find_string(ring, *ends, 0.1, method="averaged", alpha=1e-9, check_every=1)
    assert found.connected and found.n_beads == 1
    assert float(ring.losses(found.thetas[1:2])) > 1e-9 * found.L0


def test_filling_beads_lie_on_the_parabola_and_are_low(ring, point):
    L0, ends = 0.02, (point(1.0, 0.0), point(-0.96, 0.28))
    filled = dss.find_string(ring, *ends, L0, method="averaged")
    trained = sum(row["beads_trained"] for row in filled.trace)
    assert filled.connected and filled.n_beads > trained  # some were not trained
    assert (ring.losses(filled.thetas) <= L0).all()


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside an identity."""

    def __init__(self, width):
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "bias": False}
        self.first = nn.Sequential(nn.Conv2d(1, width, **conv), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, **conv), nn.BatchNorm2d(width))
        self.last = nn.Linear(4 * width, 10)

    def forward(self, x):
        x = self.first(x.view(-1, 1, 8, 8))
        x = torch.relu(x + self.block(x))
        return self.last(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Recurrent(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x):
        return self.last(self.lstm(x.view(-1, 8, 8))[0][:, -1])


class Attention(nn.Module):
    """One transformer layer over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 10)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.last(self.layer(self.first(x.view(-1, 8, 8))).mean(dim=1))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    "make, L0",
    [(lambda: batch_statistics(Residual(6)), 0.5), (Recurrent, 0.6), (Attention, 0.6)],
    ids=["residual", "recurrent", "attention"],
)
def test_defaults_serve_other_kinds_of_network(digits64, seeded, make, L0):
    splits = [tuple(v.float() if v.is_floating_point() else v for v in split)
              for split in digits64.splits.values()]  # fmt: skip

    def init(n, generator):
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            return torch.stack([dss.flatten(make()) for _ in range(n)])

    task = dss.Task.from_module(make(), "cross_entropy", *splits, init=init, batch_size=64)
    training = {"optimizer": "adam", "lr": 3e-3, "check_every": 25, "max_steps": 3000}
    ends = dss.train_endpoints(task, 4, [L0], seeded(5), **training).thetas[0]
    pairs = ends[::2], ends[1::2]
    strings = dss.find_strings(task, *pairs, L0, method="averaged", generator=seeded())
    paper = dss.find_strings(task, *pairs, L0, generator=seeded(), t_star="coarse", **training)
    for string in strings:
        assert string.connected, string.detail
        assert dss.Gamma_tilde(task, string.thetas, 65) <= L0 * 1.001
    spent = [sum(s.gradient_steps for s in found) for found in (strings, paper)]
    assert spent[0] <= spent[1], "no more gradients than the paper's procedure"


def test_the_same_without_filling(ring, point, monkeypatch):
    monkeypatch.setattr(averaged, "HALVINGS", 0)
    L0, ends = 0.02, (point(1.0, 0.0), point(-0.96, 0.28))
    string = dss.find_string(ring, *ends, L0, method="averaged")
    trained = sum(row["beads_trained"] for row in string.trace)
    assert string.connected and string.n_beads == trained


def test_a_stuck_bead_begins_again_elsewhere(point, monkeypatch):
    """On the flat top in the middle no gradient leads down; beside it one does."""

    def loss(theta):
        x, y = theta[..., 0], theta[..., 1]
        return torch.where((x**2 + y**2) < 0.01, torch.ones_like(x), (x**2 + y**2 - 1) ** 2)

    task = dss.landscape(loss, 2, "a ring with a flat top")
    ends = point(1.0, 0.0), point(-1.0, 0.0)
    arguments = {"method": "averaged", "max_steps": 500, "patience": 100}
    assert dss.find_string(task, *ends, 0.1, **arguments).connected
    monkeypatch.setattr(averaged, "TRIES", averaged.TRIES[:1])
    string = dss.find_string(task, *ends, 0.1, **arguments)
    assert string.status is Status.TRAINING_STALLED


@pytest.mark.parametrize("m", [0, 5, 15])
def test_a_pair_alone_gives_the_same_string(quad64, quad_strings, quad_ends, m):
    ends = quad_ends[2 * m : 2 * m + 2]
    alone = dss.find_string(quad64, *ends, 0.003, method="averaged")
    assert (alone.status, alone.n_beads) == (quad_strings[m].status, quad_strings[m].n_beads)
    torch.testing.assert_close(alone.thetas, quad_strings[m].thetas, rtol=1e-7, atol=1e-9)


def test_groups_that_fit_memory_give_the_same_strings(digits64, digits_search):
    whole = dss.find_strings(digits64, **digits_search)
    few = digits64.to(memory=averaged.COPIES["averaged"] * digits64.n_params * 8 * 2 / 2**20)
    for one, other in zip(whole, dss.find_strings(few, **digits_search), strict=True):
        assert (one.status, one.n_beads) == (other.status, other.n_beads)
        torch.testing.assert_close(one.thetas, other.thetas, rtol=1e-7, atol=1e-9)


def test_one_seed_is_bit_identical_and_another_is_not(digits64, digits_search, seeded):
    once, again, other = (
        dss.find_strings(digits64, **digits_search, generator=seeded(seed)) for seed in (7, 7, 8)
    )
    for one, two in zip(once, again, strict=True):
        assert torch.equal(one.thetas, two.thetas) and one.trace == two.trace
    assert not all(
        torch.equal(one.thetas[1], two.thetas[1]) for one, two in zip(once, other, strict=True)
    )


def test_a_killed_search_goes_on_bit_for_bit(digits64, digits_search, tmp_path, monkeypatch):
    whole = dss.find_strings(digits64, **digits_search | {"L0": 0.3})
    levels, train = [], averaged.train_beads

    def killed(*arguments):
        levels.append(arguments)
        if len(levels) == 2:
            raise KeyboardInterrupt
        return train(*arguments)

    file = tmp_path / "search"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(averaged, "train_beads", killed)
        dss.find_strings(digits64, **digits_search | {"L0": 0.3}, checkpoint=file)
    resumed = dss.find_strings(digits64, **digits_search | {"L0": 0.3}, checkpoint=file)
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(one.thetas, two.thetas) and one.trace == two.trace
    with pytest.raises(ValueError, match="of another search"):
        dss.find_strings(
            digits64, **digits_search | {"L0": 0.3, "method": "paper"}, checkpoint=file
        )


def test_paper_is_the_default_and_does_not_change(quad64, quad_ends):
    ends = quad_ends[:6:2], quad_ends[1:6:2], 0.003
    plain = dss.find_strings(quad64, *ends, optimizer="adam", lr=0.01)
    named = {"method": "paper", "alpha": 0.9, "max_depth": 10, "t_star": "max"}
    named = dss.find_strings(quad64, *ends, optimizer="adam", lr=0.01, **named)
    for one, two in zip(plain, named, strict=True):
        assert torch.equal(one.thetas, two.thetas) and one.trace == two.trace


def test_a_study_takes_it(quad64):
    strings, table = dss.study(quad64, [0.01], 2, method="averaged")
    assert table.connected.all() and [s.alpha for s in strings] == [0.97, 0.97]


@pytest.mark.parametrize("L0", [0.003, 0.001])
def test_every_string_is_proved(L0):
    task = dss.quad()
    ends = dss.train_endpoints(task, 8, [L0], optimizer="adam", lr=0.01).thetas[0]
    strings = dss.find_strings(task, ends[::2], ends[1::2], L0, method="averaged")
    connected = [string for string in strings if string.connected]
    assert len(connected) >= 3
    assert all(set(dss.certify(task, string).status) == {"proved"} for string in connected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "mean"}, "unknown method 'mean'; known: 'paper', 'averaged'"),
        ({"method": None}, "unknown method None"),
        ({"method": "averaged", "t_star": "max"}, "t_star is 'max'; method='averaged' has"),
        ({"method": "averaged", "alpha": 1.5}, "alpha"),
        ({"method": "averaged", "lr": -1}, "lr"),
    ],
)
def test_a_bad_call_is_refused_before_anything_is_computed(ring, point, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dss.find_string(ring, point(1.0, 0.0), point(-1.0, 0.0), 0.1, **arguments)
