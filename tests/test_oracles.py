"""Landscapes on which the answer is known exactly."""

import math

import pytest
import torch

import dss
from dss.status import Status

# Both networks of a pair have a loss of at most .0064; a w > 0 in one quadrant each.
OPPOSITE = torch.tensor(
    [
        [[1.0, 1.0], [-1.0, -1.0]],
        [[2.0, 0.5], [-1.0, -1.0]],
        [[0.4, 2.3], [-1.8, -0.55]],
        [[1.0, 1.0], [-0.5, -2.0]],
    ],
    dtype=torch.float64,
)
SEARCH = {"lr": 1e-2, "max_steps": 2_000}


def on_circle(angle):
    return torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


@pytest.mark.parametrize("L0", [0.05, 0.5, 0.9, 0.99])
def test_linear_unit_never_connects_below_the_saddle(unit, L0):
    strings = dss.find_strings(unit, OPPOSITE[:, 0], OPPOSITE[:, 1], L0, max_depth=10, **SEARCH)
    for string in strings:
        assert string.status == Status.DEPTH_EXHAUSTED
        assert string.Gamma_tilde == pytest.approx(1, abs=1e-3)


def test_linear_unit_Gamma_tilde_tends_to_one_at_the_origin(unit):
    strings = dss.find_strings(unit, OPPOSITE[:, 0], OPPOSITE[:, 1], 0.9, max_depth=12, **SEARCH)
    error = [[abs(row["Gamma_tilde"] - 1) for row in s.trace] for s in strings]
    for pair in range(1, 4):
        assert error[pair][0] > 0.02
    for row in error:
        assert max(row[-3:]) < 1e-3
    for string in strings:
        gamma = dss.interpolated_loss(unit, string.thetas[:-1], string.thetas[1:], 1001)
        worst, t = divmod(int(gamma.argmax()), 1001)
        saddle = dss.interpolate(string.thetas[worst], string.thetas[worst + 1], t / 1000)
        assert float(saddle.prod()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("t_star", ["max", "coarse", "grid", "midpoint"])
@pytest.mark.parametrize("insert_first", [False, True])
def test_no_rule_connects_what_is_disconnected(unit, t_star, insert_first):
    strings = dss.find_strings(
        unit,
        OPPOSITE[:, 0],
        OPPOSITE[:, 1],
        0.8,
        max_depth=5,
        t_star=t_star,
        insert_first=insert_first,
        **SEARCH,
    )
    assert not any(string.connected for string in strings)


def test_linear_unit_connects_above_the_saddle(unit):
    strings = dss.find_strings(unit, OPPOSITE[:, 0], OPPOSITE[:, 1], 1.05, **SEARCH)
    assert all(string.connected for string in strings)
    assert strings[0].n_beads == 0


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0])
def test_ring_length_of_antipodes_tends_to_half_a_circle(ring, angle):
    theta_1 = on_circle(angle)
    strings = [dss.find_string(ring, theta_1, -theta_1, L0) for L0 in (0.3, 0.03, 3e-3, 1e-4)]
    assert all(string.connected for string in strings)
    errors = [abs(string.normalized_length - math.pi / 2) for string in strings]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.2
    assert errors[-1] < 2e-3


def test_ring_length_of_a_generic_pair_tends_to_arc_over_chord(ring):
    arc = 2.0
    strings = [
        dss.find_string(ring, on_circle(0.4), on_circle(0.4 + arc), L0) for L0 in (0.1, 1e-2, 1e-4)
    ]
    errors = [abs(string.normalized_length - arc / (2 * math.sin(arc / 2))) for string in strings]
    assert all(string.connected for string in strings)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 2e-3


def test_ring_antipodes_need_no_bead_at_the_height_of_the_origin(ring):
    string = dss.find_string(ring, on_circle(0.3), -on_circle(0.3), 1.0)
    assert (string.status, string.n_beads, string.normalized_length) == ("connected", 0, 1.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_convex_case_needs_no_bead(linear, seeded, optimizer):
    start = linear.init(12, seeded(1))
    L0 = 0.01
    trained = dss.train_to(linear, start, L0, optimizer=optimizer, lr=0.05)
    assert trained.reached.all()
    strings = dss.find_strings(linear, trained.thetas[:6], trained.thetas[6:], L0)
    for string in strings:
        assert (string.status, string.n_beads) == ("connected", 0)
        assert string.normalized_length == 1.0
        assert len(string.trace) == 1
        assert string.Gamma_tilde <= L0


def test_convex_case_with_an_endpoint_exactly_at_L0(linear, seeded):
    thetas = linear.init(20, seeded(2))
    losses = linear.losses(thetas)
    for pair in range(10):
        L0 = float(losses[2 * pair : 2 * pair + 2].max())
        string = dss.find_string(linear, thetas[2 * pair], thetas[2 * pair + 1], L0)
        assert (string.status, string.n_beads, string.normalized_length) == ("connected", 0, 1.0)
