"""What a search is going to take, as far as a few gradients tell."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dss.checks import check_grid, check_L0, check_whole, lookup, per_pair
from dss.descent import COPIES, Training, rounding
from dss.networks.samples import size_of

RUNS, SECONDS = 3, 1.0  # what is timed runs so often, or until so many seconds have passed


@dataclass(frozen=True)
class Estimate:
    """What a search takes, before it runs.

    Attributes:
        n_params: P.
        n_pairs: M.
        networks: MiB of the two networks of each pair; every bead that is found adds to it.
        training: MiB of flat vectors of the beads of a level that descend together: themselves,
            their gradients, the optimiser's state, results.
        activations: MiB, of the networks that compute a gradient side by side, counted once.
        seconds_per_gradient: of one network on one batch, in the company that it has in a search.
        seconds_per_evaluation: of one network on the evaluation set, in the same way.
        first_passes: forward passes of a network over the evaluation set at the first level.
        first_seconds: what these take; measured where networks were given.
        n_beads: pairs whose straight line exceeds L0, for which the first level trains a bead;
            None where no networks were given.
        most_gradients: gradients that the first level may take.  A deeper one may take as many for
            each of its beads.
    """

    n_params: int
    n_pairs: int
    networks: float
    training: float
    activations: float
    seconds_per_gradient: float
    seconds_per_evaluation: float
    first_passes: int
    first_seconds: float
    n_beads: int | None
    most_gradients: int

    def __str__(self) -> str:
        beads = "" if self.n_beads is None else f", then {self.n_beads} beads"
        return "\n".join(
            [
                f"networks     {self.n_params:,} parameters, {self.n_pairs} pairs",
                f"memory       {self.networks:.3g} MiB of networks, {self.training:.3g} MiB to "
                f"train beads, {self.activations:.3g} MiB of activations",
                f"time         {_time(self.seconds_per_gradient)} a gradient, "
                f"{_time(self.seconds_per_evaluation)} an evaluation",
                f"first level  {self.first_passes:,} evaluations in "
                f"{_time(self.first_seconds)}{beads}; at most {self.most_gradients:,} gradients, "
                f"{_time(self.most_gradients * self.seconds_per_gradient)}",
            ]
        )


def estimate(
    task, n_pairs: int, n_t: int, method: str, training: Training, ends: tuple = (), L0=None
) -> Estimate:
    """`Task.estimate`; ends are none, or two `(M, P)`, and L0 without them is None."""
    n_t, copies = check_grid(n_t), lookup(COPIES, method, "method")
    n_pairs, dtype = check_whole(n_pairs, "n_pairs", 1), ends[0].dtype if ends else task.dtype
    training.check_dtype(task, dtype)
    n_samples = training.samples_in(task)
    task.budget.check_bead(copies, n_samples, dtype)
    together = min(n_pairs, task.budget.rows_that_fit(copies, dtype))
    side_by_side = min(together, task.budget.side_by_side(n_samples, dtype))
    thetas = ends[0][:side_by_side] if ends else task.probes(side_by_side)
    generator = torch.Generator().manual_seed(0)
    whole = not task.splits or n_samples == size_of(task.splits["train"])
    batch = slice(None) if whole else torch.arange(n_samples, device=task.device)
    step = thetas, batch, generator, training.precision
    gradient = _seconds(task, lambda: task.gradients(*step)) / side_by_side
    evaluation = _seconds(task, lambda: task.losses(thetas)) / side_by_side
    first_seconds, n_beads = n_pairs * n_t * evaluation, None
    if L0 is not None:
        first_seconds, n_beads = _first_level(task, *ends, L0, n_t)
    mib, P = dtype.itemsize / 2**20, task.n_params
    return Estimate(
        n_params=P,
        n_pairs=n_pairs,
        networks=2 * n_pairs * P * mib,
        training=copies * together * P * mib,
        activations=side_by_side * task.budget.activations_of(n_samples) * mib,
        seconds_per_gradient=gradient,
        seconds_per_evaluation=evaluation,
        first_passes=n_pairs * n_t,
        first_seconds=first_seconds,
        n_beads=n_beads,
        most_gradients=training.max_steps * (n_pairs if n_beads is None else n_beads),
    )


def _first_level(task, theta_1: Tensor, theta_2: Tensor, L0, n_t: int) -> tuple[float, int]:
    """Seconds that the straight lines take, and how many of them exceed L0 where ends do not."""
    L0 = per_pair(L0, len(theta_1), "L0")
    check_L0(L0)
    limit = L0.to(task.device) * (1 + rounding(theta_1.dtype))
    begin = time.perf_counter()
    gamma = task.losses_between(theta_1, theta_2, torch.linspace(0, 1, n_t)).double()  # (M, n_t)
    low = gamma <= limit[:, None]
    is_open = low[:, 0] & low[:, -1] & ~low.all(dim=1)
    n_beads = int(is_open.sum())
    return time.perf_counter() - begin, n_beads


def _seconds(task, work: Callable) -> float:
    """The least seconds of a few runs."""
    seconds: list[float] = []
    while len(seconds) < RUNS and sum(seconds) < SECONDS:
        start = time.perf_counter()
        work()
        if task.device.type == "cuda":
            torch.cuda.synchronize(task.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _time(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
