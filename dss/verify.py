"""Running notebooks again and comparing every table with the committed one."""

import hashlib
import json
import tempfile
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd

from dss.provenance import PROJECT
from dss.reproduce import reproduce


def verify(
    names: list[str],
    size: str = "quick",
    device: str = "auto",
    committed: str | Path | None = None,
    cell_timeout: int | None = None,
) -> pd.DataFrame:
    """Execute notebooks into a temporary folder and compare their tables with those that there are.

    Args:
        names, size, device, cell_timeout: as in `dss.reproduce.reproduce`.
        committed: folder that holds `<size>/`; by default `figures/`.

    Returns:
        A row for each column of each table, as `compare` gives them, with `notebook` and `table`;
        and a row, with `verdict` "DIFFERS" and the reason in `rule`, for a notebook that failed, a
        table that is missing on one side, and a file whose content is not what the manifest says.

    Raises:
        ValueError: an unknown notebook or size, or no manifest to compare with.
    """
    folder = Path(committed).resolve() / size if committed else PROJECT / "figures" / size
    if not (folder / "manifest.json").exists():
        raise ValueError(f"there is no {folder / 'manifest.json'} to compare with")
    before = _by_notebook(folder)
    with tempfile.TemporaryDirectory(prefix="dss-verify-") as scratch:
        outcomes = reproduce(names, size, device=device, out=scratch, cell_timeout=cell_timeout)
        after = _by_notebook(Path(scratch) / size)
        parts = []
        for outcome in outcomes:
            name = outcome.name
            if outcome.error:
                found = _note("", f"it failed in {outcome.error}")
            elif name not in before:
                found = _note("", "it has no figure in the manifest")
            elif name not in after:
                found = _note("", "it has no figure any more")
            else:
                found = _compare_notebook(before[name], after[name], folder, Path(scratch) / size)
            found.insert(0, "notebook", name)
            parts.append(found)
    return pd.concat(parts, ignore_index=True)


def compare(
    before: pd.DataFrame,
    after: pd.DataFrame,
    tolerances: Mapping[str, float] | None = None,
    timings: Collection[str] = (),
) -> pd.DataFrame:
    """Compare two tables column by column.

    The distance of two numeric columns is the sum of the differences of their entries over the sum
    of the entries' sizes before, that of others the fraction of entries that differ; a number
    against a missing one counts in full.

    Args:
        before, after: tables.
        tolerances: by name or pattern the largest distance; columns that match nothing must be
            equal.
        timings: names or patterns of columns that are not compared.

    Returns:
        A row per column: `column`, `rule` (`exact`, `within 0.05` or `timing`), `distance`, and
        `verdict`: `identical`, `within tolerance`, `not compared` or `DIFFERS`.
    """
    tolerances = dict(tolerances or {})
    if len(before) != len(after):
        return _note("", f"{len(before)} rows before, {len(after)} now").drop(columns="table")
    rows = []
    for column in dict.fromkeys([*before, *after]):
        allowed = next((v for k, v in tolerances.items() if fnmatchcase(column, k)), None)
        row = {"column": column, "rule": "exact" if allowed is None else f"within {allowed:g}"}
        if column not in before or column not in after:
            where = "after" if column in after else "before"
            row |= {"rule": f"only {where}", "distance": np.nan, "verdict": "DIFFERS"}
        elif any(fnmatchcase(column, pattern) for pattern in timings):
            row |= {"rule": "timing", "distance": np.nan, "verdict": "not compared"}
        else:
            distance = _distance(before[column], after[column])
            within = allowed is not None and distance <= allowed
            verdict = "identical" if distance == 0 else "within tolerance" if within else "DIFFERS"
            row |= {"distance": distance, "verdict": verdict}
        rows.append(row)
    return pd.DataFrame(rows)


def _distance(before: pd.Series, after: pd.Series) -> float:
    def is_numeric(v: pd.Series) -> bool:
        return pd.api.types.is_numeric_dtype(v) and not pd.api.types.is_bool_dtype(v)

    if not (is_numeric(before) and is_numeric(after)):
        same = (before.astype(str).to_numpy() == after.astype(str).to_numpy()) | (
            before.isna() & after.isna()
        ).to_numpy()
        return float(1 - same.mean()) if len(same) else 0.0
    a, b = before.to_numpy(float), after.to_numpy(float)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    if np.isinf(a[~same]).any() or np.isinf(b[~same]).any():
        return np.inf
    difference = np.abs(np.nan_to_num(a) - np.nan_to_num(b))[~same].sum()
    size = np.abs(a[np.isfinite(a)]).sum()
    # A missing entry against 0 is a difference too, and so is anything where all was 0.
    return max(float(difference / size), 1e-300) if size > 0 else np.inf


def _compare_notebook(before: dict, after: dict, old: Path, new: Path) -> pd.DataFrame:
    parts = []
    for name in dict.fromkeys([*before["tables"], *after["tables"]]):
        if name not in after["tables"] or name not in before["tables"]:
            parts.append(_note(name, f"only {'after' if name in after['tables'] else 'before'}"))
            continue
        if not (old / name).exists():
            continue  # it is named below
        frames = [pd.read_csv(folder / name) for folder in (old, new)]
        part = compare(*frames, after["tolerances"], after["timings"])
        part.insert(0, "table", name)
        parts.append(part)
    for name, digest in (before["tables"] | before["figures"]).items():
        path = old / name
        if not path.exists():
            parts.append(_note(name, "it is missing"))
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            parts.append(_note(name, "it is not the file that the manifest was written for"))
    return pd.concat(parts, ignore_index=True)


def _note(table: str, reason: str) -> pd.DataFrame:
    row = {"table": table, "column": "", "rule": reason, "distance": np.nan, "verdict": "DIFFERS"}
    return pd.DataFrame([row])


def _by_notebook(folder: Path) -> dict[str, dict]:
    """What the manifest says, by notebook: its entry, and the digests of its figures."""
    path, found = folder / "manifest.json", {}
    for name, entry in (json.loads(path.read_text()) if path.exists() else {}).items():
        notebook = found.setdefault(entry["notebook"].removesuffix(".ipynb"), entry)
        notebook.setdefault("figures", {})[name] = entry["sha256"]
    return found
