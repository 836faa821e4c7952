"""Small notebooks for the tests of what runs notebooks, and the processes that run them."""

import gc
import os
import sys
import threading
import time
from contextlib import contextmanager

import nbformat
import psutil
from filelock import FileLock

PARAMETERS = """\
size: str = "quick"  # label
seed: int = 0  # of the generator
alpha: float = 0.9  # target
values: list = [1, 2]  # grid
device: str = "auto"  # device
out: str = ""  # folder
"""
BODY = """\
import matplotlib.pyplot as plt
import pandas as pd
import dss
run = dss.Results("{name}", globals())
run.table(pd.DataFrame({{"alpha": [alpha]}}), "numbers")
run.figure(plt.figure(), "picture")
"""
FINISH = "run.finish()\nprint(alpha)"
MARK = "DSS_TEST_MARK"  # in the environment of what a test starts, and of all that this starts


def write_notebook(folder, name, *cells, parameters=PARAMETERS):
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook.cells = [first, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def marked(mark, part=""):
    """Living processes that carry a mark, with `part` in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(MARK) == mark and part in _command(process):
                found.append(process)
        except psutil.Error:
            pass
    return found


def wait_for(condition, what, seconds=120):
    """Until `condition()` is true, which is returned; AssertionError if that takes too long."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.05)
    return found


def marked_environment(mark, **more):
    return os.environ | {MARK: mark} | more


def _command(process):
    return " ".join(process.cmdline())


# One of each for a whole process, by design of dask, multiprocessing and tqdm.
SHARED = ("Dask-Offload", "resource_tracker", "tqdm_monitor")


def belongings():
    """Open clients of dask, threads, child processes and listening ports of this process."""
    things = {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}
    this = psutil.Process()
    for process in this.children(recursive=True):
        try:
            things.add(f"process {process.pid} {_command(process)[-100:]}")
        except psutil.Error:  # it has ended meanwhile
            pass
    listening = [c for c in this.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    things |= {f"port {connection.laddr.port}" for connection in listening}
    if "distributed" in sys.modules:
        from distributed import Client

        # Not after a collection: one that the collector has to close is what is looked for.
        clients = [thing for thing in gc.get_objects() if type(thing) is Client]
        things |= {f"client {c.id} {c.status}" for c in clients if c.status != "closed"}
    return {thing for thing in things if not any(name in thing for name in SHARED)}


@contextmanager
def nothing_left_behind(seconds=20):
    """AssertionError where the block leaves a client, thread, process or port of this process."""
    before = belongings()
    gc.disable()
    try:
        yield
        end = time.monotonic() + seconds
        while (left := belongings() - before) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        gc.enable()
    assert not left, f"left behind: {sorted(left)}"


def made_once(tmp_path_factory, worker_id, name, make):
    """A folder that `make(folder)` fills, once for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent  # which they share
    done = base / f"{name}.done"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            (base / name).mkdir()
            make(base / name)
            done.touch()
    return base / name
