"""gamma, its maximum on a segment, and the loss along a whole string."""

import pytest
import torch

import dss
from dss.curve import segment_maxima

ZERO, ONE = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)


def curve(gamma):
    """The landscape whose gamma on the segment from 0 to 1 is a given function of t."""
    return dss.landscape(lambda theta: gamma(theta[..., 0]), 1, "curve")


def peak(t, centre, width=0.1):
    return torch.exp(-(((t - centre) / width) ** 2))


def test_interpolated_loss_is_gamma_on_the_grid():
    task = curve(lambda t: t**3 - t)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    gamma = dss.interpolated_loss(task, ZERO, ONE, n_t=9)
    assert gamma.shape == (9,)
    torch.testing.assert_close(gamma, t**3 - t, rtol=0, atol=1e-15)


def test_interpolated_loss_of_many_segments(quad64, quad_pairs, plain_loss):
    theta_1, theta_2 = quad_pairs.theta_1[:4], quad_pairs.theta_2[:4]
    gamma = dss.interpolated_loss(quad64, theta_1, theta_2, n_t=7)
    assert gamma.shape == (4, 7)
    for s in range(4):
        for k in range(7):
            theta = theta_1[s] * (1 - k / 6) + theta_2[s] * (k / 6)
            assert float(gamma[s, k]) == pytest.approx(float(plain_loss(quad64, theta)), rel=1e-12)


@pytest.mark.parametrize("centre", [0.0571, 0.3137, 0.5, 0.777])
def test_maximum_between_grid_points_is_refined(centre):
    task = curve(lambda t: peak(t, centre))
    assert float(dss.t_star(task, ZERO, ONE)) == pytest.approx(centre, abs=1e-3)
    on_grid = float(dss.t_star(task, ZERO, ONE, rule="grid"))
    assert on_grid == round(centre * 32) / 32
    assert float(dss.t_star(task, ZERO, ONE, rule="midpoint")) == 0.5
    found = segment_maxima(task, ZERO[None], ONE[None])
    assert float(found.gamma_max) == pytest.approx(1, abs=1e-4)
    assert float(found.grid_max) == float(task.losses(torch.tensor([[on_grid]]).double()))


def test_the_global_maximum_is_found_among_several():
    task = curve(lambda t: 0.9 * peak(t, 0.2) + peak(t, 0.8) + 0.95 * peak(t, 0.5))
    assert float(dss.t_star(task, ZERO, ONE)) == pytest.approx(0.8, abs=5e-3)


def test_a_kink_is_bracketed():
    task = curve(lambda t: 1 - (t - 0.3333).abs())
    found = segment_maxima(task, ZERO[None], ONE[None])
    assert abs(float(found.t_star) - 0.3333) < 0.25 / 32
    assert float(found.gamma_max) >= float(found.grid_max)


@pytest.mark.parametrize(
    "gamma, expected",
    [
        pytest.param(lambda t: t, 1.0, id="at the end"),
        pytest.param(lambda t: 1 - t, 0.0, id="at the beginning"),
        pytest.param(lambda t: 0 * t + 0.25, 0.5, id="constant"),
        pytest.param(lambda t: (t - 0.5) ** 2 * (t > 0.4), 1.0, id="a valley, one end cut off"),
    ],
)
@pytest.mark.parametrize("rule", ["max", "grid"])
def test_ends_and_plateaus(gamma, expected, rule):
    assert float(dss.t_star(curve(gamma), ZERO, ONE, rule=rule)) == expected


def test_of_equal_maxima_the_nearest_to_the_middle_counts():
    task = curve(lambda t: 1.0 * ((t - 0.125).abs() < 1e-9) + 1.0 * ((t - 0.75).abs() < 1e-9))
    assert float(dss.t_star(task, ZERO, ONE, rule="grid")) == 0.75
    assert float(dss.t_star(task, ONE, ZERO, rule="grid")) == 0.25


