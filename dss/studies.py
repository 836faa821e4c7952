"""Studies: pairs drawn and trained at several thresholds, and the strings between them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dss.checks import (
    check_generator,
    check_number,
    check_pairs,
    check_theta,
    per_pair,
    thresholds_of,
)
from dss.descent import TRAINING_SETTINGS
from dss.files import check_target
from dss.networks.modes import in_usual_mode
from dss.sampling import check_options, find_strings
from dss.status import Status
from dss.strings import TRACE, String
from dss.task import Task, check_task
from dss.train import train_endpoints, train_to

if TYPE_CHECKING:
    import pandas as pd


@in_usual_mode
def study(
    task: Task,
    L0: list[float],
    n_pairs: int,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    fewer: bool = False,
    ends_at: float = 1.0,
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
        fewer: as in `train_endpoints`: where too few networks reach a threshold, the pairs that
            are missing end with "endpoint above L0".
        ends_at: the endpoints are trained to `ends_at * L0`; in (0, 1].
        options: keyword arguments of `find_strings`; the endpoints are trained with the same
            optimiser, batches and budget.

    Returns:
        `T * n_pairs` strings, threshold by threshold, and a table with a row per string
        (`String.summary`, `task`, `pair`, and `n_drawn`, `n_discarded` endpoints at its threshold).

    Raises:
        TypeError, ValueError, OSError: as in `find_strings`, before anything is trained; ValueError
            too for ends_at outside (0, 1].
        RuntimeError: too few networks reach a threshold, and `fewer` is not set.

    Paper: Sec. II.B.
    """
    import pandas as pd

    check_task(task)
    generator, n_pairs = check_generator(generator), _check_pairs(task, n_pairs)
    thresholds = thresholds_of(L0).repeat_interleave(n_pairs)
    check_options(task, thresholds, options)
    ends_at = check_number(ends_at, "ends_at", lambda v: 0 < v <= 1, "in (0, 1]")
    L0 = thresholds[::n_pairs].tolist()
    training = {name: v for name, v in options.items() if name in TRAINING_SETTINGS}
    ends_file = None
    if checkpoint is not None:
        check_target(checkpoint)  # before the endpoints are trained
        ends_file = f"{checkpoint}.ends"
    targets = [ends_at * threshold for threshold in L0]
    ends = train_endpoints(task, 2 * n_pairs, targets, generator, ends_file, fewer, **training)
    theta_1, theta_2 = (ends.thetas[:, k::2].reshape(-1, task.n_params) for k in (0, 1))
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


def _check_pairs(task: Task, n_pairs: int) -> int:
    """`n_pairs` as an int, with a message that names it where their networks are too many."""
    return task.budget.check_room(n_pairs, "n_pairs", task.dtype)


@in_usual_mode
def descending_study(
    task: Task,
    L0: list[float],
    n_pairs: int,
    generator: torch.Generator | None = None,
    checkpoint: Callable[[str], Path | None] = lambda name: None,
    **options,
) -> tuple[list[String], "pd.DataFrame"]:
    """Steps 1 to 5 for the same pairs at falling thresholds: networks are trained on and on.

    Args:
        task: as in `find_strings`.
        L0: thresholds, falling.
        n_pairs: pairs, the same at every threshold.
        generator: CPU generator of the run; a new one with seed 0 by default.
        checkpoint: gives a file, or None, for the name of each piece of work
            (`dss.Results.checkpoint`).
        options: keyword arguments of `find_strings`; networks are trained with the same
            optimiser, batches and budget.

    Returns:
        Strings, threshold by threshold, and a table with a row per string: `String.summary`, and
        `pair`, `n_lost` (networks that did not get to the threshold) and `straight_line` (the
        largest loss on it; NaN where an endpoint is too high).

    Raises:
        TypeError, ValueError: as in `find_strings`.

    Paper: Sec. II.B.
    """
    import pandas as pd

    check_task(task)
    generator, n_pairs = check_generator(generator), _check_pairs(task, n_pairs)
    L0 = thresholds_of(L0).tolist()
    for threshold in L0:
        check_options(task, torch.full((n_pairs,), threshold, dtype=torch.float64), options)
    training = {name: v for name, v in options.items() if name in TRAINING_SETTINGS}
    thetas, strings, rows = task.init(2 * n_pairs, generator), [], []
    for threshold in L0:
        piece = f"{task.metric} {threshold}"
        ends_file = checkpoint(f"{piece}.ends")
        descent = {"generator": generator, "checkpoint": ends_file} | training
        ends = train_to(task, thetas, threshold, **descent)
        thetas, n_lost = ends.thetas, int((~ends.reached).sum())
        pairs = thetas[::2], thetas[1::2]
        search = {"generator": generator, "checkpoint": checkpoint(piece)} | options
        at_threshold = find_strings(task, *pairs, threshold, **search)
        strings += at_threshold
        for pair, string in enumerate(at_threshold):
            straight = string.trace[0]["Gamma_tilde"] if string.trace else float("nan")
            row = {"pair": pair, "n_lost": n_lost, "straight_line": straight}
            rows.append(row | string.summary())
    return strings, pd.DataFrame(rows)


