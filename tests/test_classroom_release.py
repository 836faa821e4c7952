"""What is released holds no solution, what would do harm is refused, and nothing is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import classroom
import execution
import grading
import pandas as pd
import pytest
from classes import GROUP, NAMES, release_of, samples, source
from scratch import wait_for
from typer.testing import CliRunner

slow = pytest.mark.slow
LONG = "x" * 10**6
KEPT_BACK = re.compile(r"### BEGIN (?:SOLUTION|HIDDEN TESTS)\n(.*?)### END", re.DOTALL)


@slow
@pytest.mark.parametrize("name", NAMES)
def test_a_release_holds_no_solution_and_no_hidden_test(released, name):
    text = (released / "release" / name / f"{name}.ipynb").read_text()
    for word in ("SOLUTION", "HIDDEN", "BEGIN"):
        assert word not in text
    cells = {samples.grade_id(cell): cell for cell in release_of(released, name).cells}
    for cell in source(name).cells:
        marks, given = cell.metadata.nbgrader, cells[samples.grade_id(cell)]
        for secret in KEPT_BACK.findall(cell.source):
            assert secret.strip() and secret.strip() not in given.source
        if marks.solution:
            stub = "NotImplementedError" if cell.cell_type == "code" else "YOUR ANSWER HERE"
            assert stub in given.source
        assert not given.get("outputs")
        assert given.metadata.get("editable", True) is not marks.locked
    assert f"group: int = {GROUP}" in cells["parameters"].source


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


@pytest.mark.parametrize("name", ["release", "grade", "demonstrate"])
@pytest.mark.parametrize("place", ["", "s3://bucket/course"])
def test_what_is_no_folder_on_this_machine_is_refused(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(classroom.app, [name, place], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and ("is empty" if not place else "an address") in done.stderr
    assert not list(tmp_path.iterdir())


def test_demonstrate_removes_no_folder_of_others(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    done = CliRunner().invoke(classroom.app, ["demonstrate", str(tmp_path)])
    assert done.exit_code == 2
    assert (tmp_path / "thesis.txt").exists()


def test_points_are_taken_away_only_when_a_submission_is_graded(tmp_path, monkeypatch):
    def telling(step):
        def call(out, student, name):
            with (out / "order.txt").open("a") as file:
                file.write(f"{step} {student}\n")
            return "graded", ""

        return call

    def row_of(student, name, status, note):
        return {"student": student, "assignment": name, "status": status}

    for name in ("nbgrader_config.py", "gradebook.db", "release"):
        (tmp_path / name).touch()
    for student in ("ada", "bob"):
        (tmp_path / "submitted" / student / "2_bead").mkdir(parents=True)
    for step in ("prepare", "autograde"):
        monkeypatch.setattr(grading, step, telling(step))
    monkeypatch.setattr(grading, "check_kernel", lambda: ("graded", ""))
    monkeypatch.setattr(grading, "result", lambda out, *row: row_of(*row))
    monkeypatch.setattr(grading.resource, "setrlimit", lambda *_: None)
    grading.grades(tmp_path)
    steps = (tmp_path / "order.txt").read_text().splitlines()
    assert steps == ["prepare ada", "autograde ada", "prepare bob", "autograde bob"]


def test_a_folder_with_nothing_to_grade_gives_a_table(tmp_path, monkeypatch):
    for name in ("release", "submitted/ada"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("nbgrader_config.py", "gradebook.db", "submitted/moodle.zip"):
        (tmp_path / name).touch()
    monkeypatch.setattr(grading, "check_kernel", lambda: ("graded", ""))
    monkeypatch.setattr(grading.resource, "setrlimit", lambda *_: None)
    for left in ("ada", "moodle.zip"):
        said = grading.show(grading.grades(tmp_path))
        assert left != "ada" or "not submitted: 4" in said
        assert "moodle.zip" in said and "unknown" in said
        shutil.rmtree(tmp_path / "submitted/ada", ignore_errors=True)


def test_what_waits_for_points_by_hand_is_counted():
    row = dict.fromkeys(grading.COLUMNS, "") | {"status": "graded", "checks": ""}
    for waits, said in (("explain", "1 wait for points by hand"), ("", "not submitted: 0")):
        table = pd.DataFrame([row | {"waits": waits}])
        assert grading.show(table).splitlines()[-1].startswith(said)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("stream", {"name": "stdout", "text": LONG}),
        ("display_data", {"data": {"image/png": LONG, "text/plain": "figure"}, "metadata": {}}),
        ("execute_result", {"data": {"text/plain": LONG}, "metadata": {}}),
        ("error", {"ename": "ValueError", "evalue": LONG, "traceback": [LONG] * 3}),
    ],
)
def test_long_outputs_are_cut(kind, content):
    short, size = execution.cut(kind, content, 1000)
    assert len(str(short)) < 50_000 and size > 1000
    assert short.keys() == content.keys() and short.get("ename") == content.get("ename")
    short, size = execution.cut(kind, content, 2 * 10**6)
    assert short == content or kind == "error"


def test_an_interrupted_run_keeps_the_table_and_forgets_what_it_began(tmp_path, monkeypatch):
    for name in (
        "release",
        "submitted/ada/2_bead",
        "submitted/bob/2_bead",
        "autograded/bob/2_bead",
    ):
        (tmp_path / name).mkdir(parents=True)
    for name in ("nbgrader_config.py", "gradebook.db"):
        (tmp_path / name).touch()
    columns = {"status": "graded", "assignment": "2_bead", "timed_out": "", "note": "", "checks": 9}
    digests = {"ada": "other", "bob": grading.digest(tmp_path, "bob", "2_bead")}
    rows = [{"student": s, "digest": v} | columns for s, v in digests.items()]
    pd.DataFrame(rows).to_csv(tmp_path / "grades.csv", index=False)

    def interrupted(jobs, calls, out):
        if list(calls) == ["the kernel"]:
            return {"the kernel": ("graded", "")}
        assert list(calls) == [("ada", "2_bead")]
        raise KeyboardInterrupt

    monkeypatch.setattr(grading, "apart", interrupted)
    monkeypatch.setattr(grading.resource, "setrlimit", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        grading.grades(tmp_path)
    table = grading.last(tmp_path).set_index("student")
    assert table.checks.tolist() == ["9", "9"]
    assert table.digest.to_dict() == {"ada": "", "bob": digests["bob"]}
    with pytest.raises(KeyboardInterrupt):
        grading.grades(tmp_path)


ENDLESS = """
import sys
sys.path.insert(0, {place!r})
import time
from pathlib import Path
import classroom
import grading

