"""How a search ends, and its rules: insert_first, first_bead, slack, max_depth."""

import math
from dataclasses import replace

import pytest
import torch

import dss
from dss import sampling
from dss.status import Status


def test_insert_first_trains_a_midpoint_before_any_test(linear, seeded, beads_given_to_training):
    thetas = dss.train_to(linear, linear.init(2, seeded()), 0.01, lr=0.05).thetas
    string = dss.find_string(linear, *thetas, 0.01, insert_first=True)
    assert (string.status, string.n_beads) == (Status.CONNECTED, 1)
    assert [row["open_segments"] for row in string.trace] == [1, 0]
    ((bead,), _), *more = beads_given_to_training
    assert not more
    torch.testing.assert_close(bead, thetas.mean(dim=0), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="insert_first=True needs a depth of at least 1"):
        dss.find_string(linear, *thetas, 0.01, insert_first=True, max_depth=0)


@pytest.fixture(scope="module")
def given(quad64, seeded):
    """Pairs that no straight line connects, the last with an end too high, and their beads."""
    options = {"optimizer": "adam", "lr": 1e-2, "max_steps": 600, "patience": 200}
    ends = dss.train_endpoints(quad64, 12, [0.01], seeded(1), **options).thetas[0]
    ends[-1] = quad64.init(1, seeded(4))[0]
    return ends[::2], ends[1::2], quad64.init(6, seeded(2)), options


def test_a_string_goes_through_the_first_bead_that_it_was_given(quad64, given):
    theta_1, theta_2, first_bead, options = given
    L0 = torch.tensor([0.03, 0.01] * 3)
    found = {"first_bead": first_bead, "max_depth": 6, **options}
    strings = dss.find_strings(quad64, theta_1, theta_2, L0, **found)
    assert strings[-1].status is Status.ENDPOINT_ABOVE_L0
    assert sum(s.connected for s in strings) >= 2
    for i, string in enumerate(strings[:-1]):
        bead = dss.train_to(quad64, first_bead[i], 0.9 * float(L0[i]), **options)
        assert bead.reached or string.status is Status.TRAINING_STALLED
        passes = (string.thetas == bead.thetas).all(dim=1).any()
        assert passes == bead.reached
        assert string.trace[1]["gradient_steps"] == bead.steps
        if string.connected:
            middle = (string.thetas == bead.thetas).all(dim=1).nonzero()[0]
            halves = [(theta_1[i], bead.thetas[0]), (bead.thetas[0], theta_2[i])]
            deeper = {"max_depth": 5, **options}
            parts = [dss.find_string(quad64, *half, float(L0[i]), **deeper) for half in halves]
            assert torch.equal(parts[0].thetas, string.thetas[: middle + 1])
            assert torch.equal(parts[1].thetas, string.thetas[middle:])
    alone = dss.find_string(
        quad64, theta_1[0], theta_2[0], 0.03, **found | {"first_bead": first_bead[0]}
    )
    torch.testing.assert_close(alone.thetas, strings[0].thetas, rtol=0, atol=1e-9)


def test_a_first_bead_that_cannot_be_trained_is_a_failure(quad64, given):
    theta_1, theta_2, first_bead, _ = given
    dead = torch.zeros_like(first_bead)
    strings = dss.find_strings(quad64, theta_1, theta_2, 0.01, first_bead=dead, max_steps=1)
    for string in strings[:-1]:
        assert string.status is Status.TRAINING_STALLED and "a bead at depth 1" in string.detail
        assert (string.n_beads, string.gradient_steps) == (0, 1)
    pair = theta_1[:1], theta_2[:1], 0.01
    for wrong in (dead[:1, 1:], dead[:2], dead[0], dead[:1] * torch.nan):
        with pytest.raises(ValueError, match="first_bead"):
            dss.find_strings(quad64, *pair, first_bead=wrong)
    (string,) = dss.find_strings(quad64, *pair, first_bead=first_bead[:1], max_depth=0)
    assert string.depth == 1, "a first bead is at depth 1"
    with pytest.raises(ValueError, match="first_bead"):
        dss.find_string(quad64, theta_1[0], theta_2[0], 0.01, first_bead=dead[:1])


def test_slack_loosens_the_pair_test_alone(ring, point):
    ends = point(math.cos(0.1), math.sin(0.1)), point(math.cos(1.1), math.sin(1.1))
    top = float(dss.interpolated_loss(ring, *ends, n_t=1001).max())
    assert dss.find_string(ring, *ends, top / 1.2, slack=1.1).n_beads > 0
    loose = dss.find_string(ring, *ends, top / 1.2, slack=1.3)
    assert (loose.status, loose.n_beads) == (Status.CONNECTED, 0)
    assert loose.L0 < loose.Gamma_tilde <= loose.slack * loose.L0


def test_a_maximum_between_grid_points_fails_the_pair_test(point):
    task = dss.landscape(lambda theta: torch.exp(-(((theta[..., 0] - 0.45) / 0.2) ** 2)), 1)
    arguments = {"L0": 0.97, "n_t": 5, "max_depth": 0}
    string = dss.find_string(task, point(0.0), point(1.0), **arguments)
    assert string.status == Status.DEPTH_EXHAUSTED
    assert string.Gamma_tilde == pytest.approx(math.exp(-1 / 16))
    assert dss.find_string(task, point(0.0), point(1.0), t_star="grid", **arguments).connected


def test_max_depth_0_tests_the_straight_line_alone(ring, point):
    string = dss.find_string(ring, point(1, 0), point(-1, 0), 0.1, max_depth=0)
    assert (string.status, string.n_beads, string.depth) == (Status.DEPTH_EXHAUSTED, 0, 0)
    assert string.Gamma_tilde == pytest.approx(1)
    assert string.gradient_steps == 0
    assert dss.find_string(ring, point(1, 0), point(-1, 0), 1.0, max_depth=0).connected


