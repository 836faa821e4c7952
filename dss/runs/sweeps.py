"""A notebook at every point of a grid, with a folder for each job."""

import hashlib
import itertools
import json
import math
import os
import shutil
import socket
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dss.checks import check_counts
from dss.files import write
from dss.given import folder_from, json_from, manifest_from, path_from
from dss.parameters import check_parameters, declared_parameters, typed_values
from dss.provenance import environment
from dss.results import CHECKPOINTS, check_device
from dss.runs.execute import (
    NOTEBOOKS,
    execute,
    fetch_data,
    key_of,
    n_cells,
    versions_of,
)
from dss.runs.grid import (
    REPORTED,
    check_points,
    connected_client,
    first_line,
    points_of,
    run_each,
)

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

TOPIC = "dss-cells"  # of the events by which workers tell that a cell has ended


@dataclass(frozen=True)
class Swept:
    """What `sweep_notebook` returns.

    Attributes:
        table: a row for each row of the jobs' tables, and one for each job that failed.
        n_jobs, n_before: all, and those that an earlier call had finished.
        errors: of the jobs that failed, by folder.
        out: the sweep's folder.
    """

    table: "pd.DataFrame"
    n_jobs: int
    n_before: int
    errors: dict[str, str]
    out: Path


def sweep_notebook(
    notebook: str | Path,
    grid: Mapping[str, Sequence],
    parameters: Mapping | None = None,
    client: "Client | None" = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    table: str | None = None,
    cell_timeout: int | None = None,
    force: bool = False,
) -> Swept:
    """Run a notebook at every point of a grid; what is finished is not run again.

    Each job has its folder, `<out>/jobs/<key>/`, whose key is a digest of the notebook's code, its
    parameters, the source of `dss` and the lock.  `job.json` in it is written last and says how it
    ended.  After a kill the same call runs what is missing; searches in a notebook go on from
    their checkpoints.

    Args:
        notebook: a name as `dss reproduce` takes it, or the path of a notebook that writes its
            tables with `dss.Results`.
        grid: values by parameter name.
        parameters: the same for all jobs.
        client: of dask.distributed, whose workers see `out` and the notebook under the same paths;
            by default `jobs` processes on this machine.
        jobs: by default one for each core.
        out: by default `runs/sweeps/<notebook>` of the project.
        table: which of the notebook's tables to put together; by default the first it writes.
        cell_timeout: seconds after which a cell counts as hung.
        force: run all jobs of the grid again; where this is killed, the call without it goes on.

    Returns:
        `Swept`; its table is in `<out>/sweep.csv` and `sweep.parquet` too, and `sweep.json` says
        how it was made.  A parameter that is also a column of the table becomes
        `<name>_parameter`; lists are written as JSON.

    Raises:
        ValueError: an unknown notebook, parameter or table, a value of another type or not plain
            JSON, a name in both grid and parameters, `out` is no folder, jobs or cell_timeout < 1,
            or cuda on this machine where torch finds none.
        RuntimeError: another sweep works in `out`, or the scheduler was lost.
        OSError: `out` cannot be written.
    """
    from filelock import FileLock, Timeout

    path = _find(notebook)
    grid = check_points(typed_values(path, grid, several=True))
    fixed = typed_values(path, parameters or {})
    if both := set(grid) & set(fixed):
        raise ValueError(f"{', '.join(sorted(both))}: both fixed and in the grid; one is needed")
    if "out" not in declared_parameters(path):
        raise ValueError(f"{path.stem} has no parameter 'out'; its tables need a folder")
    if "out" in grid | fixed:
        raise ValueError("out is the sweep's own: every job has a folder; use --out")
    if "size" in grid | fixed and path.parent == NOTEBOOKS:
        raise ValueError(
            "size is a label; give the values of notebooks/params/paper.yaml that are meant"
        )
    check_parameters(path, fixed, *(fixed | {n: v} for n, values in grid.items() for v in values))
    if reserved := set(REPORTED) & set(fixed):
        names = ", ".join(reserved)
        raise ValueError(f"{names}: a column of every table; it cannot be a parameter")
    check_counts(jobs=jobs, cell_timeout=cell_timeout)
    if table is not None and not table.strip():
        raise ValueError("the name of the table is empty; without one the first is taken")
    if client is None:  # its workers may have what is not here
        for device in [fixed.get("device"), *grid.get("device", [])]:
            check_device(device)
    fetch_data([path])
    usual = NOTEBOOKS.parent / "runs" / "sweeps" / path.stem
    out = folder_from(usual if out is None else out, "--out")
    (out / "jobs").mkdir(parents=True, exist_ok=True)
    write(out / ".writable", b"")  # a folder that cannot be written is an error now
    (out / ".writable").unlink()
    here = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        with FileLock(out / ".lock", timeout=0):
            write(out / ".owner", here.encode())
            cluster = partial(connected_client, client, jobs)
            return _sweep(path, grid, fixed, cluster, out, table, cell_timeout, force)
    except Timeout:
        owner, file = "another process", out / ".owner"
        owner = file.read_text(encoding="utf-8") if file.exists() else owner
        raise RuntimeError(
            f"{owner} is sweeping in {out}; wait for it, or take another folder"
        ) from None


