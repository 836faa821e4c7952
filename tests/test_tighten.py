"""Tightened strings: exact cases, and what holds of every one."""

import math

import pytest
import torch

import dss
from dss.theta import normalized_length

OPTIONS = {"optimizer": "adam", "lr": 1e-2, "max_steps": 600, "patience": 200}


def wandering(task, thetas, L0, n_t=33):
    """A string through given networks, as a search could have found it."""
    Gamma_tilde = dss.Gamma_tilde(task, thetas, n_t)
    assert Gamma_tilde <= L0
    return dss.String(thetas, "connected", L0, 0.9, 1.0, n_t, Gamma_tilde)


@pytest.fixture(scope="module")
def found(quad64, seeded):
    strings, _ = dss.study(quad64, [0.01, 0.002], 8, seeded(5), **OPTIONS)
    return [s for s in strings if s.connected and s.n_beads]


def test_where_the_loss_is_convex_a_straight_line_is_left(linear, seeded):
    thetas = dss.train_to(linear, linear.init(6, seeded(1)), 0.01, lr=0.05).thetas
    tight = dss.tighten(linear, wandering(linear, thetas, 0.5))
    assert tight.n_beads == 0 and tight.normalized_length == 1
    assert torch.equal(tight.thetas, thetas[[0, -1]])
    assert "beads 4 to 0" in tight.detail


@pytest.mark.parametrize("halvings", [0, 2])
def test_around_a_hole_no_string_gets_shorter_than_its_rim(ring, point, halvings):
    """On the ring (|theta|^2 - 1)^2 <= L0 keeps away from the disc |theta| < r."""
    L0 = 0.1
    r = math.sqrt(1 - math.sqrt(L0))
    angle = torch.linspace(0, math.pi, 9, dtype=torch.float64)
    radius = 1 + 0.1 * (-1.0) ** torch.arange(9, dtype=torch.float64)
    radius[[0, -1]] = 1
    thetas = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    before = wandering(ring, thetas, L0)
    tight = dss.tighten(ring, before, halvings=halvings)
    # The shortest curve: two tangents from distance 1 to the rim, and the arc between them.
    shortest = 2 * math.sqrt(1 - r**2) + r * (math.pi - 2 * math.acos(r))
    length = 2 * tight.normalized_length
    assert shortest - 1e-3 <= length < 2 * before.normalized_length
    assert length <= {0: 1.10, 2: 1.03}[halvings] * shortest


def test_ends_stay_strings_get_no_longer_and_no_higher(quad64, found):
    tight = dss.tighten(quad64, found)
    for before, after in zip(found, tight, strict=True):
        assert torch.equal(before.thetas[[0, -1]], after.thetas[[0, -1]])
        assert after.normalized_length <= before.normalized_length * (1 + 1e-12)
        assert after.connected and after.n_beads <= before.n_beads
        assert after.Gamma_tilde <= before.L0 * (1 + 1e-5)
        assert dss.Gamma_tilde(quad64, after.thetas) == pytest.approx(after.Gamma_tilde)
        assert (after.trace, after.L0, after.alpha) == (before.trace, before.L0, before.alpha)
    gained = [b.normalized_length - a.normalized_length for b, a in zip(found, tight, strict=True)]
    assert sum(gain > 0 for gain in gained) > len(found) / 2


def test_strings_side_by_side_come_out_as_each_alone(quad64, found):
    for one, tight in zip(found[:4], dss.tighten(quad64, found[:4], halvings=1), strict=True):
        alone = dss.tighten(quad64, one, halvings=1)
        torch.testing.assert_close(alone.thetas, tight.thetas, rtol=0, atol=1e-9)
        assert alone.detail.split()[-3:] == tight.detail.split()[-3:]


def test_a_slack_and_a_mask_are_those_of_the_search(seeded):
    task = dss.polynomial("cubic", preset="authors")
    options = task.settings | {"max_steps": 3_000, "fewer": True}
    strings, _ = dss.study(task, [0.2], 2, seeded(), **options)
    for before in [s for s in strings if s.connected]:
        after = dss.tighten(task, before)
        assert after.Gamma_tilde <= 1.1 * 0.2 * (1 + 1e-5)
        lengths = [normalized_length(s.thetas, task.length_mask) for s in (before, after)]
        assert lengths[1] <= lengths[0] and after.normalized_length == lengths[1]


def test_what_a_finer_grid_finds_is_not_cut(point):
    """A needle between grid points: its segment stays whole, and is no reason to fail."""
    needle = dss.landscape(lambda v: (-(((v[..., 0] - 0.26) / 0.01) ** 2)).exp(), 1)
    string = wandering(needle, torch.tensor([[0.0], [1.0]], dtype=torch.float64), 0.5, n_t=3)
    tight = dss.tighten(needle, string, halvings=2)
    assert tight.n_beads == 0 and tight.Gamma_tilde <= 0.5


def test_what_does_not_connect_is_refused_by_its_number(quad64, found):
    failed = dss.find_string(quad64, *found[0].thetas[[0, -1]], found[0].L0, max_depth=0)
    with pytest.raises(ValueError, match="string 1 ended with 'depth exhausted'"):
        dss.tighten(quad64, [found[0], failed])
    with pytest.raises(TypeError, match="string 0 is a Tensor"):
        dss.tighten(quad64, found[0].thetas)
    with pytest.raises(ValueError, match="thetas of string 0 has shape"):
        dss.tighten(dss.quad(hidden=(3,)), found[0])
    assert dss.tighten(quad64, []) == []
