"""Comparing the tables of a run with those of another, by the rules that its manifest states."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd

from dss.given import manifest_from


@dataclass(frozen=True)
class Compared:
    """How a column of a table compares with what it was.

    Attributes:
        column: its name; `(rows)` for their number, empty for a table or file as a whole.
        rule: what it was held to, or what is wrong.
        distance: as `compare` defines it; None where none was measured.
        verdict: `identical`, `within tolerance`, `not compared` or `DIFFERS`.
    """

    column: str
    rule: str
    distance: float | None
    verdict: str


def agreement(notebook: str, old: Path, new: Path) -> str:
    """In a line, how what a notebook gave compares with what it gave before.

    Args:
        notebook: its name.
        old, new: folders with tables and a manifest.

    Returns:
        Which parameters differ, with both values, and which tables, by the rules of `compare`; or
        that there is nothing to compare with, or what is wrong with it.
    """
    try:
        before, after = (by_notebook(folder).get(notebook) for folder in (old, new))
        if not (before and after):
            return "nothing to compare with"
        columns = compare_notebooks(before, after, old, new)
        parameters = _changed(before.get("parameters", {}), after.get("parameters", {}))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        return f"cannot be compared with {old}: {type(error).__name__}: {error}"
    names = dict.fromkeys([*before["tables"], *after["tables"]])
    verdicts = {name: set(columns.verdict[columns.table == name]) for name in names}
    differ = [name for name in names if "DIFFERS" in verdicts[name]]
    n_within = sum("within tolerance" in verdicts[n] for n in names if n not in differ)
    counts = {"identical": len(names) - len(differ) - n_within, "within tolerance": n_within}
    said = [f"{n} {verdict}" for verdict, n in counts.items() if n]
    if differ:
        said = [f"{len(differ)} of {len(names)} tables differ: {', '.join(differ)}", *said]
    elif said:
        said = ["tables: " + ", ".join(said)]
    return "; ".join([parameters or "same parameters", *said])


def _changed(before: Mapping, after: Mapping) -> str:
    """Parameters that differ, each with its value now and the one before."""
    changed = []
    for name in dict.fromkeys([*before, *after]):
        now, was = (v.get(name, "not there") for v in (after, before))
        if now != was:
            changed.append(f"{name} {now} (was {was})")
    return ", ".join(changed)


def compare(
    before: pd.DataFrame,
    after: pd.DataFrame,
    tolerances: Mapping[str, float] | None = None,
    timings: Collection[str] = (),
    rows_vary: bool = False,
) -> pd.DataFrame:
    """Compare two tables column by column.

    The distance of two numeric columns is the sum of the differences of their entries over the sum
    of the entries' sizes before, that of others the fraction of entries that differ.  It is at
    least the fraction of rows in which a number stands against a missing one.

    Args:
        before, after: tables.
        tolerances: by name or pattern the largest distance, the first match counts; columns that
            match nothing must be equal.  `"rows"` is for the number of rows, with `rows_vary`.
        timings: names or patterns of columns that are not compared.
        rows_vary: which rows there are is measured too.  Where columns differ, the distance is
            then Wasserstein's between the two sets of numbers, over the mean size before, and for
            others the total variation; columns that match nothing are held to that of `"rows"`.

    Returns:
        A row per column: `column`, `rule` (`exact`, `within 0.05` or `timing`), `distance`, and
        `verdict`: `identical`, `within tolerance`, `not compared` or `DIFFERS`.
    """
    if len(before) != len(after) and not rows_vary:
        reason = f"{len(before)} rows before, {len(after)} now"
        return pd.DataFrame([Compared("", reason, None, "DIFFERS")])
    compared = []
    tolerances = dict(tolerances or {})
    otherwise = tolerances.get("rows") if rows_vary else None

    def allowed(name: str) -> float | None:
        return next((v for k, v in tolerances.items() if fnmatchcase(name, k)), otherwise)

    if rows_vary:
        distance = abs(len(after) / max(1, len(before)) - 1)
        compared.append(_judged("(rows)", distance, distance == 0, allowed("rows")))
    for column in dict.fromkeys([*before, *after]):
        if column not in before or column not in after:
            only = f"only {'before' if column in before else 'now'}"
            compared.append(Compared(column, only, None, "DIFFERS"))
        elif any(fnmatchcase(column, pattern) for pattern in timings):
            compared.append(Compared(column, "timing", None, "not compared"))
        else:
            is_same = before[column].equals(after[column])
            measure = _set_distance if rows_vary else _row_distance
            distance = 0.0 if is_same else measure(before[column], after[column])
            compared.append(_judged(column, distance, is_same, allowed(column)))
    return pd.DataFrame(compared)


def _judged(column: str, distance: float, is_same: bool, allowed: float | None) -> Compared:
    """The verdict on a measured distance; None: nothing but the same is allowed."""
    rule = "exact" if allowed is None else f"within {allowed:g}"
    is_within = allowed is not None and distance <= allowed
    verdict = "identical" if is_same else "within tolerance" if is_within else "DIFFERS"
    return Compared(column, rule, distance, verdict)


def _row_distance(before: pd.Series, after: pd.Series) -> float:
    """Of two columns, row by row."""
    if not (_is_numeric(before) and _is_numeric(after)):
        same = before.astype(str).to_numpy() == after.astype(str).to_numpy()
        return float(1 - same.mean())
    a, b = before.to_numpy(float), after.to_numpy(float)
    parts = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if np.isinf(a[parts]).any() or np.isinf(b[parts]).any():
        return np.inf
    missing = float((np.isnan(a) != np.isnan(b)).mean())
    difference = np.abs(np.nan_to_num(a) - np.nan_to_num(b))[parts].sum()
    size = np.abs(a[np.isfinite(a)]).sum()
    if size == 0:
        return missing or np.inf
    return max(float(difference / size), missing)


def _set_distance(before: pd.Series, after: pd.Series) -> float:
    """Of two columns, as sets of numbers or of names."""
    from scipy.stats import wasserstein_distance

    if not (_is_numeric(before) and _is_numeric(after)):
        counts = [v.astype(str).value_counts(normalize=True) for v in (before, after)]
        return float(counts[0].sub(counts[1], fill_value=0).abs().sum() / 2)
    missing = abs(float(before.isna().mean() - after.isna().mean()))
    a, b = (v.dropna().to_numpy(float) for v in (before, after))
    if not (len(a) and len(b) and np.isfinite([*a, *b]).all() and np.abs(a).sum() > 0):
        return missing or np.inf
    return max(float(wasserstein_distance(a, b) / np.abs(a).mean()), missing)


def _is_numeric(values: pd.Series) -> bool:
    types = pd.api.types
    return types.is_numeric_dtype(values) and not types.is_bool_dtype(values)


def compare_notebooks(before: dict, after: dict, old: Path, new: Path) -> pd.DataFrame:
    """Compare all tables of a notebook, and the files before with what their manifest says.

    Args:
        before, after: entries as `by_notebook` gives them.
        old, new: the folders that hold their tables.

    Returns:
        Rows as `compare` gives them, with `table`, the name of the file.
    """
    parts = []
    for name in dict.fromkeys([*before["tables"], *after["tables"]]):
        if name not in after["tables"] or name not in before["tables"]:
            parts.append(difference(name, f"only {'now' if name in after['tables'] else 'before'}"))
            continue
        if not (old / name).exists():
            continue  # it is named below
        frames = [pd.read_csv(folder / name) for folder in (old, new)]
        rules = (
            after.get("tolerances"),
            after.get("timings", ()),
            name in after.get("rows_vary", []),
        )
        part = compare(*frames, *rules)
        part.insert(0, "table", name)
        parts.append(part)
    for name, digest in (before["tables"] | before["figures"]).items():
        path = old / name
        if not path.exists():
            parts.append(difference(name, "it is missing"))
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            parts.append(difference(name, "it is not the file that the manifest was written for"))
    return (
        pd.concat(parts, ignore_index=True) if parts else difference("", "it has no table").iloc[:0]
    )


def difference(table: str, reason: str) -> pd.DataFrame:
    """The row, as `compare_notebooks` gives it, for a table that cannot be compared."""
    row = pd.DataFrame([Compared("", reason, None, "DIFFERS")])
    row.insert(0, "table", table)
    return row


def by_notebook(folder: Path) -> dict[str, dict]:
    """What the manifest says, by notebook: its entry, and the digests of its figures."""
    notebooks = {}
    for name, entry in manifest_from(folder).items():
        notebook = notebooks.setdefault(entry["notebook"].removesuffix(".ipynb"), entry)
        notebook.setdefault("figures", {})[name] = entry.get("sha256")
    return notebooks
