"""What a search of many pairs holds: what it is asked for, and its state from level to level."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dss.checks import TEXT, Rule, is_list_of, is_whole, one_of, table
from dss.descent import Training
from dss.status import OF_STRINGS, Status
from dss.strings import String, check_trace
from dss.task import Task
from dss.train import Trained

COUNTS = ("beads_trained", "steps_spent", "passes_spent", "n_stalled")  # of a state, per pair


@dataclass(frozen=True, eq=False)
class Search:
    """What stays the same from level to level.

    Attributes:
        method: `"paper"` or `"averaged"`.
        limit: `(M,)`, what segments are tested against: slack * L0, with its rounding.
        target: `(M,)`, what beads are trained to: alpha * L0.
        run: calls a function with the task and each of some jobs on workers (`dss.runs.workers`);
            None: here.
        others: as in `find_strings`.
    """

    task: Task
    method: str
    limit: Tensor
    target: Tensor
    max_depth: int
    n_t: int
    t_star: str
    insert_first: bool
    first_bead: Tensor | None
    training: Training
    side_by_side: int | None = None
    run: Callable | None = None


@dataclass(frozen=True, eq=False)
class State:
    """A search of M pairs before a level.

    Attributes:
        depth: of the level; beyond the deepest when the search has ended.
        thetas: `(N, P)`, networks of all strings in the order in which they came.
        pair, position, losses: `(N,)`, of each network its pair, its place among that pair's, and
            its metric.
        left, right: `(S,)`, the segments still to be tested, as indices into `thetas`.
        elders: `(S, 2)`, the ends of the segments of which these are halves.
        active: `(M,)` bool, pairs that go on.
        settled: `(M,)`, the largest grid maximum of the segments that are not split any further.
        beads_trained, steps_spent, passes_spent: `(M,)` int64, since the last test: beads, their
            gradient steps, and forward passes of one network over the evaluation set.
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
    elders: Tensor
    active: Tensor
    settled: Tensor
    beads_trained: Tensor
    steps_spent: Tensor
    passes_spent: Tensor
    n_stalled: Tensor
    trace: list[list[dict]]
    status: list[Status]
    detail: list[str]


@dataclass(frozen=True, eq=False)
class Beads:
    """What came of S segments in which a bead was trained.

    Attributes:
        trained: the beads, one for each segment.
        n_passes: `(S,)` int64, forward passes that they took.
        grid_max: `(S, 2)` float64, of the half to the left and to the right of the bead the largest
            gamma on its grid, where the half has already passed the pair test; inf elsewhere.
        filling: `(F, P)`, further beads inside these halves, trained in no way.
        segment: `(F,)`, of each the segment that it lies in.
        place: `(F,)` float64, its place on the segment, where the bead is at 1/2.
        losses: `(F,)` float64, its metric.
    """

    trained: Trained
    n_passes: Tensor
    grid_max: Tensor
    filling: Tensor
    segment: Tensor
    place: Tensor
    losses: Tensor

    @classmethod
    def plain(cls, trained: Trained, n_passes: Tensor) -> "Beads":
        """Beads whose halves are still to be tested, and nothing beside them."""
        none = trained.losses[:0]
        return cls(
            trained=trained,
            n_passes=n_passes,
            grid_max=torch.full((len(n_passes), 2), torch.inf).to(trained.losses),
            filling=trained.thetas[:0],
            segment=trained.steps[:0],
            place=none,
            losses=none,
        )