@pytest.mark.parametrize("rule", ["max", "coarse", "grid", "midpoint"])
@pytest.mark.parametrize("n_t", [3, 16, 33])
def test_a_reversed_segment_gives_one_minus_t_star(rule, n_t):
    task = curve(lambda t: peak(t, 0.29, 0.2) + 0.7 * peak(t, 0.8, 0.1))
    there = float(dss.t_star(task, ZERO, ONE, n_t, rule))
    back = float(dss.t_star(task, ONE, ZERO, n_t, rule))
    assert back == pytest.approx(1 - there, abs=1e-9)


def test_segments_in_a_batch_equal_segments_alone(quad64, quad_pairs):
    theta_1, theta_2 = quad_pairs.theta_1, quad_pairs.theta_2
    many = dss.t_star(quad64, theta_1, theta_2)
    assert many.shape == (32,)
    for s in (0, 9, 31):
        alone = dss.t_star(quad64, theta_1[s], theta_2[s])
        assert alone.shape == ()
        assert float(many[s]) == pytest.approx(float(alone), abs=1e-6)


def test_refined_maxima_are_never_below_the_grid(quad64, quad_pairs):
    found = segment_maxima(quad64, quad_pairs.theta_1, quad_pairs.theta_2, n_t=9)
    gamma = dss.interpolated_loss(quad64, quad_pairs.theta_1, quad_pairs.theta_2, n_t=9)
    assert torch.equal(found.grid_max, gamma.amax(dim=1))
    assert (found.gamma_max >= found.grid_max).all()
    assert (found.gamma_max > found.grid_max).any()
    at = quad64.losses(dss.interpolate(quad_pairs.theta_1, quad_pairs.theta_2, found.t_star))
    torch.testing.assert_close(at, found.gamma_max, rtol=1e-9, atol=0)


def test_losses_along_a_string(ring):
    thetas = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-3.0, 1.0]], dtype=torch.float64)
    position, gamma = dss.losses_along(ring, thetas, n_t=5)
    assert position.shape == gamma.shape == (2, 5)
    first = 2**0.5 / (2**0.5 + 3)
    assert position[0].tolist() == pytest.approx([first * k / 4 for k in range(5)])
    assert float(position[1, 0]) == pytest.approx(first)
    assert float(position[1, -1]) == pytest.approx(1)
    torch.testing.assert_close(gamma[:, 0], ring.losses(thetas[:-1]))
    torch.testing.assert_close(gamma[:, -1], ring.losses(thetas[1:]))
    assert float(gamma[0, 2]) == pytest.approx(0.25)


def test_paths_as_one_table(ring):
    thetas = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    table = dss.compare_paths(ring, {"line": thetas[[0, 2]], "string": thetas}, n_t=5)
    assert table.path.tolist() == 5 * ["line"] + 10 * ["string"]
    assert table[table.is_network].position.tolist() == [0, 1, 0, 0.5, 1]
    assert table[table.is_network].loss.tolist() == [0, 0, 0, 0, 0]
    assert table[table.path == "line"].loss.tolist() == [0, 0.5625, 1, 0.5625, 0]
    gamma = dss.losses_along(ring, thetas, n_t=5)[1]
    assert table[table.path == "string"].loss.tolist() == gamma.flatten().tolist()
    with pytest.raises(ValueError, match="paths is empty"):
        dss.compare_paths(ring, {})
    with pytest.raises(ValueError, match="path 'dot' has 1 networks"):
        dss.compare_paths(ring, {"dot": thetas[:1]})


@pytest.mark.parametrize("rows, message", [(1, "thetas has 1 networks"), (0, "thetas has 0 netw")])
def test_a_string_of_less_than_two_networks_has_no_Gamma_tilde(quad64, rows, message):
    with pytest.raises(ValueError, match=message):
        dss.Gamma_tilde(quad64, quad64.init(2)[:rows])
    with pytest.raises(ValueError, match=r"thetas has shape \(33,\); \(any, 33\) is needed"):
        dss.Gamma_tilde(quad64, quad64.init(1)[0])
