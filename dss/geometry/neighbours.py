"""The neighbours of DSS: other methods that seek a path of low loss between the same two networks.

`bezier` and `one_bend` lower the training loss at a random point of a curve; `auto_neb` lowers
that of pivots on a chain, across the chain.  All three share one descent (`_descend`), begin on
the straight line, do nothing where it is low, and end when a path passes its test.

They count as DSS does: a gradient is that of one network on one batch, a forward pass takes one
network over the whole evaluation set.  With `averaged=True` they test running means of their
iterates, as `find_strings(method="averaged")` does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from dss.averaged import DECAYS_OF_BATCHES as DECAYS
from dss.checks import (
    check_flag,
    check_generator,
    check_grid,
    check_L0,
    check_pairs,
    check_theta,
    check_whole,
    numbers_of,
    per_pair,
)
from dss.curve import Maxima, grid_of, segment_maxima, without_nan
from dss.descent import OPTIMIZERS, Training, rounding, takes_training, training_of
from dss.networks.modes import in_usual_mode
from dss.search import begin
from dss.status import Status
from dss.strings import String
from dss.task import Task, check_task
from dss.theta import interpolate, points_along
from dss.train import LEAST_PROGRESS, Batches

N_CURVE = 101  # points on which a curve is tested
DISTURBANCE = 0.01  # of the distance, by which inner points begin off the line with full batches
INSERTED = 2  # most pivots that a cycle of AutoNEB adds, and
INSERT_ABOVE = 0.1  # how far gamma must lie above its chord, of the range of the pivots' losses


@dataclass(frozen=True, eq=False)
class Curve:
    """A Bezier curve between two networks, and what is known of the loss on it.

    Attributes:
        controls: `(n + 1, P)`, the control points of a curve of degree n; the first and the last
            are `theta_1` and `theta_2`, bit for bit.
        status: `connected` (101 points are at or below L0), `stalled`, `budget spent` or
            `not finite`, with its meaning and advice (`dss.status`).
        L0: threshold, in the unit of the task's metric.
        Gamma_tilde: largest loss on 101 points at equal steps of t, both ends included.  No
            certificate: between the points the loss may be higher.
        gradient_steps: gradients of one network on one batch.
        forward_passes: of one network over the evaluation set.
        detail: what else there is to say of the status; may be empty.
        length_mask: `(P,)` bool, the parameters that count in the length; None: all.

    Source: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs (2018).
    """

    controls: Tensor
    status: Status
    L0: float
    Gamma_tilde: float
    gradient_steps: int
    forward_passes: int
    detail: str = ""
    length_mask: Tensor | None = field(default=None, repr=False)

    @property
    def connected(self) -> bool:
        """Whether every point that was tested is at or below L0."""
        return self.status is Status.CONNECTED

    def at(self, t: Tensor | float) -> Tensor:
        """Networks on the curve, `(n, P)`, at t `(n,)` in [0, 1]; 0 and 1 give the ends exactly.

        Raises:
            TypeError: t is no number or several.
            ValueError: t has another shape, or a value outside [0, 1].
        """
        t = torch.atleast_1d(numbers_of(t, "t"))
        if t.dim() != 1 or not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t is {t.tolist()}; numbers in [0, 1], (n,), are needed")
        return _points(self.controls, partial(_bernstein, len(self.controls) - 1), t)

    def polygon(self, n: int = 100) -> Tensor:
        """A string of n segments with its networks on the curve, `(n + 1, P)`, at equal steps of t.

        It keeps within `max |c_k - 2 c_(k+1) + c_(k+2)| * d (d - 1) / (8 n^2)` of the curve, where
        c are the control points and d is the degree.
        """
        n = check_whole(n, "n", 1)
        return self.at(torch.linspace(0, 1, n + 1, dtype=torch.float64))

    @property
    def length(self) -> float:
        """Length of the curve, from the speed at the middles of 1,000 equal steps of t."""
        steps = self.controls.double().diff(dim=0)
        steps = steps if self.length_mask is None else steps[:, self.length_mask]
        degree, products = len(steps), (steps @ steps.T).cpu()
        t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        weights = degree * _bernstein(degree - 1, t)  # (1000, n)
        square_of_speed = torch.einsum("ti,ij,tj->t", weights, products, weights)
        return float(square_of_speed.clamp(min=0).sqrt().mean())

    @property
    def normalized_length(self) -> float:
        """Length of the curve over the distance of its ends; 1 for a straight line."""
        gap = (self.controls[-1].double() - self.controls[0].double()).abs()
        straight = float((gap if self.length_mask is None else gap[self.length_mask]).norm())
        length = self.length
        return length / straight if straight else (1.0 if length == 0 else math.inf)


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


@in_usual_mode
@takes_training
def bezier(
    task: Task,
    theta_1: Tensor,
    theta_2: Tensor,
    L0: float,
    degree: int = 2,
    averaged: bool = False,
    *,
    generator: torch.Generator | None = None,
    **training,
) -> Curve:
    """A Bezier curve of low loss between two networks.

    Each step draws t uniformly from [0, 1], takes one gradient of the loss at the curve's point,
    and moves the inner control points by their weights in that point.

    Args:
        task: gives the training loss and the metric, measured on the whole evaluation set.
        theta_1, theta_2: `(P,)`, at or below L0.
        L0: threshold in the unit of `task.metric`, which 101 points of the curve are to keep.
        degree: 2, with one inner control point, or 3, with two.
        averaged: test means of the iterates (decays .97 and .9), not the last iterate.
        generator: CPU generator of t and of the data order; a new one with seed 0 by default.
        training: the fields of `dss.descent.Training`; by default Nesterov's momentum with lr .1,
            and a test every 50 gradients, or every 10 with full batches.  A curve whose largest
            loss has not fallen by 0.1 % in `patience` gradients has stalled.

    Returns:
        The curve; look at its `status` before anything else.

    Raises:
        TypeError, ValueError: as in `dss.find_string`, an endpoint above L0 included; ValueError
            too for a degree that is neither 2 nor 3.

    Source: Garipov et al. (2018), Sec. 3.
    Differs: they stop after a number of epochs, at a learning rate that falls to nothing.  With
        full batches inner points begin 1 % of the distance off the line, in random directions.
    """
    degree = check_whole(degree, "degree", 2, 3)
    pair = _pair(task, theta_1, theta_2, L0, averaged, generator, {"lr": 0.1} | training)
    weights = partial(_bernstein, degree)
    test = partial(_test_curve, pair, weights)
    line = pair.line(degree - 1)
    found = Found(line, test(line), pair.training)
    slope = partial(_slope_at_uniform_t, pair, weights)
    if found.room(1):
        _descend(pair, pair.start(degree - 1), slope, 1, test, found)
    found.measure_whole(test)
    return Curve(
        controls=pair.through(found.inner),
        status=found.status,
        L0=pair.L0,
        Gamma_tilde=found.tested.highest,
        gradient_steps=found.gradient_steps,
        forward_passes=found.n_passes,
        detail=found.detail(pair.L0),
        length_mask=task.length_mask,
    )


@in_usual_mode
@takes_training
def one_bend(
    task: Task,
    theta_1: Tensor,
    theta_2: Tensor,
    L0: float,
    n_t: int = 33,
    averaged: bool = False,
    *,
    generator: torch.Generator | None = None,
    **training,
) -> String:
    """A polygonal chain with one bend of low loss between two networks.

    As `bezier`, but the curve consists of two straight segments, each passed in half of t.

    Args:
        task, theta_1, theta_2, L0, averaged, generator: as in `bezier`.
        n_t: grid points of the pair test on each segment, both ends included.
        training: as in `bezier`, with lr .05.

    Returns:
        The string, whose bead is the bend (none where the straight line is low); a search that
        failed has the status `training stalled`, and `detail` says why.

    Raises:
        TypeError, ValueError: as in `dss.find_string`, an endpoint above L0 included.

    Source: Garipov et al. (2018), Sec. 3.
    """
    n_t = check_grid(n_t)
    pair = _pair(task, theta_1, theta_2, L0, averaged, generator, {"lr": 0.05} | training)
    test = partial(_test_chain, pair, n_t)
    found = Found(pair.line(0), test(pair.line(0)), pair.training)
    trace = [_row(found, found.tested, 0, [])]
    if found.room(1):
        slope = partial(_slope_at_uniform_t, pair, _hat)
        _, tested = _descend(pair, pair.start(1), slope, 1, test, found)
        trace.append(_row(found, tested, 1, trace))
    return _string(pair, n_t, found, trace, test)


@in_usual_mode
@takes_training
def auto_neb(
    task: Task,
    theta_1: Tensor,
    theta_2: Tensor,
    L0: float,
    n_t: int = 33,
    n_pivots: int = 3,
    sweeps: int = 200,
    max_pivots: int = 30,
    averaged: bool = False,
    *,
    generator: torch.Generator | None = None,
    **training,
) -> String:
    """A chain of pivots of low loss between two networks, by nudged elastic bands (AutoNEB).

    Pivots descend the part of their gradient across the chain, and are put back to their places
    along it.  After a cycle of sweeps up to two pivots are inserted where gamma lies high above
    the chord of its pivots.

    Args:
        task, theta_1, theta_2, L0, averaged, generator: as in `bezier`.
        n_t: grid points of the pair test on each segment, both ends included.
        n_pivots: at equal steps, to begin with.
        sweeps: in a cycle.  One sweep takes a gradient of every pivot on the same batch.
        max_pivots: no further ones are inserted.
        training: as in `bezier`, with lr .05.  All pivots together count for `max_steps`,
            `patience` and `check_every`, which whole sweeps fill.

    Returns:
        The string, whose beads are the pivots (none where the straight line is low), with a row of
        its trace for each cycle.  A search that failed has the status `training stalled`, and
        `detail` says why.

    Raises:
        TypeError, ValueError: as in `dss.find_string`, an endpoint above L0 included; ValueError
            too for n_pivots or sweeps below 1, or max_pivots below n_pivots.

    Source: Draxler et al., Essentially No Barriers in Neural Network Energy Landscape (2018);
        tangents: Henkelman and Jonsson (2000).
    Differs: a cycle has 200 sweeps, not 1,000, and there is no last one; the learning rate stays;
        the tangent points to the higher neighbour at maxima and minima as well; gamma is that of
        the metric.
    """
    n_t, n_pivots = check_grid(n_t), check_whole(n_pivots, "n_pivots", 1)
    sweeps = check_whole(sweeps, "sweeps", 1)
    max_pivots = check_whole(max_pivots, "max_pivots", n_pivots)
    pair = _pair(task, theta_1, theta_2, L0, averaged, generator, {"lr": 0.05} | training)
    test = partial(_test_chain, pair, n_t)
    found = Found(pair.line(0), test(pair.line(0)), pair.training)
    trace = [_row(found, found.tested, 0, [])]
    place = torch.linspace(0, 1, n_pivots + 2, dtype=torch.float64)  # along the chain
    inner, slope = pair.start(n_pivots), partial(_slope_across, pair)
    while found.room(n := len(inner)):
        put_back = partial(_put_back, pair, place)
        inner, tested = _descend(pair, inner, slope, n, test, found, sweeps, put_back)
        trace.append(_row(found, tested, n, trace))
        if found.status is None:
            inner, place = _with_pivots(pair, inner, place, tested, max_pivots - n)
    return _string(pair, n_t, found, trace, test)


def _pair(task, theta_1, theta_2, L0, averaged, generator, training: dict) -> Pair:
    """The arguments that all methods share, checked; ValueError for an endpoint above L0."""
    check_task(task)
    check_theta(theta_1, "theta_1", (task.n_params,))
    check_theta(theta_2, "theta_2", (task.n_params,))
    check_pairs(theta_1[None], theta_2[None], task.n_params)
    L0 = per_pair(L0, 1, "L0")
    check_L0(L0)
    averaged, generator = check_flag(averaged, "averaged"), check_generator(generator)
    settings = training_of({"optimizer": "nesterov"} | training)
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


def _descend(
    pair: Pair,
    inner: Tensor,
    slope: Callable[[Tensor, Tensor | slice], Tensor],
    cost: int,
    test: Callable[[Tensor], Tested],
    found: Found,
    most: int | None = None,
    put_back: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tested]:
    """Descend until a path passes, or `found` has its status, or `most` steps are made.

    Args:
        pair: gives optimiser, batches and what is tested.
        inner: `(B, P)`, the inner points where the descent begins.
        slope: the gradient `(B, P)` at inner points, from them and a batch.
        cost: gradients of one network in each step.
        test: of inner points.
        found: written to.
        most: steps; None: as many as the budget allows.
        put_back: where inner points go after a step.

    Returns:
        What was tested last, `(B, P)`, and its test; with means, the smoothest.
    """
    training, batches = pair.training, pair.batches
    check_every = training.check_every or (10 if batches.whole else 50)
    update, n_state = OPTIMIZERS[training.optimizer]
    inner, last, step = inner.clone(), (inner, found.tested), 0
    state = [torch.zeros_like(inner) for _ in range(n_state)]
    means = [(decay, torch.zeros_like(inner)) for decay in DECAYS if pair.averaged]
    while (n_steps := found.room(cost)) and step != most:
        n_steps = min(math.ceil(check_every / cost), n_steps, (most or math.inf) - step)
        for _ in range(n_steps):
            step += 1
            update(inner, slope(inner, next(batches)), state, step, training.lr)
            if put_back:
                inner.copy_(put_back(inner))
            for decay, mean in means:
                mean.lerp_(inner, 1 - decay)
        found.gradient_steps += n_steps * cost
        if not inner.isfinite().all():
            found.status = Status.NOT_FINITE
            break
        # The means began at zero.
        candidates = [m / (1 - decay**step) for decay, m in means] or [inner.clone()]
        tests = []
        for candidate in candidates:
            tests.append(test(candidate))
            found.take(candidate, tests[-1])
            if found.status is Status.CONNECTED:
                return candidate, tests[-1]
        last = candidates[0], tests[0]
    return last


def _slope_at_uniform_t(pair: Pair, weights: Callable, inner: Tensor, batch) -> Tensor:
    """The gradient `(B, P)` of the loss at one random point of a curve in its inner points."""
    generator = pair.batches.generator
    w = weights(torch.rand(1, dtype=torch.float64, generator=generator)).to(inner)  # (1, B + 2)
    point = w @ pair.through(inner)  # (1, P)
    gradient = pair.task.gradients(point, batch, generator)[1]  # (1, P)
    return w[0, 1:-1, None] * gradient


def _slope_across(pair: Pair, inner: Tensor, batch) -> Tensor:
    """The gradients `(B, P)` of pivots, without their part along the chain."""
    losses, gradients = pair.task.gradients(inner, batch, pair.batches.generator)
    steps = pair.through(inner).diff(dim=0)  # (B + 1, P)
    steps /= steps.norm(dim=1, keepdim=True).clamp(min=torch.finfo(steps.dtype).tiny)
    lowest = torch.full_like(losses[:1], -torch.inf)  # the ends are the lowest
    left, right = torch.cat([lowest, losses[:-1]]), torch.cat([losses[1:], lowest])
    before, after = steps[:-1], steps[1:]
    tangent = torch.where((right > left)[:, None], after, before)
    tangent = torch.where((right == left)[:, None], after + before, tangent)
    tangent /= tangent.norm(dim=1, keepdim=True).clamp(min=torch.finfo(steps.dtype).tiny)
    return gradients - (gradients * tangent).sum(dim=1, keepdim=True) * tangent


def _put_back(pair: Pair, place: Tensor, inner: Tensor) -> Tensor:
    """Pivots at their places along the chain: springs of infinite stiffness."""
    if not inner.isfinite().all():
        return inner
    return points_along(pair.through(inner), place[1:-1])


def _with_pivots(
    pair: Pair, inner: Tensor, place: Tensor, tested: Tested, most: int
) -> tuple[Tensor, Tensor]:
    """Inner points `(B, P)` and places `(B + 2,)` with up to two pivots more."""
    t, losses, place = tested.maxima.t_star, tested.losses, place.to(inner.device)
    above = tested.maxima.gamma_max - torch.lerp(losses[:-1], losses[1:], t)  # (B + 1,)
    is_high = above > INSERT_ABOVE * (losses.max() - losses.min())
    highest = above.argsort(descending=True)[: min(INSERTED, most)]
    k = highest[is_high[highest]]
    thetas = pair.through(inner)
    new = interpolate(thetas[k], thetas[k + 1], t[k])
    place = torch.cat([place, torch.lerp(place[k], place[k + 1], t[k])])
    order = place.argsort(stable=True)
    return torch.cat([thetas, new])[order][1:-1], place[order]


def _test_chain(pair: Pair, n_t: int, inner: Tensor, whole: bool = False) -> Tested:
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


def _test_curve(pair: Pair, weights: Callable, inner: Tensor, whole: bool = False) -> Tested:
    """Whether 101 points of a curve are low; every tenth is measured first, or the `whole`."""
    controls, t, n_passes = pair.through(inner), grid_of(N_CURVE), 0
    k = torch.arange(1, N_CURVE - 1)
    highest = float(pair.losses.max())
    size = pair.task.budget.rows_that_fit(3, controls.dtype)
    for part in (k[k % 10 == 0], k[k % 10 != 0]):
        for group in t[part].split(size):
            losses = pair.task.losses(_points(controls, weights, group)).double()
            highest = max(highest, float(without_nan(losses).max()))
        n_passes += len(part)
        if highest > pair.limit and not whole:
            break
    return Tested(highest, int(highest > pair.limit), n_passes)


def _points(controls: Tensor, weights: Callable, t: Tensor) -> Tensor:
    """`(n, P)`, the points of a curve at t `(n,)`."""
    return weights(t).to(controls) @ controls


def _bernstein(degree: int, t: Tensor) -> Tensor:
    """Weights `(n, degree + 1)` of the control points of a Bezier curve at t `(n,)`."""
    k = torch.arange(degree + 1)
    binomial = torch.tensor([math.comb(degree, i) for i in range(degree + 1)])
    return binomial * t[:, None] ** k * (1 - t[:, None]) ** (degree - k)


def _hat(t: Tensor) -> Tensor:
    """Weights `(n, 3)` of both ends and of the bend between them at t `(n,)`."""
    middle = 1 - (2 * t - 1).abs()
    return torch.stack([(1 - 2 * t).clamp(min=0), middle, (2 * t - 1).clamp(min=0)], dim=1)


def _row(found: Found, tested: Tested, n_beads: int, trace: list[dict]) -> dict:
    """The row of a trace for what was done since its last one, and what was tested last."""
    return {
        "depth": len(trace),
        "Gamma_tilde": float(tested.maxima.grid_max.max()),
        "open_segments": tested.n_high,
        "beads_trained": n_beads,
        "gradient_steps": found.gradient_steps - sum(row["gradient_steps"] for row in trace),
        "forward_passes": found.n_passes - sum(row["forward_passes"] for row in trace),
    }


def _string(pair: Pair, n_t: int, found: Found, trace: list[dict], test: Callable) -> String:
    """The best chain that was found; the last row of its trace speaks of it."""
    found.measure_whole(test)
    last = _row(found, found.tested, trace[-1]["beads_trained"], trace[:-1])
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
    )
