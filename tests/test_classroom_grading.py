"""nbgrader grades: what is planted is found, meddling gains nothing, and nobody is lost.

One course is graded three times: all that is handed in, as `demonstrate` does it; then what was
corrected, after points were given by hand; then all that is left, unchanged, again.
"""

import dataclasses
import functools
import shutil
import socket
import subprocess
from types import SimpleNamespace

import classroom
import execution
import grading
import nbformat
import pytest
from classes import (
    ASSIGNMENTS,
    NAMES,
    REPRESENTATIVES,
    cell_of,
    command,
    points_of_checks,
    release_of,
    samples,
    solved,
    source,
    table_of,
)
from traitlets.config import PyFileConfigLoader

pytestmark = pytest.mark.slow
CHOSEN = [sample for sample in samples.SAMPLES if sample.name in REPRESENTATIVES]


# What students do to notebooks


def edited(notebook, check):
    cell_of(notebook, check).source = "pass"


def skipped(notebook, check):
    cell_of(notebook, check).metadata.tags = ["skip-execution"]


def ungraded(notebook, check):
    cell_of(notebook, check).metadata.nbgrader.grade = False


def turned_into_text(notebook, check):
    cell = cell_of(notebook, check)
    text = nbformat.v4.new_markdown_cell("done", metadata=cell.metadata)
    notebook.cells[notebook.cells.index(cell)] = text


def deleted(notebook, check):
    notebook.cells.remove(cell_of(notebook, check))


# On empty releases, where every point would be a gain: by assignment, one trick for each check.
TRICKS = {
    "1_gamma": [edited, skipped, turned_into_text, *[edited] * 10],
    "2_bead": [deleted] * 12,
    "3_string": [ungraded] * 24,  # which nbgrader refuses
}


def meddled(out, name):
    notebook = release_of(out, name)
    for trick, check in zip(TRICKS[name], points_of_checks(name), strict=True):
        trick(notebook, check)
    return notebook


def beginning_with(out, code):
    """The solution, with code before that of t_star."""
    notebook = solved(out)
    cell = cell_of(notebook, "t_star")
    cell.source = f"{code}\n\n\n{cell.source}"
    return notebook


def clumsy(out):
    """The solution, with a line of 100 megabytes, copies of cells, and an essay typed anew."""
    notebook = beginning_with(out, "print('x' * 100_000_000)")
    for grade_id in ("segments", "segments-check"):
        cell = cell_of(notebook, grade_id)
        twin = nbformat.from_dict(cell | {"id": f"{cell.id}-copy"})
        notebook.cells.insert(notebook.cells.index(cell), twin)
    cell_of(notebook, "explain").metadata.pop("nbgrader")
    return notebook


def hand_in_slips_and_tricks(out):
    """Tampered, damaged, and missing notebooks."""
    submitted = out / "submitted"

    def put(student, notebook, name="2_bead", folder=None, file=None):
        path = submitted / student / (folder or name) / f"{file or name}.ipynb"
        samples.write(notebook, path)
        return path

    for name in TRICKS:
        put("meddler", meddled(out, name), name)
    put("hungry", beginning_with(out, "ballast = bytearray(100 * 2**30)"))
    put("clumsy", clumsy(out))
    autograded = str(out / "autograded" / "wiped")
    put("wiped", beginning_with(out, f"import shutil\n\nshutil.rmtree({autograded!r})"))
    put("repaired", release_of(out, "2_bead"))  # and the solved one under another name
    put("repaired", solved(out), file="2_bead-Copy1")
    linked = put("linked", solved(out))
    linked.unlink()
    linked.symlink_to(out / "source/2_bead/2_bead.ipynb")
    put("damaged", solved(out)).write_text('{"cells": [')
    put("renamed", solved(out), file="final").write_text("{}")
    put("astray", release_of(out, "2_bead"), folder="bead")
    (submitted / "loose.zip").write_text("")


# The three gradings


def demonstrate_on_a_copy(course):
    """Have `demonstrate` take a copy of a course for its own, slips and tricks handed in already,
    and a part of the samples: of the reference all assignments, of the empty notebook one."""

    def copy(out, group):
        shutil.copytree(course, out, dirs_exist_ok=True)
        hand_in_slips_and_tricks(out)

    classroom.release, classroom.SAMPLES = copy, representatives()


def representatives():
    return [
        dataclasses.replace(sample, assignments=["4_study"]) if not sample.solves else sample
        for sample in CHOSEN
    ]


@pytest.fixture(scope="module")
def graded(released, tmp_path_factory):
    """The run of `demonstrate`, its table, and the course."""
    folder = tmp_path_factory.mktemp("graded")
    out = folder / "course"
    change = functools.partial(demonstrate_on_a_copy, released)
    done = command(folder, "demonstrate", out, change=change)
    assert (out / "grades.csv").exists(), done.stderr
    return SimpleNamespace(done=done, table=table_of(out), out=out)


