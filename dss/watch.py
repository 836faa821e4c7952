"""One line about a run that takes long, for callers who give `progress=True`.

The functions below say what has happened.  They do nothing where no line is shown.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

from dss.checks import check_flag

FORMAT = "{desc}{n_fmt} of {total_fmt} {unit} done |{bar}| {elapsed}{postfix}"
SECONDS, SECONDS_OF_LOGS = 0.5, 10  # between two looks at a descent; a log keeps each as a line

_shown: ContextVar["Line | None"] = ContextVar("shown", default=None)


class Line:
    """A bar of tqdm on stderr, or of Jupyter.

    Args:
        unit: what it counts: `"pairs"`, `"endpoints"` or `"networks"`.
        total: how many there are.
        L0: `(M,)`, thresholds of the pairs.
    """

    def __init__(self, unit: str, total: int, L0=None):
        from tqdm.auto import tqdm

        stays = not sys.stderr.isatty() and "ipykernel" not in sys.modules
        self.seconds, self.last = SECONDS_OF_LOGS if stays else SECONDS, time.monotonic()
        self.unit, self.L0, self.steps = unit, L0, 0
        self.texts: dict[str, str] = {}
        self.bar = tqdm(total=total, unit=unit, bar_format=FORMAT, dynamic_ncols=True)

    def show(self) -> None:
        """Show what is known now."""
        self.last = time.monotonic()
        self._write()
        self.bar.refresh()

    def _write(self) -> None:
        steps = [f"{self.steps:,} gradient steps"] if self.steps else []
        self.bar.set_postfix_str("; ".join([*self.texts.values(), *steps]), refresh=False)

    def is_due(self) -> bool:
        """Whether the reader has seen the last news for long enough."""
        return time.monotonic() - self.last >= self.seconds

    def close(self, is_done: bool) -> None:
        """End the line; where all went well, everything it counts is done."""
        if is_done:
            self.texts, self.bar.n = {}, self.bar.total
            self._write()
        self.bar.close()


def check_progress(progress) -> bool:
    """`progress` as a bool.

    Raises:
        TypeError: neither True nor False.
        ImportError: True, and tqdm is not installed.
    """
    if check_flag(progress, "progress"):
        try:
            import tqdm.auto  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "progress is True, and tqdm is missing; pip install tqdm, or leave progress out"
            ) from error
    return bool(progress)


@contextmanager
def shown(progress: bool, unit: str, total: int, L0=None) -> Iterator[None]:
    """Show a line while a block runs; or none, or one that is shown already.

    Args:
        progress: whether there is to be a line.
        unit, total, L0: as in `Line`.

    Raises:
        TypeError, ImportError: as in `check_progress`.
    """
    if not check_progress(progress):
        yield
        return
    line, is_done = Line(unit, total, L0), False
    token = _shown.set(line)
    try:
        yield
        is_done = True
    finally:
        _shown.reset(token)
        line.close(is_done)


def _where_shown(tell: Callable) -> Callable:
    """`tell` without its first argument, the line; nothing where there is none."""

    @wraps(tell)
    def told(*news) -> None:
        if (line := _shown.get()) is not None:
            tell(line, *news)

    return told


@_where_shown
def say(line: Line, what) -> None:
    """Lines above the line."""
    line.bar.write(str(what), file=sys.stderr)


@_where_shown
def level(line: Line, depth: int, max_depth: int, n_segments: int) -> None:
    """A level begins, with so many segments to be tested."""
    line.bar.set_description_str(f"level {depth} of {max_depth}: ", refresh=False)
    line.texts = {"level": f"{n_segments} segments to test"}
    line.show()


@_where_shown
def tested(line: Line, is_open, active, trace: list[list[dict]]) -> None:
    """The segments of a level were tested.

    Args:
        line: where it is shown.
        is_open: `(S,)` bool, segments that go on.
        active: `(M,)` bool, pairs that go on.
        trace: of each pair, as in `String`.
    """
    goes_on = active.tolist()
    line.bar.n = len(goes_on) - sum(goes_on)
    line.steps = sum(row["gradient_steps"] for rows in trace for row in rows)
    worst = [trace[m][-1]["Gamma_tilde"] / float(line.L0[m]) for m, on in enumerate(goes_on) if on]
    line.texts = {"level": f"{int(is_open.sum())} open segments"}
    if worst:
        line.texts["level"] += f", worst loss {max(worst):.3g} L0"
    line.show()


@_where_shown
def descended(line: Line, n_steps: int, step: int, losses, targets) -> None:
    """Networks have descended further, up to a check.

    Args:
        line: where it is shown.
        n_steps: gradient steps of each since the last check.
        step: how many it has made in all.
        losses, targets: `(N,)`, the metric of each, and what it descends to.
    """
    line.steps += n_steps * len(losses)
    if line.is_due():
        worst = float((losses / targets).max())
        line.texts["descent"] = (
            f"{len(losses)} networks at step {step:,}, worst loss {worst:.3g} of its target"
        )
        line.show()


@_where_shown
def jobs_ended(line: Line, n: int) -> None:
    """So many jobs of a level have come back from the workers."""
    line.texts["descent"] = f"{n} jobs of the workers ended"
    line.show()


@_where_shown
def done(line: Line, unit: str, n: int) -> None:
    """So many of a unit are done; lines that count another unit take no notice."""
    if line.unit == unit:
        line.bar.n = n
        line.show()
