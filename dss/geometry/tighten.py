"""Shorter strings: beads are pulled to the chord of their neighbours while the loss allows it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dss.averaged import halves
from dss.checks import check_number, check_theta, check_whole
from dss.curve import segment_maxima
from dss.descent import rounding
from dss.networks.modes import in_usual_mode
from dss.strings import String
from dss.task import Task, check_task
from dss.theta import interpolate

LEAST_STEP = 2.0**-6  # of the way to the chord; a bead that cannot go that far is stuck


@dataclass(frozen=True, eq=False)
class Chains:
    """M strings, one behind the other.

    Attributes:
        thetas: `(N, P)`, the networks of all strings, in order.
        string: `(N,)`, which string each belongs to; they are in order.
        step: `(N,)` float64, how far each tries to go next, as a fraction of the way to its chord.
        n_passes: `(M,)`, forward passes of one network so far.
    """

    thetas: Tensor
    string: Tensor
    step: Tensor
    n_passes: Tensor

    def lengths(self, mask: Tensor | None) -> Tensor:
        """`(M,)` float64."""
        distances = _distance(self.thetas[:-1], self.thetas[1:], mask)  # (N - 1,)
        distances *= self.string[:-1] == self.string[1:]
        return torch.zeros_like(self.n_passes, dtype=torch.float64).index_add_(
            0, self.string[:-1], distances
        )

    def beads(self, parity: int) -> Tensor:
        """Indices of every second bead of all strings; no two of them share a segment."""
        begins = torch.searchsorted(self.string, self.string)  # (N,)
        place = torch.arange(len(self.string), device=begins.device) - begins
        is_last = torch.ones_like(place, dtype=torch.bool)
        is_last[:-1] = self.string[:-1] != self.string[1:]
        return ((place > 0) & ~is_last & (place % 2 == parity)).nonzero()[:, 0]


@in_usual_mode
def tighten(
    task: Task,
    string: String | Sequence[String],
    halvings: int = 0,
    max_rounds: int = 100,
    tolerance: float = 1e-3,
) -> String | list[String]:
    """A shorter string at or below the same threshold, found without a gradient.

    Bead by bead: each is pulled towards the nearest point of the chord of its neighbours, as far
    as both of its segments stay low: with the margin of `method="averaged"`, so that they are low
    between grid points as well.  A bead that gets there is left out.

    Args:
        task: what the string was found on.
        string: a string that connects, or several, which are tightened side by side.
        halvings: every segment is first cut into `2 ** halvings`, so that a string can bend in
            more places, for as many times the forward passes; 0 to 6.
        max_rounds: each bead may move once in a round.
        tolerance: the end has come when a round shortens every string by less than this fraction.

    Returns:
        The string or strings, in order: ends untouched bit for bit, never longer, and never above
        `slack * L0` where the pair test of the search looks (`n_t` points and refined maxima).
        `detail` says what was gained, and for how many forward passes.

    Raises:
        TypeError: no string, or an argument that is no number.
        ValueError: a string that does not connect or is of another task, strings with different
            `n_t` or masks, or an argument out of range.

    Paper: none; the draft measures strings as they were found.
    """
    check_task(task)
    strings = [string] if isinstance(string, String) else list(string)
    _check_strings(task, strings)
    halvings = check_whole(halvings, "halvings", 0, 6)
    max_rounds = check_whole(max_rounds, "max_rounds", 0)
    tolerance = check_number(tolerance, "tolerance", lambda v: 0 <= v < 1, "in [0, 1)")
    if not strings:
        return []
    chains = _chains_of(task, strings)
    mask = strings[0].length_mask  # of a string that was read from a file, on the CPU
    search = {"n_t": strings[0].n_t, "mask": None if mask is None else mask.to(task.device)}
    search["limit"] = torch.tensor(
        [s.slack * s.L0 * (1 + rounding(s.thetas.dtype)) for s in strings],
        dtype=torch.float64,
        device=task.device,
    )
    rounds = {"max_rounds": max_rounds, "tolerance": tolerance, **search}
    chains = _rounds(task, chains, **rounds)
    for _ in range(halvings):
        chains = _halved(task, chains, search["n_t"], search["limit"])
        chains = _rounds(task, chains, **rounds, keep_all=True)
    chains = _rounds(task, chains, **rounds) if halvings else chains
    tightened = [_result(task, chains, m, one) for m, one in enumerate(strings)]
    return tightened[0] if isinstance(string, String) else tightened


def _rounds(task, chains, max_rounds, tolerance, mask, keep_all=False, **search) -> Chains:
    """Rounds in which every bead may move once, until no string gets much shorter."""
    chains = replace(chains, step=torch.ones_like(chains.step))
    length = chains.lengths(mask)
    for _ in range(max_rounds):
        n = len(chains.thetas)
        for parity in (1, 0):
            chains = _pull(task, chains, parity, mask, keep_all, **search)
        before, length = length, chains.lengths(mask)
        is_stuck = (chains.step < LEAST_STEP).all()
        gained = (before - length > tolerance * before).any() or len(chains.thetas) < n
        if is_stuck or not (gained or (chains.step > 4 * LEAST_STEP).any()):
            break
    return chains


def _pull(task, chains, parity, mask, keep_all, n_t, limit) -> Chains:
    """Try to move every second bead; one whose two segments stay low moves."""
    i = chains.beads(parity)
    i = i[chains.step[i] >= LEAST_STEP]  # (B,)
    if len(i) == 0:
        return chains
    left, bead, right = (chains.thetas[i + k] for k in (-1, 0, 1))  # (B, P)
    aim = _nearest_on_chord(left, bead, right, mask)
    step, owner = chains.step[i], chains.string[i]
    there = torch.where((step == 1)[:, None], aim, interpolate(bead, aim, step))
    gain = sum(_distance(bead, end, mask) - _distance(there, end, mask) for end in (left, right))
    moves = gain >= 0 if not keep_all else gain > 1e-9 * _distance(left, right, mask)
    i, left, right, there, owner = (v[moves] for v in (i, left, right, there, owner))
    losses = torch.stack([task.losses(v).double() for v in (left, there, right)], dim=1)
    highest, spent = halves(task, left, there, right, losses, limit[owner], n_t)
    is_low = highest.isfinite().all(dim=1)  # (B,)

    thetas, steps = chains.thetas.clone(), chains.step.clone()
    tried = chains.beads(parity)
    steps[tried] /= 2
    steps[i[is_low]] = (4 * steps[i[is_low]]).clamp(max=1)
    thetas[i[is_low]] = there[is_low]
    for k in (-1, 1):  # who has moved gives its neighbours room
        steps[i[is_low] + k] = steps[i[is_low] + k].clamp(min=2 * LEAST_STEP)
    n_passes = chains.n_passes.index_add(0, owner, 3 + spent)
    kept = torch.ones_like(chains.string, dtype=torch.bool)
    if not keep_all:
        kept[i[is_low & (chains.step[i] == 1)]] = False
    return Chains(thetas[kept], chains.string[kept], steps[kept], n_passes)


def _nearest_on_chord(left: Tensor, bead: Tensor, right: Tensor, mask: Tensor | None) -> Tensor:
    """The points of the chords from left to right that are nearest to the beads, `(B, P)`."""
    chord, way = right.double() - left.double(), bead.double() - left.double()
    if mask is not None:
        chord, way = chord * mask, way * mask
    t = (chord * way).sum(dim=1) / chord.square().sum(dim=1).clamp(min=1e-300)
    return interpolate(left, right, t.clamp(0, 1))


def _distance(theta_1: Tensor, theta_2: Tensor, mask: Tensor | None) -> Tensor:
    gap = theta_2.double() - theta_1.double()
    return (gap if mask is None else gap[:, mask]).norm(dim=1)


def _chains_of(task: Task, strings: list[String]) -> Chains:
    sizes = torch.tensor([len(one.thetas) for one in strings])
    return Chains(
        thetas=torch.cat([one.thetas.to(task.device) for one in strings]),
        string=torch.arange(len(strings)).repeat_interleave(sizes).to(task.device),
        step=torch.ones(int(sizes.sum()), dtype=torch.float64, device=task.device),
        n_passes=torch.zeros(len(strings), dtype=torch.int64, device=task.device),
    )


def _halved(task: Task, chains: Chains, n_t: int, limit: Tensor) -> Chains:
    """The same strings with a bead in the middle of every segment whose two halves are low.

    A finer grid may find what the coarser one missed; such a segment stays whole.
    """
    i = (chains.string[:-1] == chains.string[1:]).nonzero()[:, 0]  # (S,), where segments begin
    left, right, owner = chains.thetas[i], chains.thetas[i + 1], chains.string[i]
    middle = interpolate(left, right, 0.5)
    ends = torch.cat([left, middle]), torch.cat([middle, right])
    highest = segment_maxima(task, *ends, n_t, "max").gamma_max.view(2, -1).amax(dim=0)
    is_low = highest <= limit[owner]
    n_passes = chains.n_passes.index_add(0, owner, torch.full_like(owner, 2 * (n_t + 3)))
    place = torch.cat([torch.arange(len(chains.string), device=i.device), i[is_low] + 0.5])
    order = place.argsort()
    string = torch.cat([chains.string, owner[is_low]])[order]
    thetas = torch.cat([chains.thetas, middle[is_low]])[order]
    return Chains(thetas, string, torch.ones_like(place, dtype=torch.float64), n_passes)


def _result(task: Task, chains: Chains, m: int, before: String) -> String:
    """The m-th string, with what its tightening gave and cost."""
    thetas = chains.thetas[chains.string == m]
    highest = segment_maxima(task, thetas[:-1], thetas[1:], before.n_t, "grid").grid_max.max()
    after = replace(before, thetas=thetas, Gamma_tilde=float(highest))
    detail = (
        f"tightened: length {before.normalized_length:.6g} to {after.normalized_length:.6g}, "
        f"beads {before.n_beads} to {after.n_beads}, {int(chains.n_passes[m])} forward passes"
    )
    return replace(after, detail="; ".join(filter(None, [before.detail, detail])))


def _check_strings(task: Task, strings: list) -> None:
    for k, one in enumerate(strings):
        if not isinstance(one, String):
            raise TypeError(f"string {k} is a {type(one).__name__}; a dss.String is needed")
        check_theta(one.thetas, f"thetas of string {k}", (None, task.n_params), finite=True)
        if not one.connected:
            raise ValueError(
                f"string {k} ended with '{one.status}'; only strings that connect are tightened"
            )
        if one.n_t != strings[0].n_t:
            raise ValueError(f"string {k} has n_t {one.n_t}, string 0 has {strings[0].n_t}")
