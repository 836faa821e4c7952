"""A function at every point of a grid: here, on the cores of this machine, or on a cluster."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from dss.checks import check_assertions, check_counts

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client, LocalCluster

REPORTED = ("job", "error", "seconds_job")  # columns in which a sweep says how it went


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
            table needs; jobs < 1, or both client and jobs.
        RuntimeError: the scheduler was lost, or Python runs without assertions.
    """
    import pandas as pd

    check_assertions("this process")
    check_counts(jobs=jobs)
    if client is not None and jobs is not None:
        raise ValueError("jobs starts processes here, client uses others; one is needed")
    grid = check_points(grid)
    call = partial(call_at, function)
    if client is None and jobs is None:
        outcomes = [call(point) for point in points_of(grid)]
    else:
        with (
            connected_client(client, jobs) as connected,
            closing(run_each(connected, call, points_of(grid))) as ends,
        ):
            in_order = sorted(ends, key=lambda end: end[0])
        outcomes = [outcome or ([{}], first_line(failure)) for *_, outcome, failure in in_order]
    rows = [
        point | result | {"error": error}
        for point, (results, error) in zip(points_of(grid), outcomes, strict=True)
        for result in results
    ]
    return pd.DataFrame(rows)


def check_points(grid: Mapping[str, Sequence]) -> dict[str, list]:
    """The grid with lists of values; ValueError for nothing to run, or something twice."""
    if not grid:
        raise ValueError("the grid is empty; at least one name with its values is needed")
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ValueError(f"the grid has {name}={values!r}; a list of values is needed")
        if name in REPORTED:
            raise ValueError(f"{name} is a column of every table; the grid needs another name")
    grid = {name: list(values) for name, values in grid.items()}
    for name, values in grid.items():
        if not values:
            raise ValueError(f"the grid has no value for {name}")
        twice = [v for i, v in enumerate(values) if v in values[:i]]
        if twice:
            raise ValueError(f"the grid has {name}={twice[0]!r} twice")
    return grid


def points_of(grid: Mapping[str, list]) -> Iterator[dict[str, Any]]:
    """All combinations, lazily, the last name fastest."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def call_at(function: Callable, point: Mapping) -> tuple[list[dict], str]:
    """The rows that a function gives at a point, and an error or ""."""
    import pandas as pd

    try:
        check_assertions("this worker")
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
                if name in REPORTED or (value is not row[name] and value != row[name]):
                    raise ValueError(f"the function returned {name}={row[name]!r} at {dict(point)}")
        return [dict(row) for row in rows] or [{}], ""
    except Exception as failure:
        return [{}], first_line(failure)


def first_line(failure: Exception) -> str:
    """An error in one line: its name, and the first line of what it says."""
    lines = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {lines[0]}"


def run_each(client, function: Callable, points: Iterable, retries: int = 0) -> Iterator[tuple]:
    """Run a function at every point; yields `(i, point, result, failure)` as they end.

    Only a few are submitted ahead, so that a grid may be long.  Close it (`contextlib.closing`)
    before the client, so that what still runs is cancelled however the loop over it ends.

    A call that ends with an error is made again up to `retries` times.

    Raises:
        RuntimeError: the scheduler was lost.
    """
    from distributed import as_completed

    waiting = enumerate(points)
    ended = as_completed(loop=client.loop)  # of this client, whichever was made last
    submitted = {}  # point and its number, by future

    def submit() -> None:
        if client.status != "running":
            raise RuntimeError(f"the scheduler was lost ({client.status}); call again to go on")
        n_ahead = max(2, 2 * sum(client.nthreads().values()))
        for i, point in itertools.islice(waiting, max(0, n_ahead - len(submitted))):
            future = client.submit(function, point, pure=False, retries=retries)
            submitted[future] = i, point
            ended.add(future)

    submit()
    try:
        while submitted:
            future = next(ended)
            i, point = submitted.pop(future)
            if future.status not in ("finished", "error"):
                raise RuntimeError(f"the scheduler was lost ({future.status}); call again to go on")
            failure = future.exception() if future.status == "error" else None
            result = None if failure else future.result()
            future.release()
            submit()
            yield i, point, result, failure
    finally:
        if client.status == "running":
            client.cancel(list(submitted))


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextmanager
def connected_client(client, jobs: int | None) -> Iterator["Client"]:
    """The client that there is, or one of a cluster of processes on this machine."""
    if client is not None:
        yield client
        return
    with local_cluster(jobs or n_cores()) as cluster, client_of(cluster) as local_client:
        yield local_client


@contextmanager
def local_cluster(n_workers: int) -> Iterator["LocalCluster"]:
    """Processes on this machine; none of them is left, however the block or their start ends."""
    import logging

    import dask
    from distributed import LocalCluster

    deaf = "import signal; signal.signal(signal.SIGINT, lambda *_: None)"  # the driver stops them
    threads = {name: 1 for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": threads}),
        ThreadPoolExecutor(1) as starter,  # Ctrl-C in a start halfway would leave its processes
    ):
        start = starter.submit(
            LocalCluster,
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=None,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # not that of another sweep
            preload=[deaf],
            silence_logs=logging.ERROR,
        )
        try:
            yield start.result()
        finally:
            if start.exception() is None:
                start.result().close()


@contextmanager
def client_of(scheduler: "str | LocalCluster", seconds: float = 30) -> Iterator["Client"]:
    """A client of a scheduler; nothing of it is left, however the block or its start ends.

    dask forgets a client whose start fails.  The collector then closes it, at any moment, and
    waits for good where that moment is the start of another client.  Of a client that gave up its
    lost scheduler dask leaves the thread.

    Args:
        scheduler: its address, or the cluster it is of.
        seconds: after which a scheduler that does not answer counts as none.

    Raises:
        OSError: no scheduler answers.
        ValueError: the address is none.
    """
    from distributed import Client

    client = Client.__new__(Client)  # known here before its start, which may fail
    try:
        client.__init__(scheduler, timeout=seconds)
        yield client
    finally:
        with suppress(OSError):  # of a connection that was lost
            client.close(timeout=10)
        client._loop_runner.stop()
