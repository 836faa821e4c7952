"""Gradient descent of a stack of networks, each to its own target loss."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dss import watch
from dss.checkpoint import once
from dss.checks import (
    check_generator,
    check_theta,
    is_list_of,
    one_of,
    per_pair,
    table,
    thresholds_of,
)
from dss.descent import COPIES, OPTIMIZERS, Training, rounding, takes_training, training_of
from dss.networks.modes import in_usual_mode, usual
from dss.networks.samples import size_of
from dss.status import OF_STRINGS, Status
from dss.task import Task, check_task

# A network has to lower its best loss by this fraction within `patience` steps.
LEAST_PROGRESS = 1e-3


@dataclass(frozen=True, eq=False)
class Trained:
    """What `train_to` returns; row i belongs to network i.

    Attributes:
        thetas: `(N, P)`, the last point of each descent.
        reached: `(N,)` bool, the metric is at or below the target.
        steps: `(N,)` int64, gradient steps spent.
        losses: `(N,)` float64, the metric at `thetas`.
        status: why each descent ended: `reached`, `stalled`, `budget spent` or `not finite`, with
            its meaning and advice (`dss.status`).
    """

    thetas: Tensor
    reached: Tensor
    steps: Tensor
    losses: Tensor
    status: list[Status]

    def __post_init__(self):
        object.__setattr__(self, "status", [Status(status) for status in self.status])


@dataclass(frozen=True, eq=False)
class Endpoints:
    """What `train_endpoints` returns, for T thresholds.

    Attributes:
        thetas: `(T, n, P)`, every one at or below its threshold, unless fewer were to be enough.
        n_drawn: `(T,)` int64, networks drawn.
        n_discarded: `(T,)` int64, drawn networks that did not get there (dead or stuck).
        steps: `(T, n)` int64, gradient steps each one took; 0 for one that stands in.
    """

    thetas: Tensor
    n_drawn: Tensor
    n_discarded: Tensor
    steps: Tensor


@in_usual_mode
@takes_training
def train_endpoints(
    task: Task,
    n: int,
    L0: list[float],
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    fewer: bool = False,
    *,
    progress: bool = False,
    **training,
) -> Endpoints:
    """Draw networks until `n` of them are trained to each of the thresholds.

    Networks that stall are discarded, counted and drawn anew.

    Args:
        task: gives initial values, loss and metric.
        n: networks for each threshold.
        L0: T thresholds.
        generator: CPU generator for initial values and data order; by default one with seed 0.
        checkpoint: a file that holds the result; the same call, made again, returns it at once.
        fewer: where too few networks reach a threshold, go on with initial values in the places of
            the missing ones: a search says of their pairs that an endpoint is above L0.
        progress: show a line on stderr, or in Jupyter a bar: endpoints that are found, gradient
            steps so far, and how far the networks are.
        training: the fields of `dss.descent.Training`.

    Returns:
        `Endpoints`.

    Raises:
        RuntimeError: after 20 rounds of drawing there are still too few, and `fewer` is not set.
        TypeError: an unknown argument, or one that is no number, or no bool.
        ValueError: n < 1 or more than memory holds, one network that needs more to descend, no
            threshold, an argument out of range, or a checkpoint that is damaged or of another call.
        OSError: the checkpoint cannot be written.
        ImportError: progress without tqdm.

    Paper: step 1, Sec. II.B.
    """
    check_task(task)
    watch.check_progress(progress)
    generator, n = check_generator(generator), task.budget.check_room(n, "n", task.dtype)
    training, targets = training_of(training), thresholds_of(L0)
    training.check_dtype(task, task.dtype)
    task.budget.check_bead(COPIES["paper"], training.samples_in(task), task.dtype)
    call = asdict(training) | {"n": n, "L0": targets, "fewer": fewer}
    draw = partial(_draw_endpoints, task, n, targets, generator, training, fewer)
    count = {"allowed": lambda v: v >= 0, "needed": ">= 0"}
    dtype, n_targets = str(task.dtype)[6:], len(targets)
    rules = {
        "thetas": table(
            dtype, n_targets, n, task.n_params, allowed=torch.isfinite, needed="finite"
        ),
        "n_drawn": table("int64", n_targets, **count),
        "n_discarded": table("int64", n_targets, **count),
        "steps": table("int64", n_targets, n, **count),
    }
    with watch.shown(progress, "endpoints", n * n_targets):
        return once(checkpoint, task, call, generator, Endpoints, draw, rules)


def _draw_endpoints(task, n, targets, generator, training: Training, fewer: bool) -> Endpoints:
    """`train_endpoints` without a checkpoint."""
    failed: list[list[Tensor]] = [[] for _ in targets]  # initial values, n at most
    reached: list[list[Tensor]] = [[] for _ in targets]
    steps: list[list[int]] = [[] for _ in targets]
    # The rate of success is not known beforehand.  Spare networks cost next to nothing where steps
    # are small, and their full share with minibatches.
    spare = 1.33 if steps_see_all(task, training.batch_size) else 1
    drawn, discarded = (torch.zeros(len(targets), dtype=torch.int64) for _ in range(2))
    for _ in range(20):
        rates = [len(f) / max(1, int(d)) for f, d in zip(reached, drawn, strict=True)]
        missing = [
            math.ceil(max(spare, 1 / rate if rate else spare) * (n - len(f)))
            for f, rate in zip(reached, rates, strict=True)
        ]
        if not any(missing):
            break
        threshold = torch.arange(len(targets)).repeat_interleave(torch.tensor(missing))
        thetas = task.init(len(threshold), generator)
        trained = train_to(
            task, thetas, targets[threshold], generator=generator, **asdict(training)
        )
        for i, k in enumerate(threshold.tolist()):
            drawn[k] += 1
            if not trained.reached[i]:
                discarded[k] += 1
                failed[k] = [*failed[k], thetas[i]][-n:]
            elif len(reached[k]) < n:
                reached[k].append(trained.thetas[i])
                steps[k].append(int(trained.steps[i]))
        watch.done("endpoints", sum(map(len, reached)))
    for k, thetas in enumerate(reached):
        n_missing = n - len(thetas)
        if n_missing and not fewer:
            raise RuntimeError(
                f"{task.name}: {len(thetas)} of {int(drawn[k])} networks reached "
                f"{task.metric} {float(targets[k]):.4g}; {n} are needed"
            )
        thetas += failed[k][len(failed[k]) - n_missing :]
        steps[k] += [0] * n_missing
    stack = torch.stack([torch.stack(thetas) for thetas in reached])
    return Endpoints(stack, drawn, discarded, torch.tensor(steps))


@in_usual_mode
@takes_training
def train_to(
    task: Task,
    thetas: Tensor,
    target: float | Tensor,
    *,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **training,
) -> Trained:
    """Descend the training loss of each network until its metric is at or below `target`.

    "At" allows for rounding, 8 machine epsilons of the thetas' dtype and 1e-5 at most.

    Every network is its own descent; those that are done leave the batch with their optimiser
    state.  All share one data order, drawn from `generator`, so that a network trained alone sees
    the same batches as in a stack.

    Args:
        task: gives the training loss and the metric, which is measured on the evaluation set.
        thetas: `(N, P)` starting points, or `(P,)` for one.
        target: one value, or `(N,)`, in the unit of `task.metric`.
        generator: CPU generator of the data order; a new one with seed 0 by default.
        checkpoint: a file that holds the result; the same call, made again, returns it at once.
        progress: show a line on stderr, or in Jupyter a bar: gradient steps, how many networks
            descend, and the largest loss among them.
        training: the fields of `dss.descent.Training`.

    Returns:
        `Trained`; a network that stalls or turns NaN is marked and never counts as reached.

    Raises:
        TypeError, ValueError: a bad theta, or an argument out of range; ValueError too for a
            checkpoint that is damaged or of another call.
        OSError: the checkpoint cannot be written.
        ImportError: progress without tqdm.

    Paper: steps 1 and 3, Sec. II.B.
    """
    check_task(task)
    watch.check_progress(progress)
    thetas = check_theta(thetas, "thetas", (..., task.n_params), finite=True)
    thetas = check_theta(torch.atleast_2d(thetas), "thetas", (None, task.n_params))
    if len(thetas) == 0:
        raise ValueError("thetas has 0 rows; at least one network is needed")
    training = training_of(training)
    training.check_dtype(task, thetas.dtype)
    n, device = len(thetas), task.device
    target = per_pair(target, n, "target").to(device)
    target = target * (1 + rounding(thetas.dtype))
    if not bool((target > 0).all()):
        raise ValueError(f"target is {float(target.min())}; it must be > 0")
    generator = check_generator(generator)
    thetas = usual(thetas.detach().to(device))
    call = asdict(training) | {"thetas": thetas, "target": target}
    train = partial(_train_groups, task, thetas, target, generator, training)
    rules = {
        "thetas": table(str(thetas.dtype)[6:], n, task.n_params),
        "reached": table("bool", n),
        "steps": table("int64", n, allowed=lambda v: v >= 0, needed=">= 0"),
        "losses": table("float64", n),
        "status": is_list_of(n, one_of([s for s in Status if s not in OF_STRINGS])),
    }
    with watch.shown(progress, "networks", n):
        return once(checkpoint, task, call, generator, Trained, train, rules)


def _train_groups(task, thetas, target, generator, training: Training) -> Trained:
    """`train_to` in groups that fit memory."""
    n, device = len(thetas), task.device
    begin, longest = generator.get_state(), -1
    result = Trained(
        thetas=torch.empty_like(thetas),
        reached=torch.empty(n, dtype=torch.bool, device=device),
        steps=torch.empty(n, dtype=torch.int64, device=device),
        losses=torch.empty(n, dtype=torch.float64, device=device),
        status=[],
    )
    for rows in torch.arange(n).split(task.budget.rows_that_fit(COPIES["paper"], thetas.dtype)):
        # Every group sees the same batches; the caller's generator ends where the longest one does.
        order = torch.Generator()
        order.set_state(begin)
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        batches = Batches(task, training.batch_size, order)
        group = _descend(task, thetas[part], target[part], batches, training)
        for name in ("thetas", "reached", "steps", "losses"):
            getattr(result, name)[part] = getattr(group, name)
        result.status.extend(group.status)
        watch.done("networks", part.stop)
        if int(group.steps.max()) > longest:
            longest = int(group.steps.max())
            generator.set_state(order.get_state())
    return result


def _descend(task, thetas, target, batches: "Batches", training: Training) -> Trained:
    """`train_to` for networks that fit memory together."""
    max_steps, check_every = training.max_steps, steps_between_checks(task, training)
    result, theta = thetas.clone(), thetas.clone()
    # A number or two per network: NumPy takes a fifth of the time that torch takes for so little.
    value = task.losses(theta).double().cpu().numpy()
    goal, losses, steps = target.cpu().numpy(), value.copy(), np.zeros(len(value), dtype=np.int64)
    status = np.full(len(value), "", dtype=object)

    rows = np.arange(len(value))  # networks that still descend
    floor, best_step = value * (1 - LEAST_PROGRESS), steps.copy()  # below it is an improvement
    update, n_state = OPTIMIZERS[training.optimizer]
    state = [torch.zeros_like(theta) for _ in range(n_state)]
    step = 0
    while True:
        improved = value < floor
        floor = np.where(improved, (1 - LEAST_PROGRESS) * value, floor)
        best_step[improved] = step
        stalled = step - best_step >= training.patience
        leave = (value <= goal) | ~np.isfinite(value) | stalled | (step >= max_steps)
        if leave.any():
            both = leave.nonzero()[0], (~leave).nonzero()[0]
            gone, stay = (torch.from_numpy(i).to(theta.device) for i in both)
            # An error rate can be low, and some losses finite, at parameters that are not.
            finite = torch.isfinite(theta[gone]).all(dim=1).cpu().numpy()
            finite &= np.isfinite(value[leave])
            ends = [finite & (value <= goal)[leave], ~finite, stalled[leave]]
            left = rows[leave]
            status[left] = np.select(
                ends, [Status.REACHED, Status.NOT_FINITE, Status.STALLED], Status.BUDGET_SPENT
            )
            losses[left], steps[left] = value[leave], step
            result[torch.from_numpy(left).to(theta.device)] = theta[gone]
            if len(stay) == 0:
                break
            rows, goal, floor, best_step = (v[~leave] for v in (rows, goal, floor, best_step))
            theta, state = theta[stay], [v[stay] for v in state]
        n_steps = min(check_every, max_steps - step)
        for _ in range(n_steps):
            batch, precision = next(batches), training.precision
            gradient = task.gradients(theta, batch, batches.generator, precision)[1]
            step += 1
            update(theta, gradient, state, step, training.lr)
        value = task.losses(theta).double().cpu().numpy()
        watch.descended(n_steps, step, value, goal)
    reached = status == Status.REACHED
    columns = (torch.from_numpy(v).to(task.device) for v in (reached, steps, losses))
    return Trained(result, *columns, status.tolist())


def steps_see_all(task: Task, batch_size: int | None) -> bool:
    """Whether every gradient step sees the whole training sample; ValueError for a size < 1."""
    size = task.batch_size if batch_size is None else batch_size
    if size is not None and size < 1:
        raise ValueError(f"batch_size is {size}; at least 1 is needed")
    return size is None or not task.splits or size >= size_of(task.splits["train"])


def steps_between_checks(task: Task, training: Training) -> int:
    """Gradient steps between measurements of the metric."""
    whole = steps_see_all(task, training.batch_size)
    return training.check_every or (1 if whole else 20)


class Batches(Iterator):
    """Batches of training indices, epoch after epoch, from one generator."""

    def __init__(self, task: Task, batch_size: int | None, generator: torch.Generator):
        self.whole = steps_see_all(task, batch_size)
        self.size = batch_size or task.batch_size
        self.n = None if self.whole else size_of(task.splits["train"])
        self.device, self.order = task.device, torch.empty(0, dtype=torch.int64)
        self.generator = generator

    def __next__(self) -> Tensor | slice:
        if self.whole:
            return slice(None)
        if len(self.order) < self.size:  # the rest of an epoch that fills no batch is dropped
            self.order = torch.randperm(self.n, generator=self.generator)
        batch, self.order = self.order[: self.size], self.order[self.size :]
        return batch.to(self.device)
