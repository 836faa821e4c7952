"""The assignments for the tests: source notebooks, a released course, and commands on courses."""

import multiprocessing
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from scratch import made_once

from dss import HOMES

ASSIGNMENTS = Path(__file__).resolve().parents[1] / "notebooks" / "assignments"
sys.path.insert(0, str(ASSIGNMENTS))

import samples  # noqa: E402

NAMES = sorted(path.name for path in (ASSIGNMENTS / "source").iterdir() if path.is_dir())
GROUP = 7  # of the course
# A process that has imported all this and done nothing else: what it starts begins at once.
SERVER = multiprocessing.get_context("forkserver")
PRELOADED = [f"dss.{module}" for module in set(HOMES.values()) | {"plots", "stats"}]
PRELOADED += ["matplotlib.pyplot", "nbformat", "nbgrader.apps", "pandas", "pytest", "typer"]
SERVER.set_forkserver_preload(PRELOADED)
# These samples go through nbgrader in the tests: the reference, an empty notebook, what cannot be
# run in one process, a mistake in each assignment, one that costs a second check, two choices.
REPRESENTATIVES = [
    "reference",
    "empty",
    "endless",
    "crash",
    "t-swapped",
    "start-overwritten",
    "global-seed",
    "calls-Gamma_tilde",
    "width-ignored",
    "chooses-depth",
]
# Cells that loop are stopped early; honest ones keep their minute, on a busy machine too.
SHORT_LOOPS = """
c.Execute.timeout_func = lambda cell: 5 if "while True" in cell.source else c.Execute.timeout
"""


def source(name):
    return samples.read(ASSIGNMENTS / "source" / name / f"{name}.ipynb")


def release_of(out, name):
    return samples.read(out / "release" / name / f"{name}.ipynb")


def cell_of(notebook, grade_id):
    (found,) = [cell for cell in notebook.cells if samples.grade_id(cell) == grade_id]
    return found


def solved(out, name="2_bead"):
    """The released notebook with the reference solution in it."""
    notebook, given = release_of(out, name), source(name)
    for cell in notebook.cells:
        if cell.metadata.nbgrader.solution:
            cell.source = cell_of(given, samples.grade_id(cell)).source
    return notebook


def points_of_checks(name):
    marks = [cell.metadata.nbgrader for cell in source(name).cells]
    return {m.grade_id: m.points for m in marks if m.grade and not m.solution}


def table_of(out):
    table = pd.read_csv(out / "grades.csv", keep_default_na=False)
    for column in ("checks", "checks_max", "by_hand", "by_hand_max"):  # empty where nothing came
        table[column] = pd.to_numeric(table[column])
    return table.set_index(["student", "assignment"], drop=False)


def command(folder, *arguments, change=None):
    """A command of classroom.py, in a process of its own.

    Args:
        folder: where what it says is kept.
        arguments: of the command line.
        change: called in that process first.
    """
    said = [folder / "stdout.txt", folder / "stderr.txt"]
    process = SERVER.Process(target=_command, args=(said, list(map(str, arguments)), change))
    process.start()
    process.join()
    stdout, stderr = (path.read_text() for path in said)
    return SimpleNamespace(returncode=process.exitcode, stdout=stdout, stderr=stderr)


def _command(said, arguments, change):
    for descriptor, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    import classroom

    if change:
        change()
    classroom.app(arguments, prog_name="classroom.py")


@pytest.fixture(scope="session")
def released(tmp_path_factory, worker_id):
    """A course of the group, with nothing handed in; copy it before you change it."""
    return made_once(tmp_path_factory, worker_id, "released", release) / "course"


def release(folder):
    """Release a course in a folder, in which loops are stopped early."""
    done = command(folder, "release", folder / "course", "--group", GROUP)
    assert done.returncode == 0, done.stderr
    with (folder / "course" / "nbgrader_config.py").open("a") as config:
        config.write(SHORT_LOOPS)