@pytest.fixture(scope="module")
def graded_again(graded):
    """The next two runs, of four submissions that are left, and of one: with each run its table,
    and how old the graded copy of the reference was and is."""
    submitted = graded.out / "submitted"
    copy = graded.out / "autograded/reference/2_bead/2_bead.ipynb"
    give_points_by_hand(graded.out, "reference")
    keep(submitted, "reference", "repaired", "damaged")
    for name in set(NAMES) - {"2_bead"}:
        shutil.rmtree(submitted / "reference" / name)
    samples.write(solved(graded.out), submitted / "repaired/2_bead/2_bead.ipynb")
    runs = []
    for option in ("--no-again", "--again"):
        before = copy.stat().st_mtime_ns
        done = command(graded.out, "grade", graded.out, option)
        ages = before, copy.stat().st_mtime_ns
        runs.append(SimpleNamespace(done=done, table=table_of(graded.out), ages=ages))
        keep(submitted, "reference")
    return runs


def keep(submitted, *students):
    for path in submitted.iterdir():
        if path.name not in students:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def give_points_by_hand(out, student):
    with execution.course(out).gradebook as gradebook:
        (notebook,) = gradebook.find_submission("2_bead", student).notebooks
        for entry in notebook.grades:
            if entry.name == "explain":
                entry.manual_score, entry.needs_manual_grade = 2.5, False
        gradebook.db.commit()


# What is planted


def test_the_demonstration_succeeds(graded):
    assert graded.done.returncode == 0, graded.done.stdout + graded.done.stderr
    assert f"All {len(CHOSEN)} samples lost exactly what was planted." in graded.done.stdout
    for sample in CHOSEN:
        assert sample.name in graded.done.stdout


@pytest.mark.parametrize("sample", representatives(), ids=lambda sample: sample.name)
def test_nbgrader_finds_what_is_planted(graded, sample):
    assert samples.differences(sample, graded.table, NAMES) == []
    for name in sample.assignments or NAMES:
        points = points_of_checks(name)
        lost = points if sample.loses == ["all"] else {c: points[c] for c in sample.loses}
        row = graded.table.loc[(sample.name, name)]
        assert row.checks_max == sum(points.values())
        assert row.checks == sum(points.values()) - sum(lost.values())


def test_another_loss_than_planted_is_told(graded):
    (sample,) = [s for s in samples.SAMPLES if s.name == "t-swapped"]
    for change in ({"loses": ["gamma-check"]}, {"status": "crashed"}, {"times_out": True}):
        other = dataclasses.replace(sample, **change)
        assert samples.differences(other, graded.table, NAMES)


def test_essays_wait_for_a_teacher(graded):
    assert graded.table.loc[("reference", "4_study")].waits == "prediction, essay"
    assert graded.table.loc[("empty", "4_study")].waits == ""
    assert graded.table.loc[("reference", "4_study")].by_hand == 0


# Slips and tricks


