"""Dynamic String Sampling: what holds for every string, whatever the landscape."""

import pytest
import torch

import dss
from dss.status import Status

# On a grid ten times finer gamma may exceed the threshold by this fraction.
FINE_GRID_TOLERANCE = 0.01


@pytest.fixture(scope="module")
def quad_strings(quad64, quad_pairs):
    return dss.find_strings(quad64, quad_pairs.theta_1, quad_pairs.theta_2, **quad_pairs.search)


@pytest.fixture(scope="module")
def digits_pairs(digits64):
    training = {"optimizer": "adam", "lr": 3e-3, "batch_size": 64, "max_steps": 1_000}
    thetas = dss.train_endpoints(digits64, 6, [0.5], **training).thetas[0]
    return thetas[:3], thetas[3:], training | {"L0": 0.5, "max_depth": 4}


def test_there_is_something_to_test(quad_strings):
    assert sum(string.connected for string in quad_strings) >= 16
    assert sum(string.n_beads >= 3 for string in quad_strings) >= 8


def test_endpoints_bit_for_bit(quad_strings, quad_pairs):
    for m, string in enumerate(quad_strings):
        assert torch.equal(string.thetas[0], quad_pairs.theta_1[m])
        assert torch.equal(string.thetas[-1], quad_pairs.theta_2[m])


def test_Gamma_tilde_equals_a_plain_loop(quad64, quad_strings, plain_loss):
    for string in quad_strings[::7]:
        largest = max(
            float(plain_loss(quad64, theta_1 * (1 - k / 32) + theta_2 * (k / 32)))
            for theta_1, theta_2 in zip(string.thetas, string.thetas[1:], strict=False)
            for k in range(33)
        )
        assert string.Gamma_tilde == pytest.approx(largest, rel=1e-10)


def test_beads_are_trained_to_alpha_L0(quad64, quad_strings):
    for string in quad_strings:
        beads = string.thetas[1:-1]
        assert (quad64.losses(beads) <= string.alpha * string.L0 * (1 + 1e-12)).all()


def test_connected_strings_stay_low_on_a_grid_ten_times_finer(quad64, quad_strings):
    for string in filter(lambda s: s.connected, quad_strings):
        gamma = dss.interpolated_loss(quad64, string.thetas[:-1], string.thetas[1:], 321)
        limit = string.slack * string.L0
        assert string.Gamma_tilde <= limit * (1 + 1e-12)
        assert float(gamma.max()) <= limit * (1 + FINE_GRID_TOLERANCE)


@pytest.mark.parametrize("m", [0, 3, 17, 31])
def test_a_pair_alone_gives_the_same_string_as_in_a_batch_of_32(
    quad64, quad_pairs, quad_strings, m
):
    alone = dss.find_string(
        quad64, quad_pairs.theta_1[m], quad_pairs.theta_2[m], **quad_pairs.search
    )
    assert (alone.status, alone.n_beads) == (quad_strings[m].status, quad_strings[m].n_beads)
    torch.testing.assert_close(alone.thetas, quad_strings[m].thetas, rtol=1e-7, atol=1e-9)


def test_a_pair_alone_gives_the_same_string_with_minibatches(digits64, digits_pairs):
    theta_1, theta_2, search = digits_pairs
    # Small epochs: company that trains longer would draw more permutations.
    search = search | {"batch_size": 400, "check_every": 1}
    together = dss.find_strings(digits64, theta_1, theta_2, **search)
    assert max(string.n_beads for string in together) >= 3
    for m, string in enumerate(together):
        alone = dss.find_string(digits64, theta_1[m], theta_2[m], **search)
        assert (alone.status, alone.n_beads) == (string.status, string.n_beads)
        torch.testing.assert_close(alone.thetas, string.thetas, rtol=1e-7, atol=1e-9)


def test_one_seed_is_bit_identical_and_another_is_not(digits64, digits_pairs, seeded):
    theta_1, theta_2, search = digits_pairs
    once, again, other = (
        dss.find_string(digits64, theta_1[0], theta_2[0], generator=seeded(seed), **search)
        for seed in (7, 7, 8)
    )
    assert torch.equal(once.thetas, again.thetas)
    assert once.trace == again.trace
    assert not torch.equal(once.thetas[1], other.thetas[1])


