"""Jobs of a search on the workers of dask.distributed; the task is sent to them once."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch

from dss import watch
from dss.checks import short
from dss.provenance import source
from dss.runs.grid import first_line, run_each

RETRIES = 1  # of a job that ends with an error; dask counts those that die with their worker


def check_client(client) -> None:
    """Refuse what is neither None nor a client that can be waited for.

    Raises:
        ImportError: dask.distributed is not installed.
        TypeError: no client of it, or an asynchronous one.
        ValueError: one that is closed.
    """
    if client is None:
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            f"client is {short(client)}, and dask.distributed is missing; install the sweep extra: "
            "pip install .[sweep]"
        ) from error
    if not isinstance(client, Client) or client.asynchronous:
        kind = "an asynchronous Client" if isinstance(client, Client) else short(client)
        raise TypeError(f"client is {kind}; a dask.distributed.Client is needed, or None")
    if client.status != "running":
        raise ValueError(f"client is {client.status}; one that is connected is needed")


def packed(task) -> bytes:
    """A task as bytes; TypeError, which says what to do, where cloudpickle cannot send it."""
    from distributed.protocol.pickle import dumps

    try:
        return dumps(task)
    except Exception as error:
        raise TypeError(
            f"task {task.name} cannot be sent to the workers: {first_line(error)}; its network and "
            "its functions must be what cloudpickle can send, without open files, locks or "
            "generators: make these inside the functions that use them, or go without a client"
        ) from error


def sender(client, task) -> Callable[[Callable, Iterable[tuple]], list]:
    """Send a task; returns `run(function, jobs)`, which calls `function(task, *job)` on workers.

    The results come in the order of the jobs.  A job whose worker dies is run again on another.
    The task is the result of a job of its own, so that it outlives the workers that hold it.

    Raises:
        TypeError: the task cannot be sent.
        RuntimeError: from `run`, a job failed for good, or the scheduler was lost.
    """
    from distributed.protocol.pickle import loads

    with _quiet():
        sent = client.submit(loads, packed(task), pure=False)
    here = source(), torch.__version__, torch.get_num_threads()
    return partial(_run, client, sent, here)


def _run(client, sent, here: tuple, function: Callable, jobs: Iterable[tuple]) -> list:
    points, results = ((function, sent, here, job) for job in jobs), {}
    with _quiet(), closing(run_each(client, _on_worker, points, RETRIES)) as ends:
        for i, _, result, failure in ends:
            if failure is not None:
                raise RuntimeError(
                    f"job {i} of a level failed for good on the workers: {first_line(failure)}; "
                    "levels before it are kept where there is a checkpoint"
                ) from failure
            results[i] = result
            watch.jobs_ended(len(results))
    return [results[i] for i in range(len(results))]


def _on_worker(point: tuple) -> Any:
    """A job, with as many threads as the caller has: their number changes the last bits."""
    function, task, (code, version, n_threads), job = point
    if (code, version) != (source(), torch.__version__):
        raise RuntimeError(
            f"this worker has dss {source()} with torch {torch.__version__}, the caller dss {code} "
            f"with torch {version}; the same are needed"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        return function(task, *job)
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice of dask to send large networks in another way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        yield
