"""Grids of runs: of a function, or of a notebook with a folder for each job."""

import hashlib
import itertools
import json
import math
import os
import shutil
import socket
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dss.files import write
from dss.notebooks import (
    DATA,
    NOTEBOOKS,
    check_parameters,
    execute,
    key_of,
    known_parameters,
    made_by,
)
from dss.provenance import environment
from dss.results import CHECKPOINTS

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

TOPIC = "dss-cells"  # of the events by which workers tell that a cell has ended
TOLD = ("job", "error", "seconds_job")  # columns in which a sweep says how it went


def sweep(
    function: Callable,
    grid: Mapping[str, Sequence],
    client: "Client | None" = None,
    jobs: int | None = None,
) -> "pd.DataFrame":
    """Call a function at every point of a grid, here or on the workers of a cluster.

    A point that fails is a row with its error, and does not stop the others.  A script that uses
    `jobs` needs `if __name__ == "__main__":` around its call, since processes import it.

    Args:
        function: takes the names of the grid as keywords; returns a mapping (one row), a list of
            mappings or a DataFrame (several), without a column `error`, and with those of the grid
            only at their own values.  For workers it must be what cloudpickle can send.
        grid: values by name; all combinations are run, the last name fastest.
        client: of dask.distributed.
        jobs: processes on this machine, where there is no client; without either, calls are made in
            this process, one after the other.

    Returns:
        A table with the columns of the grid, those of the results, and `error`, empty where there
        was none; in the order of the grid.

    Raises:
        ValueError: an empty grid, values that are not a list, a value twice, or a name that the
            table needs.
        RuntimeError: the scheduler was lost.
    """
    import pandas as pd

    grid = _check_grid(grid)
    call = partial(_call, function)
    if client is None and jobs is None:
        found = [call(point) for point in _points(grid)]
    else:
        with _clients(client, jobs) as client:
            ends = sorted(_each(client, call, _points(grid)), key=lambda end: end[0])
        found = [end[2] or ([{}], _reason(end[3])) for end in ends]
    rows = [
        point | result | {"error": error}
        for point, (results, error) in zip(_points(grid), found, strict=True)
        for result in results
    ]
    return pd.DataFrame(rows)


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
            JSON, a name in both grid and parameters.
        RuntimeError: another sweep works in `out`, or the scheduler was lost.
        OSError: `out` cannot be written.
    """
    from filelock import FileLock, Timeout

    path = _find(notebook)
    grid, fixed = _check_grid(grid), dict(parameters or {})
    if both := set(grid) & set(fixed):
        raise ValueError(f"{', '.join(sorted(both))}: both fixed and in the grid; one is needed")
    check_parameters(path, fixed, *({name: v} for name, values in grid.items() for v in values))
    if "out" not in known_parameters(path):
        raise ValueError(f"{path.stem} has no parameter 'out'; its tables need a folder")
    if "out" in grid | fixed:
        raise ValueError("out is the sweep's own: every job has a folder; use --out")
    if told := set(TOLD) & set(fixed):
        raise ValueError(f"{', '.join(told)}: a column of every table; it cannot be a parameter")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}; at least 1 is needed")
    DATA.get(path.stem, lambda: None)()
    out = Path(out or NOTEBOOKS.parent / "runs" / "sweeps" / path.stem).resolve()
    (out / "jobs").mkdir(parents=True, exist_ok=True)
    write(out / ".writable", b"")  # a folder that cannot be written is an error now
    (out / ".writable").unlink()
    here = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        with FileLock(out / ".lock", timeout=0):
            write(out / ".owner", here.encode())
            cluster = partial(_clients, client, jobs)
            return _sweep(path, grid, fixed, cluster, out, table, cell_timeout, force)
    except Timeout:
        owner = (out / ".owner").read_text() if (out / ".owner").exists() else "another process"
        raise RuntimeError(
            f"{owner} is sweeping in {out}; wait for it, or take another folder"
        ) from None


def _sweep(path, grid, fixed, cluster, out, table, cell_timeout, force) -> Swept:
    """`sweep_notebook` once everything is checked and the folder is ours."""
    import nbformat
    from tqdm.auto import tqdm

    versions = made_by(path)
    n_jobs = math.prod(map(len, grid.values()))
    n_cells = 1 + len(nbformat.read(path, as_version=4).cells)  # papermill adds one
    common = {"notebook": str(path), "made_by": versions, "cell_timeout": cell_timeout}
    keys = [key_of(versions, fixed | point) for point in _points(grid)]
    errors, n_before, cells = {}, 0, {}
    for key in keys if force else []:
        (out / "jobs" / key / "job.json").unlink(missing_ok=True)
        shutil.rmtree(out / "jobs" / key / CHECKPOINTS, ignore_errors=True)

    def waiting() -> Iterator[dict]:
        nonlocal n_before
        for key, point in zip(keys, _points(grid), strict=True):
            folder = out / "jobs" / key
            if _is_done(folder):
                n_before += 1
                advance(key, n_cells)
            else:
                yield common | {"parameters": fixed | point, "folder": str(folder)}

    with tqdm(total=n_jobs * n_cells, unit="cell", smoothing=0.1) as bar:

        def advance(key: str, n: int) -> None:
            """Count `n` cells of a job; all of them when it has ended, however it did."""
            seen = cells.get(key, 0)
            n = min(n, n_cells - seen)
            if n > 0:
                cells[key] = seen + n
                bar.update(n)

        bar.set_postfix_str(f"0 of {n_jobs} jobs", refresh=True)
        todo = waiting()
        first = next(todo, None)
        if first is not None:  # a cluster takes seconds to start
            with cluster() as client:
                client.subscribe_topic(TOPIC, lambda event: advance(event[1], 1))
                if not client.nthreads():
                    bar.write("dss: the scheduler has no worker yet; waiting for one", sys.stderr)
                ends = _each(client, run_job, itertools.chain([first], todo))
                for n_done, (_, job, record, failure) in enumerate(ends, start=1):
                    key = Path(job["folder"]).name
                    error = _reason(failure) if failure else record["error"]
                    if error:
                        errors[key] = error
                    elif table:
                        _read(Path(job["folder"]), table)  # an unknown name is an error soon
                    advance(key, n_cells)
                    text = f"{n_before + n_done} of {n_jobs} jobs"
                    bar.set_postfix_str(text + (f", {len(errors)} failed" if errors else ""))
                client.unsubscribe_topic(TOPIC)
    found = _table(out, keys, grid, fixed, errors, table)
    _save(out, found, path, versions, grid, fixed, n_jobs, errors)
    return Swept(found, n_jobs, n_before, errors, out)


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
    for name, here in made_by(notebook).items():
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
            return _record(folder)
        # The record goes first: killed in between, the job must not look finished.
        (folder / "job.json").unlink(missing_ok=True)
        for left in folder.iterdir():
            if left.name not in (".lock", CHECKPOINTS):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        arguments = notebook, job["parameters"], folder, folder / "executed.ipynb"
        error = execute(*arguments, job["cell_timeout"], partial(_tell, folder.name))
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


def _tell(key: str) -> None:
    """Let the driver know that a cell of a job has ended."""
    from distributed import get_worker

    try:
        get_worker().log_event(TOPIC, key)
    except ValueError:  # called without a cluster
        pass


def _record(folder: Path) -> dict:
    """What `job.json` holds; empty where a job has not come to its end."""
    path = folder / "job.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _is_done(folder: Path) -> bool:
    """Whether a job has ended well and its tables are there."""
    is_done = _record(folder).get("status") == "done" and (folder / "manifest.json").exists()
    return is_done and all(path.exists() for path in _tables(folder))


def _tables(folder: Path) -> list[Path]:
    """The tables of a finished job, in the order in which they were written."""
    manifest = json.loads((folder / "manifest.json").read_text())
    written = next(iter(manifest.values()))["tables"] if manifest else {}
    return [folder / name for name in written] or sorted(folder.glob("*.csv"))


def _table(out, keys, grid, fixed, errors, table) -> "pd.DataFrame":
    """The jobs' tables, one below the other, with what each was run with."""
    import pandas as pd

    parts = []
    for key, point in zip(keys, _points(grid), strict=True):
        folder, parameters = out / "jobs" / key, fixed | point
        failed = key in errors
        part = pd.DataFrame([{}]) if failed else _read(folder, table)
        told = {"job": key, "error": errors.get(key, "")}
        told |= {"seconds_job": _record(folder).get("seconds", math.nan)}
        given = {n: v if isinstance(v, Hashable) else json.dumps(v) for n, v in parameters.items()}
        parts.append((told, given, part.rename(columns={name: f"{name}_row" for name in TOLD})))
    columns = {name for *_, part in parts for name in part}
    for told, given, part in parts:
        told |= {f"{n}_parameter" if n in columns else n: v for n, v in given.items()}
        for i, (name, value) in enumerate(told.items()):
            part.insert(i, name, value)
    return pd.concat([part for *_, part in parts], ignore_index=True)


