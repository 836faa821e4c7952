"""Small notebooks for the tests of what runs notebooks, and the processes that run them."""

import os
import time

import nbformat
import psutil

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
