"""A string: an ordered chain of networks, and what is known of the loss along it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dss.checks import (
    NUMBER,
    POSITIVE,
    TEXT,
    WHOLE,
    Rule,
    check_fields,
    check_rows,
    check_theta,
    check_whole,
    is_number,
    is_whole,
    one_of,
    table,
)
from dss.files import load_tensors, save_tensors
from dss.status import OF_STRINGS, Status
from dss.theta import normalized_length

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

STRING_FORMAT = "dss-string-1"

# Fields of a string that a file holds as plain values; the others are tensors.
VALUES: dict[str, Rule] = {
    "status": one_of(OF_STRINGS),
    "L0": POSITIVE,
    "alpha": (lambda v: is_number(v) and 0 < v <= 1, "0 < alpha <= 1"),
    "slack": (lambda v: is_number(v) and 1 <= v < math.inf, "a finite number >= 1"),
    "n_t": (lambda v: is_whole(v) and v >= 3, "a whole number >= 3"),
    "Gamma_tilde": NUMBER,
    "trace": (lambda v: isinstance(v, list), "a list"),
    "detail": TEXT,
}
TRACE: dict[str, Rule] = {
    "depth": WHOLE,
    "Gamma_tilde": NUMBER,
    "open_segments": WHOLE,
    "beads_trained": WHOLE,
    "gradient_steps": WHOLE,
    "forward_passes": WHOLE,
}
OLDER_TRACE = {name: rule for name, rule in TRACE.items() if name != "forward_passes"}


def check_trace(rows) -> None:
    """Raise ValueError unless `rows` are a trace.  Files before version 0.2 count no passes."""
    rows_of = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    is_older = not any("forward_passes" in row for row in rows_of)
    check_rows(rows, OLDER_TRACE if is_older else TRACE, "trace")


@dataclass(frozen=True, eq=False)
class String:
    """The interpolated string S(theta_1, theta_2, alpha, d) of one pair.

    Attributes:
        thetas: `(K, P)`, ordered from `theta_1` to `theta_2`, both included bit for bit.
        status: `connected`, `depth exhausted`, `training stalled` or `endpoint above L0`, with its
            meaning and advice (`dss.status`).  Only the first says something about the landscape:
            the algorithm cannot prove that no path exists.
        L0: threshold, in the unit of the task's metric.
        alpha: beads were trained to `alpha * L0`.
        slack: the pair test was gamma <= `slack * L0`.
        n_t: grid points a segment, both ends included.
        Gamma_tilde: largest gamma on those grids, over all neighbours (Eq. (4)); NaN when the
            search never began.  Neighbours that passed the test also passed it at their refined
            maximum, which may lie a little above the grid's.
        trace: per depth `depth`, `Gamma_tilde`, `open_segments` (above the threshold),
            `beads_trained`, `gradient_steps` and `forward_passes` (spent to get to this depth and
            to test it; one pass takes one network over the whole evaluation set).  With
            `t_star="coarse"` Gamma_tilde between the first depth and the last is the largest gamma
            that was measured, on half of the grid where a segment was split.
        detail: what else there is to say of the status; may be empty.
        length_mask: `(P,)` bool, the parameters that count in the length; None: all.
        task: on which it was found; None for a string that was read from a file.

    Paper: Sec. II.B, Eq. (4).
    """

    thetas: Tensor
    status: Status
    L0: float
    alpha: float
    slack: float
    n_t: int
    Gamma_tilde: float
    trace: list[dict] = field(default_factory=list, repr=False)
    detail: str = ""
    length_mask: Tensor | None = field(default=None, repr=False)
    task: Any = field(default=None, repr=False)  # a Task, which is built on other floors

    def __post_init__(self):
        object.__setattr__(self, "status", Status(self.status))

    @property
    def connected(self) -> bool:
        """Whether every segment passed the pair test."""
        return self.status is Status.CONNECTED

    @property
    def n_beads(self) -> int:
        """Intermediate networks: K - 2.  (The authors' scripts report K.)"""
        return len(self.thetas) - 2

    @property
    def normalized_length(self) -> float:
        """Length of the string over the distance of its ends; 1 for a straight line."""
        return normalized_length(self.thetas, self.length_mask)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps spent on beads, failed ones included."""
        return sum(row["gradient_steps"] for row in self.trace)

    @property
    def forward_passes(self) -> int:
        """Forward passes of one network over the evaluation set; NaN where a file has no count."""
        return sum(row.get("forward_passes", math.nan) for row in self.trace)

    @property
    def depth(self) -> int:
        """Deepest level that was tested; -1 when the search never began."""
        return self.trace[-1]["depth"] if self.trace else -1

    def summary(self) -> dict:
        """One row for a table over pairs: what the string is, without its trace."""
        return {
            "L0": self.L0,
            "alpha": self.alpha,
            "slack": self.slack,
            "n_t": self.n_t,
            "status": self.status.value,
            "connected": self.connected,
            "n_beads": self.n_beads,
            "normalized_length": self.normalized_length,
            "Gamma_tilde": self.Gamma_tilde,
            "depth_reached": self.depth,
            "gradient_steps": self.gradient_steps,
        }

    def to_frame(self) -> "pd.DataFrame":
        """The trace as a table: a row per depth, with L0, alpha and status in every row."""
        import pandas as pd

        frame = pd.DataFrame(self.trace, columns=list(TRACE))
        return frame.assign(L0=self.L0, alpha=self.alpha, status=self.status.value)

    def module(self, i: int) -> "nn.Module":
        """Network i of the string, from 0 to K - 1, as a module of its own (`Task.network`).

        Raises:
            TypeError: i is no whole number.
            ValueError: there is no such network, or the string does not know its task: one that
                was read from a file; use `task.network(string.thetas[i])`.
        """
        i = check_whole(i, "i", 0, len(self.thetas) - 1)
        if self.task is None:
            raise ValueError(
                "the string was read from a file and does not know its task; use "
                "task.network(string.thetas[i])"
            )
        return self.task.network(self.thetas[i])

    def save(self, path: str | Path) -> Path:
        """Write the string to one safetensors file with JSON metadata, bit for bit.

        The file appears under its name only when it is complete.

        Args:
            path: of the file; its folder must exist.

        Returns:
            The path.

        Raises:
            TypeError, ValueError: the path is no text or path; it is empty or a URL.
            OSError: a folder, or in one that is not there or cannot be written, or a full disk; an
                older file stays as it was.
        """
        tensors = {"thetas": self.thetas}
        if self.length_mask is not None:
            tensors["length_mask"] = self.length_mask
        values = {name: getattr(self, name) for name in VALUES}
        return save_tensors(path, STRING_FORMAT, tensors, values)

    @classmethod
    def load(cls, path: str | Path) -> "String":
        """Read a string that `save` wrote, and check it.

        Args:
            path: of the file.

        Returns:
            The string, on the CPU.

        Raises:
            TypeError: the path is neither text nor a path.
            OSError: there is no such file, or it cannot be read.
            ValueError: the path is empty or a URL; the file is damaged, of another format, or
                contradicts itself.
        """

        def build(tensors: dict, values: dict) -> String:
            check_fields(values, VALUES)
            check_trace(values["trace"])
            check_fields({"thetas": tensors.get("thetas")}, {"thetas": table("float", None, None)})
            K, P = check_theta(tensors["thetas"], "thetas", (None, None), finite=True).shape
            if K < 2 or P < 1:
                raise ValueError(f"thetas has shape ({K}, {P}); two networks, at least, are needed")
            rules = {"thetas": table("float", K, P), "length_mask": table("bool", P)}
            check_fields(tensors, {name: rules[name] for name in rules if name in tensors})
            return cls(**tensors, **values)

        return load_tensors(path, STRING_FORMAT, build)