def _read(folder: Path, table: str | None) -> "pd.DataFrame":
    """A table of a finished job: that of this name, or the first that the notebook wrote."""
    import pandas as pd

    paths = _tables(folder)
    chosen = [path for path in paths if table is None or path.name.endswith(f"_{table}.csv")]
    if not chosen:
        names = ", ".join(path.name for path in paths) or "none at all"
        raise ValueError(f"no table {table!r} in {folder}; there are: {names}")
    return pd.read_csv(chosen[0])


def _save(out, found, path, versions, grid, fixed, n_jobs, errors) -> None:
    """The table as CSV and parquet, and how it was made."""
    from pandas.api.types import infer_dtype

    # Numbers in one job and text in another; parquet has one type for a column.
    mixed = [name for name in found if infer_dtype(found[name], skipna=True).startswith("mixed")]
    tidy = found.astype({name: "str" for name in mixed})
    files = {"sweep.csv": found.to_csv(index=False).encode(), "sweep.parquet": tidy.to_parquet()}
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
        **environment(),
    }
    write(out / "sweep.json", (json.dumps(summary, indent=1) + "\n").encode())


def _find(notebook: str | Path) -> Path:
    path = Path(notebook)
    if path.suffix != ".ipynb":
        path = NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        known = sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
        raise ValueError(f"no notebook {str(notebook)!r}; a path, or one of: {', '.join(known)}")
    return path.resolve()