def begin(task: Task, theta_1: Tensor, theta_2: Tensor, L0: Tensor, threshold: Tensor) -> State:
    """Straight lines between the pairs whose endpoints are low enough."""
    n_pairs, device = len(theta_1), task.device
    thetas = torch.cat([theta_1, theta_2])  # (2 M, P)
    losses = task.losses(thetas).double()
    searched = (losses <= threshold.repeat(2)).reshape(2, n_pairs).all(dim=0)  # (M,)
    left = searched.nonzero()[:, 0]  # (S,)
    none = torch.zeros(n_pairs, dtype=torch.int64, device=device)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return State(
        depth=0,
        thetas=thetas,
        pair=torch.arange(n_pairs, device=device).repeat(2),
        position=ends.repeat_interleave(n_pairs).to(device),
        losses=losses,
        left=left,
        right=left + n_pairs,
        elders=torch.stack([left, left + n_pairs], dim=1),
        active=searched,
        settled=torch.full((n_pairs,), -torch.inf, dtype=torch.float64, device=device),
        beads_trained=none,
        steps_spent=none,
        passes_spent=none + 2,
        n_stalled=none,
        trace=[[] for _ in range(n_pairs)],
        status=[
            Status.DEPTH_EXHAUSTED if ok else Status.ENDPOINT_ABOVE_L0 for ok in searched.tolist()
        ],
        detail=_name_endpoints(losses.reshape(2, n_pairs), searched, L0),
    )


def rules_of(first: State, max_depth: int, found: Mapping) -> dict[str, Rule]:
    """What the fields of a state in a file must be: of the search that begins with `first`."""
    (n_pairs,), n_params = first.active.shape, first.thetas.shape[1]
    sizes = [getattr(found.get(name), "shape", ()) for name in ("thetas", "left")]
    n, n_open = (size[0] if size else 0 for size in sizes)

    def index(below: int, *size: int) -> Rule:
        return table("int64", *size, allowed=lambda v: (v >= 0) & (v < below), needed=f"< {below}")

    inside = {"allowed": lambda v: (v >= 0) & (v <= 1), "needed": "in [0, 1]"}
    finite = {"allowed": torch.isfinite, "needed": "finite"}
    count = table("int64", n_pairs, allowed=lambda v: v >= 0, needed=">= 0")
    return {
        "depth": (
            lambda v: is_whole(v) and v <= max_depth + 1,
            f"a whole number from 0 to {max_depth + 1}",
        ),
        "thetas": table(str(first.thetas.dtype)[6:], None, n_params, **finite),
        "pair": index(n_pairs, n),
        "position": table("float64", n, **inside),
        "losses": table("float64", n),
        "left": index(n, n_open),
        "right": index(n, n_open),
        "elders": index(n, n_open, 2),
        "active": table("bool", n_pairs),
        "settled": table("float64", n_pairs, allowed=lambda v: ~v.isnan(), needed="without NaN"),
        **dict.fromkeys(COUNTS, count),
        "trace": is_list_of(n_pairs, (_is_trace, "rows, one for each depth")),
        "status": is_list_of(n_pairs, one_of(OF_STRINGS)),
        "detail": is_list_of(n_pairs, TEXT),
    }


def _is_trace(rows) -> bool:
    try:
        check_trace(rows)
    except ValueError:
        return False
    return True


def strings_of(state: State, L0: Tensor, alpha: Tensor, slack: float, search: Search) -> list:
    """The strings of all pairs at the end of a search, their beads in order."""
    Gamma_tilde = torch.where(state.settled == -torch.inf, torch.nan, state.settled)  # (M,)
    order = torch.argsort(state.position, stable=True)
    order = order[torch.argsort(state.pair[order], stable=True)]
    rows = order.split(torch.bincount(state.pair, minlength=len(L0)).tolist())
    return [
        String(
            thetas=state.thetas[rows[m]],
            status=state.status[m],
            L0=float(L0[m]),
            alpha=float(alpha[m]),
            slack=slack,
            n_t=search.n_t,
            Gamma_tilde=float(Gamma_tilde[m]),
            trace=state.trace[m],
            detail=state.detail[m],
            length_mask=search.task.length_mask,
            task=search.task,
        )
        for m in range(len(L0))
    ]


def with_depth(trace: list, tested: Tensor, depth: int, columns: dict[str, Tensor]) -> list:
    """The traces, with this depth at the end of those of the pairs that were tested at it."""
    columns = {name: values.tolist() for name, values in columns.items()}
    trace = [list(rows) for rows in trace]
    for m in tested.nonzero()[:, 0].tolist():
        trace[m].append({"depth": depth} | {name: v[m] for name, v in columns.items()})
    return trace


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
