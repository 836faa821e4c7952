"""Dynamic String Sampling, over many pairs at once."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dss.checkpoint import fingerprint, load_state, save_state
from dss.curve import T_RULES, segment_maxima
from dss.strings import (
    CONNECTED,
    DEPTH_EXHAUSTED,
    ENDPOINT_ABOVE_L0,
    TRAINING_STALLED,
    String,
)
from dss.task import TRAINING_SETTINGS, Task
from dss.theta import check_theta, interpolate
from dss.train import check_training, rounding, steps_see_all, train_endpoints, train_to

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def find_strings(
    task: Task,
    theta_1: Tensor,
    theta_2: Tensor,
    L0: float | Tensor,
    alpha: float | Tensor = 0.9,
    max_depth: int = 10,
    n_t: int = 33,
    t_star: str = "max",
    slack: float = 1.0,
    insert_first: bool = False,
    optimizer: str = "rmsprop",
    lr: float = 1e-3,
    batch_size: int | None = None,
    max_steps: int = 20_000,
    patience: int = 1_000,
    check_every: int | None = None,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
) -> list[String]:
    """Search a path of low loss between the networks of each of M pairs.

    Level by level: find t* of every open segment of every pair, insert a bead there, train it to
    `alpha * L0`, test the two new segments, and go on with those whose gamma exceeds
    `slack * L0`.  This is the paper's recursion in breadth-first order.  A pair stops when all its
    segments are low, when `max_depth` is reached, or when one of its beads cannot be trained.

    Args:
        task: gives the training loss and the metric, measured on the whole evaluation set.
        theta_1, theta_2: `(M, P)`, pair by pair.
        L0: threshold in the unit of `task.metric`, one value or `(M,)`.
        alpha: beads are trained to `alpha * L0`; in (0, 1], one value or `(M,)`.
        max_depth: d, the deepest level; 0 tests the straight line alone.
        n_t: grid points of gamma on each segment, both ends included.
        t_star: where a bead is inserted: `"max"`, `"coarse"`, `"grid"` or `"midpoint"`
            (`dss.t_star`).  With `"coarse"` the trace's Gamma_tilde of segments that go on to be
            split rests on the points where they were measured; the last one on whole grids.
        slack: factor on L0 in the pair test, >= 1.
        insert_first: insert and train a bead at t=.5 before anything is tested.
        optimizer, lr, batch_size, max_steps, patience, check_every: as in `train_to`.
        generator: CPU generator, one for the run; a new one with seed 0 by default.  All pairs
            share what is drawn from it, so a pair's string does not depend on its company.
        checkpoint: a file that holds the search after every level.  The same call, made again after
            the process was killed at any moment, goes on where that level ended, and ends bit for
            bit as if it had not been killed; made again after the end it returns at once.

    Returns:
        M strings, in order, on the task's device.  A pair with an endpoint above L0 is not
        searched; its string says so in `status`, and names it with its loss in `detail`.

    Raises:
        TypeError: thetas that are not floating point.
        ValueError: shapes that differ, NaN or inf in theta, an argument out of range, or a
            checkpoint that is damaged or of another call; what differs is named.
        OSError: the checkpoint cannot be written.

    Paper: steps 2 to 5, Sec. II.B.
    Differs: a pair is tested before its first bead (`insert_first=False`).  A bead that cannot be
        trained ends the search of its pair, whose other branches the paper would go on with to no
        avail.  Tests allow for rounding, 8 machine epsilons of the thetas' dtype and 1e-5 at most.
        With full batches a bead that starts at a stationary point, which gradient descent cannot
        leave, is moved by 1 % of its segment in a random direction.
    """
    theta_1, theta_2 = _check_pairs(task, theta_1, theta_2)
    n_pairs, device = len(theta_1), task.device
    L0, alpha = _per_pair(L0, n_pairs, "L0"), _per_pair(alpha, n_pairs, "alpha")
    _check_arguments(L0, alpha, max_depth, n_t, t_star, slack, insert_first)
    slack, n_t, max_depth = float(slack), int(n_t), int(max_depth)
    check_training(optimizer, lr, max_steps, patience, check_every)
    generator = generator or torch.Generator().manual_seed(0)
    seeds = torch.randint(2**62, (max_depth + 1,), generator=generator).tolist()
    rule = {"n_t": n_t, "t_star": t_star, "insert_first": insert_first, "max_depth": max_depth}
    training = {
        "optimizer": optimizer,
        "lr": lr,
        "batch_size": batch_size,
        "max_steps": max_steps,
        "patience": patience,
        "check_every": check_every,
    }
    limit = L0.to(device) * (1 + rounding(theta_1.dtype))
    target = (alpha * L0).to(device)
    state = _begin(task, theta_1, theta_2, L0, limit)
    if checkpoint is not None:
        call = rule | training | {"slack": slack, "L0": L0, "alpha": alpha, "seeds": seeds}
        call |= {"theta_1": theta_1, "theta_2": theta_2, "losses of the ends": state.losses}
        made_by = fingerprint(task, call)
        found = load_state(checkpoint, made_by, device)
        state = _State(**found) if found else state
        save_state(
            checkpoint, made_by, vars(state)
        )  # a folder that cannot be written is an error now
    while state.depth <= max_depth:
        level = torch.Generator().manual_seed(seeds[state.depth])
        state = _search_level(task, state, slack * limit, target, training, level, **rule)
        if checkpoint is not None:
            save_state(checkpoint, made_by, vars(state))
    settled = torch.where(state.settled == -torch.inf, torch.nan, state.settled)
    order = torch.argsort(state.position, stable=True)
    order = order[torch.argsort(state.pair[order], stable=True)]
    groups = order.split(torch.bincount(state.pair, minlength=n_pairs).tolist())
    return [
        String(
            thetas=state.thetas[groups[m]],
            status=state.status[m],
            L0=float(L0[m]),
            alpha=float(alpha[m]),
            slack=slack,
            n_t=n_t,
            Gamma_tilde=float(settled[m]),
            trace=state.trace[m],
            detail=state.detail[m],
            length_mask=task.length_mask,
        )
        for m in range(n_pairs)
    ]


@dataclass(frozen=True, eq=False)
class _State:
    """A search of M pairs before a level.

    Attributes:
        depth: of the level; beyond the deepest when the search has ended.
        thetas: `(N, P)`, networks of all strings in the order in which they came.
        pair, position, losses: `(N,)`, of each network its pair, its place among that pair's, and
            its metric.
        left, right: `(S,)`, the segments still to be tested, as indices into `thetas`.
        active: `(M,)` bool, pairs that go on.
        settled: `(M,)`, the largest grid maximum of the segments that are not split any further.
        beads_trained, steps_spent: `(M,)` int64, at the level before.
        n_stalled: `(M,)` int64, beads that could not be trained.
        trace, status, detail: M of each, as in `String`.
    """

    depth: int
    thetas: Tensor
    pair: Tensor
    position: Tensor
    losses: Tensor
    left: Tensor
    right: Tensor
    active: Tensor
    settled: Tensor
    beads_trained: Tensor
    steps_spent: Tensor
    n_stalled: Tensor
    trace: list[list[dict]]
    status: list[str]
    detail: list[str]


def _begin(task: Task, theta_1: Tensor, theta_2: Tensor, L0: Tensor, limit: Tensor) -> _State:
    """Straight lines between the pairs whose endpoints are low enough."""
    n_pairs, device = len(theta_1), task.device
    thetas = torch.cat([theta_1, theta_2])
    losses = task.losses(thetas).double()
    searched = (losses <= limit.repeat(2)).reshape(2, n_pairs).all(dim=0)
    left = searched.nonzero()[:, 0]
    none = torch.zeros(n_pairs, dtype=torch.int64, device=device)
    return _State(
        depth=0,
        thetas=thetas,
        pair=torch.arange(n_pairs, device=device).repeat(2),
        position=torch.tensor([0.0, 1.0], dtype=torch.float64)
        .repeat_interleave(n_pairs)
        .to(device),
        losses=losses,
        left=left,
        right=left + n_pairs,
        active=searched,
        settled=torch.full((n_pairs,), -torch.inf, dtype=torch.float64, device=device),
        beads_trained=none,
        steps_spent=none,
        n_stalled=none,
        trace=[[] for _ in range(n_pairs)],
        status=[DEPTH_EXHAUSTED if ok else ENDPOINT_ABOVE_L0 for ok in searched.tolist()],
        detail=_name_endpoints(losses.reshape(2, n_pairs), searched, L0),
    )


def _search_level(
    task: Task,
    state: _State,
    limit: Tensor,
    target: Tensor,
    training: dict,
    generator: torch.Generator,
    n_t: int,
    t_star: str,
    insert_first: bool,
    max_depth: int,
) -> _State:
    """Test all open segments, and put a trained bead into each that is too high.

    Args:
        task, training, n_t, t_star, insert_first, max_depth: as in `find_strings`.
        state: before the level; it is left as it is.
        limit, target: `(M,)`, what segments are tested against and beads are trained to.
        generator: of the level.
    """
    depth, thetas, pair, position = state.depth, state.thetas, state.pair, state.position
    left, right, losses, active = state.left, state.right, state.losses, state.active
    n_pairs, status, detail = len(active), list(state.status), list(state.detail)
    # The straight line, and segments that are not split any further, count on the whole grid.
    may_split = active & (0 < depth < max_depth)
    coarse = torch.where(may_split, limit, torch.inf)[pair[left]]
    ends = torch.stack([losses[left], losses[right]], dim=1)
    found = segment_maxima(task, thetas[left], thetas[right], n_t, t_star, coarse, ends)
    failed = ~(found.gamma_max <= limit[pair[left]])
    if depth == 0 and insert_first:
        failed, found.t_star[:] = torch.ones_like(failed), 0.5
    # A pair whose beads all failed has no new segment, but it did spend their steps.
    tested = (state.beads_trained > 0).index_fill_(0, pair[left], True)
    Gamma_tilde = state.settled.scatter_reduce(0, pair[left], found.grid_max, "amax")
    n_open = torch.bincount(pair[left][failed], minlength=n_pairs)
    spent = state.beads_trained, state.steps_spent
    trace = _record(state.trace, tested, depth, Gamma_tilde, n_open + state.n_stalled, *spent)
    for m in (active & (n_open == 0)).nonzero()[:, 0].tolist():
        status[m] = CONNECTED
    active = active & (n_open > 0)
    log.info("depth %d: %d open segments in %d pairs", depth, n_open.sum(), active.sum())

    split = failed & active[pair[left]]
    if depth == max_depth or not bool(split.any()):
        settled = state.settled.scatter_reduce(0, pair[left], found.grid_max, "amax")
        return replace(
            state, depth=max_depth + 1, active=active, settled=settled, trace=trace, status=status
        )
    settled = state.settled.scatter_reduce(0, pair[left][~split], found.grid_max[~split], "amax")
    left, right, t = left[split], right[split], found.t_star[split]
    of = pair[left]
    beads = interpolate(thetas[left], thetas[right], t)
    beads = _leave_stationary(task, beads, thetas[left], thetas[right], training, generator)
    trained = train_to(task, beads, target[of], generator=generator, **training)
    steps_spent = torch.zeros_like(state.steps_spent).index_add_(0, of, trained.steps)
    for i in (~trained.reached).nonzero()[:, 0].tolist():
        m = int(of[i])
        active[m], status[m] = False, TRAINING_STALLED
        detail[m] = (
            f"a bead at depth {depth + 1}: {trained.status[i]} at loss "
            f"{float(trained.losses[i]):.6g}, target {float(target[m]):.6g}"
        )
    # A segment whose bead failed stays as it is; the others are replaced by their halves.
    good = trained.reached
    n_stalled = state.n_stalled + torch.bincount(of[~good], minlength=n_pairs)
    stays = found.grid_max[split][~good]
    if t_star == "coarse":
        stuck = thetas[left[~good]], thetas[right[~good]]
        stays = segment_maxima(task, *stuck, n_t, "grid").grid_max
    settled = settled.scatter_reduce(0, of[~good], stays, "amax")
    left, right = left[good], right[good]
    new = torch.arange(len(thetas), len(thetas) + len(left), device=left.device)
    return _State(
        depth=depth + 1,
        thetas=torch.cat([thetas, trained.thetas[good]]),
        pair=torch.cat([pair, of[good]]),
        # Halves, not t: positions only order the beads, and 52 halvings are exact.
        position=torch.cat([position, (position[left] + position[right]) / 2]),
        losses=torch.cat([losses, trained.losses[good]]),
        left=torch.cat([left, new]),
        right=torch.cat([new, right]),
        active=active,
        settled=settled,
        beads_trained=torch.bincount(of, minlength=n_pairs),
        steps_spent=steps_spent,
        n_stalled=n_stalled,
        trace=trace,
        status=status,
        detail=detail,
    )


def find_string(task: Task, theta_1: Tensor, theta_2: Tensor, L0: float, **arguments) -> String:
    """Search a path of low loss between two networks: `find_strings` for one pair.

    Args:
        task, L0, arguments: as in `find_strings`.
        theta_1, theta_2: `(P,)`.

    Returns:
        The string; look at its `status` before anything else.

    Raises:
        TypeError, ValueError: as in `find_strings`; ValueError too for an endpoint above L0.

    Paper: Sec. II.B.
    """
    check_theta(theta_1, "theta_1", (task.n_params,))
    check_theta(theta_2, "theta_2", (task.n_params,))
    (string,) = find_strings(task, theta_1[None], theta_2[None], L0, **arguments)
    if string.status == ENDPOINT_ABOVE_L0:
        raise ValueError(f"{string.detail}; train it further, or raise L0")
    return string


def study(
    task: Task,
    L0: list[float],
    n_pairs: int,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    **options,
) -> tuple[list[String], "pd.DataFrame"]:
    """Steps 1 to 5 for `n_pairs` pairs at each of several thresholds, in one batch.

    Every pair has networks of its own, drawn and trained to its threshold; those that do not get
    there are discarded, counted and drawn anew.

    Args:
        task: as in `find_strings`.
        L0: T thresholds.
        n_pairs: pairs per threshold.
        generator: CPU generator of the run; a new one with seed 0 by default.
        checkpoint: a file that holds the search, as in `find_strings`; the endpoints are held
            beside it, in a file with `.ends` at its end.
        options: keyword arguments of `find_strings`; the endpoints are trained with the same
            optimiser, batches and budget.

    Returns:
        `T * n_pairs` strings, threshold by threshold, and a table with a row per string
        (`String.summary`, `task`, `pair`, and `n_drawn`, `n_discarded` endpoints at its threshold).

    Raises:
        RuntimeError: too few networks reach a threshold.

    Paper: Sec. II.B.
    """
    import pandas as pd

    generator = generator or torch.Generator().manual_seed(0)
    training = {name: v for name, v in options.items() if name in TRAINING_SETTINGS}
    held = checkpoint and f"{checkpoint}.ends"
    ends = train_endpoints(task, 2 * n_pairs, L0, generator, held, **training)
    theta_1, theta_2 = (ends.thetas[:, k::2].reshape(-1, task.n_params) for k in (0, 1))
    thresholds = torch.tensor(L0, dtype=torch.float64).repeat_interleave(n_pairs)
    strings = find_strings(
        task,
        theta_1,
        theta_2,
        thresholds,
        generator=generator,
        checkpoint=checkpoint,
        **options,
    )
    table = pd.DataFrame([string.summary() for string in strings])
    table.insert(0, "task", task.name)
    table.insert(1, "pair", list(range(n_pairs)) * len(L0))
    for name in ("n_drawn", "n_discarded"):
        table[name] = getattr(ends, name).repeat_interleave(n_pairs).tolist()
    return strings, table


def _check_pairs(task: Task, theta_1: Tensor, theta_2: Tensor) -> tuple[Tensor, Tensor]:
    for name, theta in (("theta_1", theta_1), ("theta_2", theta_2)):
        check_theta(theta, name, (None, task.n_params), finite=True)
    if theta_1.shape != theta_2.shape or theta_1.dtype != theta_2.dtype:
        raise ValueError(
            f"theta_1 is {theta_1.dtype} of shape {tuple(theta_1.shape)} and theta_2 "
            f"{theta_2.dtype} of shape {tuple(theta_2.shape)}; both must be the same"
        )
    if len(theta_1) == 0:
        raise ValueError("there is no pair: theta_1 has 0 rows; at least 1 is needed")
    return theta_1.detach().to(task.device), theta_2.detach().to(task.device)


def _per_pair(value: float | Tensor, n_pairs: int, name: str) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float64).cpu()
    if value.shape not in ((), (n_pairs,)):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; one value or ({n_pairs},)")
    return value.expand(n_pairs)


def _check_arguments(L0, alpha, max_depth, n_t, t_star, slack, insert_first) -> None:
    if not bool(((L0 > 0) & torch.isfinite(L0)).all()):
        raise ValueError(f"L0 is {L0[~(L0 > 0)].tolist() or L0.tolist()}; finite and > 0 is needed")
    if not bool(((alpha > 0) & (alpha <= 1)).all()):
        bad = alpha[~((alpha > 0) & (alpha <= 1))][0]
        raise ValueError(f"alpha is {float(bad)}; 0 < alpha <= 1 is needed")
    if max_depth < 0 or max_depth != int(max_depth):
        raise ValueError(f"max_depth is {max_depth}; a whole number >= 0 is needed")
    if max_depth > 40:
        raise ValueError(f"max_depth is {max_depth}; 40 at most (2^40 segments a pair)")
    if insert_first and max_depth < 1:
        raise ValueError("max_depth is 0; insert_first=True needs a depth of at least 1")
    if n_t < 3 or n_t != int(n_t):
        raise ValueError(f"n_t is {n_t}; at least 3 grid points are needed (both ends, a middle)")
    if t_star not in T_RULES:
        raise ValueError(f"unknown t_star {t_star!r}; known: {', '.join(map(repr, T_RULES))}")
    if not slack >= 1:
        raise ValueError(f"slack is {slack}; it must be >= 1")


def _name_endpoints(ends: Tensor, searched: Tensor, L0: Tensor) -> list[str]:
    """For each pair, which endpoints are above L0 and by how much; empty where none is."""
    detail = [""] * len(searched)
    for m in (~searched).nonzero()[:, 0].tolist():
        detail[m] = "; ".join(
            f"theta_{i + 1} of pair {m} has loss {float(loss):.6g}, above L0 = {float(L0[m]):.6g}"
            for i, loss in enumerate(ends[:, m])
            if not loss <= L0[m]
        )
    return detail


def _record(trace, tested, depth, Gamma_tilde, n_open, beads_trained, steps_spent) -> list:
    """The traces, with this depth at the end of those of the pairs that were tested at it."""
    columns = [v.tolist() for v in (Gamma_tilde, n_open, beads_trained, steps_spent)]
    names = ("Gamma_tilde", "open_segments", "beads_trained", "gradient_steps")
    trace = [list(rows) for rows in trace]
    for m in tested.nonzero()[:, 0].tolist():
        values = {name: column[m] for name, column in zip(names, columns, strict=True)}
        trace[m].append({"depth": depth} | values)
    return trace


def _leave_stationary(task: Task, beads, left, right, training, generator) -> Tensor:
    """Move beads whose gradient is zero to first order; minibatch noise does it by itself."""
    if not steps_see_all(task, training["batch_size"]):
        return beads
    losses, gradients = task.gradients(beads, generator=generator)
    distance = (right - left).norm(dim=1)
    stuck = gradients.norm(dim=1) * distance <= 1e-4 * losses
    direction = torch.randn(beads.shape[1], dtype=torch.float64, generator=generator)
    direction = (direction / direction.norm()).to(beads)
    return torch.where(stuck[:, None], beads + 0.01 * distance[:, None] * direction, beads)