def _check_grid(grid: Mapping[str, Sequence]) -> dict[str, list]:
    """The grid with lists of values; ValueError for nothing to run, or something twice."""
    if not grid:
        raise ValueError("the grid is empty; at least one name with its values is needed")
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ValueError(f"the grid has {name}={values!r}; a list of values is needed")
        if name in TOLD:
            raise ValueError(f"{name} is a column of every table; the grid needs another name")
    grid = {name: list(values) for name, values in grid.items()}
    for name, values in grid.items():
        if not values:
            raise ValueError(f"the grid has no value for {name}")
        twice = [v for i, v in enumerate(values) if v in values[:i]]
        if twice:
            raise ValueError(f"the grid has {name}={twice[0]!r} twice")
    return grid


def _points(grid: Mapping[str, list]) -> Iterator[dict[str, Any]]:
    """All combinations, lazily, the last name fastest."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def _call(function: Callable, point: Mapping) -> tuple[list[dict], str]:
    """The rows that a function gives at a point, and an error or ""."""
    import pandas as pd

    try:
        result = function(**point)
        if isinstance(result, pd.DataFrame):
            result = result.to_dict("records")
        rows = [result] if isinstance(result, Mapping) else result
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise TypeError(
                f"the function returned {type(result).__name__}; a mapping, a list of mappings or "
                "a DataFrame is needed"
            )
        for row in rows:
            for name in row:
                value = point.get(name, row[name])
                if name in TOLD or (value is not row[name] and value != row[name]):
                    raise ValueError(f"the function returned {name}={row[name]!r} at {dict(point)}")
        return [dict(row) for row in rows] or [{}], ""
    except Exception as failure:
        return [{}], _reason(failure)


def _reason(failure: Exception) -> str:
    lines = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {lines[0]}"


def _each(client, function: Callable, points: Iterable) -> Iterator[tuple]:
    """Run a function at every point; yields `(i, point, result, failure)` as they end.

    Only a few are submitted ahead, so that a grid may be long.
    """
    from distributed import as_completed

    waiting, running, of = enumerate(points), as_completed(), {}

    def submit() -> None:
        ahead = max(2, 2 * sum(client.nthreads().values()))
        for i, point in itertools.islice(waiting, max(0, ahead - len(of))):
            future = client.submit(function, point, pure=False)
            of[future] = i, point
            running.add(future)

    submit()
    try:
        while of:
            future = next(running)
            i, point = of.pop(future)
            if future.status not in ("finished", "error"):
                raise RuntimeError(f"the scheduler was lost ({future.status}); call again to go on")
            failure = future.exception() if future.status == "error" else None
            result = None if failure else future.result()
            future.release()
            submit()
            yield i, point, result, failure
    finally:
        client.cancel(list(of))


@contextmanager
def _clients(client, jobs: int | None):
    """The client that there is, or one of a cluster of processes on this machine."""
    if client is not None:
        yield client
        return
    import logging

    import dask
    from distributed import Client, LocalCluster

    if jobs is None:
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    deaf = "import signal; signal.signal(signal.SIGINT, lambda *_: None)"  # the driver stops them
    threads = {name: 1 for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": threads}),
        LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,
            memory_limit=None,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # not that of another sweep
            preload=[deaf],
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as own,
    ):
        yield own
