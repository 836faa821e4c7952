"""The assignments: hidden tests find what is planted, nothing is lost, and nothing leaks."""

import contextlib
import dataclasses
import io
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import pandas as pd
import pytest
from typer.testing import CliRunner

ASSIGNMENTS = Path(__file__).resolve().parents[1] / "notebooks" / "assignments"
sys.path.insert(0, str(ASSIGNMENTS))

import classroom  # noqa: E402
import samples  # noqa: E402

NAMES = classroom.NAMES
slow = pytest.mark.slow


def source(name):
    return samples.read(ASSIGNMENTS / "source" / name / f"{name}.ipynb")


def command(*arguments):
    return subprocess.run(
        [sys.executable, ASSIGNMENTS / "classroom.py", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def table_of(out):
    table = pd.read_csv(out / "grades.csv", keep_default_na=False)
    for column in ("checks", "checks_max", "by_hand", "by_hand_max"):  # empty where nothing came
        table[column] = pd.to_numeric(table[column])
    return table.set_index(["student", "assignment"], drop=False)


# The source notebooks


@pytest.mark.parametrize("name", NAMES)
def test_anatomy(name):
    notebook = source(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 20
    assert len(notebook.cells) - len(code) >= len(code)
    assert max(cell.source.count("\n") + 1 for cell in code) <= 25
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [c for c in notebook.cells if {"papermill", "execution"} & set(c.metadata)]
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_locked_but_for_answers(name):
    cells = [(cell, cell.metadata.nbgrader) for cell in source(name).cells]
    assert all(marks.schema_version == 3 for _, marks in cells)
    assert all(marks.locked is not marks.solution for _, marks in cells)
    points = {marks.grade_id: marks.points for _, marks in cells if marks.grade}
    assert all(2 <= value <= 10 for value in points.values()), points
    stated = cells[0][0].source.split("*Points: ")[1].split()[0]
    assert int(stated) == sum(points.values())
    for cell, marks in cells:
        if marks.grade and cell.cell_type == "code":
            visible, _, hidden = cell.source.partition("### BEGIN HIDDEN TESTS")
            assert "assert" in visible
            assert "assert" in hidden or marks.grade_id == "choose-check"


@pytest.mark.parametrize("name", NAMES)
def test_figures_have_an_alternative_text(name):
    for cell in source(name).cells:
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert len(cell.metadata.mystnb.image.alt) > 40


def failures(name, group):
    """Cells of a source notebook that raise, for a group; run here, without a kernel."""
    found, variables = [], {"__name__": "__main__"}
    matplotlib.use("Agg")
    for cell in source(name).cells:
        if cell.cell_type == "code":
            code = cell.source.replace("group: int = 0", f"group: int = {group}")
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(code, variables)
            except Exception as error:
                found.append((samples.grade_id(cell), repr(error)))
    matplotlib.pyplot.close("all")
    assert variables["group"] == group
    return found


@slow
@pytest.mark.parametrize("group", [1, 34, 99])
@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_for_other_groups(name, group):
    assert failures(name, group) == []


# What is released


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A course of group 12."""
    out = tmp_path_factory.mktemp("classroom") / "course"
    done = command("release", out, "--group", 12)
    assert done.returncode == 0, done.stderr
    return out


def release_of(out, name):
    return samples.read(out / "release" / name / f"{name}.ipynb")


@slow
@pytest.mark.parametrize("name", NAMES)
def test_a_release_holds_no_solution_and_no_hidden_test(released, name):
    text = (released / "release" / name / f"{name}.ipynb").read_text()
    for word in ("SOLUTION", "HIDDEN", "BEGIN", "refuse"):
        assert word not in text
    cells = {samples.grade_id(cell): cell for cell in release_of(released, name).cells}
    for cell in source(name).cells:
        marks, given = cell.metadata.nbgrader, cells[samples.grade_id(cell)]
        if marks.solution:
            stub = "NotImplementedError" if cell.cell_type == "code" else "YOUR ANSWER HERE"
            assert stub in given.source
        assert not given.get("outputs")
        assert given.metadata.get("editable", True) is not marks.locked
    assert "group: int = 12" in cells["parameters"].source


@slow
def test_release_does_not_overwrite(released):
    done = CliRunner().invoke(classroom.app, ["release", str(released)])
    assert done.exit_code == 2
    assert "holds a release already" in done.stderr


@pytest.mark.parametrize("group", [-1, 100])
def test_a_group_out_of_range_is_refused(tmp_path, group):
    done = CliRunner().invoke(classroom.app, ["release", str(tmp_path / "c"), f"--group={group}"])
    assert done.exit_code == 2
    assert f"group is {group}; 0 to 99 is allowed" in done.stderr
    assert not (tmp_path / "c").exists()


def test_grading_where_no_course_is(tmp_path):
    done = CliRunner().invoke(classroom.app, ["grade", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "there is no" in done.stderr and "`release` makes a course" in done.stderr


def test_demonstrate_removes_no_folder_of_others(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    done = CliRunner().invoke(classroom.app, ["demonstrate", str(tmp_path)])
    assert done.exit_code == 2
    assert (tmp_path / "thesis.txt").exists()


# The demonstration


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """The run of `make classroom`, and its table."""
    out = tmp_path_factory.mktemp("classroom") / "demonstration"
    return command("demonstrate", out), table_of(out)


@slow
def test_the_demonstration_succeeds(demonstrated):
    done, _ = demonstrated
    assert done.returncode == 0, done.stdout + done.stderr
    for sample in samples.SAMPLES:
        assert sample.name in done.stdout


@slow
@pytest.mark.parametrize("sample", samples.SAMPLES, ids=lambda sample: sample.name)
def test_a_sample_loses_what_is_planted(demonstrated, sample):
    _, table = demonstrated
    assert samples.differences(sample, table, NAMES) == []
    for name in sample.assignments or NAMES:
        marks = [
            cell.metadata.nbgrader for cell in source(name).cells if "nbgrader" in cell.metadata
        ]
        checks = {m.grade_id: m.points for m in marks if m.grade and not m.solution}
        lost = checks if sample.loses == ["all"] else {c: checks[c] for c in sample.loses}
        row = table.loc[(sample.name, name)]
        assert row.checks_max == sum(checks.values())
        assert row.checks == sum(checks.values()) - sum(lost.values())


@slow
def test_another_loss_than_planted_is_told(demonstrated):
    _, table = demonstrated
    for change in ({"loses": ["gamma-check"]}, {"status": "crashed"}, {"times_out": True}):
        (sample,) = [s for s in samples.SAMPLES if s.name == "t-swapped"]
        assert samples.differences(dataclasses.replace(sample, **change), table, NAMES)


@slow
def test_essays_wait_for_a_teacher(demonstrated):
    _, table = demonstrated
    assert table.loc[("reference", "4_study")].waits == "prediction, essay"
    assert table.loc[("empty", "4_study")].waits == ""
    assert table.loc[("reference", "4_study")].by_hand == 0


# What students do to notebooks


def solved(out, name="2_bead"):
    """The released notebook with the reference solution in it."""
    notebook = release_of(out, name)
    given = {samples.grade_id(c): c.source for c in source(name).cells}
    for cell in notebook.cells:
        if cell.metadata.nbgrader.solution:
            cell.source = given[samples.grade_id(cell)]
    return notebook


def checks(notebook):
    return [c for c in notebook.cells if samples.grade_id(c).endswith("-check")]


def edited(notebook):
    for cell in checks(notebook):
        cell.source = "pass"


def skipped(notebook):
    for cell in checks(notebook):
        cell.metadata.tags = ["skip-execution"]


def deleted(notebook):
    notebook.cells = [c for c in notebook.cells if c not in checks(notebook)]


def ungraded(notebook):
    for cell in checks(notebook):
        cell.metadata.nbgrader.grade = False


def turned_into_text(notebook):
    for k, cell in enumerate(notebook.cells):
        if samples.grade_id(cell).endswith("-check"):
            text = nbformat.v4.new_markdown_cell("done", metadata=cell.metadata)
            notebook.cells[k] = text


TRICKS = [edited, skipped, deleted, ungraded, turned_into_text]


@pytest.fixture(scope="module")
def graded(released):
    """A course with tampered, damaged and missing notebooks, graded twice."""
    submitted = released / "submitted"

    def put(student, notebook, name="2_bead"):
        samples.write(notebook, submitted / student / name / f"{name}.ipynb")

    for trick in TRICKS:  # on the empty release, where every point would be a gain
        notebook = release_of(released, "2_bead")
        trick(notebook)
        put(trick.__name__, notebook)
    hungry = solved(released)
    (cell,) = [c for c in hungry.cells if samples.grade_id(c) == "t_star"]
    cell.source = "ballast = bytearray(100 * 2**30)\n\n\n" + cell.source
    put("hungry", hungry)
    put("repaired", release_of(released, "2_bead"))
    put("damaged", release_of(released, "2_bead"))
    (submitted / "damaged/2_bead/2_bead.ipynb").write_text('{"cells": [')
    (submitted / "renamed/2_bead").mkdir(parents=True)
    (submitted / "renamed/2_bead/final.ipynb").write_text("{}")
    put("astray", release_of(released, "2_bead"), "bead")
    (submitted / "loose.zip").write_text("")
    first = command("grade", released, "--jobs", 2)
    tables = [table_of(released)]
    for student in [path.name for path in submitted.iterdir()]:
        if student not in ("repaired", "damaged"):
            path = submitted / student
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    put("repaired", solved(released))
    second = command("grade", released)
    return first, second, [*tables, table_of(released)]


@slow
@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_meddling_with_checks_gains_nothing(graded, trick):
    row = graded[2][0].loc[(trick.__name__, "2_bead")]
    assert row.checks == 0
    assert row.checks_max == 14


@slow
def test_deleted_checks_are_named(graded):
    row = graded[2][0].loc[("deleted", "2_bead")]
    assert set(row.deleted.split(", ")) == {"t_star-check", "train_bead-check", "segments-check"}


@slow
def test_a_notebook_that_takes_all_memory_loses_one_cell(graded):
    row = graded[2][0].loc[("hungry", "2_bead")]
    assert (row.status, row.lost) == ("graded", "t_star-check -4")


@slow
def test_nothing_that_was_handed_in_is_lost(graded):
    first, _, (table, _) = graded
    assert first.returncode == 0, first.stderr
    status = {student: row.status for (student, name), row in table.iterrows() if name == "2_bead"}
    assert status["damaged"] == "unreadable"
    assert status["renamed"] == "no notebook"
    assert "final.ipynb" in table.loc[("renamed", "2_bead")].note
    assert table.loc[("damaged", "2_bead")].checks == 0
    assert table.loc[("astray", "bead")].status == "unknown"
    assert table.loc[("loose.zip", "")].status == "unknown"
    for student in ("damaged", "renamed", "astray", "loose.zip"):
        assert student in first.stdout


@slow
def test_a_corrected_submission_is_graded_again(graded):
    _, second, (before, after) = graded
    assert second.returncode == 0, second.stderr
    assert before.loc[("repaired", "2_bead")].checks == 0
    assert after.loc[("repaired", "2_bead")].checks == 14
    assert after.loc[("damaged", "2_bead")].status == "unreadable"
