"""Beads for people who want a path: means of a descent, tested while it goes on.

`find_strings(method="averaged")` puts them in the place of the paper's.

1. A bead descends with Nesterov's momentum.  What is tested is no iterate but a running mean of
   them, which lies lower in the valley (Polyak and Juditsky 1992).  With whole batches, which are
   without noise, it descends with Adam, and the iterate is tested as well.
2. It is done as soon as both of its halves stay below L0, and at the latest at alpha L0.  One that
   does not come down begins again elsewhere.
3. It begins off the middle of its segment, towards the side to which the neighbours bend.
4. A half that is still too high is filled with beads on the parabola through the bead and its
   elders where this makes it pass.  They are tested, not trained.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dss import watch
from dss.curve import grid_of, refined, summit_of, without_nan
from dss.descent import COPIES, OPTIMIZERS, Training
from dss.search import Beads, Search, State
from dss.status import Status
from dss.task import Task
from dss.train import LEAST_PROGRESS, Batches, Trained, steps_see_all

# Where the caller says nothing.  Means help against the noise of batches.  Whole batches have none:
# there the iterate itself is tested, early, and Adam's scaling of each parameter helps more.
OF_BATCHES = {"optimizer": "nesterov", "lr": 0.03, "check_every": 25}
OF_WHOLE = {"optimizer": "adam", "lr": 0.01, "check_every": 3}
DECAYS_OF_BATCHES = (0.97, 0.9)  # of the running means, the smoothest first
DECAYS_OF_WHOLE = (0.5, 0.0)
MARGIN = 1e-3  # of L0, below which gamma must stay, so that it is below L0 between points as well
BULGE = 0.2  # how far a bead begins off the middle, in bulges of its younger neighbour
HALVINGS = 3  # of a half that is to be filled
# A bead that does not come down begins again elsewhere: how far off, in lengths of its segment, and
# with which share of the patience.
TRIES = ((0.0, 0.1), (0.25, 0.1), (0.5, 0.1), (0.0, 1.0))


def settings_for(task: Task, batch_size: int | None) -> dict:
    """The settings of training where the caller gives none but perhaps the size of a batch."""
    return OF_WHOLE if steps_see_all(task, batch_size) else OF_BATCHES


def bulge(thetas: Tensor, left: Tensor, right: Tensor, elders: Tensor) -> Tensor:
    """How far beads are to begin off the middles of segments, `(S, P)`.

    Args:
        thetas: `(N, P)`.
        left, right: `(S,)`, the ends of the segments; the younger one came later.
        elders: `(S, 2)`, between which the younger one was inserted.
    """
    younger = thetas[torch.maximum(left, right)]
    return BULGE * (younger - (thetas[elders[:, 0]] + thetas[elders[:, 1]]) / 2)


@dataclass(frozen=True, eq=False)
class Segments:
    """S segments in which beads are sought.

    Attributes:
        task, n_t: as in `find_strings`.
        left, right: `(S, P)`, their ends.
        ends: `(S, 2)` float64, the metric there.
        limit, target: `(S,)` float64, what halves are tested against and beads are trained to.
    """

    task: Task
    n_t: int
    left: Tensor
    right: Tensor
    ends: Tensor
    limit: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class Found:
    """The best of each of S beads so far; written to while they descend.

    Attributes:
        thetas, losses: `(S, P)` and `(S,)` float64, the mean of the lowest metric, or the one whose
            halves pass.
        steps, n_passes: `(S,)` int64, gradient steps and forward passes.
        grid_max: `(S, 2)` float64, as in `Beads`.
        status: how each descent ended.
    """

    thetas: Tensor
    losses: Tensor
    steps: Tensor
    n_passes: Tensor
    grid_max: Tensor
    status: list[Status]

    @classmethod
    def nothing(cls, starts: Tensor) -> "Found":
        """Before the first step from starts `(S, P)`."""
        count = torch.zeros(len(starts), dtype=torch.int64, device=starts.device)
        return cls(
            thetas=starts.clone(),
            losses=torch.full_like(count, torch.inf, dtype=torch.float64),
            steps=count,
            n_passes=count.clone(),
            grid_max=torch.full((len(starts), 2), torch.inf, dtype=torch.float64).to(count.device),
            status=[Status.BUDGET_SPENT] * len(starts),
        )

    def reached(self) -> Tensor:
        """Which beads are done, `(S,)` bool."""
        return torch.tensor([s is Status.REACHED for s in self.status], device=self.steps.device)


def train_beads(
    search: Search, state: State, is_open: Tensor, starts: Tensor, generator: torch.Generator
) -> Beads:
    """Step 3 for all open segments, and step 4 for their halves; starts `(S, P)`."""
    left, right = state.left[is_open], state.right[is_open]
    pair = state.pair[left]
    size = search.task.budget.rows_that_fit(COPIES["averaged"], starts.dtype)
    first, parts = generator.get_state(), []
    for group in torch.arange(len(starts), device=left.device).split(size):
        a, b = left[group], right[group]
        segments = Segments(
            task=search.task,
            n_t=search.n_t,
            left=state.thetas[a],
            right=state.thetas[b],
            ends=torch.stack([state.losses[a], state.losses[b]], dim=1),
            limit=search.limit[pair[group]],
            target=search.target[pair[group]],
        )
        found = Found.nothing(starts[group])
        length = (segments.right - segments.left).norm(dim=1, keepdim=True)
        for distance, share in TRIES:
            generator.set_state(first)  # every group and every try sees the same batches
            direction = torch.randn(starts.shape[1], dtype=torch.float64, generator=generator)
            aside = length * (distance * direction / direction.norm()).to(starts)
            rows = (~found.reached()).nonzero()[:, 0]
            patience = math.ceil(share * search.training.patience)
            training = replace(search.training, patience=patience)
            _descend(segments, (starts[group] + aside)[rows], rows, training, generator, found)
        parts.append(_filled(segments, found))
    return joined(parts)


def _descend(
    segments: Segments,
    starts: Tensor,
    rows: Tensor,
    training: Training,
    generator: torch.Generator,
    found: Found,
) -> None:
    """Descend from starts `(R, P)` in segments `rows` `(R,)` until each bead is done or stuck."""
    task = segments.task
    batches = Batches(task, training.batch_size, generator)
    check_every, decays = training.check_every, DECAYS_OF_BATCHES
    if batches.whole:
        decays = DECAYS_OF_WHOLE
    update, n_state = OPTIMIZERS[training.optimizer]
    theta, step = starts.clone(), 0
    velocity = [torch.zeros_like(theta) for _ in range(n_state)]
    means = [torch.zeros_like(theta) for _ in decays]
    floor = torch.full_like(found.losses[rows], torch.inf)
    best_step = torch.zeros_like(rows)
    while len(rows) and step < training.max_steps:
        n_steps = min(check_every, training.max_steps - step)
        for _ in range(n_steps):
            batch, precision = next(batches), training.precision
            gradient = task.gradients(theta, batch, batches.generator, precision)[1]
            step += 1
            update(theta, gradient, velocity, step, training.lr)
            for mean, decay in zip(means, decays, strict=True):
                mean.lerp_(theta, 1 - decay)
        found.steps[rows] += n_steps
        losses = torch.full_like(floor, torch.inf)
        for mean, decay in zip(means, decays, strict=True):  # they began at zero
            losses = torch.minimum(losses, _test(segments, mean / (1 - decay**step), rows, found))
        watch.descended(n_steps, step, losses, segments.target[rows])
        best_step[losses < floor] = step
        floor = torch.where(losses < floor, losses * (1 - LEAST_PROGRESS), floor)
        passes = found.grid_max[rows].isfinite().all(dim=1)
        endings = {
            Status.STALLED: step - best_step >= training.patience,
            Status.NOT_FINITE: ~theta.isfinite().all(dim=1),
            Status.REACHED: passes | (found.losses[rows] <= segments.target[rows]),
        }
        for status, of_rows in endings.items():
            for i in rows[of_rows].tolist():
                found.status[i] = status
        stay = ~torch.stack(list(endings.values())).any(dim=0)
        rows, theta, floor, best_step = (v[stay] for v in (rows, theta, floor, best_step))
        velocity, means = ([v[stay] for v in vectors] for vectors in (velocity, means))


def _test(segments: Segments, candidates: Tensor, rows: Tensor, found: Found) -> Tensor:
    """Keep candidates `(R, P)` whose halves pass, or that are the lowest; their metric `(R,)`."""
    losses = segments.task.losses(candidates).double()
    found.n_passes[rows] += 1
    near = (losses <= segments.limit[rows]) & found.grid_max[rows].isinf().any(dim=1)
    largest = torch.full((len(rows), 2), torch.inf, dtype=torch.float64, device=rows.device)
    i = rows[near]
    of_three = torch.stack([segments.ends[i, 0], losses[near], segments.ends[i, 1]], dim=1)
    largest[near], spent = halves(
        segments.task,
        segments.left[i],
        candidates[near],
        segments.right[i],
        of_three,
        segments.limit[i],
        segments.n_t,
    )
    found.n_passes[i] += spent
    passes, before = largest.isfinite().all(dim=1), found.grid_max[rows].isfinite().all(dim=1)
    keep = passes | (losses < found.losses[rows]) & ~before
    found.thetas[rows[keep]], found.losses[rows[keep]] = candidates[keep], losses[keep]
    found.grid_max[rows[passes]] = largest[passes]
    return losses


def halves(
    task: Task, left: Tensor, bead: Tensor, right: Tensor, losses: Tensor, limit: Tensor, n_t: int
) -> tuple[Tensor, Tensor]:
    """`low_maxima` of the segments to the left and to the right of beads.

    Args:
        task, limit, n_t: as in `low_maxima`.
        left, bead, right: `(S, P)`.
        losses: `(S, 3)` float64, their metric.

    Returns:
        The largest gamma on each grid, `(S, 2)`, inf on the right where the left does not pass;
        and forward passes `(S,)`.
    """
    first, n_passes = low_maxima(task, left, bead, losses[:, :2], limit, n_t)
    second, low = torch.full_like(first, torch.inf), first.isfinite()
    second[low], spent = low_maxima(task, bead[low], right[low], losses[low, 1:], limit[low], n_t)
    n_passes[low] += spent
    return torch.stack([first, second], dim=1), n_passes


def low_maxima(
    task: Task, theta_1: Tensor, theta_2: Tensor, ends: Tensor, limit: Tensor, n_t: int
) -> tuple[Tensor, Tensor]:
    """The pair test with a margin; a segment is given up at the first few points above it.

    Args:
        task, n_t: as in `find_strings`.
        theta_1, theta_2: `(S, P)`.
        ends: `(S, 2)` float64, their metric.
        limit: `(S,)` float64.  Gamma must stay `MARGIN` below it, but less towards the ends, which
            may be endpoints at L0.

    Returns:
        The largest gamma on the grid, `(S,)` float64, inf for a segment that does not pass; and
        forward passes `(S,)`.
    """
    t, device = grid_of(n_t), theta_1.device
    k = torch.arange(1, n_t - 1)
    middle, coarse = k == n_t // 2, k % 4 == 0
    gamma = torch.full((len(theta_1), n_t), -torch.inf, dtype=torch.float64, device=device)
    gamma[:, [0, -1]] = without_nan(ends)
    n_passes = torch.zeros(len(gamma), dtype=torch.int64, device=device)
    ceiling = _ceiling(limit[:, None], t.to(device))  # (S, n_t)
    rows = (gamma <= ceiling).all(dim=1).nonzero()[:, 0]
    for columns in (k[middle], k[coarse & ~middle], k[~coarse & ~middle]):
        if len(rows) and len(columns):
            losses = task.losses_between(theta_1[rows], theta_2[rows], t[columns])
            gamma[rows[:, None], columns.to(device)] = without_nan(losses.double())
            n_passes[rows] += len(columns)
            rows = rows[(gamma[rows] <= ceiling[rows]).all(dim=1)]
    grid_max = torch.full((len(gamma),), torch.inf, dtype=torch.float64, device=device)
    if len(rows):
        t, found = t.to(device), gamma[rows]
        ends = theta_1[rows], theta_2[rows]
        t_star, gamma_max = refined(task, *ends, t, found, summit_of(found, t))
        n_passes[rows] += 3
        low = gamma_max <= _ceiling(limit[rows], t_star)
        grid_max[rows[low]] = found[low].amax(dim=1)
    return grid_max, n_passes


def _ceiling(limit: Tensor, t: Tensor) -> Tensor:
    return limit * (1 - MARGIN * torch.minimum(4 * t, 4 * (1 - t)).clamp(max=1))


def _filled(segments: Segments, found: Found) -> Beads:
    """The beads, and further ones where these make a half pass that does not without them."""
    reached, parts = found.reached(), []
    for half in (0, 1):
        rows = (reached & found.grid_max[:, half].isinf()).nonzero()[:, 0]
        if HALVINGS and len(rows):
            parts.append(_fill(segments, rows, half, found))
    trained = Trained(found.thetas, reached, found.steps, found.losses, found.status)
    plain = Beads.plain(trained, found.n_passes)
    filling = [plain.filling, plain.segment, plain.place, plain.losses]
    filling = [torch.cat(values) for values in zip(filling, *parts, strict=True)]
    return Beads(trained, found.n_passes, found.grid_max, *filling)


def _fill(segments: Segments, rows: Tensor, half: int, found: Found) -> tuple[Tensor, ...]:
    """Fill one half of segments `rows`; what is added to those that then pass, as in `Beads`."""
    bent = found.thetas - (segments.left + segments.right) / 2  # (S, P)

    def on_parabola(i: Tensor, t: Tensor) -> Tensor:
        t = t[:, None].to(bent.dtype)
        return torch.lerp(segments.left[i], segments.right[i], t) + 4 * t * (1 - t) * bent[i]

    task, bead, at_bead = segments.task, found.thetas[rows], found.losses[rows]
    left, right = (segments.left[rows], bead) if half == 0 else (bead, segments.right[rows])
    ends = segments.ends[rows, half]
    ends = torch.stack([ends, at_bead] if half == 0 else [at_bead, ends], dim=1)  # (R, 2)
    i, begin = rows, torch.full_like(at_bead, half / 2)  # pieces that are still too high
    is_low = torch.zeros_like(found.steps, dtype=torch.bool)
    is_low[rows] = True
    highest, added = torch.full_like(segments.limit, -torch.inf), []
    for halving in range(1, HALVINGS + 1):
        place = begin + 0.5 ** (halving + 1)
        beads = on_parabola(i, place)
        losses = task.losses(beads).double()
        found.n_passes.index_add_(0, i, torch.ones_like(i))
        added.append((beads, i, place, losses))
        is_low[i[~(losses <= segments.limit[i])]] = False  # no further bead would help
        pieces = [
            torch.cat([first[is_low[i]], second[is_low[i]]])
            for first, second in (
                (i, i),
                (begin, place),
                (left, beads),
                (beads, right),
                (torch.stack([ends[:, 0], losses], 1), torch.stack([losses, ends[:, 1]], 1)),
            )
        ]
        i, begin, left, right, ends = pieces
        largest, spent = low_maxima(task, left, right, ends, segments.limit[i], segments.n_t)
        found.n_passes.index_add_(0, i, spent)
        high = largest.isinf()
        highest.scatter_reduce_(0, i[~high], largest[~high], "amax")
        i, begin, left, right, ends = (v[high] for v in pieces)
        if len(i) == 0:
            break
    is_low[i] = False
    found.grid_max[is_low, half] = highest[is_low]
    kept = [[v[is_low[values[1]]] for v in values] for values in added]
    return tuple(torch.cat(values) for values in zip(*kept, strict=True))


def joined(parts: list[Beads]) -> Beads:
    """The beads of several groups of segments, in order."""
    if len(parts) == 1:
        return parts[0]
    begins = torch.tensor([0, *(len(p.n_passes) for p in parts)]).cumsum(0)[:-1].tolist()
    trained = Trained(
        **{
            name: torch.cat([getattr(p.trained, name) for p in parts])
            for name in ("thetas", "reached", "steps", "losses")
        },
        status=[status for p in parts for status in p.trained.status],
    )
    names = ("n_passes", "grid_max", "filling", "place", "losses")
    joined = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
    segment = torch.cat([p.segment + n for p, n in zip(parts, begins, strict=True)])
    return Beads(trained=trained, segment=segment, **joined)
