"""An attempt to find a path between two networks: its pair, its test, its budget, its result.

Shared by the methods of `dss.geometry.neighbours`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dss.checks import check_flag, check_generator, check_L0, check_pairs, check_theta, per_pair
from dss.curve import Maxima, segment_maxima, without_nan
from dss.descent import Training, rounding, training_of
from dss.search import begin
from dss.status import Status
from dss.strings import String
from dss.task import Task, check_task, thetas_of
from dss.theta import interpolate
from dss.train import LEAST_PROGRESS, Batches

DISTURBANCE = 0.01  # of the distance, by which inner points begin off the line with full batches


@dataclass(frozen=True, eq=False)
class Pair:
    """Two networks between which a path is sought, and how.

    Attributes:
        theta_1, theta_2: `(P,)`, on the task's device.
        losses: `(2,)` float64, their metric.
        limit: L0, with its rounding.
        batches: of the gradients; they hold the generator of the run.
        others: as in `bezier`.
    """

    task: Task
    theta_1: Tensor
    theta_2: Tensor
    losses: Tensor
    L0: float
    limit: float
    training: Training
    averaged: bool
    batches: Batches

    def through(self, inner: Tensor) -> Tensor:
        """`(B + 2, P)`: the ends, and the inner points `(B, P)` between them."""
        return torch.cat([self.theta_1[None], inner, self.theta_2[None]])

    def line(self, n: int) -> Tensor:
        """n inner points `(n, P)` at equal steps on the straight line."""
        t = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)
        return interpolate(self.theta_1.expand(n, -1), self.theta_2.expand(n, -1), t)

    def start(self, n: int) -> Tensor:
        """Where n inner points `(n, P)` begin.

        With full batches each is moved by 1 % of the distance in a random direction: a landscape
        that is the same on both sides of the line would never push a path off it.
        """
        inner = self.line(n)
        if not self.batches.whole:
            return inner
        generator = self.batches.generator
        direction = torch.randn(inner.shape, dtype=torch.float64, generator=generator)
        direction /= direction.norm(dim=1, keepdim=True)
        return inner + DISTURBANCE * (self.theta_2 - self.theta_1).norm() * direction.to(inner)


@dataclass(frozen=True, eq=False)
class Tested:
    """What the test of one path gave.

    Attributes:
        highest: the largest loss that was measured; on the whole grid if the path is low.
        n_high: segments above L0; of a curve 1, where it is.
        n_passes: forward passes that it took.
        maxima, losses: of a chain, those of its segments and `(B + 2,)` of its networks.
    """

    highest: float
    n_high: int
    n_passes: int
    maxima: Maxima | None = None
    losses: Tensor | None = None

    @property
    def is_low(self) -> bool:
        """Whether the path passes."""
        return self.n_high == 0


@dataclass(eq=False)
class Found:
    """The best path so far, and what it has cost; written to while a search goes on.

    Attributes:
        inner: `(B, P)`, inner points of the path whose largest loss is lowest.
        tested: what its test gave.
        training: gives the budget and the patience, in gradients of one network.
        gradient_steps, n_passes: so far; both ends were measured before.
        status: why the search has ended; None while it goes on.
        floor, best_step: below which loss is progress, and when the last was made.
    """

    inner: Tensor
    tested: Tested
    training: Training
    gradient_steps: int = 0
    n_passes: int = 2
    status: Status | None = None
    floor: float = math.inf
    best_step: int = 0

    def __post_init__(self):
        self.take(self.inner, self.tested)

    def take(self, inner: Tensor, tested: Tested) -> None:
        """Count a test, and keep its path if it is the best."""
        self.n_passes += tested.n_passes
        if tested.is_low or tested.highest < self.tested.highest:
            self.inner, self.tested = inner, tested
        if tested.highest < self.floor:
            self.floor, self.best_step = (1 - LEAST_PROGRESS) * tested.highest, self.gradient_steps
        if tested.is_low:
            self.status = Status.CONNECTED

    def measure_whole(self, test: Callable) -> None:
        """Measure a path that is not low on its whole grid, of which its test saw a part."""
        if not self.tested.is_low:
            self.tested = test(self.inner, whole=True)
            self.n_passes += self.tested.n_passes

    def detail(self, L0: float) -> str:
        """How a search failed; empty where it did not."""
        if self.status is Status.CONNECTED:
            return ""
        return (
            f"{self.status} after {self.gradient_steps} gradients: the largest loss is "
            f"{self.tested.highest:.6g}, L0 is {L0:.6g}"
        )

    def room(self, cost: int) -> int:
        """Steps of `cost` gradients that may still be made; 0 sets the status."""
        if self.status is None and self.gradient_steps - self.best_step >= self.training.patience:
            self.status = Status.STALLED
        n_steps = (self.training.max_steps - self.gradient_steps) // cost
        if self.status is None and n_steps == 0:
            self.status = Status.BUDGET_SPENT
        return 0 if self.status else n_steps


def pair_of(task, theta_1, theta_2, L0, averaged, generator, training: dict) -> Pair:
    """The arguments that all methods share, checked; ValueError for an endpoint above L0."""
    check_task(task)
    theta_1, theta_2 = thetas_of(task, theta_1=theta_1, theta_2=theta_2)
    check_theta(theta_1, "theta_1", (task.n_params,))
    check_theta(theta_2, "theta_2", (task.n_params,))
    check_pairs(theta_1[None], theta_2[None], task.n_params)
    L0 = per_pair(L0, 1, "L0")
    check_L0(L0)
    averaged, generator = check_flag(averaged, "averaged"), check_generator(generator)
    settings = training_of({"optimizer": "nesterov"} | training)
    settings.check_dtype(task, theta_1.dtype)
    theta_1, theta_2 = (theta.detach().to(task.device) for theta in (theta_1, theta_2))
    threshold = L0 * (1 + rounding(theta_1.dtype))
    ends = begin(task, theta_1[None], theta_2[None], L0, threshold.to(task.device))
    if ends.detail[0]:
        raise ValueError(f"{ends.detail[0]}; what helps: {Status.ENDPOINT_ABOVE_L0.advice}")
    return Pair(
        task=task,
        theta_1=theta_1,
        theta_2=theta_2,
        losses=ends.losses,
        L0=float(L0),
        limit=float(threshold),
        training=settings,
        averaged=averaged,
        batches=Batches(task, settings.batch_size, generator),
    )


def test_chain(pair: Pair, n_t: int, inner: Tensor, whole: bool = False) -> Tested:
    """The pair test on every segment of a chain; high ones are measured in part, or `whole`."""
    task, thetas = pair.task, pair.through(inner)
    losses = torch.cat([pair.losses[:1], task.losses(inner).double(), pair.losses[1:]])
    ends = torch.stack([losses[:-1], losses[1:]], dim=1)
    rule = "grid" if whole else "coarse"
    maxima = segment_maxima(task, thetas[:-1], thetas[1:], n_t, rule, pair.limit, ends)
    return Tested(
        highest=float(maxima.gamma_max.max()),
        n_high=int((~(maxima.gamma_max <= pair.limit)).sum()),
        n_passes=len(inner) + int(maxima.n_passes.sum()),
        maxima=maxima,
        losses=without_nan(losses),
    )


def row_of(found: Found, tested: Tested, n_beads: int, trace: list[dict]) -> dict:
    """The row of a trace for what was done since its last one, and what was tested last."""
    return {
        "depth": len(trace),
        "Gamma_tilde": float(tested.maxima.grid_max.max()),
        "open_segments": tested.n_high,
        "beads_trained": n_beads,
        "gradient_steps": found.gradient_steps - sum(row["gradient_steps"] for row in trace),
        "forward_passes": found.n_passes - sum(row["forward_passes"] for row in trace),
    }


def string_of(pair: Pair, n_t: int, found: Found, trace: list[dict], test: Callable) -> String:
    """The best chain that was found; the last row of its trace speaks of it."""
    found.measure_whole(test)
    last = row_of(found, found.tested, trace[-1]["beads_trained"], trace[:-1])
    is_low = found.status is Status.CONNECTED
    return String(
        thetas=pair.through(found.inner),
        status=Status.CONNECTED if is_low else Status.TRAINING_STALLED,
        L0=pair.L0,
        alpha=1.0,
        slack=1.0,
        n_t=n_t,
        Gamma_tilde=last["Gamma_tilde"],
        trace=[*trace[:-1], last],
        detail=found.detail(pair.L0),
        length_mask=pair.task.length_mask,
        task=pair.task,
    )