@pytest.mark.parametrize("t_star", ["max", "coarse", "grid", "midpoint"])
@pytest.mark.parametrize(
    "task, ends, L0",
    [
        ("ring", ((1.0, 0.0), (-0.6, 0.8)), 0.01),
        ("ring", ((1.0, 0.0), (-1.0, 0.0)), 0.03),
        ("unit", ((2.0, 0.5), (0.4, 2.4)), 0.02),
        ("unit", ((1.0, 1.0), (-0.5, -2.0)), 0.5),
    ],
)
def test_a_reversed_pair_gives_the_reversed_string(request, task, ends, L0, t_star, point):
    task = request.getfixturevalue(task)
    theta_1, theta_2 = point(*ends[0]), point(*ends[1])
    arguments = {"L0": L0, "max_depth": 6, "lr": 1e-2, "t_star": t_star}
    there = dss.find_string(task, theta_1, theta_2, **arguments)
    back = dss.find_string(task, theta_2, theta_1, **arguments)
    assert there.n_beads > 1
    assert (there.status, there.n_beads) == (back.status, back.n_beads)
    torch.testing.assert_close(there.thetas, back.thetas.flip(0), rtol=0, atol=1e-6)


def test_L0_and_alpha_of_each_pair(ring, point):
    theta_1, theta_2 = point(1, 0).repeat(4, 1), point(-0.6, 0.8).repeat(4, 1)
    L0, alpha = point(0.2, 0.05, 0.05, 0.001), point(0.9, 0.3, 1.0, 0.5)
    strings = dss.find_strings(ring, theta_1, theta_2, L0, alpha=alpha)
    for m, string in enumerate(strings):
        alone = dss.find_string(ring, theta_1[m], theta_2[m], float(L0[m]), alpha=float(alpha[m]))
        assert (string.L0, string.alpha) == (float(L0[m]), float(alpha[m]))
        torch.testing.assert_close(string.thetas, alone.thetas, rtol=0, atol=1e-12)
    assert len({string.n_beads for string in strings}) > 1


def check_trace(string):
    trace = string.trace
    assert [row["depth"] for row in trace] == list(range(len(trace)))
    assert trace[-1]["Gamma_tilde"] == string.Gamma_tilde
    assert (trace[0]["beads_trained"], trace[0]["gradient_steps"]) == (0, 0)
    for above, row in zip(trace, trace[1:], strict=False):
        assert row["beads_trained"] == above["open_segments"]
    assert (trace[-1]["open_segments"] == 0) == (string.status == Status.CONNECTED)
    if string.status in (Status.CONNECTED, Status.DEPTH_EXHAUSTED):
        assert sum(row["beads_trained"] for row in trace) == string.n_beads


def test_traces_agree_with_strings(quad64, quad_pairs, beads_given_to_training):
    search = quad_pairs.search | {"max_depth": 3}
    strings = dss.find_strings(quad64, quad_pairs.theta_1, quad_pairs.theta_2, **search)
    assert {Status.CONNECTED, Status.DEPTH_EXHAUSTED} <= {string.status for string in strings}
    for string in strings:
        check_trace(string)
        assert string.depth <= 3
        assert string.depth == 3 or string.status != Status.DEPTH_EXHAUSTED
    spent = sum(int(trained.steps.sum()) for _, trained in beads_given_to_training)
    assert sum(string.gradient_steps for string in strings) == spent > 0
    failed = sum(int((~trained.reached).sum()) for _, trained in beads_given_to_training)
    beads = sum(len(given) for given, _ in beads_given_to_training)
    assert sum(string.n_beads for string in strings) == beads - failed


def test_one_run_holds_Gamma_tilde_of_every_smaller_depth(ring, point):
    deep = dss.find_string(ring, point(1, 0), point(-0.6, 0.8), 1e-3)
    for depth, row in enumerate(deep.trace):
        shallow = dss.find_string(ring, point(1, 0), point(-0.6, 0.8), 1e-3, max_depth=depth)
        assert shallow.Gamma_tilde == row["Gamma_tilde"]
        assert shallow.trace == deep.trace[: depth + 1]


@pytest.mark.parametrize("t_star", ["max", "coarse", "grid", "midpoint"])
def test_the_first_bead_starts_at_t_star(ring, beads_given_to_training, t_star, point):
    theta_1, theta_2 = point(1.1, 0.05), point(-0.4, 0.8)
    dss.find_string(ring, theta_1, theta_2, 0.1, t_star=t_star)
    t = dss.t_star(ring, theta_1, theta_2, rule=t_star)
    (bead,) = beads_given_to_training[0][0]
    assert torch.equal(bead, dss.interpolate(theta_1, theta_2, t))
    assert (t == 0.5) == (t_star == "midpoint")
