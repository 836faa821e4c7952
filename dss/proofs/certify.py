"""Proofs that the loss along a string is low everywhere, and not at sampled points alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dss.checks import (
    NUMBER,
    POSITIVE,
    WHOLE,
    check_fields,
    check_finite,
    check_number,
    check_rows,
    check_theta,
    check_whole,
    is_whole,
    one_of,
    short,
    table,
)
from dss.curve import Gamma_tilde
from dss.files import load_tensors, save_tensors
from dss.networks.modes import in_usual_mode
from dss.networks.samples import Streamed
from dss.proofs.bounds import (
    BOUNDED_METRICS,
    FORMS,
    LAYERS,
    Network,
    bounds,
    check_evaluation_set,
    losses,
    metric_of,
    records_of_layers,
    sample_of,
    values_in,
)
from dss.proofs.divide import TRACE, Proof
from dss.strings import String
from dss.task import Task, check_task

CERTIFICATE_FORMAT = "dss-certificate-1"

PROVED = "proved"
REFUTED = "refuted"
UNDECIDED = "undecided"

TENSORS = ("thetas", "x", "y", "t_lower", "lower", "upper", "segment", "begin", "end", "bound")
VALUES = ("limit", "metric", "layers", "status", "n_bounded", "trace")
SAMPLE_DTYPES = (
    *("float16", "bfloat16", "float32", "float64"),
    *("uint8", "int8", "int16", "int32", "int64"),
)
LAYER_NAMES = [name for name, _ in LAYERS.values()]


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

    def save(self, path: str | Path) -> Path:
        """Write the certificate to one safetensors file, with all that is needed to check it.

        `dss check-certificate` reads it without this module.

        Args:
            path: of the file; its folder must exist.

        Returns:
            The path.

        Raises:
            TypeError, ValueError, OSError: as `String.save`; an older file stays as it was.
        """
        tensors, values = ({n: getattr(self, n) for n in names} for names in (TENSORS, VALUES))
        return save_tensors(path, CERTIFICATE_FORMAT, tensors, values)

    @classmethod
    def load(cls, path: str | Path) -> "Certificate":
        """Read a certificate that `save` wrote, without checking what it claims.

        Args:
            path: of the file.

        Returns:
            The certificate, on the CPU.

        Raises:
            TypeError, OSError: as in `String.load`.
            ValueError: as there; or the file is damaged, or of another format or version.
        """

        return load_tensors(path, CERTIFICATE_FORMAT, checked)


def checked(tensors: dict, values: dict) -> Certificate:
    """A certificate from its fields; ValueError for what none holds, whatever it claims."""
    _check_tables(tensors)
    _check_values(values, len(tensors["thetas"]) - 1)
    return Certificate(**tensors, **values)


def _check_tables(tensors: dict) -> None:
    """Raise ValueError for tensors that no certificate holds; what they claim is not looked at."""
    for name in TENSORS:
        if name not in tensors or tensors[name].dim() == 0:
            raise ValueError(f"{name} is missing, or one number where a table is needed")
    K, B, n_pieces = (len(tensors[name]) for name in ("thetas", "x", "segment"))
    ordered = {"allowed": lambda v: ~v.isnan(), "needed": "without NaN"}
    per_segment, per_piece = (table("float64", n, **ordered) for n in (K - 1, n_pieces))
    inside = table(
        "int64", n_pieces, allowed=lambda v: (v >= 0) & (v < K - 1), needed=f"from 0 to {K - 2}"
    )
    rules = {"thetas": table("float", K, None), "segment": inside}
    rules |= dict.fromkeys(("t_lower", "lower", "upper"), per_segment)
    rules |= dict.fromkeys(("begin", "end", "bound"), per_piece)
    samples = (
        lambda v: str(v.dtype)[6:] in SAMPLE_DTYPES and v.dim() > 0 and len(v) == B > 0,
        f"a tensor of numbers for {B} samples, at least 1,",
    )
    check_fields(tensors, rules | {"x": samples, "y": samples})
    for name in ("thetas", "x", "y"):
        check_finite(tensors[name], name)
    if K < 2 or tensors["thetas"].shape[1] < 1:
        raise ValueError(
            f"thetas has shape {tuple(tensors['thetas'].shape)}; (>= 2, >= 1) is needed"
        )


def _check_values(values: dict, n_segments: int) -> None:
    """Raise ValueError for plain values that no certificate holds."""
    known = (PROVED, REFUTED, UNDECIDED)
    states = (
        lambda v: isinstance(v, list) and len(v) == n_segments and all(s in known for s in v),
        f"{n_segments} times one of {', '.join(known)}",
    )
    metric = one_of(BOUNDED_METRICS)
    a_list = (lambda v: isinstance(v, list), "a list")
    rules = {"limit": POSITIVE, "metric": metric, "layers": a_list, "status": states}
    check_fields(values, rules | {"n_bounded": WHOLE, "trace": a_list})
    check_rows(values["trace"], dict.fromkeys(TRACE, NUMBER) | {"n_bounded": WHOLE}, "trace")
    name = one_of(LAYER_NAMES)
    for i, layer in enumerate(values["layers"]):
        settings = layer if isinstance(layer, dict) else {}
        others = dict.fromkeys(set(settings) - {"layer"}, SETTING)
        check_fields(layer, {"layer": name, "n_out": SETTING} | others, f"layers[{i}]")


def _is_setting(value) -> bool:
    is_list = isinstance(value, list) and all(map(is_whole, value))
    return is_whole(value) or isinstance(value, bool) or is_list


SETTING = _is_setting, "a whole number >= 0, several of them, or whether there is a bias"


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


@in_usual_mode
def certify_strings(
    task: Task,
    strings: Sequence[String],
    limit: float | None = None,
    budget: int = 4096,
    tolerance: float | None = None,
    form: str = "affine",
) -> list[Certificate]:
    """Prove or refute that the metric is nowhere above L0, on every segment of some strings.

    Every segment is cut into pieces until the metric's bound on each (`dss.proofs.bounds`) is at or
    below the limit, or a point above it is found.  "Proved" holds for the network in exact
    arithmetic on the task's evaluation set, rounding of this computation included; it says nothing
    of other samples.  Thetas and samples count as the numbers that they are stored as.

    A limit that lies within rounding of the largest loss stays undecided.

    Args:
        task: a network of linear and convolutional layers, (leaky) ReLU, sigmoid, tanh, flattening,
            average and max pooling, one after the other, written as an `nn.Sequential` or in a
            forward; with metric mse, mae, huber, cross-entropy or error rate.
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
        TypeError: an argument of another kind; thetas in another precision than float16, float32
            or float64.
        ValueError: a layer, metric, sample or task for which no bounds are known; a string whose
            number of parameters or whose Gamma_tilde is not this task's; an argument out of range.

    Differs: the paper looks at points of a grid.
    """
    check_task(task)
    if task.module is None:
        raise ValueError(f"{task.name} is an explicit function of theta; bounds need a network")
    budget = check_whole(budget, "budget", 1)
    if tolerance is not None:
        check_number(tolerance, "tolerance", lambda v: v > 0, "a number > 0")
    if not isinstance(strings, list | tuple) or not all(isinstance(s, String) for s in strings):
        raise TypeError(f"strings is {short(strings)}; strings that a search found are needed")
    if limit is not None:
        limit = check_number(limit, "limit", lambda v: 0 < v < math.inf, "a finite number > 0")
    if form not in FORMS:
        raise ValueError(f"unknown form {short(form)}; known: {', '.join(map(repr, FORMS))}")
    limits = [s.slack * s.L0 if limit is None else float(limit) for s in strings]
    for value in limits:
        if not 0 < value < float("inf"):
            raise ValueError(f"limit is {value}; finite and > 0 is needed")
    metric, sample = metric_of(task.metric_function), task.splits["test"]
    if isinstance(sample, Streamed) or not all(isinstance(v, Tensor) for v in sample):
        raise ValueError(
            f"the evaluation set of {task.name} is no pair of tensors that are held; bounds "
            "need one"
        )
    x, y = sample
    layers = records_of_layers(task.module, x)
    check_evaluation_set(metric, task.module, x, y)
    for string in strings:
        _check_string(task, string)
    # The first layer's results at both ends of every segment are kept: in groups that fit memory.
    n_first = next(layer["n_out"] for layer in layers if "bias" in layer)
    copies = 2 * n_first * len(x) // task.n_params + 6
    size, certificates = task.budget.rows_that_fit(copies, torch.float64), []
    for group in _groups(list(strings), size):
        of_group = limits[len(certificates) : len(certificates) + len(group)]
        certificates += _certify(task, group, of_group, layers, metric, form, budget, tolerance)
    return certificates


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
        here = Gamma_tilde(task, string.thetas.to(task.device), string.n_t)
        # On another device a few samples may fall on the other side of their class's border.
        few = 3 / len(task.splits["test"][0]) if task.metric == "error" else 0
        if not math.isclose(here, string.Gamma_tilde, rel_tol=1e-3, abs_tol=few):
            raise ValueError(
                f"the string and the task {task.name} do not belong together: Gamma_tilde is "
                f"{string.Gamma_tilde:.6g} in the string and {here:.6g} in the task"
            )


def _certify(task, strings, limits, layers, metric, form, budget, tolerance) -> list[Certificate]:
    """Certificates of some strings, whose segments are bounded side by side."""
    thetas = [s.thetas.to(task.device) for s in strings]
    ends = torch.cat([v[:-1] for v in thetas]), torch.cat([v[1:] for v in thetas])
    measure = _measure(task, layers, metric, form, *ends)
    string_of = np.repeat(np.arange(len(strings)), [len(v) - 1 for v in thetas])  # (S,)
    proof = Proof(measure, string_of, np.array(limits), budget, tolerance)
    proof.divide()
    limit = np.array(limits)[string_of]
    ended = [proof.upper <= limit, proof.lower > limit]
    status = np.select(ended, [PROVED, REFUTED], UNDECIDED)
    x, y = task.splits["test"]
    segment, begin, end, bound = proof.pieces()
    certificates = []
    for i, string_thetas in enumerate(thetas):
        segments = slice(*np.searchsorted(string_of, (i, i + 1)))
        rows = slice(*np.searchsorted(segment, (segments.start, segments.stop)))
        certificates.append(
            Certificate(
                thetas=string_thetas,
                limit=limits[i],
                metric=metric,
                layers=layers,
                x=x,
                y=y,
                status=status[segments].tolist(),
                t_lower=_tensor(proof.t_lower[segments]),
                lower=_tensor(proof.lower[segments]),
                upper=_tensor(proof.upper[segments]),
                segment=_tensor(segment[rows] - segments.start),
                begin=_tensor(begin[rows]),
                end=_tensor(end[rows]),
                bound=_tensor(bound[rows]),
                n_bounded=int(proof.used[segments].sum()),
                trace=proof.trace[i],
            )
        )
    return certificates


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.copy())


def _measure(task: Task, layers, metric, form, theta_1, theta_2) -> Callable:
    """A function of pieces, `(segment, center, radius)`: upper bounds and values, see `bounds`."""
    x, y = task.splits["test"]
    # Three tensors of what enters a layer, windows of a convolution unfolded, six of what leaves.
    heaviest = max(3 * values_in(layer) + 6 * layer["n_out"] for layer in layers)
    fits = max(1, int(task.budget.chunk_elements(torch.float64) / heaviest))
    size = min(task.eval_chunk or len(x), len(x), fits)
    n_outputs = layers[-1]["n_out"]
    parts = [
        (Network(layers, theta_1, theta_2, a, form), sample_of(metric, b), len(b) / len(y))
        for a, b in zip(x.split(size), y.split(size), strict=True)
    ]

    def measure(segment: np.ndarray, center: np.ndarray, radius: np.ndarray) -> tuple:
        pieces = [torch.from_numpy(v).to(task.device) for v in (segment, center, radius)]

        def work(rows: slice) -> Tensor:
            group = [v[rows] for v in pieces]
            means = [share * losses(metric, net.outputs(*group), y_) for net, y_, share in parts]
            return bounds(sum(means), len(y) * n_outputs)

        if len(segment) == 0:
            return np.empty((2, 0))
        n_samples = math.ceil(heaviest * size / task.budget.n_activations)
        groups = task.budget.by_rows(work, len(segment), n_samples, torch.float64)
        return torch.cat(groups, dim=1).cpu().numpy()

    return torch.no_grad()(measure)