def _sweep(path, grid, fixed, cluster, out, table, cell_timeout, force) -> Swept:
    """`sweep_notebook` once everything is checked and the folder is ours."""
    versions = versions_of(path)
    keys = [key_of(versions, fixed | point) for point in points_of(grid)]
    for key in keys if force else []:
        (out / "jobs" / key / "job.json").unlink(missing_ok=True)
        shutil.rmtree(out / "jobs" / key / CHECKPOINTS, ignore_errors=True)
    common = {"notebook": str(path), "made_by": versions, "cell_timeout": cell_timeout}
    jobs = (
        common | {"parameters": fixed | point, "folder": str(out / "jobs" / key)}
        for key, point in zip(keys, points_of(grid), strict=True)
    )
    with _progress(len(keys), n_cells(path)) as progress:
        errors = _run_jobs(jobs, cluster, table, progress)
    rows = put_together(out, keys, grid, fixed, errors, table)
    write_table(out, rows, path, versions, grid, fixed, len(keys), errors)
    return Swept(rows, len(keys), progress.n_before, errors, out)


def _run_jobs(jobs: Iterable[dict], cluster: Callable, table, progress) -> dict[str, str]:
    """Run the jobs that are not finished; the errors of those that failed, by folder."""
    unfinished = progress.without_finished(jobs)
    first = next(unfinished, None)
    if first is None:  # a cluster takes seconds to start
        return {}
    errors = {}
    with cluster() as client, _cells_reported(client, progress.advance):
        if not client.nthreads():
            progress.bar.write("dss: the scheduler has no worker yet; waiting for one", sys.stderr)
        with closing(run_each(client, run_job, itertools.chain([first], unfinished))) as ends:
            for _, job, record, failure in ends:
                folder = Path(job["folder"])
                error = first_line(failure) if failure else record["error"]
                if error:
                    errors[folder.name] = error
                elif table:
                    read_table(folder, table)  # an unknown name is an error soon
                progress.end_job(folder.name, len(errors))
    return errors


class _Progress:
    """A bar of the cells of all jobs.

    Attributes:
        bar: of tqdm.
        n_cells: of one job.
        cells: how many have ended, by job.
        n_before, n_ended: jobs that an earlier call had finished, and those that ended in this one.
    """

    def __init__(self, bar, n_jobs: int, n_cells: int) -> None:
        self.bar, self.n_jobs, self.n_cells = bar, n_jobs, n_cells
        self.cells, self.n_before, self.n_ended = {}, 0, 0

    def without_finished(self, jobs: Iterable[dict]) -> Iterator[dict]:
        """The jobs that are still to be run; the others are counted."""
        for job in jobs:
            folder = Path(job["folder"])
            if _is_done(folder):
                self.n_before += 1
                self.advance(folder.name, self.n_cells)
            else:
                yield job

    def advance(self, key: str, n: int = 1) -> None:
        """Count `n` cells of a job, never more than it has."""
        before = self.cells.get(key, 0)
        n = min(n, self.n_cells - before)
        if n > 0:
            self.cells[key] = before + n
            self.bar.update(n)

    def end_job(self, key: str, n_failed: int) -> None:
        """Count all cells of a job that has ended, however it did."""
        self.n_ended += 1
        self.advance(key, self.n_cells)
        text = f"{self.n_before + self.n_ended} of {self.n_jobs} jobs"
        self.bar.set_postfix_str(text + (f", {n_failed} failed" if n_failed else ""))


@contextmanager
def _progress(n_jobs: int, n_cells: int) -> Iterator[_Progress]:
    from tqdm.auto import tqdm

    with tqdm(total=n_jobs * n_cells, unit="cell", smoothing=0.1) as bar:
        bar.set_postfix_str(f"0 of {n_jobs} jobs", refresh=True)
        yield _Progress(bar, n_jobs, n_cells)


@contextmanager
def _cells_reported(client, advance: Callable[[str], None]) -> Iterator[None]:
    """In the block `advance` is called with the key of a job for each cell of it that ends."""
    client.subscribe_topic(TOPIC, lambda event: advance(event[1]))
    try:
        yield
    finally:
        if client.status == "running":
            client.unsubscribe_topic(TOPIC)