@in_usual_mode
def connect_through(
    task: Task,
    theta_1: Tensor,
    theta_2: Tensor,
    beads: Tensor,
    L0: float,
    alpha: float = 0.9,
    **options,
) -> list[bool]:
    """Whether each pair connects through a first bead of one's own choice.

    The bead is trained to `alpha * L0`; then both halves are searched.

    Args:
        task: as in `find_strings`.
        theta_1, theta_2: `(M, P)`, pair by pair.
        beads: `(M, P)`, where the first bead of each pair starts.
        L0: threshold, in the unit of `task.metric`.
        alpha: as in `find_strings`.
        options: other keyword arguments of `find_strings`; the bead is trained with the same
            optimiser, batches and budget.

    Returns:
        M values, in order; False where the bead does not come down to L0.

    Raises:
        TypeError, ValueError: as in `find_strings`.

    Paper: steps 3 to 5, Sec. II.B.
    Differs: the bead need not be on the straight line.
    """
    check_task(task)
    check_pairs(theta_1, theta_2, task.n_params)
    check_theta(beads, "beads", tuple(theta_1.shape))
    check_options(task, per_pair(L0, len(theta_1), "L0"), {"alpha": alpha} | options)
    training = {name: v for name, v in options.items() if name in TRAINING_SETTINGS}
    middle = train_to(task, beads, alpha * L0, **training).thetas
    halves = torch.cat([theta_1, middle]), torch.cat([middle, theta_2])
    strings = find_strings(task, *halves, L0, alpha, **options)
    n_pairs = len(strings) // 2
    return [a.connected and b.connected for a, b in zip(strings, strings[n_pairs:], strict=False)]


@in_usual_mode
def retry(
    task: Task,
    strings: Sequence[String],
    first_bead: Tensor | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> list[String]:
    """Search the pairs of some strings again, each at its own L0, in another way.

    Args:
        task: as in `find_strings`.
        strings: M strings, for example those that did not connect.
        first_bead: `(M, P)`, where the first bead of each pair starts, whatever the straight line
            says: a disturbed point of it, or another trained network.  It is trained to
            `alpha * L0`, and then both halves are searched.
        generator: CPU generator of the search; a new one with seed 0 by default.
        options: keyword arguments of `find_strings`; alpha is that of each string by default.

    Returns:
        M strings, in order.  With `first_bead` the two halves are joined, and the trace begins at
        depth 1.  A first bead that cannot be trained gives "training stalled".

    Raises:
        TypeError, ValueError: as in `find_strings` and `train_to`.

    Paper: Sec. II.B, "if a path does not exist".
    """
    check_task(task)
    if len(strings) == 0:
        return []
    generator, n = check_generator(generator), len(strings)
    theta_1, theta_2 = (torch.stack([s.thetas[end] for s in strings]) for end in (0, -1))
    L0, alpha = (
        torch.tensor([getattr(s, name) for s in strings], dtype=torch.float64)
        for name in ("L0", "alpha")
    )
    options = {"alpha": alpha, "max_depth": 10} | options
    check_options(task, L0, options)
    if first_bead is None:
        return find_strings(task, theta_1, theta_2, L0, generator=generator, **options)
    first_bead = check_theta(first_bead, "first_bead", (n, task.n_params), finite=True)
    alpha = per_pair(options["alpha"], n, "alpha")
    training = {name: v for name, v in options.items() if name in TRAINING_SETTINGS}
    bead = train_to(task, first_bead, alpha * L0, generator=generator, **training)
    ends = theta_1.to(bead.thetas), theta_2.to(bead.thetas)
    middle = torch.where(bead.reached[:, None], bead.thetas, ends[0])  # a place for the others
    halves = torch.cat([ends[0], middle]), torch.cat([middle, ends[1]])
    options |= {"alpha": alpha.repeat(2), "max_depth": max(0, options["max_depth"] - 1)}
    found = find_strings(task, *halves, L0.repeat(2), generator=generator, **options)
    steps = bead.steps.tolist()
    joined = [_joined(*found[i::n], steps[i]) for i in range(n)]
    for i in (~bead.reached).nonzero()[:, 0].tolist():
        detail = f"the first bead: {bead.status[i]} at loss {float(bead.losses[i]):.6g}"
        row = dict.fromkeys(TRACE, 0) | {"depth": 1, "Gamma_tilde": math.nan}
        row |= {"open_segments": 1, "beads_trained": 1, "gradient_steps": steps[i]}
        lost = {"thetas": torch.stack([ends[0][i], ends[1][i]]), "trace": [row], "detail": detail}
        stalled = {"status": Status.TRAINING_STALLED, "Gamma_tilde": math.nan}
        joined[i] = replace(joined[i], **lost, **stalled)
    return joined


def _joined(left: String, right: String, steps: int) -> String:
    """One string of two that meet in a bead, which took so many gradient steps."""
    trace, spent = [], ("beads_trained", "gradient_steps")
    for depth in range(max(len(left.trace), len(right.trace))):
        row = {"depth": depth + 1} | dict.fromkeys(("open_segments", *spent), 0)
        Gammas = []
        for half in (left, right):
            last = half.trace[min(depth, len(half.trace) - 1)]  # what has ended stays as it is
            Gammas.append(last["Gamma_tilde"])
            row["open_segments"] += last["open_segments"]
            for name in spent if depth < len(half.trace) else ():
                row[name] += last[name]
        trace.append(row | {"Gamma_tilde": max(Gammas)})
    trace[0]["beads_trained"] += 1
    trace[0]["gradient_steps"] += steps
    worse = right if left.connected else left
    thetas = torch.cat([left.thetas, right.thetas[1:]])
    Gamma_tilde = max(left.Gamma_tilde, right.Gamma_tilde)
    return replace(worse, thetas=thetas, Gamma_tilde=Gamma_tilde, trace=trace)
