"""Running notebooks again and comparing every table with the committed one."""

import shutil
from pathlib import Path

import pandas as pd

from dss.given import folder_from
from dss.provenance import PROJECT
from dss.runs.compare import by_notebook, compare_notebooks, difference
from dss.runs.kernels import Scratch
from dss.runs.reproduce import Outcome, reproduce


def verify(
    names: list[str],
    size: str = "quick",
    device: str = "auto",
    committed: str | Path | None = None,
    cell_timeout: int | None = None,
    jobs: int | None = None,
) -> pd.DataFrame:
    """Execute notebooks into a temporary folder and compare their tables with those that there are.

    Args:
        names: of notebooks; all that are in the manifest when empty.
        size, device, cell_timeout, jobs: as in `dss.runs.reproduce.reproduce`.
        committed: folder that holds `<size>/`; by default `figures/`.

    What a notebook that failed has made is kept in `runs/failed/<size>/<name>/` of the project.

    Returns:
        A row for each column of each table, as `compare` gives them, with `notebook` and `table`;
        and a row, with `verdict` "DIFFERS" and the reason in `rule`, for a notebook that failed, a
        table that is missing on one side, and a file whose content is not what the manifest says.

    Raises:
        ValueError: an unknown size, `committed` is no folder, or there is no manifest, or none of a
            notebook, to compare with.
    """
    is_given = committed is not None
    folder = (folder_from(committed, "--committed") if is_given else PROJECT / "figures") / size
    if not (folder / "manifest.json").exists():
        raise ValueError(f"there is no {folder / 'manifest.json'} to compare with")
    before = by_notebook(folder)
    if not before:
        raise ValueError(f"{folder / 'manifest.json'} names no figure to compare with")
    for name in names:
        if name not in before:
            known = ", ".join(before)
            raise ValueError(f"there is nothing of {name!r} in {folder}; there is of: {known}")
    names = names or list(before)
    with Scratch("verify") as scratch:
        outcomes = reproduce(
            names, size, device=device, out=scratch, cell_timeout=cell_timeout, jobs=jobs
        )
        after = by_notebook(Path(scratch) / size)
        parts = []
        for outcome in outcomes:
            name = outcome.name
            if outcome.error:
                where = _kept(outcome, size)
                part = difference("", f"it failed in {outcome.error}{where}")
            elif name not in after:
                part = difference("", "it has no figure any more")
            else:
                part = compare_notebooks(before[name], after[name], folder, Path(scratch) / size)
            part.insert(0, "notebook", name)
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _kept(outcome: Outcome, size: str) -> str:
    """Keep what a notebook made until it failed, and say where."""
    if not outcome.kept:
        return ""
    folder = PROJECT / "runs" / "failed" / size / outcome.name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(outcome.kept, folder)
    except OSError as failure:  # a full disk
        return f"; what it made could not be kept: {failure}"
    return f"; what it made is in {folder}/"