def run_job(job: Mapping) -> dict:
    """One notebook at one point, in its folder; returned as it is where it is finished already.

    Args:
        job: `notebook`, `parameters`, `made_by`, `folder` and `cell_timeout`.

    Returns:
        What `job.json` holds: `status` (`done` or `failed`), `error`, `seconds`, and where it ran.

    Raises:
        RuntimeError: this machine does not see the folder, or has other code than the driver.
        OSError: the folder cannot be written.
    """
    from filelock import FileLock

    notebook, folder, started = Path(job["notebook"]), Path(job["folder"]), datetime.now(UTC)
    if not (notebook.exists() and folder.parent.is_dir()):
        raise RuntimeError(
            f"{socket.gethostname()} does not see {notebook} and {folder.parent}; workers need the "
            "project and the sweep's folder under the same paths"
        )
    for name, here in versions_of(notebook).items():
        if here != job["made_by"][name]:
            raise RuntimeError(
                f"{socket.gethostname()} has another {name} than the sweep began with"
            )
    # Kernels inherit these.  dask has its workers give freed memory back at once, which doubles the
    # time of a search in small networks.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    folder.mkdir(exist_ok=True)
    # A worker whose driver was killed may still be at this job.
    with FileLock(folder / ".lock"):
        if _is_done(folder):
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            return record_of(folder)
        # The record goes first: killed in between, the job must not look finished.
        (folder / "job.json").unlink(missing_ok=True)
        for path in folder.iterdir():  # what an attempt that was killed has left
            if path.name not in (".lock", CHECKPOINTS):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        arguments = notebook, job["parameters"], folder, folder / "executed.ipynb"
        error = execute(*arguments, job["cell_timeout"], partial(_report_cell, folder.name))
        record = {
            "status": "failed" if error else "done",
            "error": error,
            "notebook": str(notebook),
            "parameters": dict(job["parameters"]),
            "made_by": dict(job["made_by"]),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
            "host": socket.gethostname(),
        }
        write(folder / "job.json", (json.dumps(record, indent=1) + "\n").encode())
        if not error:
            shutil.rmtree(folder / CHECKPOINTS)
        return record


def _report_cell(key: str) -> None:
    """Let the driver know that a cell of a job has ended."""
    from distributed import get_worker

    try:
        get_worker().log_event(TOPIC, key)
    except ValueError:  # called without a cluster
        pass


def record_of(folder: Path) -> dict:
    """What `job.json` holds; empty where a job has not come to its end."""
    path = folder / "job.json"
    return json_from(path) if path.exists() else {}


def _is_done(folder: Path) -> bool:
    """Whether a job has ended well and its tables are there."""
    is_done = record_of(folder).get("status") == "done" and (folder / "manifest.json").exists()
    return is_done and all(path.exists() for path in _tables(folder))


def _tables(folder: Path) -> list[Path]:
    """The tables of a finished job, in the order in which they were written."""
    manifest = manifest_from(folder)
    written = next(iter(manifest.values()))["tables"] if manifest else {}
    return [folder / name for name in written] or sorted(folder.glob("*.csv"))


def put_together(out, keys, grid, fixed, errors, table) -> "pd.DataFrame":
    """The jobs' tables, one below the other, with what each was run with."""
    import pandas as pd

    parts = []  # what is said of a job, its parameters, and its rows
    for key, point in zip(keys, points_of(grid), strict=True):
        folder, parameters = out / "jobs" / key, fixed | point
        rows = pd.DataFrame([{}]) if key in errors else read_table(folder, table)
        report = {"job": key, "error": errors.get(key, "")}
        report |= {"seconds_job": record_of(folder).get("seconds", math.nan)}
        plain = {n: v if isinstance(v, Hashable) else json.dumps(v) for n, v in parameters.items()}
        parts.append((report, plain, rows.rename(columns={n: f"{n}_row" for n in REPORTED})))
    columns = {name for *_, rows in parts for name in rows}
    for report, plain, rows in parts:
        report |= {f"{n}_parameter" if n in columns else n: v for n, v in plain.items()}
        for i, (name, value) in enumerate(report.items()):
            rows.insert(i, name, value)
    return pd.concat([rows for *_, rows in parts], ignore_index=True)


def read_table(folder: Path, table: str | None) -> "pd.DataFrame":
    """A table of a finished job: that of this name, or the first that the notebook wrote."""
    import pandas as pd

    paths = _tables(folder)
    chosen = [path for path in paths if table is None or path.name.endswith(f"_{table}.csv")]
    if not chosen:
        names = ", ".join(path.name for path in paths) or "none at all"
        raise ValueError(f"no table {table!r} in {folder}; there are: {names}")
    return pd.read_csv(chosen[0])


def write_table(out, rows, path, versions, grid, fixed, n_jobs, errors) -> None:
    """The table as CSV and parquet, and how it was made."""
    from pandas.api.types import infer_dtype

    # Numbers in one job and text in another; parquet has one type for a column.
    mixed = [name for name in rows if infer_dtype(rows[name], skipna=True).startswith("mixed")]
    tidy = rows.astype({name: "str" for name in mixed})
    files = {"sweep.csv": rows.to_csv(index=False).encode(), "sweep.parquet": tidy.to_parquet()}
    for name, content in files.items():
        write(out / name, content)
    summary = {
        "notebook": str(path),
        "made_by": versions,
        "grid": grid,
        "parameters": fixed,
        "jobs": n_jobs,
        "failed": errors,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        **environment(is_here=False),
    }
    write(out / "sweep.json", (json.dumps(summary, indent=1) + "\n").encode())


def _find(notebook: str | Path) -> Path:
    path = Path(notebook)
    if path.suffix != ".ipynb":
        path = NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        known = sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
        raise ValueError(f"no notebook {str(notebook)!r}; a path, or one of: {', '.join(known)}")
    return path_from(path, "the notebook")
