"""Studies: pairs drawn and trained at several thresholds, and the strings between them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dss.checks import (
    check_generator,
    check_number,
    thresholds_of,
)
from dss.descent import TRAINING_SETTINGS
from dss.files import check_target
from dss.networks.modes import in_usual_mode
from dss.sampling import check_options, find_strings
from dss.strings import String
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