def test_an_endpoint_above_L0_does_not_stop_the_others(ring, point):
    theta_1 = torch.stack([point(1, 0), point(1, 0), point(1.5, 0)])
    theta_2 = torch.stack([point(0, 1), point(0, 2), point(0, 1)])
    good, bad, worse = dss.find_strings(ring, theta_1, theta_2, 0.1)
    alone = dss.find_string(ring, theta_1[0], theta_2[0], 0.1)
    assert good.status == Status.CONNECTED and torch.equal(good.thetas, alone.thetas)
    for string, text in ((bad, "theta_2 of pair 1 has loss 9"), (worse, "theta_1 of pair 2 has")):
        assert string.status == Status.ENDPOINT_ABOVE_L0
        assert text in string.detail and "L0 = 0.1" in string.detail
        assert math.isnan(string.Gamma_tilde) and string.depth == -1 and string.n_beads == 0
    assert "theta_1" not in bad.detail
    with pytest.raises(ValueError, match="theta_1 .* has loss 1.5625, above L0 = 0.1"):
        dss.find_string(ring, theta_1[2], theta_2[2], 0.1)


QUICK = {"max_steps": 500, "patience": 100}


def test_every_pair_above_L0_is_an_answer(ring, point):
    (string,) = dss.find_strings(ring, point(1, 0)[None], point(0, 2)[None], 0.1)
    assert string.status == Status.ENDPOINT_ABOVE_L0


def test_a_bead_that_cannot_be_trained_is_an_answer(plateau, beads_given_to_training, point):
    string = dss.find_string(plateau, point(1, 0), point(-1, 0), 0.1, **QUICK)
    assert (string.status, string.n_beads) == (Status.TRAINING_STALLED, 0)
    assert "bead at depth 1: stalled at loss 1, target 0.09" in string.detail
    assert string.Gamma_tilde == 1
    ((_, trained),) = beads_given_to_training
    assert string.gradient_steps == int(trained.steps) > 0


def test_a_bead_that_cannot_be_trained_ends_its_pair_alone(plateau, point):
    theta_1 = torch.stack([point(1, 0), point(1, -0.15), point(1, -0.1)])
    theta_2 = torch.stack([point(-1, 0), point(1.07, 0), point(-1, 0.1)])
    strings = dss.find_strings(plateau, theta_1, theta_2, 0.1, insert_first=True, **QUICK)
    assert [string.status for string in strings] == [
        Status.TRAINING_STALLED,
        Status.CONNECTED,
        Status.TRAINING_STALLED,
    ]
    alone = dss.find_string(plateau, theta_1[1], theta_2[1], 0.1, insert_first=True, **QUICK)
    torch.testing.assert_close(strings[1].thetas, alone.thetas, rtol=0, atol=1e-12)
    assert strings[1].n_beads == 1


def test_beads_that_were_trained_stay_in_a_string_whose_other_bead_failed(
    unit, monkeypatch, beads_given_to_training, point
):
    """The second of two beads at depth 2 fails; the other one and its segments are kept."""

    def failing(task, thetas, *args, **kwargs):
        trained = spied(task, thetas, *args, **kwargs)
        if len(thetas) < 2:
            return trained
        reached = trained.reached & (torch.arange(len(thetas)) != 1)
        status = ["stalled" if i == 1 else s for i, s in enumerate(trained.status)]
        return replace(trained, reached=reached, status=status)

    spied = sampling.train_to
    monkeypatch.setattr(sampling, "train_to", failing)
    theta_1, theta_2 = point(20, 0.05), point(0.05, 20)
    string = dss.find_string(unit, theta_1, theta_2, 0.01, lr=1e-2)
    assert string.status == Status.TRAINING_STALLED
    assert string.n_beads == 2
    assert len(beads_given_to_training) == 2
    gamma = dss.interpolated_loss(unit, string.thetas[:-1], string.thetas[1:])
    assert string.Gamma_tilde == pytest.approx(float(gamma.max()), rel=1e-12)
    spent = sum(int(trained.steps.sum()) for _, trained in beads_given_to_training)
    assert string.gradient_steps == spent


@pytest.mark.parametrize(
    "status", [Status.CONNECTED, Status.DEPTH_EXHAUSTED, Status.TRAINING_STALLED]
)
def test_endpoints_are_kept_whatever_the_status(plateau, status, point):
    theta_1, theta_2 = point(1, 0.1), point(-1, 0) if status != Status.CONNECTED else point(1, 0)
    max_depth = 0 if status == Status.DEPTH_EXHAUSTED else 3
    string = dss.find_string(plateau, theta_1, theta_2, 0.1, max_depth=max_depth, **QUICK)
    assert string.status == status
    assert torch.equal(string.thetas[[0, -1]], torch.stack([theta_1, theta_2]))


@pytest.mark.parametrize("t_star", ["max", "coarse", "midpoint", "grid"])
def test_a_segment_without_a_loss_is_not_low(t_star, point):
    hole = dss.landscape(
        lambda theta: torch.where(theta[..., 0].abs() < 0.3, torch.nan, 0.1) + 0 * theta[..., 1], 2
    )
    string = dss.find_string(hole, point(-1, 0), point(1, 0), 0.2, t_star=t_star, **QUICK)
    assert not string.connected
    assert string.Gamma_tilde == math.inf


def test_a_stalled_segment_stays_open_in_the_trace(plateau, point):
    string = dss.find_string(plateau, point(1, 0), point(-1, 0), 0.1, **QUICK)
    assert string.status == Status.TRAINING_STALLED
    assert string.trace[-1]["open_segments"] == 1