def endless():
    try:
        Path("begun").touch()
        time.sleep(600)
    finally:
        Path("ended").touch()  # as a kernel is, by what started it

app = classroom.typer.Typer(pretty_exceptions_enable=False)

@app.command()
@classroom.errors_told(name="classroom")
def grade():
    grading.apart(1, {{"one": (endless,), "next": (endless,)}}, Path())

app()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_is_being_graded(tmp_path, number):
    code = ENDLESS.format(place=str(Path(classroom.__file__).parent))
    # Where something was started in the background Ctrl-C is ignored from its beginning.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=heed)
    wait_for((tmp_path / "begun").exists, "process that grades")
    process.send_signal(number)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 128 + number and "classroom: stopped" in said, said
    assert (tmp_path / "ended").exists() and "Traceback" not in said
    assert not (tmp_path / "logs" / "next.txt").exists()


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["release", "/dev/null/below"], 2, "/dev/null"),
        (["demonstrate", "made", "--jobs", "0"], 2, "greater than or equal to 1"),
    ],
)
def test_a_slip_is_told_without_a_traceback(arguments, status, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(classroom.app, arguments)
    assert result.exit_code == status and message in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
@pytest.mark.parametrize("program", [["-m", "dss"], [classroom.__file__]])
def test_a_report_that_meets_a_full_disk_is_told(program):
    with open("/dev/full", "w") as full:
        command = [sys.executable, *program, "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@slow
def test_a_byte_order_mark_does_no_harm(released, tmp_path):
    """Editors on Windows write one, which nbgrader cannot read."""
    out, pair = tmp_path / "course", ("ada", "2_bead")
    shutil.copytree(released, out)
    path = out.joinpath("submitted", *pair, "2_bead.ipynb")
    samples.write(release_of(out, "2_bead"), path)
    plain, before = path.read_bytes(), grading.digest(out, *pair)
    path.write_bytes(b"\xef\xbb\xbf" + plain)
    assert grading.digest(out, *pair) == before, "it is graded once"
    assert grading.prepare(out, *pair) == ("graded", "")
    assert path.read_bytes() == plain


def test_old_points_are_taken_away_before_anything_is_graded(released, tmp_path):
    out, pair = tmp_path / "course", ("ada", "2_bead")
    shutil.copytree(released, out)
    out.joinpath("submitted", *pair).mkdir(parents=True)
    assert grading.prepare(out, *pair)[0] == "no notebook"

    def entries(gradebook):
        (notebook,) = gradebook.find_submission("2_bead", "ada").notebooks
        return notebook.grades

    with execution.course(out).gradebook as gradebook:
        for entry in entries(gradebook):
            entry.auto_score, entry.needs_manual_grade = 3, True
        gradebook.db.commit()
    grading.prepare(out, *pair)
    with execution.course(out).gradebook as gradebook:
        left = {(entry.auto_score, entry.needs_manual_grade) for entry in entries(gradebook)}
    assert left == {(0, False)}


def test_only_what_has_changed_is_looked_at_by_hand_again(released, tmp_path, monkeypatch):
    """A loop is run again at each grading, and would wait for the teacher without end."""
    out, pair = tmp_path / "course", ("ada", "2_bead")
    shutil.copytree(released, out)
    samples.write(release_of(out, "2_bead"), out.joinpath("submitted", *pair, "2_bead.ipynb"))
    grading.prepare(out, *pair)

    def change(**values):
        with execution.course(out).gradebook as gradebook:
            (notebook,) = gradebook.find_submission("2_bead", "ada").notebooks
            for entry in notebook.grades:
                if entry.cell_type == "markdown":
                    for name, value in values.items():
                        setattr(entry, name, value)
            gradebook.db.commit()
            return {e.needs_manual_grade for e in notebook.grades if e.cell_type == "markdown"}

    def autograde(*_):
        change(needs_manual_grade=True)  # as nbgrader does where points were given by hand
        return "graded", ""

    monkeypatch.setattr(grading, "autograde", autograde)
    for as_before in (True, False):
        change(manual_score=2, needs_manual_grade=False)
        assert grading.anew(out, *pair, as_before) == ("graded", "")
        assert change() == {not as_before}
