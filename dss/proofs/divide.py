"""Branch and bound: segments are cut into pieces until every bound is low enough."""

from collections.abc import Callable

import numpy as np

# Upper bounds are published by this fraction and this much above what was found, lower ones below,
# so that other arithmetic can confirm them.  Losses of 1e-12 cannot be told from 0.
MARGIN = 1e-9, 1e-12

# Pieces are not divided below this width.
NARROWEST = 2.0**-40

TRACE = ("n_bounded", "lower", "upper")


class Proof:
    """Branch and bound on S segments at once, in NumPy.

    Args:
        measure: of pieces `(segment, center, radius)`: upper bounds, and values at the centre.
        string_of: `(S,)`, of each segment its string; those of one string are neighbours.
        limits: one for each string.
        budget, tolerance: as in `certify_strings`.

    Attributes:
        lower, t_lower: `(S,)`, the largest metric that was evaluated, and where.
        upper: `(S,)`, the largest bound of the pieces that are not divided any further.
        used: `(S,)`, pieces that were bounded.
        trace: of each string, as in `Certificate`.
    """

    def __init__(
        self,
        measure: Callable,
        string_of: np.ndarray,
        limits: np.ndarray,
        budget: int,
        tolerance: float | None,
    ):
        n = len(string_of)
        self.measure, self.string_of, self.budget = measure, string_of, budget
        self.limit, self.tolerance = limits[string_of], tolerance
        self.first = np.searchsorted(string_of, np.arange(len(limits)))
        self.lower, self.t_lower = np.full(n, -np.inf), np.full(n, np.nan)
        self.upper, self.used = np.full(n, -np.inf), np.zeros(n, int)
        self.closed = np.zeros(n, bool)
        self.leaves, self.trace = [], [[] for _ in limits]

    def divide(self) -> None:
        """Bound pieces and divide those that are too high, until none is left to be divided.

        Pieces are `segment`, `begin` and `width`, the last two exact binary fractions.
        """
        every = np.arange(len(self.lower))
        self.look(every, np.zeros(len(every)))
        self.look(every, np.ones(len(every)))
        parts = np.full(len(every), min(2, self.budget))
        segment, width = every.repeat(parts), (1 / parts).repeat(parts)
        begin = width * _count_up(parts)
        while len(segment):
            center = begin + width / 2
            upper, value = self.measure(segment, center, width / 2)
            upper = upper * (1 + MARGIN[0]) + MARGIN[1]
            np.add.at(self.used, segment, 1)
            self.look_at_the_largest(segment, center, value)
            goal = self.goals()[segment]
            parts = _parts(upper, value, goal)
            divide = (upper > goal) & (width > NARROWEST)
            wanted = np.bincount(segment[divide], parts[divide], minlength=len(every))
            self.closed |= self.used + wanted > self.budget
            divide &= ~self.closed[segment]
            self.keep(segment, begin, begin + width, upper, ~divide)
            segment, begin, width, parts = (v[divide] for v in (segment, begin, width, parts))
            width = (width / parts).repeat(parts)
            begin = begin.repeat(parts) + width * _count_up(parts)
            segment = segment.repeat(parts)

    def look(self, segment: np.ndarray, t: np.ndarray) -> None:
        """Evaluate a point of each of some segments, for the lower end of their brackets."""
        value = self.measure(segment, t, np.zeros_like(t))[1]
        value = np.maximum(0, value * (1 - MARGIN[0]) - MARGIN[1])
        better = value > self.lower[segment]
        segment = segment[better]
        self.lower[segment], self.t_lower[segment] = value[better], t[better]

    def look_at_the_largest(self, segment, center, value) -> None:
        """Evaluate the middle of that piece of each segment where the loss is largest there."""
        order = np.lexsort((value, segment))
        top = order[np.append(np.diff(segment[order]) > 0, True)]
        top = top[value[top] > self.lower[segment[top]]]
        self.look(segment[top], center[top])

    def goals(self) -> np.ndarray:
        """What the bound of each segment has to come down to."""
        if self.tolerance is None:
            self.closed |= self.lower > self.limit
            return self.limit
        highest = np.maximum.reduceat(self.lower, self.first)[self.string_of]
        narrow = np.maximum((1 + self.tolerance) * highest, 4 * MARGIN[1])
        return np.where(self.lower <= self.limit, np.minimum(narrow, self.limit), narrow)

    def keep(self, segment, begin, end, upper, is_leaf) -> None:
        """Pieces that are not divided any further, and what is known after this round."""
        self.leaves.append([v[is_leaf] for v in (segment, begin, end, upper)])
        now = self.upper.copy()
        np.maximum.at(now, segment, upper)
        np.maximum.at(self.upper, segment[is_leaf], upper[is_leaf])
        rounds = (
            np.add.reduceat(self.used, self.first),
            np.maximum.reduceat(self.lower, self.first),
            np.maximum.reduceat(now, self.first),
        )
        for i in np.unique(self.string_of[segment]):
            row = {name: v[i].item() for name, v in zip(TRACE, rounds, strict=True)}
            self.trace[i].append(row)

    def pieces(self) -> list[np.ndarray]:
        """`segment`, `begin`, `end` and `bound` of all pieces, in order."""
        columns = [np.concatenate(v) for v in zip(*self.leaves, strict=True)]
        order = np.lexsort((columns[1], columns[0]))
        return [column[order] for column in columns]


def _parts(upper: np.ndarray, value: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Into how many parts each piece would be divided: 2, 4 or 8.

    What a bound exceeds the loss by falls, in smooth parts, with the square of the width.
    """
    excess = np.nan_to_num((upper - value) / np.maximum(goal - value, 1e-300), nan=np.inf)
    return 2 ** np.clip(np.ceil(np.log2(np.clip(excess, 1, 64)) / 2), 1, 3).astype(int)


def _count_up(counts: np.ndarray) -> np.ndarray:
    """0, 1, ..., c - 1 for each count c, in one row."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
