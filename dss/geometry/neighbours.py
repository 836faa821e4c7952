"""The neighbours of DSS: other methods that seek a path of low loss between the same two networks.

`bezier` and `one_bend` lower the training loss at a random point of a curve; `auto_neb` lowers
that of pivots on a chain, across the chain; `layer_wise` carries one layer after the other over,
and trains those that are left.  All begin on the straight line, do nothing where it is low, and end
when a path passes its test.

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
from dss.averaged import low_maxima
from dss.checks import check_grid, check_theta, check_whole, numbers_of
from dss.curve import grid_of, segment_maxima, without_nan
from dss.descent import OPTIMIZERS, rounding, takes_training
from dss.geometry.attempt import Found, Pair, Tested, pair_of, row_of, string_of, test_chain
from dss.networks.modes import in_usual_mode
from dss.status import Status
from dss.strings import String
from dss.task import Network, Task, check_task
from dss.theta import interpolate, points_along, shapes_of
from dss.train import LEAST_PROGRESS

N_CURVE = 101  # points on which a curve is tested
INSERTED = 2  # most pivots that a cycle of AutoNEB adds, and
INSERT_ABOVE = 0.1  # how far gamma must lie above its chord, of the range of the pivots' losses
LEAST_MOVE = 2.0**-8  # of the way of a layer; one that cannot go that far is stuck


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

    def string(self, task: Task, n: int = 100, n_t: int = 5) -> String:
        """The polygon of n segments as a string: to certify, tighten, compare, plot or save it.

        It is a path of its own between the same networks, and is tested as one, on `n_t` points of
        each segment and at their refined maxima.  What a certificate proves holds for the polygon;
        the curve keeps within the distance that `polygon` states.

        Raises:
            TypeError, ValueError: no task, one of other networks, n < 1 or n_t < 3.
        """
        check_task(task)
        thetas, n_t = self.polygon(n).to(task.device), check_grid(n_t)
        check_theta(thetas, "controls", (None, task.n_params))
        maxima = segment_maxima(task, thetas[:-1], thetas[1:], n_t)
        n_high = int((~(maxima.gamma_max <= self.L0 * (1 + rounding(thetas.dtype)))).sum())
        Gamma_tilde = float(maxima.grid_max.max())
        row = {"depth": 0, "Gamma_tilde": Gamma_tilde, "open_segments": n_high, "beads_trained": 0}
        row |= {"gradient_steps": self.gradient_steps}
        row |= {"forward_passes": self.forward_passes + int(maxima.n_passes.sum())}
        return String(
            thetas=thetas,
            status=Status.DEPTH_EXHAUSTED if n_high else Status.CONNECTED,
            L0=self.L0,
            alpha=1.0,
            slack=1.0,
            n_t=n_t,
            Gamma_tilde=Gamma_tilde,
            trace=[row],
            detail=f"{n} chords of a curve" + (f"; {self.detail}" if self.detail else ""),
            length_mask=self.length_mask,
            task=task,
        )

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


@in_usual_mode
@takes_training
def bezier(
    task: Task,
    theta_1: Tensor | Network,
    theta_2: Tensor | Network,
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
        theta_1, theta_2: `(P,)`, at or below L0, or what `task.theta` takes: networks, files.
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
    pair = pair_of(task, theta_1, theta_2, L0, averaged, generator, {"lr": 0.1} | training)
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
    theta_1: Tensor | Network,
    theta_2: Tensor | Network,
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
    pair = pair_of(task, theta_1, theta_2, L0, averaged, generator, {"lr": 0.05} | training)
    test = partial(test_chain, pair, n_t)
    found = Found(pair.line(0), test(pair.line(0)), pair.training)
    trace = [row_of(found, found.tested, 0, [])]
    if found.room(1):
        slope = partial(_slope_at_uniform_t, pair, _hat)
        _, tested = _descend(pair, pair.start(1), slope, 1, test, found)
        trace.append(row_of(found, tested, 1, trace))
    return string_of(pair, n_t, found, trace, test)


@in_usual_mode
@takes_training
def auto_neb(
    task: Task,
    theta_1: Tensor | Network,
    theta_2: Tensor | Network,
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
    pair = pair_of(task, theta_1, theta_2, L0, averaged, generator, {"lr": 0.05} | training)
    test = partial(test_chain, pair, n_t)
    found = Found(pair.line(0), test(pair.line(0)), pair.training)
    trace = [row_of(found, found.tested, 0, [])]
    place = torch.linspace(0, 1, n_pivots + 2, dtype=torch.float64)  # along the chain
    inner, slope = pair.start(n_pivots), partial(_slope_across, pair)
    while found.room(n := len(inner)):
        put_back = partial(_put_back, pair, place)
        inner, tested = _descend(pair, inner, slope, n, test, found, sweeps, put_back)
        trace.append(row_of(found, tested, n, trace))
        if found.status is None:
            inner, place = _with_pivots(pair, inner, place, tested, max_pivots - n)
    return string_of(pair, n_t, found, trace, test)


@in_usual_mode
@takes_training
def layer_wise(
    task: Task,
    theta_1: Tensor | Network,
    theta_2: Tensor | Network,
    L0: float,
    n_t: int = 33,
    n_moves: int = 4,
    averaged: bool = False,
    *,
    generator: torch.Generator | None = None,
    **training,
) -> String:
    """A chain of low loss on which one layer after the other goes over to the other network.

    From the inputs to the outputs, a layer moves a part of its way.  The layers after it then
    descend until the network and the segment to it are low; that network is the next of the chain.

    Args:
        task, theta_1, theta_2, L0, averaged, generator: as in `bezier`; the task has a module.
        n_t: grid points of the pair test on each segment, both ends included.
        n_moves: of each layer.  A move that does not come down within a tenth of the patience is
            halved, down to 1/256 of the way.
        training: as in `bezier`, with lr .05.  `check_every` is 25, or 5 with full batches.

    Returns:
        The string.  A search that failed has the status `training stalled`: its beads are those
        that were reached, before the last, high segment.

    Raises:
        TypeError, ValueError: as in `dss.find_string`, an endpoint above L0 included; ValueError
            too for n_moves below 1, or a task without a module, which has no layers.

    Source: Tian et al., Connecting Independently Trained Modes via Layer-Wise Connectivity (2025).
    Differs: a move is halved where it is too long; layers that have arrived stay; normalisation is
        not computed anew.
    """
    n_t, n_moves = check_grid(n_t), check_whole(n_moves, "n_moves", 1)
    pair = pair_of(task, theta_1, theta_2, L0, averaged, generator, {"lr": 0.05} | training)
    layers = _layers_of(task)
    test = partial(test_chain, pair, n_t)
    found = Found(pair.line(0), test(pair.line(0)), pair.training)
    trace = [row_of(found, found.tested, 0, [])]
    if found.status is None:
        chain = _carried_over(pair, layers, n_moves, n_t, found)
        tested = test(chain)
        found.inner, found.tested = chain, tested  # also where it is high: its beads were reached
        found.take(chain, tested)
        found.status = found.status or Status.STALLED
        trace.append(row_of(found, tested, len(chain), trace))
    return string_of(pair, n_t, found, trace, test)


def _layers_of(task: Task) -> list[slice]:
    """Where the parameters of each layer lie in theta, from the inputs to the outputs."""
    if task.module is None:
        raise ValueError(f"{task.name} has no module; layers are carried over one by one")
    sizes: dict[str, int] = {}
    for name, shape in shapes_of(task.module).items():
        owner = name.rpartition(".")[0]
        sizes[owner] = sizes.get(owner, 0) + shape.numel()
    ends = torch.tensor([0, *sizes.values()]).cumsum(0).tolist()
    return [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def _carried_over(pair: Pair, layers: list[slice], n_moves: int, n_t: int, found: Found) -> Tensor:
    """Inner points `(B, P)` of the chain, to theta_2 or as far as it got."""
    chain, trainable = [pair.theta_1], torch.ones_like(pair.theta_1)
    for layer in layers:
        trainable[layer] = 0
        begin, there, share = chain[-1][layer], 0.0, 1 / n_moves
        while there < 1:
            goal, start = min(1.0, there + share), chain[-1].clone()
            start[layer] = _part_of_the_way(begin, pair.theta_2[layer], goal)
            reached = _come_down(pair, chain[-1], start, trainable, n_t, found)
            if reached is not None:
                chain.append(reached)
                there = goal
            elif found.status or share < 2 * LEAST_MOVE or not trainable.any():
                return torch.stack(chain)[1:]
            else:
                share /= 2
    return torch.stack(chain)[1:-1]


def _part_of_the_way(begin: Tensor, end: Tensor, t: float) -> Tensor:
    """A layer between two others, whose values are spread as theirs; exactly `end` at t = 1."""
    if t == 1:
        return end
    layer = torch.lerp(begin, end, t)
    mean, spread = layer.mean(), layer.std(correction=0)
    wanted = torch.lerp(begin.std(correction=0), end.std(correction=0), t)
    return layer if not spread > 0 else mean + (layer - mean) * (wanted / spread)


def _come_down(
    pair: Pair, before: Tensor, start: Tensor, trainable: Tensor, n_t: int, found: Found
) -> Tensor | None:
    """A network `(P,)` to which the segment from `before` is low, or None; trainable: 0 or 1."""
    training, batches, task = pair.training, pair.batches, pair.task
    check_every = training.check_every or (5 if batches.whole else 25)
    update, n_state = OPTIMIZERS[training.optimizer]
    theta, step, floor, best_step = start[None].clone(), 0, math.inf, 0
    state = [torch.zeros_like(theta) for _ in range(n_state)]
    means = [(decay, torch.zeros_like(theta)) for decay in DECAYS if pair.averaged]
    at_before = task.losses(before[None]).double()
    limit = torch.full_like(at_before, pair.limit)
    while True:
        candidates = [mean / (1 - decay**step) for decay, mean in means if step] or [theta]
        for candidate in candidates:
            candidate = torch.where(trainable > 0, candidate, start)
            loss = task.losses(candidate).double()
            found.n_passes += 1
            if loss <= limit:
                ends = torch.stack([at_before, loss], dim=1)
                highest, spent = low_maxima(task, before[None], candidate, ends, limit, n_t)
                found.n_passes += int(spent)
                if highest.isfinite():
                    return candidate[0].clone()
            if loss < floor:
                floor, best_step = float(loss) * (1 - LEAST_PROGRESS), step
        n_steps = min(check_every, training.max_steps - found.gradient_steps)
        if n_steps <= 0:
            found.status = Status.BUDGET_SPENT
        if found.status or not trainable.any() or step - best_step >= training.patience / 10:
            return None
        for _ in range(n_steps):
            step += 1
            batch, precision = next(batches), training.precision
            gradient = task.gradients(theta, batch, batches.generator, precision)[1]
            update(theta, gradient * trainable, state, step, training.lr)
            for decay, mean in means:
                mean.lerp_(theta, 1 - decay)
        found.gradient_steps += n_steps
        if not theta.isfinite().all():
            return None


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
    gradient = pair.task.gradients(point, batch, generator, pair.training.precision)[1]  # (1, P)
    return w[0, 1:-1, None] * gradient


def _slope_across(pair: Pair, inner: Tensor, batch) -> Tensor:
    """The gradients `(B, P)` of pivots, without their part along the chain."""
    precision, generator = pair.training.precision, pair.batches.generator
    losses, gradients = pair.task.gradients(inner, batch, generator, precision)
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
