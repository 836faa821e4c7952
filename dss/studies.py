"""Studies: pairs drawn and trained at several thresholds, and the strings between them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dss.checks import check_flag, check_generator, check_number, per_pair, thresholds_of
from dss.curve import segment_maxima
from dss.descent import TRAINING_SETTINGS, rounding
from dss.files import check_target
from dss.networks.modes import in_usual_mode
from dss.sampling import check_options, find_strings, with_defaults
from dss.status import Status
from dss.strings import String
from dss.task import Task, check_task
from dss.train import Trained, train_endpoints, train_to

if TYPE_CHECKING:
    import pandas as pd


OFFERED = "offered by the string at"  # how the detail of a string begins that was not searched


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
            optimiser, batches and budget, and `progress` shows them too.

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
    training |= {"progress": options.get("progress", False)}
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
    offer: bool = False,
    ends: Task | None = None,
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
        offer: search the lowest threshold first, and offer what was found there to the next higher
            one (`offered`).  Pairs that take it cost no gradient; all others are searched.
        ends: the task on which endpoints are drawn and trained, where their loss is another than
            that of beads; None: the same.
        options: keyword arguments of `find_strings`; networks are trained with the same
            optimiser, batches and budget, and `progress` shows them too.

    Returns:
        Strings, threshold by threshold, and a table with a row per string: `String.summary`, and
        `pair`, `n_lost` (networks that did not get to the threshold), `straight_line` (the
        largest loss on it; NaN where an endpoint is too high) and, with `offer`, `offered`.

    Raises:
        TypeError, ValueError: as in `find_strings`.

    Paper: Sec. II.B.
    """
    import pandas as pd

    check_task(task)
    ends_task = task if ends is None else ends
    check_task(ends_task)
    generator, n_pairs = check_generator(generator), _check_pairs(task, n_pairs)
    offer, L0 = check_flag(offer, "offer"), thresholds_of(L0).tolist()
    for threshold in L0:
        check_options(task, torch.full((n_pairs,), threshold, dtype=torch.float64), options)
    training = {name: v for name, v in options.items() if name in TRAINING_SETTINGS}
    training |= {"progress": options.get("progress", False)}
    pieces = [f"{task.metric} {threshold}" for threshold in L0]

    def train(k: int, thetas: torch.Tensor) -> Trained:
        descent = {"generator": generator, "checkpoint": checkpoint(f"{pieces[k]}.ends")} | training
        return train_to(ends_task, thetas, L0[k], **descent)

    def search(k: int, pairs: list[int]) -> list[String]:
        given = {"generator": generator, "checkpoint": checkpoint(pieces[k])}
        given |= _of_pairs(options, pairs)
        both = trained[k].thetas.unflatten(0, (n_pairs, 2))[pairs].unbind(dim=1)
        return find_strings(task, *both, L0[k], **given)

    trained, strings = [], {}
    thetas = ends_task.init(2 * n_pairs, generator)
    for k in range(len(L0)):
        trained.append(train(k, thetas))
        thetas = trained[k].thetas
        if not offer:
            strings[k] = search(k, list(range(n_pairs)))
    for k in reversed(range(len(L0)) if offer else []):
        known = offered(task, strings.get(k + 1, []), trained[k].thetas, L0[k], options)
        asked = [m for m in range(n_pairs) if m not in known]
        found = search(k, asked) if asked else []
        strings[k] = [(known | dict(zip(asked, found, strict=True)))[m] for m in range(n_pairs)]
    rows = []
    for k, of_ends in enumerate(trained):
        n_lost = int((~of_ends.reached).sum())
        for pair, string in enumerate(strings[k]):
            straight = string.trace[0]["Gamma_tilde"] if string.trace else float("nan")
            row = {"pair": pair, "n_lost": n_lost, "straight_line": straight}
            row |= {"offered": string.detail.startswith(OFFERED)} if offer else {}
            rows.append(row | string.summary())
    return [string for k in range(len(L0)) for string in strings[k]], pd.DataFrame(rows)


def _of_pairs(options: Mapping, pairs: list[int]) -> dict:
    """The options of some pairs: an alpha or a first bead may be given for each pair."""
    several = {"alpha": 1, "first_bead": 2}  # with so many dimensions
    return {
        name: v[pairs] if isinstance(v, torch.Tensor) and v.dim() == several.get(name) else v
        for name, v in options.items()
    }


def offered(
    task: Task, lower: list[String], thetas: torch.Tensor, L0: float, options: Mapping
) -> dict[int, String]:
    """Strings of a lower threshold that serve at a higher one, without a gradient.

    The networks at both thresholds are those of one descent.  The beads of the lower string are
    tried between the networks at the higher one, first alone, then with the ends of the lower
    string among them.  Where the straight line is low there is nothing to offer.  Forward passes
    of an offer that is not taken are in no trace.

    Args:
        task: as in `find_strings`.
        lower: strings at the lower threshold, one for each pair, or none.
        thetas: `(2 M, P)`, the networks at the higher threshold, pair after pair.
        L0: the higher threshold.
        options: keyword arguments of `find_strings`; n_t, slack and alpha count.

    Returns:
        A string for each pair, by its number, whose offered chain passes the pair test.
    """
    n_t, slack = options.get("n_t", 33), float(options.get("slack", 1.0))
    limit = slack * L0 * (1 + rounding(thetas.dtype))
    given = options.get("method", "paper"), options.get("alpha"), None, None
    alpha = per_pair(with_defaults(task, *given, {})[0], len(thetas) // 2, "alpha")
    found = {}
    for m, string in enumerate(lower):
        theta_1, theta_2 = thetas[2 * m : 2 * m + 1], thetas[2 * m + 1 : 2 * m + 2]
        chains = [torch.cat([theta_1, theta_2])]
        if string.connected:
            inner = [string.thetas[1:-1], string.thetas] if string.n_beads else [string.thetas]
            chains += [torch.cat([theta_1, chain.to(theta_1), theta_2]) for chain in inner]
        trace = []
        for chain in chains:
            losses = task.losses(chain).double()
            ends = torch.stack([losses[:-1], losses[1:]], dim=1)  # (K - 1, 2)
            maxima = segment_maxima(task, chain[:-1], chain[1:], n_t, ends=ends)
            n_high = int((~(maxima.gamma_max <= limit)).sum())
            row = {"depth": len(trace), "Gamma_tilde": float(maxima.grid_max.max())}
            row |= {"open_segments": n_high, "beads_trained": 0, "gradient_steps": 0}
            trace.append(row | {"forward_passes": int(maxima.n_passes.sum()) + len(chain)})
            if n_high == 0:
                break
        if n_high or len(trace) == 1:
            continue
        found[m] = String(
            thetas=chain,
            status=Status.CONNECTED,
            L0=L0,
            alpha=float(alpha[m]),
            slack=slack,
            n_t=n_t,
            Gamma_tilde=trace[-1]["Gamma_tilde"],
            trace=trace,
            detail=f"{OFFERED} {string.L0:.6g}",
            length_mask=task.length_mask,
            task=task,
        )
    return found
