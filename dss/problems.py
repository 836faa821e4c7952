"""Landscapes whose answer is known exactly: for tests, 01_definitions and the page by hand."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dss.checks import check_generator, check_number, check_whole
from dss.networks.architectures import mlp
from dss.task import Landscape, Task
from dss.tasks import landscape


@dataclass(frozen=True)
class Problem:
    """A loss of a few parameters, two networks, and the pass between them.

    Attributes:
        loss: maps `(..., dim)` to `(...)`, differentiable.
        theta_1, theta_2: values of the two networks.
        Gamma: the least maximum of the loss over all paths between them, Eq. (3); None: the larger
            of their own losses, since they lie in one valley.
        reason: why.
    """

    loss: Callable[[Tensor], Tensor]
    theta_1: tuple[float, ...]
    theta_2: tuple[float, ...]
    Gamma: float | None
    reason: str

    def task(self, name: str) -> Landscape:
        """The landscape as a task."""
        return landscape(self.loss, len(self.theta_1), name)

    def ends(self) -> Tensor:
        """The two networks, `(2, dim)` float64."""
        return torch.tensor([self.theta_1, self.theta_2], dtype=torch.float64)


def _valley(theta: Tensor) -> Tensor:
    x, y = theta[..., 0], theta[..., 1]
    return (y - 1.5 * torch.cos(x)) ** 2 + 0.01 * x**2


def _unit(theta: Tensor) -> Tensor:
    return (theta[..., 0] * theta[..., 1] - 1) ** 2


def _two_units(theta: Tensor) -> Tensor:
    return (theta[..., 0] * theta[..., 1] + theta[..., 2] * theta[..., 3] - 1) ** 2


def _ring(theta: Tensor) -> Tensor:
    return ((theta**2).sum(-1) - 1) ** 2


def _plateau(theta: Tensor) -> Tensor:
    x, y = theta[..., 0], theta[..., 1]
    return (4 * ((x**2 - 1) ** 2 + y**2)).clamp(max=1)


PROBLEMS = {
    "valley": Problem(
        _valley, (-1.8, -0.25), (1.7, -0.1), None, "a bent valley, that of Fig. 1"
    ),
    "unit": Problem(
        _unit, (0.6, 1.6), (-1.9, -0.55), 1.0,
        "one linear unit y = a w x with target x: a path between the two signs of (w, a) meets "
        "w a = 0, where the loss is 1",
    ),
    "two units": Problem(
        _two_units, (0.6, 1.6, 0.2, 0.0), (-1.9, -0.55, 0.0, -0.2), None,
        "one unit can shrink to nothing while the other takes over",
    ),
    "ring": Problem(_ring, (1.0, 0.0), (-1.0, 0.0), None, "the minima form a circle"),
    "plateau": Problem(
        _plateau, (1.0, 0.0), (-1.0, 0.0), 1.0,
        "two valleys on a plateau of height 1, where the gradient is exactly 0",
    ),
}  # fmt: skip


def linear_units(n_units: int) -> Task:
    """A linear network `y = sum_i a_i w_i x` with the one sample x = y = 1.

    Args:
        n_units: hidden units.  With one, every path between networks whose w have different signs
            meets w a = 0, where the loss is 1; with more there is a path at the loss of its ends.

    Returns:
        The task in float64, with the mean squared error.

    Raises:
        TypeError, ValueError: n_units is no whole number >= 1.
    """
    n_units = check_whole(n_units, "n_units", 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):  # values of the template are never used
        layers = nn.Linear(1, n_units, bias=False), nn.Linear(n_units, 1, bias=False)
    name = f"{n_units} linear unit{'s' * (n_units > 1)}"
    module = nn.Sequential(*layers).double()
    return Task.from_module(module, "mse", (one, one), (one, one), name=name)


def corners(hidden: int = 3) -> Task:
    """Three corners of a triangle on the unit circle; the target of each is the next corner.

    A 2-h-2 network without biases.  With three units, a path from a network below 1/12 to the same
    with its units moved on by one place exists at its loss; none leads to the same with two units
    swapped below a barrier (notebook 7).

    Args:
        hidden: units of the one hidden layer.

    Returns:
        The task in float64, with the mean squared error.

    Raises:
        TypeError, ValueError: hidden is no whole number >= 1.
    """
    hidden = check_whole(hidden, "hidden", 1)
    angles = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    sample = x, x.roll(-1, 0)  # a row per sample
    with torch.random.fork_rng(devices=[]):  # values of the template are never used
        module = mlp([2, hidden, 2], bias=False).double()
    return Task.from_module(module, "mse", sample, sample, name=f"corners, {hidden} units")


def clusters(
    sigma: float,
    hidden: int = 2,
    n_samples: int = 256,
    generator: torch.Generator | None = None,
) -> Task:
    """Two round Gaussian clusters in the plane, each with a target along an axis of its own.

    The means are (1, -1) and (-1, 1).  The target is the first coordinate of a sample of the first
    cluster, the second of one of the second, centred and over sigma, so that its variance is 1.
    The samples are centred and whitened cluster by cluster.

    With two hidden units and no kink inside a cluster, no path between a network and the one with
    its units swapped stays below one half: `det W_1` changes its sign, and where it is zero the
    output depends on one projection of the plane.

    Args:
        sigma: standard deviation of both clusters, from 1e-6 to 1e6.
        hidden: units of the one hidden layer.
        n_samples: even; the same are trained on and evaluated.
        generator: CPU generator of the samples; a new one with seed 0 by default.

    Returns:
        The task in float64, with the mean squared error.

    Raises:
        TypeError, ValueError: an argument out of range.
    """
    sigma = check_number(sigma, "sigma", lambda v: 1e-6 <= v <= 1e6, "in [1e-06, 1e+06]")
    hidden = check_whole(hidden, "hidden", 1)
    if (n_samples := check_whole(n_samples, "n_samples", 6)) % 2:
        raise ValueError(
            f"n_samples is {n_samples}; an even number is needed, half for each cluster"
        )
    half = n_samples // 2
    xi = torch.randn(2, half, 2, dtype=torch.float64, generator=check_generator(generator))
    xi = xi - xi.mean(dim=1, keepdim=True)
    factor = torch.linalg.cholesky(xi.transpose(1, 2) @ xi / half)
    xi = torch.linalg.solve_triangular(factor, xi.transpose(1, 2), upper=False)  # (2, 2, n / 2)
    means = torch.tensor([[[1.0], [-1.0]], [[-1.0], [1.0]]], dtype=torch.float64)
    x, y = means + sigma * xi, torch.stack([xi[0, 0], xi[1, 1]])
    sample = x.transpose(1, 2).reshape(2 * half, 2), y.reshape(2 * half, 1)
    with torch.random.fork_rng(devices=[]):  # values of the template are never used
        module = mlp([2, hidden, 1]).double()
    return Task.from_module(
        module, "mse", sample, sample, name=f"clusters {sigma:g}, {hidden} units"
    )
