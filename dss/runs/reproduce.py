"""Regenerating the figures of the notebooks: nothing half-written, and a killed run goes on."""

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dss.checks import check_counts
from dss.files import write
from dss.given import folder_from, json_from, manifest_from
from dss.parameters import check_parameters, paper_parameters, typed_values
from dss.provenance import PROJECT
from dss.results import CHECKPOINTS, check_device, update_manifest
from dss.runs.execute import (
    NOTEBOOKS,
    end_kernels,
    execute,
    fetch_data,
    key_of,
    n_cells,
    versions_of,
)
from dss.runs.grid import n_cores
from dss.runs.progress import Progress

SIZES = ("quick", "paper")
UNFINISHED = ".unfinished.json"  # in the folder of the figures
FAILED = "failed"  # also there: a folder for each notebook whose last run failed


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended.

    Attributes:
        name: of the notebook.
        seconds: None where a killed run had finished it before.
        figures: that were moved into place.
        error: or "".
        kept: the folder in which a run that failed has left its tables and figures.
        compared: in a line, which parameters and tables are other than those in `figures/<size>/`,
            as they were before this run.
    """

    name: str
    seconds: float | None
    figures: list[str]
    error: str = ""
    kept: Path | None = None
    compared: str = ""


def notebook_names() -> list[str]:
    """Names of the notebooks, in reading order."""
    chapters = sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    return chapters + [path.stem for path in NOTEBOOKS.glob("sweep_report.ipynb")]


def reproduce(
    names: list[str],
    size: str = "quick",
    parameters: Mapping | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    cell_timeout: int | None = None,
    save_outputs: bool = False,
    jobs: int | None = None,
) -> list[Outcome]:
    """Execute notebooks and put their tables, figures and manifest into place.

    Each runs in a folder of its own; what was there before is replaced only when the notebook came
    to its end.  A notebook that fails does not stop the others; its tables, figures and executed
    cells are kept in `failed/<name>/` there, until it succeeds.  The same call, made again after
    the process was killed, skips the notebooks that were finished, and the searches that those it
    was in had finished, unless the notebook, `dss` or the lock changed in the meantime.

    Args:
        names: as `notebook_names` gives them; all when empty.
        size: `"quick"` (the committed defaults) or `"paper"` (with `params/paper.yaml`).
        parameters: overrides, plain JSON values, or `dss.parameters.Text` that each notebook reads
            by its own declaration; every notebook that runs must know them.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        out: folder for `<size>/` tables and figures; `figures/` by default.
        cell_timeout: seconds after which a cell counts as hung; by default 600 at quick size and
            none at paper size.
        save_outputs: also write the executed cells back into `notebooks/`.
        jobs: notebooks side by side, those that took longest first; by default one for each core,
            and one where there is CUDA.  What they give does not depend on it: every kernel
            computes on one thread (as long as memory does not decide what runs side by side).

    Returns:
        An `Outcome` per notebook, in the order of `names`.

    Raises:
        ValueError: an unknown notebook, size or parameter, `out` is no folder, a damaged
            manifest, or jobs or cell_timeout < 1, before anything runs.
        KeyboardInterrupt: Ctrl-C; kernels are ended first, and their checkpoints stay.
    """
    known = notebook_names()
    for name in names:
        if name not in known:
            raise ValueError(f"no notebook {name!r}; known: {', '.join(known)}")
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; known: {', '.join(SIZES)}")
    for own in {"size", "out"} & set(parameters or {}):
        raise ValueError(f"{own} is no parameter to override here; use --{own}")
    if save_outputs and (parameters or size != "quick"):
        raise ValueError("outputs are committed at quick size with the default parameters only")
    check_counts(jobs=jobs, cell_timeout=cell_timeout)
    if cell_timeout is None and size == "quick":
        cell_timeout = 600
    is_elsewhere = out is not None
    folder = (folder_from(out, "--out") if is_elsewhere else PROJECT / "figures") / size
    executed_folder = folder / "executed" if is_elsewhere else PROJECT / "runs" / size
    for place in (folder, PROJECT / "figures" / size):
        manifest_from(place)  # one that is damaged is an error now
    runs = []
    for name in dict.fromkeys(names or known):
        notebook = NOTEBOOKS / f"{name}.ipynb"
        overrides = paper_parameters(notebook) if size == "paper" else {}
        chosen = overrides | {"device": device} | typed_values(notebook, parameters or {})
        check_parameters(notebook, chosen)
        check_device(chosen["device"])
        key = key_of(versions_of(notebook), chosen)
        executed = executed_folder / f"{name}.ipynb"
        runs.append(_Run(name, chosen, key, folder, executed, cell_timeout))
    folder.mkdir(parents=True, exist_ok=True)
    fetch_data(NOTEBOOKS / f"{run.name}.ipynb" for run in runs)
    outcomes = _side_by_side(runs, folder, size, jobs or _usual_jobs(device))
    for i, (outcome, run) in enumerate(zip(outcomes, runs, strict=True)):
        if save_outputs and not outcome.error:
            try:
                _save_outputs(outcome.name, run.executed)
            except OSError as failure:
                outcomes[i] = replace(outcome, error=f"saving its outputs: {failure}")
    if not any(outcome.error for outcome in outcomes):
        with suppress(OSError):  # then it would be skipped the next time, as after a kill
            _note_unfinished(folder, _call_of(runs), None)
    return outcomes


@dataclass(frozen=True)
class _Run:
    """What one notebook is run with, and where its files go."""

    name: str
    parameters: dict
    key: str
    folder: Path
    executed: Path
    cell_timeout: int | None

    @property
    def n_cells(self) -> int:
        """Cells that papermill runs."""
        return n_cells(NOTEBOOKS / f"{self.name}.ipynb")


def _side_by_side(runs: list[_Run], folder: Path, size: str, jobs: int) -> list[Outcome]:
    """Run what an earlier call has not finished, `jobs` at a time, and note what has ended."""
    call, stop = _call_of(runs), threading.Event()
    before = _unfinished(folder).get(call, {})
    ended = {
        run.name: Outcome(run.name, None, _figures_of(run.name, folder), compared=said["compared"])
        for run in runs
        if (said := before.get(run.name, {})).get("state") == _state(run)
    }
    todo = [run for run in runs if run.name not in ended]
    todo.sort(key=lambda run: -_seconds_before(run.name, folder, size))
    n_cells = {run.name: run.n_cells for run in todo}
    with Progress(n_cells, len(runs)) as progress, ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, run, progress, stop): run for run in todo}
        try:
            for future in as_completed(futures):
                run, outcome = futures[future], future.result()
                ended[run.name] = outcome
                progress.ended(run.name, outcome.error)
                if not outcome.error:
                    try:
                        note = {"state": _state(run), "compared": outcome.compared}
                        _note_unfinished(folder, call, {run.name: note})
                    except OSError as failure:
                        progress.say(f"{run.name} will run again after a kill: {failure}")
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):
                end_kernels()
                time.sleep(0.1)
            raise
    return [ended[run.name] for run in runs]


def _call_of(runs: list[_Run]) -> str:
    """What tells one call from another in the file of unfinished ones."""
    return " ".join(run.name for run in runs)


def _usual_jobs(device: str) -> int:
    """One for each core; on a GPU, which all would share, one."""
    import torch

    return 1 if device != "cpu" and torch.cuda.is_available() else n_cores()


def _seconds_before(name: str, folder: Path, size: str) -> float:
    """How long a notebook took when its figures here were made, or else the committed ones."""
    for place in (folder, PROJECT / "figures" / size):
        entries = manifest_from(place).values()
        seconds = [e.get("seconds", 0) for e in entries if e["notebook"] == f"{name}.ipynb"]
        if seconds:
            return seconds[0]
    return math.inf


def _unfinished(folder: Path) -> dict[str, dict]:
    """By call, the notebooks that a call which did not succeed as a whole has finished."""
    path = folder / UNFINISHED
    return json_from(path) if path.exists() else {}


def _note_unfinished(folder: Path, call: str, ended: dict | None) -> None:
    """Note what else a call has finished; with None forget the call."""
    from filelock import FileLock

    with FileLock(folder / ".lock"):
        calls = _unfinished(folder)
        done = calls.pop(call, {})
        if ended is not None:
            calls[call] = done | ended
        if calls:
            write(folder / UNFINISHED, json.dumps(calls).encode())
        else:
            (folder / UNFINISHED).unlink(missing_ok=True)


def _state(run: _Run) -> dict[str, str]:
    """The key of a run, and digests of what it has left; another run leaves something else."""
    files = [run.executed, *(run.folder / name for name in sorted(_files_of(run.name, run.folder)))]
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
        for path in files
    }
    return {"key": run.key} | digests


def _run(run: _Run, progress: Progress, stop: threading.Event) -> Outcome:
    """Execute one notebook into a folder of its own, then move its files into place."""
    from filelock import FileLock, Timeout

    name, started, figures, compared = run.name, time.perf_counter(), [], ""
    stage, kept = run.folder / f".{name}-{run.key}", run.folder / FAILED / name
    try:
        stage.mkdir(exist_ok=True)
        with FileLock(stage / ".lock", timeout=0):
            try:
                error = execute(
                    NOTEBOOKS / f"{name}.ipynb",
                    run.parameters,
                    stage,
                    stage / ".executed.ipynb",
                    cell_timeout=run.cell_timeout,
                    on_cell=partial(progress.cell, name),
                    is_stopped=stop.is_set,
                )
                if not error:
                    compared = _compared(name, run.parameters, stage)
                    figures = _move_into_place(name, stage, run.folder)
                    run.executed.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(stage / ".executed.ipynb", run.executed)
                    shutil.rmtree(kept, ignore_errors=True)
                    with suppress(OSError):  # others have failed too
                        kept.parent.rmdir()
            except OSError as failure:  # a full disk
                error = f"its files: {failure}"
            if error:
                _keep(name, stage, kept)
            if not error or not any((stage / CHECKPOINTS).glob("*")):
                shutil.rmtree(stage)
            if not error:
                for left in run.folder.glob(f".{name}-*"):  # killed, and not gone on with
                    with suppress(Timeout), FileLock(left / ".lock", timeout=0):
                        shutil.rmtree(left)
    except Timeout:
        error = "not begun: another process is at it in this folder"
        return Outcome(name, time.perf_counter() - started, [], error)
    except OSError as failure:
        error = f"its files: {failure}"
    where = kept if error and kept.is_dir() else None
    return Outcome(name, time.perf_counter() - started, figures, error, where, compared)


def _compared(name: str, parameters: Mapping, stage: Path) -> str:
    """How a run compares with the committed one, before it takes its place."""
    committed = PROJECT / "figures" / parameters.get("size", "quick")
    if not _files_of(name, committed):
        return "nothing to compare with"
    from dss.runs.compare import agreement  # and pandas

    return agreement(name, committed, stage)


def _keep(name: str, stage: Path, kept: Path) -> None:
    """Move what a run that failed has made to a folder that is seen, in place of an earlier one's.

    Checkpoints stay, so that the same call goes on from them.
    """
    shutil.rmtree(kept, ignore_errors=True)
    made = {path: path.name for path in stage.glob("[!.]*")}
    if (stage / ".executed.ipynb").exists():
        made[stage / ".executed.ipynb"] = f"{name}.ipynb"
    if made:
        kept.mkdir(parents=True, exist_ok=True)
    for path, new in made.items():
        os.replace(path, kept / new)


def _move_into_place(name: str, stage: Path, folder: Path) -> list[str]:
    """Replace the files of notebook `name` in `folder` by those in `stage`; returns the figures."""
    from filelock import FileLock

    entries = manifest_from(stage)
    new = [path for path in stage.glob("[!.]*") if path.name != "manifest.json"]
    with FileLock(folder / ".lock"):
        merged = stage / ".merged"  # what needs room on the disk comes first
        merged.mkdir(exist_ok=True)
        if (folder / "manifest.json").exists():
            shutil.copy(folder / "manifest.json", merged)
        update_manifest(merged, entries, notebook=f"{name}.ipynb")
        stale = _files_of(name, folder) - {path.name for path in new}
        for path in [*new, merged / "manifest.json"]:
            os.replace(path, folder / path.name)
        for old in stale:
            (folder / old).unlink(missing_ok=True)
    return sorted(entries)


def _files_of(name: str, folder: Path) -> set[str]:
    """Tables and figures in `folder` that its manifest says notebook `name` has made."""
    entries = {k: v for k, v in manifest_from(folder).items() if v["notebook"] == f"{name}.ipynb"}
    return set(entries) | {table for entry in entries.values() for table in entry["tables"]}


def _figures_of(name: str, folder: Path) -> list[str]:
    return sorted(file for file in _files_of(name, folder) if file.endswith(".png"))


def _save_outputs(name: str, executed: Path) -> None:
    """Write executed cells to `notebooks/`, without papermill's traces."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    count, kept = 0, ("tags", "mystnb", "jupyter")  # jupyter: a folded solution
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in kept and v}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    } | {name: v for name, v in notebook.metadata.items() if name == "dss"}  # the data it needs
    text = nbformat.writes(notebook, version=4) + "\n"
    write(NOTEBOOKS / f"{name}.ipynb", text.encode())
