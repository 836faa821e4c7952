"""Regenerating the figures of the notebooks: nothing half-written, and a killed run goes on."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dss.files import write
from dss.provenance import PROJECT
from dss.results import CHECKPOINTS, update_manifest
from dss.runs.execute import (
    NOTEBOOKS,
    check_parameters,
    execute,
    fetch_data,
    key_of,
    versions_of,
)

SIZES = ("quick", "paper")


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended: seconds, files moved into place, and the error or "".

    `seconds` is None where a killed run had finished it before.
    """

    name: str
    seconds: float | None
    figures: list[str]
    error: str = ""


def notebook_names() -> list[str]:
    """Names of the notebooks, in reading order."""
    chapters = sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    return chapters + [path.stem for path in NOTEBOOKS.glob("sweep_report.ipynb")]


def paper_parameters(name: str) -> dict:
    """The paper-size overrides of a notebook, from `notebooks/params/paper.yaml`."""
    import yaml

    overrides = yaml.safe_load((NOTEBOOKS / "params" / "paper.yaml").read_text())
    return {"size": "paper"} | overrides.get(name, {})


def reproduce(
    names: list[str],
    size: str = "quick",
    parameters: Mapping | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    cell_timeout: int | None = None,
    save_outputs: bool = False,
) -> list[Outcome]:
    """Execute notebooks and put their tables, figures and manifest into place.

    Each runs in a folder of its own; what was there before is replaced only when the notebook came
    to its end.  A notebook that fails does not stop the others.  The same call, made again after
    the process was killed, skips the notebooks that were finished, and the searches that the one it
    was in had finished, unless the notebook, `dss` or the lock changed in the meantime.

    Args:
        names: as `notebook_names` gives them; all when empty.
        size: `"quick"` (the committed defaults) or `"paper"` (with `params/paper.yaml`).
        parameters: overrides, plain JSON values; every notebook that runs must know them.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        out: folder for `<size>/` tables and figures; `figures/` by default.
        cell_timeout: seconds after which a cell counts as hung; by default 600 at quick size and
            none at paper size.
        save_outputs: also write the executed cells back into `notebooks/`.

    Returns:
        An `Outcome` per notebook.

    Raises:
        ValueError: an unknown notebook, size or parameter, before anything runs.
    """
    from tqdm.auto import tqdm

    known = notebook_names()
    for name in names:
        if name not in known:
            raise ValueError(f"no notebook {name!r}; known: {', '.join(known)}")
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; known: {', '.join(SIZES)}")
    if save_outputs and (parameters or size != "quick"):
        raise ValueError("outputs are committed at quick size with the default parameters only")
    if cell_timeout is None and size == "quick":
        cell_timeout = 600
    jobs, keys = {}, {}
    for name in names or known:
        chosen = paper_parameters(name) if size == "paper" else {}
        jobs[name] = chosen | {"device": device} | dict(parameters or {})
        notebook = NOTEBOOKS / f"{name}.ipynb"
        check_parameters(notebook, jobs[name])
        keys[name] = key_of(versions_of(notebook), jobs[name])
    folder = Path(out).resolve() / size if out else PROJECT / "figures" / size
    folder.mkdir(parents=True, exist_ok=True)
    fetch_data(NOTEBOOKS / f"{name}.ipynb" for name in jobs)
    unfinished = folder / f".unfinished-{'-'.join(jobs)}.json"
    before = json.loads(unfinished.read_text()) if unfinished.exists() else {}
    kept = folder / "executed" if out else PROJECT / "runs" / size
    outcomes, done = [], {}
    with tqdm(total=len(jobs), unit="notebook", position=0) as bar:
        for name, chosen in jobs.items():
            bar.set_description(name)
            executed = kept / f"{name}.ipynb"
            if before.get(name) == _state(name, keys[name], folder, executed):
                outcomes.append(Outcome(name, None, _figures_of(name, folder)))
            else:
                outcomes.append(_run(name, chosen, keys[name], folder, executed, cell_timeout))
            bar.update()
            if not outcomes[-1].error:
                done[name] = _state(name, keys[name], folder, executed)
                write(unfinished, json.dumps(done).encode())
    for outcome in outcomes:
        if save_outputs and not outcome.error:
            _save_outputs(outcome.name, kept / f"{outcome.name}.ipynb")
    if not any(outcome.error for outcome in outcomes):
        unfinished.unlink()
    return outcomes


def _state(name: str, key: str, folder: Path, executed: Path) -> dict[str, str]:
    """The key of a run, and digests of what it has left; another run leaves something else."""
    files = [executed, *(folder / file for file in sorted(_files_of(name, folder)))]
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
        for path in files
    }
    return {"key": key} | digests


def _run(name, parameters, key, folder, executed, cell_timeout) -> Outcome:
    """Execute one notebook into a folder of its own, then move its files into place."""
    import nbformat
    from filelock import FileLock, Timeout
    from tqdm.auto import tqdm

    started = time.perf_counter()
    stage = folder / f".{name}-{key}"
    stage.mkdir(exist_ok=True)
    notebook = NOTEBOOKS / f"{name}.ipynb"
    n_cells = 1 + len(nbformat.read(notebook, as_version=4).cells)  # papermill adds one
    figures: list[str] = []
    try:
        with (
            FileLock(stage / ".lock", timeout=0),
            tqdm(total=n_cells, desc=f"  {name}", unit="cell", leave=False, position=1) as cells,
        ):
            here = stage / ".executed.ipynb"
            error = execute(notebook, parameters, stage, here, cell_timeout, cells.update)
            if not error:
                figures = _move_into_place(name, stage, folder)
            if here.exists():
                executed.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(here, executed)
            if not error or not any((stage / CHECKPOINTS).iterdir()):
                shutil.rmtree(stage)
            if not error:
                for left in folder.glob(f".{name}-*"):  # killed, and not gone on with
                    with suppress(Timeout), FileLock(left / ".lock", timeout=0):
                        shutil.rmtree(left)
    except Timeout:
        error = "not begun: another process is at it in this folder"
    return Outcome(name, time.perf_counter() - started, figures, error)


def _move_into_place(name: str, stage: Path, folder: Path) -> list[str]:
    """Replace the files of notebook `name` in `folder` by those in `stage`; returns the figures."""
    from filelock import FileLock

    manifest = json.loads((stage / "manifest.json").read_text())
    new = [path for path in stage.glob("[!.]*") if path.name != "manifest.json"]
    with FileLock(folder / ".lock"):
        for path in new:
            os.replace(path, folder / path.name)
        for old in _files_of(name, folder) - {path.name for path in new}:
            (folder / old).unlink(missing_ok=True)
        update_manifest(folder, manifest, notebook=f"{name}.ipynb")
    return sorted(manifest)


def _files_of(name: str, folder: Path) -> set[str]:
    """Tables and figures in `folder` that its manifest says notebook `name` has made."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    entries = {k: v for k, v in manifest.items() if v["notebook"] == f"{name}.ipynb"}
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
    count = 0
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in ("tags", "mystnb") and v}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    text = nbformat.writes(notebook, version=4) + "\n"
    write(NOTEBOOKS / f"{name}.ipynb", text.encode())
