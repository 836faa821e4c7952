"""Dynamic String Sampling, over many pairs at once.

The steps are those of `dss.recursion`, which takes them one network at a time: `measure_segments`,
`train_beads`, `test_segments` and `halve_segments` are steps 2 to 5 of Sec. II.B, each for all open
segments of all pairs.
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dss import apart, averaged, watch
from dss.checkpoint import fingerprint, load_state, save_state
from dss.checks import (
    check_generator,
    check_pairs,
    check_search,
    check_theta,
    check_whole,
    lookup,
    per_pair,
    short,
)
from dss.curve import Maxima, segment_maxima
from dss.descent import COPIES, TRAINING_SETTINGS, rounding, takes_training, training_of
from dss.estimate import estimate
from dss.networks.modes import in_usual_mode
from dss.runs.workers import check_client, packed, sender
from dss.search import Beads, Search, State, begin, rules_of, strings_of, with_depth
from dss.status import Status
from dss.strings import String
from dss.task import Network, Task, check_task, thetas_of
from dss.theta import interpolate
from dss.train import steps_between_checks, steps_see_all, train_to

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

# What a method takes where the caller says nothing.
DEFAULTS = {
    "paper": {"alpha": 0.9, "max_depth": 10, "t_star": "max"},
    "averaged": {"alpha": 0.97, "max_depth": 14, "t_star": "midpoint"},
}


@in_usual_mode
@takes_training
def find_strings(
    task: Task,
    theta_1: Tensor | Sequence[Network],
    theta_2: Tensor | Sequence[Network],
    L0: float | Tensor,
    alpha: float | Tensor | None = None,
    max_depth: int | None = None,
    n_t: int = 33,
    t_star: str | None = None,
    slack: float = 1.0,
    insert_first: bool = False,
    *,
    method: str = "paper",
    first_bead: Tensor | None = None,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    client: "Client | None" = None,
    side_by_side: int | None = None,
    progress: bool = False,
    **training,
) -> list[String]:
    """Search a path of low loss between the networks of each of M pairs.

    Level by level: find t* of every open segment of every pair, insert a bead there, train it to
    `alpha * L0`, test the two new segments, and go on with those whose gamma exceeds
    `slack * L0`.  This is the paper's recursion in breadth-first order.  A pair stops when all its
    segments are low, when `max_depth` is reached, or when one of its beads cannot be trained.

    Args:
        task: gives the training loss and the metric, measured on the whole evaluation set.
        theta_1, theta_2: `(M, P)`, pair by pair; or lists of what `task.theta` takes: networks,
            state_dicts, files.
        L0: threshold in the unit of `task.metric`, one value or `(M,)`.
        alpha: beads are trained to `alpha * L0`; in (0, 1], one value or `(M,)`.  None: .9, or what
            the method has.
        max_depth: d, the deepest level; 0 tests the straight line alone.  None: 10, or what the
            method has.
        n_t: grid points of gamma on each segment, both ends included.
        t_star: where a bead is inserted: `"max"`, `"coarse"`, `"grid"` or `"midpoint"`
            (`dss.t_star`).  With `"coarse"` the trace's Gamma_tilde of segments that go on to be
            split rests on the points where they were measured; the last one on whole grids.  None:
            `"max"`, or what the method has.
        slack: factor on L0 in the pair test, >= 1.
        insert_first: insert and train a bead at t=.5 before anything is tested.
        method: `"paper"`, or `"averaged"`, which wants a path and few gradients (`dss.averaged`).
            There a bead is a mean of iterates.  It is done as soon as both of its halves pass by a
            thousandth of L0.  It begins on the arc along which its neighbours bend; beads that need
            no training fill this arc.  A bead that does not come down begins again elsewhere.  Its
            defaults: alpha .97, max_depth 14, beads at midpoints; with minibatches Nesterov's
            momentum with lr .03, with whole batches Adam with lr .01.
        first_bead: `(M, P)`, where this bead starts instead: a disturbed point of the straight
            line, another trained network, a bend of one's own.  It implies `insert_first`, and
            `max_depth` counts as 1 at least.
        generator: CPU generator, one for the run; a new one with seed 0 by default.  All pairs
            share what is drawn from it, so a pair's string does not depend on its company.
        checkpoint: a file that holds the search after every level.  The same call, made again after
            the process was killed at any moment, goes on where that level ended, and ends bit for
            bit as if it had not been killed; made again after the end it returns at once.
        client: of dask.distributed; its workers train the beads of a level, bit for bit as without
            it where they have the same processors.  One job takes a bead; or all beads of the
            level, where networks run in stacks and company changes their last bits
            (`dss.apart`): small convolutional networks, or cross-entropy.
        side_by_side: beads that are trained together, at most, here or on a worker; 1 sends each
            bead alone.  It may change the last bits.  None: all that fit memory.
        progress: print what `Task.estimate` says, then show a line on stderr, or in Jupyter a bar:
            level, pairs that are done, open segments, their largest Gamma_tilde over L0, gradient
            steps so far, and how far the beads are that are being trained here.
        training: the fields of `dss.descent.Training`, `precision` among them: with `"bfloat16"`
            beads descend by gradients of mixed precision, and segments are tested in float32.

    Returns:
        M strings, in order, on the task's device.  A pair with an endpoint above L0 is not
        searched; its string says so in `status`, and names it with its loss in `detail`.

    Raises:
        TypeError: thetas that are neither floating point nor networks, an unknown argument, a
            client that is none, with a client a task that cannot be sent, or a progress that is
            neither True nor False.
        ValueError: shapes that differ, NaN or inf in theta, an argument out of range, one bead
            that memory cannot hold while it descends, or a checkpoint that is damaged or of another
            call; what differs is named.
        OSError: the checkpoint cannot be written.
        ImportError: a client without dask.distributed, or progress without tqdm.
        RuntimeError: workers die of a bead, or fail in it, again and again; or their scheduler was
            lost.

    Paper: steps 2 to 5, Sec. II.B.
    Differs: a pair is tested before its first bead (`insert_first=False`).  A bead that cannot be
        trained ends the search of its pair, whose other branches the paper would go on with to no
        avail.  `method="averaged"` as a whole.  Tests allow for rounding, 8 machine epsilons of the
        thetas' dtype and 1e-5 at most.  With full batches a bead that starts at a stationary point,
        which gradient descent cannot leave, is moved by 1 % of its segment in a random direction.
    """
    check_task(task)
    watch.check_progress(progress)
    theta_1, theta_2 = thetas_of(task, theta_1=theta_1, theta_2=theta_2)
    check_pairs(theta_1, theta_2, task.n_params)
    side_by_side = _check_where(client, side_by_side)
    theta_1, theta_2 = (theta.detach().to(task.device) for theta in (theta_1, theta_2))
    n_pairs = len(theta_1)
    chosen = with_defaults(task, method, alpha, max_depth, t_star, training)
    alpha, max_depth, t_star, training = chosen
    L0, alpha = per_pair(L0, n_pairs, "L0"), per_pair(alpha, n_pairs, "alpha")
    check_search(L0, alpha, max_depth, n_t, t_star, slack, insert_first)
    if first_bead is not None:
        first_bead = check_theta(first_bead, "first_bead", tuple(theta_1.shape), finite=True)
        first_bead = first_bead.detach().to(theta_1)
        insert_first, max_depth = True, max(1, int(max_depth))
    training = training_of(training)
    training.check_dtype(task, theta_1.dtype)
    if client is None:  # else beads are trained elsewhere
        task.budget.check_bead(COPIES[method], training.samples_in(task), theta_1.dtype)
    generator = check_generator(generator)
    seeds = torch.randint(2**62, (int(max_depth) + 1,), generator=generator).tolist()
    threshold = L0.to(task.device) * (1 + rounding(theta_1.dtype))
    search = Search(
        task=task,
        method=method,
        limit=float(slack) * threshold,
        target=(alpha * L0).to(task.device),
        max_depth=int(max_depth),
        n_t=int(n_t),
        t_star=t_star,
        insert_first=insert_first,
        first_bead=first_bead,
        training=training,
        side_by_side=side_by_side,
    )
    if client is not None:
        search = replace(search, run=sender(client, task))
        if side_by_side is None and not apart.company_matters(task, training, theta_1.dtype):
            search = replace(search, side_by_side=1)
    state = begin(task, theta_1, theta_2, L0, threshold)
    made_by = None
    if checkpoint is not None:
        call = asdict(training) | {"n_t": int(n_t), "t_star": t_star, "insert_first": insert_first}
        call |= {"method": method}
        call |= {"max_depth": int(max_depth), "slack": float(slack), "L0": L0, "alpha": alpha}
        call |= {"seeds": seeds, "theta_1": theta_1, "theta_2": theta_2}
        call |= {} if first_bead is None else {"first_bead": first_bead}
        call |= {} if side_by_side is None else {"side_by_side": side_by_side}
        made_by = fingerprint(task, call | {"losses of the ends": state.losses})
        saved = load_state(checkpoint, made_by, task.device, partial(rules_of, state, max_depth))
        state = State(**saved) if saved else state
        save_state(checkpoint, made_by, vars(state))  # what cannot be written is an error now
    with watch.shown(progress, "pairs", n_pairs, L0):
        if progress:
            watch.say(estimate(task, n_pairs, n_t, method, training, (theta_1, theta_2)))
        while state.depth <= search.max_depth:
            level = torch.Generator().manual_seed(seeds[state.depth])
            state = _search_level(search, state, level)
            if made_by:
                save_state(checkpoint, made_by, vars(state))
    return strings_of(state, L0, alpha, float(slack), search)


def check_options(task: Task, L0: Tensor, options: dict) -> None:
    """Raise what `find_strings` would raise later for a threshold or an option; L0 `(M,)`."""
    given = inspect.signature(find_strings).bind(task, None, None, L0, **options)
    given.apply_defaults()
    values = given.arguments
    watch.check_progress(values["progress"])
    _check_where(values["client"], values["side_by_side"])
    if values["client"] is not None:
        packed(task)
    training = {name: options[name] for name in TRAINING_SETTINGS if name in options}
    of_method = (values[name] for name in ("method", "alpha", "max_depth", "t_star"))
    alpha, max_depth, t_star, training = with_defaults(task, *of_method, training)
    n_t, slack, first = (values[name] for name in ("n_t", "slack", "insert_first"))
    check_search(L0, per_pair(alpha, len(L0), "alpha"), max_depth, n_t, t_star, slack, first)
    if values["first_bead"] is not None:
        check_theta(values["first_bead"], "first_bead", (len(L0), task.n_params), finite=True)
    training = training_of(training)
    training.check_dtype(task, task.dtype)
    n_samples = training.samples_in(task)
    if values["client"] is None:
        task.budget.check_bead(COPIES[values["method"]], n_samples, task.dtype)


def _check_where(client, side_by_side) -> int | None:
    """side_by_side as an int; TypeError, ValueError or ImportError for what either cannot be."""
    check_client(client)
    return None if side_by_side is None else check_whole(side_by_side, "side_by_side", 1)


def with_defaults(task: Task, method: str, alpha, max_depth, t_star, training: dict) -> tuple:
    """alpha, max_depth, t_star and the settings of training: those of the method where not given.

    Raises:
        ValueError: an unknown method, or a t_star that it does not have.
    """
    defaults = lookup(DEFAULTS, method, "method")
    if method == "averaged":
        if t_star not in (None, "midpoint"):
            raise ValueError(f"t_star is {short(t_star)}; method='averaged' has 'midpoint' alone")
        training = averaged.settings_for(task, training.get("batch_size")) | training
    given = {"alpha": alpha, "max_depth": max_depth, "t_star": t_star}
    chosen = defaults | {name: value for name, value in given.items() if value is not None}
    return chosen["alpha"], chosen["max_depth"], chosen["t_star"], training


def _search_level(search: Search, state: State, generator: torch.Generator) -> State:
    """Test all open segments, and put a trained bead into each that is too high."""
    watch.level(state.depth, search.max_depth, len(state.left))
    maxima = measure_segments(search, state)
    state, is_open = test_segments(search, state, maxima)
    if state.depth == search.max_depth or not bool(is_open.any()):
        settled = Gamma_tilde_of_pairs(state.settled, state.pair[state.left], maxima.grid_max)
        return replace(state, depth=search.max_depth + 1, settled=settled)
    beads = train_beads(search, state, is_open, maxima.t_star, generator)
    return halve_segments(search, state, is_open, maxima.grid_max, beads)


def measure_segments(search: Search, state: State) -> Maxima:
    """Step 2: t* and the largest gamma of every segment that is to be tested, `(S,)` each."""
    left, right = state.left, state.right  # (S,)
    # The straight line, and segments that are not split any further, count on the whole grid.
    may_split = state.active & (0 < state.depth < search.max_depth)  # (M,)
    coarse = torch.where(may_split, search.limit, torch.inf)[state.pair[left]]  # (S,)
    maxima = segment_maxima(
        search.task,
        state.thetas[left],
        state.thetas[right],
        search.n_t,
        search.t_star,
        coarse,
        torch.stack([state.losses[left], state.losses[right]], dim=1),
    )
    if state.depth == 0 and search.insert_first:
        return replace(maxima, t_star=torch.full_like(maxima.t_star, 0.5))
    return maxima


def train_beads(
    search: Search, state: State, is_open: Tensor, t_star: Tensor, generator: torch.Generator
) -> Beads:
    """Step 3: a bead at t* of every open segment, or where it was told, trained to alpha * L0."""
    left, right = state.left[is_open], state.right[is_open]
    if state.depth == 0 and search.first_bead is not None:
        beads = search.first_bead[state.pair[left]]
    else:
        beads = interpolate(state.thetas[left], state.thetas[right], t_star[is_open])
        if search.method == "averaged" and state.depth > 0:
            beads = beads + averaged.bulge(state.thetas, left, right, state.elders[is_open])
    beads = _leave_stationary(search, beads, state.thetas[left], state.thetas[right], generator)
    if search.run is None and search.side_by_side is None:
        return descend(search, state, is_open, beads, generator)
    jobs = apart.jobs_of(search, state, is_open, beads, generator)
    if search.run is not None:
        return averaged.joined(search.run(descend_apart, jobs))
    return averaged.joined([descend_apart(search.task, *job) for job in jobs])


def descend_apart(task: Task, search: Search, state: State, beads: Tensor, drawn: Tensor) -> Beads:
    """Train a group of beads as `dss.apart.jobs_of` gives them, here or on a worker."""
    generator = torch.Generator()
    generator.set_state(drawn)
    is_open = torch.ones_like(state.left, dtype=torch.bool)
    return descend(replace(search, task=task), state, is_open, beads, generator)


def descend(
    search: Search, state: State, is_open: Tensor, beads: Tensor, generator: torch.Generator
) -> Beads:
    """Train beads `(B, P)` from where they begin, one for each open segment."""
    if search.method == "averaged":
        return averaged.train_beads(search, state, is_open, beads, generator)
    target, training = search.target[state.pair[state.left[is_open]]], search.training
    trained = train_to(search.task, beads, target, generator=generator, **asdict(training))
    n_checks = -(-trained.steps // steps_between_checks(search.task, training))
    return Beads.plain(trained, 1 + n_checks)


def test_segments(search: Search, state: State, maxima: Maxima) -> tuple[State, Tensor]:
    """Step 4: which segments exceed L0 and go on, `(S,)` bool; pairs without one are connected."""
    depth, pair = state.depth, state.pair[state.left]  # (S,)
    n_pairs = len(state.active)
    failed = ~(maxima.gamma_max <= search.limit[pair])  # (S,), NaN fails
    if depth == 0 and search.insert_first:
        failed = torch.ones_like(failed)
    # A pair whose beads all failed has no new segment, but it did spend their steps.
    tested = (state.beads_trained > 0).index_fill_(0, pair, True)  # (M,)
    n_open = torch.bincount(pair[failed], minlength=n_pairs)  # (M,)
    columns = {
        "Gamma_tilde": Gamma_tilde_of_pairs(state.settled, pair, maxima.grid_max),
        "open_segments": n_open + state.n_stalled,
        "beads_trained": state.beads_trained,
        "gradient_steps": state.steps_spent,
        "forward_passes": state.passes_spent.index_add(0, pair, maxima.n_passes),
    }
    status = list(state.status)
    for m in (state.active & (n_open == 0)).nonzero()[:, 0].tolist():
        status[m] = Status.CONNECTED
    active = state.active & (n_open > 0)
    log.info("depth %d: %d open segments in %d pairs", depth, n_open.sum(), active.sum())
    trace = with_depth(state.trace, tested, depth, columns)
    is_open = failed & active[pair]
    watch.tested(is_open, active, trace)
    return replace(state, active=active, status=status, trace=trace), is_open


def halve_segments(
    search: Search, state: State, is_open: Tensor, grid_max: Tensor, beads: Beads
) -> State:
    """Step 5: the two halves of every segment whose bead is low are tested at the next level.

    Halves that have passed already are not.  A segment whose bead failed stays as it is, and ends
    the search of its pair.
    """
    thetas, depth, n_pairs = state.thetas, state.depth + 1, len(state.active)
    settled = Gamma_tilde_of_pairs(
        state.settled, state.pair[state.left[~is_open]], grid_max[~is_open]
    )
    trained, good = beads.trained, beads.trained.reached
    left, right = state.left[is_open], state.right[is_open]
    pair, failed_pair = state.pair[left], state.pair[left[~good]]
    passes_spent = torch.zeros_like(state.passes_spent).index_add_(0, pair, beads.n_passes)
    stays = grid_max[is_open][~good]
    if search.t_star == "coarse":  # they were not measured on the whole grid
        ends = thetas[left[~good]], thetas[right[~good]]
        whole = segment_maxima(search.task, *ends, search.n_t, "grid")
        stays, passes_spent = whole.grid_max, passes_spent.index_add(0, failed_pair, whole.n_passes)
    settled = Gamma_tilde_of_pairs(settled, failed_pair, stays)
    is_low = beads.grid_max.isfinite()  # (S, 2)
    settled = Gamma_tilde_of_pairs(
        settled, pair[:, None].expand_as(is_low)[is_low], beads.grid_max[is_low]
    )

    active, status, detail = state.active.clone(), list(state.status), list(state.detail)
    active[failed_pair] = False
    for i in (~good).nonzero()[:, 0].tolist():
        m = int(pair[i])
        status[m] = Status.TRAINING_STALLED
        detail[m] = (
            f"a bead at depth {depth}: {trained.status[i]} at loss "
            f"{float(trained.losses[i]):.6g}, target {float(search.target[m]):.6g}"
        )
    begin, end = state.position[left], state.position[right]
    inside = beads.segment
    left, right, goes_on = left[good], right[good], ~is_low[good]  # (B,), (B,), (B, 2)
    new = torch.arange(len(thetas), len(thetas) + len(left), device=left.device)
    elders = torch.stack([left, right], dim=1)
    return State(
        depth=depth,
        thetas=torch.cat([thetas, trained.thetas[good], beads.filling]),
        pair=torch.cat([state.pair, pair[good], pair[inside]]),
        # Halves, not t: positions only order the beads, and 52 halvings are exact.
        position=torch.cat(
            [
                state.position,
                (begin + end)[good] / 2,
                torch.lerp(begin[inside], end[inside], beads.place),
            ]
        ),
        losses=torch.cat([state.losses, trained.losses[good], beads.losses]),
        left=torch.cat([left[goes_on[:, 0]], new[goes_on[:, 1]]]),
        right=torch.cat([new[goes_on[:, 0]], right[goes_on[:, 1]]]),
        elders=torch.cat([elders[goes_on[:, k]] for k in (0, 1)]),
        active=active,
        settled=settled,
        beads_trained=torch.bincount(pair, minlength=n_pairs),
        steps_spent=torch.zeros_like(state.steps_spent).index_add_(0, pair, trained.steps),
        passes_spent=passes_spent,
        n_stalled=state.n_stalled + torch.bincount(failed_pair, minlength=n_pairs),
        trace=state.trace,
        status=status,
        detail=detail,
    )


def Gamma_tilde_of_pairs(largest: Tensor, pair: Tensor, grid_max: Tensor) -> Tensor:
    """`dss.curve.Gamma_tilde` of M strings, `(M,)`, when segments `(S,)` come to what was there.

    Paper: Eq. (4).
    """
    return largest.scatter_reduce(0, pair, grid_max, "amax")


def find_string(
    task: Task, theta_1: Tensor | Network, theta_2: Tensor | Network, L0: float, **arguments
) -> String:
    """Search a path of low loss between two networks: `find_strings` for one pair.

    Args:
        task, L0, arguments: as in `find_strings`.
        theta_1, theta_2: `(P,)`, as is a first_bead; or what `task.theta` takes: networks,
            state_dicts, files.

    Returns:
        The string; look at its `status` before anything else.

    Raises:
        TypeError, ValueError: as in `find_strings` and `Task.theta`; ValueError too for an endpoint
            above L0.
        OSError: there is no such file.

    Paper: Sec. II.B.
    """
    check_task(task)
    theta_1, theta_2 = thetas_of(task, theta_1=theta_1, theta_2=theta_2)
    check_theta(theta_1, "theta_1", (task.n_params,))
    check_theta(theta_2, "theta_2", (task.n_params,))
    if arguments.get("first_bead") is not None:
        first_bead = check_theta(arguments["first_bead"], "first_bead", (task.n_params,))
        arguments["first_bead"] = first_bead[None]
    (string,) = find_strings(task, theta_1[None], theta_2[None], L0, **arguments)
    if string.status is Status.ENDPOINT_ABOVE_L0:
        raise ValueError(f"{string.detail}; what helps: {string.status.advice}")
    return string


def _leave_stationary(search: Search, beads, left, right, generator) -> Tensor:
    """Move beads whose gradient is zero to first order; minibatch noise does it by itself."""
    if not steps_see_all(search.task, search.training.batch_size):
        return beads
    losses, gradients = search.task.gradients(beads, generator=generator)
    distance = (right - left).norm(dim=1)
    stuck = gradients.norm(dim=1) * distance <= 1e-4 * losses
    direction = torch.randn(beads.shape[1], dtype=torch.float64, generator=generator)
    direction = (direction / direction.norm()).to(beads)
    return torch.where(stuck[:, None], beads + 0.01 * distance[:, None] * direction, beads)
