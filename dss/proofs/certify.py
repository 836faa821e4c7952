"""Proofs that the loss along a string is low everywhere, and not at sampled points alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dss.bounds import (
    Network,
    bounds,
    check_sample,
    layers_of,
    losses,
    metric_of,
    sample_of,
    values_in,
)
from dss.curve import losses_along
from dss.files import load_tensors, save_tensors
from dss.strings import String
from dss.task import Task
from dss.theta import check_theta

FORMAT = "dss-certificate-1"

PROVED = "proved"
REFUTED = "refuted"
UNDECIDED = "undecided"

# Upper bounds are published by this fraction and this much above what was found, lower ones below,
# so that other arithmetic can confirm them.  Losses of 1e-12 cannot be told from 0.
MARGIN = 1e-9, 1e-12

# Pieces are not divided below this width.
NARROWEST = 2.0**-40

TRACE = ("n_bounded", "lower", "upper")
TENSORS = ("thetas", "x", "y", "t_lower", "lower", "upper", "segment", "begin", "end", "bound")
VALUES = ("limit", "metric", "layers", "status", "n_bounded", "trace")


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is proved of the metric along a string, for its task's evaluation set.

    Attributes:
        thetas: `(K, P)`, the string's.
        limit: what the metric was to be proved at or below.
        metric: name of the metric.
        layers: the network, layer by layer.
        x, y: the evaluation set.
        status: of each of the K - 1 segments, `proved`, `refuted` (the metric exceeds the limit
            at `t_lower`) or `undecided` (the budget was spent, or rounding hides the answer).
        t_lower: `(K - 1,)` float64, where the largest metric was evaluated.
        lower: `(K - 1,)` float64, its value, less its rounding.
        upper: `(K - 1,)` float64, proved bound on the whole segment.
        segment: `(I,)` int64, the segment of each piece; pieces cover every segment in order.
        begin, end: `(I,)` float64, pieces of [0, 1].
        bound: `(I,)` float64, proved upper bound of the metric on each piece.
        n_bounded: pieces that were bounded on the way; points that were looked at not counted.
        trace: after each of its rounds `n_bounded`, `lower` and `upper` of the whole string.
    """

    thetas: Tensor = field(repr=False)
    limit: float
    metric: str
    layers: list[dict] = field(repr=False)
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    status: list[str]
    t_lower: Tensor = field(repr=False)
    lower: Tensor = field(repr=False)
    upper: Tensor = field(repr=False)
    segment: Tensor = field(repr=False)
    begin: Tensor = field(repr=False)
    end: Tensor = field(repr=False)
    bound: Tensor = field(repr=False)
    n_bounded: int
    trace: list[dict] = field(default_factory=list, repr=False)

    @property
    def proved(self) -> bool:
        """Whether the metric is at or below the limit everywhere on the string."""
        return all(status == PROVED for status in self.status)

    @property
    def refuted(self) -> bool:
        """Whether the metric exceeds the limit somewhere on the string."""
        return REFUTED in self.status

    @property
    def Gamma_tilde(self) -> tuple[float, float]:
        """Bracket of the largest metric on the string: evaluated somewhere, exceeded nowhere."""
        return float(self.lower.max()), float(self.upper.max())

    def summary(self) -> dict:
        """One row for a table over strings."""
        lower, upper = self.Gamma_tilde
        counts = {status: self.status.count(status) for status in (PROVED, REFUTED, UNDECIDED)}
        return {
            "metric": self.metric,
            "limit": self.limit,
            "samples": len(self.x),
            "segments": len(self.status),
            **counts,
            "Gamma_tilde_lower": lower,
            "Gamma_tilde_upper": upper,
            "pieces": len(self.bound),
            "n_bounded": self.n_bounded,
        }


def certify(task: Task, string: String, **options) -> Certificate:
    """Prove or refute that the metric is nowhere above L0 on a string: `certify_strings` for one.

    Args:
        task, options: as in `certify_strings`.
        string: of that task.

    Returns:
        The certificate.

    Raises:
        TypeError, ValueError: as in `certify_strings`.
    """
    if not isinstance(string, String):
        raise TypeError(f"string is a {type(string).__name__}; for several use certify_strings")
    return certify_strings(task, [string], **options)[0]