@pytest.mark.parametrize(
    ("trick", "name"),
    {trick.__name__: (trick, name) for name, used in TRICKS.items() for trick in used}.values(),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_meddling_with_checks_gains_nothing(graded, trick, name):
    row, points = graded.table.loc[("meddler", name)], points_of_checks(name)
    assert row.status == ("refused" if trick is ungraded else "graded")
    assert (row.checks, row.checks_max) == (0, sum(points.values()))
    for used, check in zip(TRICKS[name], points, strict=True):
        lost = [entry.split(" (")[0] for entry in row.lost.split("; ")]
        assert used is not trick or f"{check} -{points[check]}" in lost


def test_deleted_checks_are_named(graded):
    row = graded.table.loc[("meddler", "2_bead")]
    assert set(row.deleted.split(", ")) == set(points_of_checks("2_bead"))


def test_cells_in_another_order_are_told(tmp_path):
    shutil.copytree(ASSIGNMENTS / "source" / "2_bead", tmp_path / "source" / "2_bead")
    ids = [samples.grade_id(cell) for cell in source("2_bead").cells]
    assert grading.moved(tmp_path, "2_bead", ["", *ids[:5], *ids[6:]]) == ""
    for other in (ids[::-1], [*ids[:3], ids[4], ids[3], *ids[5:]]):
        assert grading.moved(tmp_path, "2_bead", other) == "cells stand in another order"


def test_a_notebook_that_takes_all_memory_loses_one_cell(graded):
    row = graded.table.loc[("hungry", "2_bead")]
    assert row.status == "graded"
    lost = [entry.partition(" (")[0] for entry in row.lost.split("; ")]
    assert lost == ["t_star-check -1", "t_star-value -2"]


def test_a_line_of_100_megabytes_is_cut(graded):
    row = graded.table.loc[("clumsy", "2_bead")]
    assert (row.status, row.checks) == ("graded", 14)
    copy = graded.out / "autograded" / "clumsy" / "2_bead" / "2_bead.ipynb"
    assert 2_000_000 < copy.stat().st_size < 3_000_000


def test_slips_and_tricks_are_told(graded):
    rows = {s: graded.table.loc[(s, "2_bead")] for s in ("clumsy", "wiped", "repaired", "linked")}
    assert {s: (row.status, row.checks) for s, row in rows.items()} == {
        "clumsy": ("graded", 14),
        "wiped": ("refused", 0),
        "repaired": ("graded", 0),
        "linked": ("unreadable", 0),
    }
    assert rows["clumsy"].deleted == "explain"
    assert "2_bead-Copy1.ipynb" in rows["repaired"].note


def test_nothing_that_was_handed_in_is_lost(graded):
    table = graded.table
    assert "Warning" not in graded.done.stderr
    status = {student: row.status for (student, name), row in table.iterrows() if name == "2_bead"}
    assert status["damaged"] == "unreadable"
    assert status["renamed"] == "no notebook"
    assert "final.ipynb" in table.loc[("renamed", "2_bead")].note
    assert table.loc[("damaged", "2_bead")].checks == 0
    assert table.loc[("astray", "bead")].status == "unknown"
    assert table.loc[("loose.zip", "")].status == "unknown"
    for student in ("damaged", "renamed", "astray", "loose.zip"):
        assert student in graded.done.stdout


def test_a_corrected_submission_is_graded_again(graded, graded_again):
    second, _ = graded_again
    assert second.done.returncode == 0, second.done.stderr
    assert graded.table.loc[("repaired", "2_bead")].checks == 0
    assert second.table.loc[("repaired", "2_bead")].checks == 14
    assert second.table.loc[("damaged", "2_bead")].status == "unreadable"


def test_points_by_hand_reach_the_table_and_stay(graded_again):
    for run, is_run in zip(graded_again, (False, True), strict=True):
        assert run.done.returncode == 0, run.done.stderr
        row = run.table.loc[("reference", "2_bead")]
        assert (row.status, row.checks, row.by_hand) == ("graded", 14, 2.5)
        before, after = run.ages
        assert (after > before) is is_run
        assert row.waits == "prediction", "what was looked at is the same still"


def test_a_cell_may_take_a_minute():
    config = PyFileConfigLoader("nbgrader_config.py", path=str(ASSIGNMENTS)).load_config()
    assert (config.Execute.timeout, config.Execute.interrupt_on_timeout) == (60, True)


# Code that means harm

MALICE = """
import os, socket, sqlite3
for name, harm in {{
    "secret": lambda: print(open({secret!r}).read()),
    "network": lambda: socket.create_connection(("127.0.0.1", {port}), timeout=5),
    "gradebook": lambda: sqlite3.connect({gradebook!r}).execute("drop table grade"),
    "tests": lambda: print(open({tests!r}).read()[:9]),
    "files": lambda: os.remove({tests!r}),
}}.items():
    try:
        harm()
        print(name, "done")
    except (OSError, sqlite3.Error) as error:
        print(name, "stopped:", error)
"""


def test_the_sandbox_stops_what_the_checks_cannot(tmp_path, released):
    bwrap = shutil.which("bwrap")
    if (
        not bwrap
        or subprocess.run([bwrap, "--unshare-all", "--ro-bind", "/", "/", "true"]).returncode
    ):
        pytest.skip("no bubblewrap that works here")
    out, secret = tmp_path / "course", tmp_path / "secret"
    shutil.copytree(released, out)
    secret.write_text("next year's exam")
    notebook = solved(out)
    cell = cell_of(notebook, "t_star")
    with socket.create_server(("127.0.0.1", 0)) as server:
        cell.source += MALICE.format(
            secret=str(secret),
            port=server.getsockname()[1],
            gradebook=str(out / "gradebook.db"),
            tests=str(out / "source/2_bead/2_bead.ipynb"),
        )
        cell = cell_of(notebook, "segments")
        cell.source += "\nprint('looping', flush=True)\nwhile True:\n    pass\n"
        samples.write(notebook, out / "submitted/mallory/2_bead/2_bead.ipynb")
        done = command(tmp_path, "grade", out, "--sandbox")
    assert done.returncode == 0, done.stderr
    row = table_of(out).loc[("mallory", "2_bead")]
    assert (row.status, row.checks, row.timed_out) == ("graded", 14, "segments")
    graded_copy = samples.read(out / "autograded/mallory/2_bead/2_bead.ipynb")
    said = "".join(o.text for o in cell_of(graded_copy, "t_star").outputs)
    assert "done" not in said and said.count("stopped") == 5, said
