"""The table of landscapes: their answers are right, and the search never beats them."""

import math

import numpy as np
import pytest
import torch

import dss
from dss.geometry.passes import Gamma_on_grid
from dss.problems import PROBLEMS, clusters, corners, linear_units
from dss.theta import permute_units

FLAT = [name for name, problem in PROBLEMS.items() if len(problem.theta_1) == 2]


def exact(name, task):
    """Gamma, also where it is the larger loss of the two networks."""
    problem = PROBLEMS[name]
    return float(task.losses(problem.ends()).max()) if problem.Gamma is None else problem.Gamma


def flooded(task, ends, n):
    """Gamma on a grid of n x n points from -2.4 to 2.4, which holds neither end exactly."""
    axis = torch.linspace(-2.4, 2.4, n, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    loss = task.losses(points).view(n, n).numpy()
    cells = [tuple(int((axis - v).abs().argmin()) for v in end) for end in ends]
    return Gamma_on_grid(loss, *cells)


@pytest.mark.parametrize("name", FLAT)
def test_flooding_a_grid_tends_to_Gamma(name):
    task, ends = PROBLEMS[name].task(name), PROBLEMS[name].ends()
    off = [abs(flooded(task, ends, n) - exact(name, task)) for n in (49, 193, 769)]
    assert off[-1] < 0.01
    assert off[-1] <= off[0] + 1e-12


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("L0", [0.06, 0.3, 0.9, 1.5])
def test_a_string_is_never_below_Gamma_and_is_found_above_it(name, L0):
    task, ends = PROBLEMS[name].task(name), PROBLEMS[name].ends()
    options = {"optimizer": "sgd", "lr": 0.01, "max_steps": 4_000, "alpha": 0.5}
    string = dss.find_string(task, *ends, L0, **options)
    Gamma = exact(name, task)
    assert string.connected == (Gamma <= L0), string.status
    assert dss.Gamma_tilde(task, string.thetas) >= Gamma - 1e-4  # up to the grid of t
    assert math.isclose(dss.Gamma_tilde(task, string.thetas), string.Gamma_tilde, rel_tol=1e-9)


def test_linear_units_are_the_landscapes_of_the_table():
    for n_units, name in ((1, "unit"), (2, "two units")):
        task, thetas = linear_units(n_units), PROBLEMS[name].ends()
        w_and_a = thetas.view(2, -1, 2).transpose(1, 2).reshape(2, -1)  # (w_1, a_1, ...) before
        torch.testing.assert_close(task.losses(w_and_a), PROBLEMS[name].task(name).losses(thetas))
    assert linear_units(1).name == "1 linear unit" and linear_units(2).name == "2 linear units"


def test_corners_have_the_next_corner_as_target():
    x, y = corners().splits["train"]
    turn = torch.tensor([[-0.5, 0.75**0.5], [-(0.75**0.5), -0.5]], dtype=torch.float64)
    torch.testing.assert_close(y, x @ turn)
    task = corners()
    theta = torch.cat([2 * y.flatten(), torch.zeros(6, dtype=torch.float64)])[None]
    assert float(task.losses(theta)) == pytest.approx(0.5), "the constant network"
    assert corners(5).n_params == 20


@pytest.mark.parametrize("make", [linear_units, corners])
@pytest.mark.parametrize("n", [0, 1.5, "two"])
def test_units_are_counted(make, n):
    with pytest.raises((TypeError, ValueError), match="n_units|hidden"):
        make(n)


def test_a_pass_by_hand():
    loss = np.array([[0.0, 9.0, 0.0], [0.0, 5.0, 0.0], [3.0, 7.0, 0.0]])
    assert Gamma_on_grid(loss, (0, 0), (0, 2)) == 5
    assert Gamma_on_grid(loss, (0, 0), (2, 0)) == 3
    assert Gamma_on_grid(loss, (1, 0), (0, 0)) == 0
    assert Gamma_on_grid(loss, (0, 1), (0, 1)) == 9
    corner = np.array([[0.0, 9.0], [9.0, 0.0]])
    assert Gamma_on_grid(corner, (0, 0), (1, 1)) == 0, "corners touch"
    assert Gamma_on_grid(np.array([0.0, 2.0, 1.0]), (0,), (2,)) == 2
    assert Gamma_on_grid(np.full((2, 2, 2), 4.0), (0, 0, 0), (1, 1, 1)) == 4


@pytest.mark.parametrize(
    "loss, cell, message",
    [
        (np.array([[0.0, np.nan]]), (0, 0), "1 values that are NaN"),
        (np.zeros((2, 3)), (2, 0), r"cell \(2, 0\) is not on a grid of shape \(2, 3\)"),
        (np.zeros((2, 3)), (0,), r"cell \(0,\) is not on a grid"),
        (np.zeros((2, 3)), (0, -1), r"cell \(0, -1\) is not on a grid"),
    ],
)
def test_a_cell_outside_or_a_loss_that_is_none_is_refused(loss, cell, message):
    with pytest.raises(ValueError, match=message):
        Gamma_on_grid(loss, (0, 0), cell)


def test_two_clusters_are_whitened_and_swapped_units_meet_one_half(seeded):
    task = clusters(0.3, generator=seeded(1))
    x, y = task.splits["test"]
    assert x.shape == (256, 2) and y.shape == (256, 1) and x.dtype == torch.float64
    assert float(y.mean()) == pytest.approx(0, abs=1e-12)
    assert float((y**2).mean()) == pytest.approx(1)
    for cluster, mean in zip(x.view(2, 128, 2), ([1, -1], [-1, 1]), strict=True):
        assert cluster.mean(dim=0).tolist() == pytest.approx(mean)
        covariance = (cluster - cluster.mean(dim=0)).T @ (cluster - cluster.mean(dim=0)) / 128
        assert torch.allclose(covariance, 0.09 * torch.eye(2, dtype=torch.float64))
    trained = dss.train_to(task, task.init(16, seeded(2)), 0.2, optimizer="adam", lr=0.01)
    theta = trained.thetas[trained.reached][0]
    swapped = permute_units(task.module, theta, [1, 0])
    string = dss.find_string(task, theta, swapped, 0.4, method="averaged", max_depth=4)
    assert not string.connected, "no path stays below one half, but for kinks"


@pytest.mark.parametrize(
    "given, said",
    [
        ({"sigma": 0}, "sigma"),
        ({"sigma": 1e200}, "sigma"),
        ({"hidden": 0}, "hidden"),
        ({"n_samples": 5}, "n_samples"),
        ({"n_samples": 7}, "n_samples is 7"),
    ],
)
def test_clusters_that_are_none_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        clusters(**{"sigma": 0.3} | given)