def certify_strings(
    task: Task,
    strings: Sequence[String],
    limit: float | None = None,
    budget: int = 4096,
    tolerance: float | None = None,
    form: str = "affine",
) -> list[Certificate]:
    """Prove or refute that the metric is nowhere above L0, on every segment of some strings.

    Every segment is cut into pieces until the metric's bound on each (`dss.bounds`) is at or below
    the limit, or a point above it is found.  "Proved" holds for the network in exact arithmetic on
    the task's evaluation set, rounding of this computation included; it says nothing of other
    samples.  Thetas and samples count as the numbers that they are stored as.

    A limit that lies within rounding of the largest loss stays undecided.

    Args:
        task: a network of linear and convolutional layers, ReLU, sigmoid, tanh, flattening,
            average and max pooling in a plain `nn.Sequential`, with metric mse, mae, huber,
            cross-entropy or error rate.
        strings: of that task, on any device.
        limit: what to prove; by default each string's `slack * L0`.
        budget: pieces that may be bounded for each segment; a segment is given up when the next
            division would exceed it.
        tolerance: also narrow the bracket of each string's Gamma_tilde, until its upper end is at
            most `1 + tolerance` times its lower one.  None: only decide.
        form: how the bounds are computed, `"affine"` or `"interval"`.

    Returns:
        A certificate for each string, on the task's device.

    Raises:
        TypeError: thetas in another precision than float16, float32 or float64.
        ValueError: a layer, metric, sample or task for which no bounds are known; a string whose
            number of parameters or whose Gamma_tilde is not this task's; an argument out of range.

    Differs: the paper looks at points of a grid.
    """
    if task.module is None:
        raise ValueError(f"{task.name} is an explicit function of theta; bounds need a network")
    if not isinstance(budget, int | float) or not 1 <= budget < float("inf") or budget % 1:
        raise ValueError(f"budget is {budget!r}; a whole number of pieces, at least 1, is needed")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must be > 0")
    limits = [s.slack * s.L0 if limit is None else float(limit) for s in strings]
    for value in limits:
        if not 0 < value < float("inf"):
            raise ValueError(f"limit is {value}; finite and > 0 is needed")
    metric, (x, y) = metric_of(task.metric_function), task.splits["test"]
    layers = layers_of(task.module, x)
    check_sample(metric, task.module, x, y)
    for string in strings:
        _check_string(task, string)
    # The first layer's results at both ends of every segment are kept: in groups that fit memory.
    n_first = next(layer["n_out"] for layer in layers if "bias" in layer)
    size, found = task.rows_that_fit(2 * n_first * len(x) // task.n_params + 6, torch.float64), []
    for group in _groups(list(strings), size):
        own = limits[len(found) : len(found) + len(group)]
        found += _certify(task, group, own, layers, metric, form, int(budget), tolerance)
    return found


def save_certificate(certificate: Certificate, path: str | Path) -> Path:
    """Write a certificate to one safetensors file, with all that is needed to check it.

    `dss check-certificate` reads it without this module.

    Args:
        certificate: to be saved.
        path: of the file; its folder must exist.

    Returns:
        The path.

    Raises:
        OSError: the folder cannot be written; an older file stays as it was.
    """
    save_tensors(
        Path(path),
        FORMAT,
        {name: getattr(certificate, name) for name in TENSORS},
        {name: getattr(certificate, name) for name in VALUES},
    )
    return Path(path)


def load_certificate(path: str | Path) -> Certificate:
    """Read a certificate that `save_certificate` wrote, without checking what it claims.

    Args:
        path: of the file.

    Returns:
        The certificate, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another format or version.
    """
    return load_tensors(
        Path(path), FORMAT, lambda tensors, values: Certificate(**tensors, **values)
    )


def _groups(strings: list[String], size: int) -> Iterator[list[String]]:
    """Strings with together at most `size` segments, or one with more."""
    group: list[String] = []
    n_segments = 0
    for string in strings:
        n_segments += string.n_beads + 1
        if group and n_segments > size:
            yield group
            group, n_segments = [], string.n_beads + 1
        group.append(string)
    if group:
        yield group


def _check_string(task: Task, string: String) -> None:
    check_theta(string.thetas, "string.thetas", (None, task.n_params), finite=True)
    if len(string.thetas) < 2:
        raise ValueError("the string has 1 network; at least 2 are needed")
    if string.thetas.dtype == torch.bfloat16:
        raise TypeError("string.thetas is bfloat16; float16, float32 or float64 is needed")
    if string.Gamma_tilde == string.Gamma_tilde:  # not NaN: the string was searched
        here = losses_along(task, string.thetas.to(task.device), string.n_t)[1]
        here = float(here.nan_to_num(nan=torch.inf).max())
        # On another device a few samples may fall on the other side of their class's border.
        few = 3 / len(task.splits["test"][0]) if task.metric == "error" else 0
        if not math.isclose(here, string.Gamma_tilde, rel_tol=1e-3, abs_tol=few):
            raise ValueError(
                f"the string and the task {task.name} do not belong together: Gamma_tilde is "
                f"{string.Gamma_tilde:.6g} in the string and {here:.6g} in the task"
            )


def _certify(task, strings, limits, layers, metric, form, budget, tolerance) -> list[Certificate]:
    """Branch and bound on all segments of some strings at once.

    Pieces are kept in NumPy: `segment`, `begin` and `width`, all of them exact binary fractions.
    """
    thetas = [s.thetas.to(task.device) for s in strings]
    ends = torch.cat([v[:-1] for v in thetas]), torch.cat([v[1:] for v in thetas])
    measure = _measure(task, layers, metric, form, *ends)
    n_segments = [len(v) - 1 for v in thetas]
    of = np.repeat(np.arange(len(strings)), n_segments)
    first, n, limit = np.cumsum(n_segments) - n_segments, len(of), np.array(limits)
    lower, t_lower = np.full(n, -np.inf), np.full(n, np.nan)

    def look(segment: np.ndarray, t: np.ndarray) -> None:
        """Evaluate a point of each of some segments, for the lower end of their brackets."""
        value = measure(segment, t, np.zeros_like(t))[1]
        value = np.maximum(0, value * (1 - MARGIN[0]) - MARGIN[1])
        better = value > lower[segment]
        lower[segment[better]], t_lower[segment[better]] = value[better], t[better]

    look(np.arange(n), np.zeros(n))
    look(np.arange(n), np.ones(n))
    parts = np.full(n, min(2, budget))
    segment, width = np.arange(n).repeat(parts), (1 / parts).repeat(parts)
    begin = width * _count_up(parts)
    used, closed, leaves, trace = np.zeros(n, int), np.zeros(n, bool), [], [[] for _ in strings]
    done = np.full(n, -np.inf)  # largest bound of the pieces that are not divided any further
    while len(segment):
        center = begin + width / 2
        upper, value = measure(segment, center, width / 2)
        upper = upper * (1 + MARGIN[0]) + MARGIN[1]
        np.add.at(used, segment, 1)
        # Where losses are largest in the middle of a piece: one piece of each segment.
        order = np.lexsort((value, segment))
        top = order[np.append(np.diff(segment[order]) > 0, True)]
        top = top[value[top] > lower[segment[top]]]
        look(segment[top], center[top])

        highest = np.maximum.reduceat(lower, first)
        goal = limit[of]
        if tolerance is None:
            closed |= lower > goal
        else:
            narrow = np.maximum((1 + tolerance) * highest[of], 4 * MARGIN[1])
            goal = np.where(lower <= goal, np.minimum(narrow, goal), narrow)
        goal = goal[segment]
        # What a bound exceeds the loss by falls, in smooth parts, with the square of the width.
        excess = np.nan_to_num((upper - value) / np.maximum(goal - value, 1e-300), nan=np.inf)
        parts = 2 ** np.clip(np.ceil(np.log2(np.clip(excess, 1, 64)) / 2), 1, 3).astype(int)
        divide = (upper > goal) & (width > NARROWEST)
        wanted = np.bincount(segment[divide], parts[divide], minlength=n)
        closed |= used + wanted > budget
        divide &= ~closed[segment]
        leaves.append([v[~divide] for v in (segment, begin, begin + width, upper)])

        now = done.copy()
        np.maximum.at(now, segment, upper)
        np.maximum.at(done, segment[~divide], upper[~divide])
        rounds = np.add.reduceat(used, first), highest, np.maximum.reduceat(now, first)
        for i in np.unique(of[segment]):
            trace[i].append({name: v[i].item() for name, v in zip(TRACE, rounds, strict=True)})
        segment, begin, width, parts = (v[divide] for v in (segment, begin, width, parts))
        width = (width / parts).repeat(parts)
        begin = begin.repeat(parts) + width * _count_up(parts)
        segment = segment.repeat(parts)

    segment, begin, end, bound = (np.concatenate(v) for v in zip(*leaves, strict=True))
    order = np.lexsort((begin, segment))
    pieces = [v[order] for v in (segment, begin, end, bound)]
    status = np.select([done <= limit[of], lower > limit[of]], [PROVED, REFUTED], UNDECIDED)
    x, y = task.splits["test"]
    found = []
    for i, (begins, count) in enumerate(zip(first, n_segments, strict=True)):
        own = slice(begins, begins + count)
        rows = slice(*np.searchsorted(pieces[0], (begins, begins + count)))
        found.append(
            Certificate(
                thetas=thetas[i],
                limit=limits[i],
                metric=metric,
                layers=layers,
                x=x,
                y=y,
                status=status[own].tolist(),
                t_lower=_tensor(t_lower[own]),
                lower=_tensor(lower[own]),
                upper=_tensor(done[own]),
                segment=_tensor(pieces[0][rows] - begins),
                begin=_tensor(pieces[1][rows]),
                end=_tensor(pieces[2][rows]),
                bound=_tensor(pieces[3][rows]),
                n_bounded=int(used[own].sum()),
                trace=trace[i],
            )
        )
    return found


def _count_up(counts: np.ndarray) -> np.ndarray:
    """0, 1, ..., c - 1 for each count c, in one row."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.copy())


def _measure(task: Task, layers, metric, form, theta_1, theta_2) -> Callable:
    """A function of pieces, `(segment, center, radius)`: upper bounds and values, see `bounds`."""
    x, y = task.splits["test"]
    # Three tensors of what enters a layer, windows of a convolution unfolded, six of what leaves.
    heaviest = max(3 * values_in(layer) + 6 * layer["n_out"] for layer in layers)
    fits = max(1, int(task.chunk_elements(torch.float64) / heaviest))
    size = min(task.eval_chunk or len(x), len(x), fits)
    n_outputs = layers[-1]["n_out"]
    parts = [
        (Network(layers, theta_1, theta_2, a, form), sample_of(metric, b), len(b) / len(y))
        for a, b in zip(x.split(size), y.split(size), strict=True)
    ]

    def measure(segment: np.ndarray, center: np.ndarray, radius: np.ndarray) -> tuple:
        pieces = [torch.from_numpy(v).to(task.device) for v in (segment, center, radius)]

        def work(rows: slice) -> Tensor:
            own = [v[rows] for v in pieces]
            means = [share * losses(metric, net.outputs(*own), y_) for net, y_, share in parts]
            return bounds(sum(means), len(y) * n_outputs)

        if len(segment) == 0:
            return np.empty((2, 0))
        n_samples = math.ceil(heaviest * size / task.n_activations)
        found = torch.cat(task.by_rows(work, len(segment), n_samples, torch.float64), dim=1)
        return found.cpu().numpy()

    return torch.no_grad()(measure)
