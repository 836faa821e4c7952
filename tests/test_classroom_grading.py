"""The assignments: hidden tests find what is planted, nothing is lost, and nothing leaks."""

import contextlib
import dataclasses
import io
import shutil
import socket
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
import execution  # noqa: E402
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
    shown = [cell.source.partition("### BEGIN HIDDEN TESTS")[0] for cell in code]
    assert max(len(text.splitlines()) for text in shown) <= 25
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


def failures(name, group, replace=(), last=None):
    """Cells of a source notebook that raise, for a group; run here, without a kernel.

    Args:
        name: of the assignment.
        group: the student group.
        replace: `(cell, old, new)`, as often as needed: what is replaced in a solution.
        last: the cell after which no more are run.
    """
    found, variables = [], {"__name__": "__main__"}
    matplotlib.use("Agg")
    for cell in source(name).cells:
        if cell.cell_type == "code":
            code = cell.source.replace("group: int = 0", f"group: int = {group}")
            for where, old, new in replace:
                if where == samples.grade_id(cell):
                    assert code.count(old) == 1, old
                    code = code.replace(old, new)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(code, variables)
            except Exception as error:
                found.append((samples.grade_id(cell), repr(error)))
        if samples.grade_id(cell) == last:
            break
    matplotlib.pyplot.close("all")
    assert variables["group"] == group
    return found


@slow
@pytest.mark.parametrize("group", [1, 34, 99])
@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_for_other_groups(name, group):
    assert failures(name, group) == []


# Wrong and right answers, beside those of the samples


def solution(name, cell):
    """What students have to write in a cell."""
    (found,) = [c.source for c in source(name).cells if samples.grade_id(c) == cell]
    return found.split("### BEGIN SOLUTION\n")[1].split("### END SOLUTION")[0].rstrip(" ")


BODY = {
    cell: solution(name, cell)
    for name, cell in [
        ("1_gamma", "interpolate"),
        ("1_gamma", "gamma"),
        ("1_gamma", "draw"),
        ("2_bead", "train_bead"),
        ("2_bead", "t_star"),
        ("2_bead", "segments"),
        ("3_string", "find_string"),
        ("3_string", "Gamma_tilde"),
        ("3_string", "experiment"),
        ("4_study", "run"),
    ]
}
LEVEL_BY_LEVEL = """
    thetas, dead, ok = [theta_1, theta_2], [False], False
    for depth in range(max_depth + 1):
        low = [bool(dss.interpolated_loss(task, *p).max() <= L0) for p in zip(thetas, thetas[1:])]
        ok = all(low)
        if ok or depth == max_depth:
            break
        grown, states = [thetas[0]], []
        for k, (a, b) in enumerate(zip(thetas, thetas[1:])):
            bead = None
            if not low[k] and not dead[k]:
                gamma = dss.interpolated_loss(task, a, b, 33)
                start = dss.interpolate(a, b, gamma.argmax() / 32)
                bead = train_bead(task, start, target=alpha * L0, generator=generator)
            grown += [b] if bead is None else [bead, b]
            states += [not low[k]] if bead is None else [False, False]
        thetas, dead = grown, states
    return torch.stack(thetas), ok
"""
REFINED = """
    largest = 0.0
    for a, b in zip(thetas, thetas[1:]):
        top = dss.interpolate(a, b, dss.t_star(task, a, b, n_t))
        largest = max(largest, float(task.losses(top[None])[0]))
    return largest
"""
LOOP = """
    theta = torch.zeros(len(theta_1))
    for i in range(len(theta_1)):
        theta[i] = theta_1[i] * (1 - t) + theta_2[i] * t
    return theta
"""
LISTED = "    return torch.tensor([float(a * (1 - t) + b * t) for a, b in zip(theta_1, theta_2)])\n"
DOTS = """
    axes = plt.figure().add_subplot()
    axes.scatter(t, gamma)
    LINE
    axes.set(xlabel="t", ylabel="loss")
    return axes
"""
RING = "ring_connected, ring_Gamma_tilde = search(ring, ring_ends)"
LITERAL = """ring_connected = [False] * 3 + [True] * 4
ring_Gamma_tilde = [9.0 * L0] * 3 + [0.9 * L0] * 4
unit_connected, unit_Gamma_tilde = [False] * 7, [2.0] * 6 + [1.0]
"""
HALF = "right, right_low = find_string(task, bead, theta_2, *rest)"

FIND_STRINGS = """
    settings = {"alpha": alpha, "max_depth": max_depth, "optimizer": "sgd", "lr": 0.01}
    (s,) = f(task, theta_1[None], theta_2[None], L0, generator=generator, **settings)
    return s.thetas, s.connected


from dss.sampling import find_strings as f
"""
TRAIN_TO = """
    done = f(task, start, alpha * L0, optimizer="sgd", lr=lr, max_steps=max_steps, check_every=1)
    return done.thetas[0] if done.reached[0] else None


from dss.train import train_to as f
"""
LOSSES_ALONG = """
    return f(task, torch.stack([theta_1, theta_2]), n_t)[1][0]


from dss import losses_along as f
"""
LINE = "theta_1 * (1 - t) + theta_2 * t"
L0_LINE = 'axes.axhline(L0, color="black", linestyle="--", label="$L_0$")'
LOW = """    if dss.interpolated_loss(task, theta_1, theta_2).max() <= L0:
        return line, True
    if max_depth == 0:
        return line, False
"""
DEPTH_FIRST = """    if max_depth == 0:
        return line, dss.interpolated_loss(task, theta_1, theta_2).max() <= L0
"""
GIVE_UP = """if not left_low:
        return torch.cat([left, theta_2[None]]), False
    """
DEEPER = "theta_2, L0, alpha, min(max_depth, 6 if left_low else 2), generator)"
FIRST_DROPPED = "*((thetas[1:-1], thetas[2:]) if len(thetas) > 2 else thetas[:, None])"
LAST_DROPPED = "*((thetas[:-2], thetas[1:-1]) if len(thetas) > 2 else thetas[:, None])"
FRESH, SEEDED = (f"torch.Generator().manual_seed({v})" for v in ("group", "seed"))
ONE_GROUP, ONE_SEED = BODY["experiment"].replace(FRESH, "own"), BODY["run"].replace(SEEDED, "own")

# By name: the cell, and what is replaced in its solution; each loses the check of that cell.
WRONG = {
    "dss.theta": ("interpolate", LINE, "dss.theta.interpolate(theta_1, theta_2, t)"),
    "alias": (
        "interpolate",
        BODY["interpolate"],
        "    return f(theta_1, theta_2, t)\n\n\nfrom dss import interpolate as f\n",
    ),
    "dss.curve": (
        "gamma",
        BODY["gamma"],
        "    return dss.curve.interpolated_loss(task, theta_1, theta_2, n_t)\n",
    ),
    "losses_along": ("gamma", BODY["gamma"], LOSSES_ALONG),
    "dots without L0": ("draw", BODY["draw"], DOTS.replace("LINE", "")),
    "line without L0": ("draw", L0_LINE, ""),
    "steep L0": ("draw", "axes.axhline(L0,", "axes.axvline(L0,"),
    "dss.curve.t_star": (
        "t_star",
        BODY["t_star"],
        '    return float(dss.curve.t_star(task, theta_1, theta_2, n_t, "grid"))\n',
    ),
    "last step untested": ("train_bead", "range(max_steps + 1)", "range(max_steps)"),
    "ten times the steps": (
        "train_bead",
        "theta = start.clone()",
        "theta, max_steps = start.clone(), 10 * max_steps",
    ),
    "one step more": (
        "train_bead",
        "theta = start.clone()",
        "theta, max_steps = start.clone(), max_steps + 1",
    ),
    "below alpha L0": ("train_bead", "<= alpha * L0", "< alpha * L0"),
    "train_to": ("train_bead", BODY["train_bead"], TRAIN_TO),
    "middle of segments": ("segments", ".max() <= L0", "[n_t // 2] <= L0"),
    "five points": ("segments", "*pair, n_t", "*pair, 5"),
    "two segments": ("segments", "for pair in pairs]", "for pair in list(pairs)[:2]]"),
    "t* = 1/2": ("find_string", "dss.t_star(task, theta_1, theta_2)", "0.5"),
    "1 - t*": ("find_string", "dss.t_star(", "1 - dss.t_star("),
    "middle of gamma": ("find_string", ".max() <= L0", "[16] <= L0"),
    "gives up on the right": ("find_string", HALF, GIVE_UP + HALF),
    "gives up on the left": (
        "find_string",
        HALF,
        HALF + "\n    if not right_low:\n        left = torch.stack([theta_1, bead])",
    ),
    "low segments too": ("find_string", LOW, DEPTH_FIRST),
    "None is a bead": ("find_string", "    if bead is None:\n        return line, False\n", ""),
    "start for a failure": (
        "find_string",
        "        return line, False\n    rest",
        "        bead = start\n    rest",
    ),
    "depth of the right": ("find_string", "theta_2, *rest)", DEEPER),
    "one level more": ("find_string", "if max_depth == 0", "if max_depth == -1"),
    "segments to alpha L0": ("find_string", ".max() <= L0", ".max() <= alpha * L0"),
    "left half only says": ("find_string", "left_low and right_low", "left_low"),
    "find_strings": ("find_string", BODY["find_string"], FIND_STRINGS),
    "first segment dropped": ("Gamma_tilde", "thetas[:-1], thetas[1:]", FIRST_DROPPED),
    "last segment dropped": ("Gamma_tilde", "thetas[:-1], thetas[1:]", LAST_DROPPED),
    "literal lists": ("experiment", BODY["experiment"], LITERAL),
    "one generator": ("experiment", BODY["experiment"], f"own = {FRESH}\n{ONE_GROUP}"),
    "alpha = 1": ("experiment", "L0, alpha, d", "L0, 1.0, d"),
    "another seed": ("experiment", "manual_seed(group)", "manual_seed(group + 1)"),
    "another L0": ("experiment", "L0, alpha, d", "0.8 * L0, alpha, d"),
    "rounded": (
        "experiment",
        RING,
        RING + "\nring_Gamma_tilde = [round(v, 3) for v in ring_Gamma_tilde]",
    ),
    "one generator for all values": ("run", BODY["run"], f"    own = {SEEDED}\n{ONE_SEED}"),
    "a network that is no stack": (
        "train_bead",
        "_, gradients = task.gradients(theta[None])",
        "_, gradients = task.gradients(theta)[0], task.gradients(theta)[1][None]",
    ),
}

# Answers that are as good as the reference; each keeps all checks.
RIGHT = {
    "loop": ("interpolate", BODY["interpolate"], LOOP),
    "list": ("interpolate", BODY["interpolate"], LISTED),
    "lerp": ("interpolate", BODY["interpolate"], "    return torch.lerp(theta_1, theta_2, t)\n"),
    "array": ("gamma", BODY["gamma"], BODY["gamma"].rstrip() + ".numpy()\n"),
    "list of floats": ("gamma", BODY["gamma"], BODY["gamma"].rstrip() + ".tolist()\n"),
    "list of tensors": (
        "gamma",
        "task.losses(dss.interpolate(theta_1, theta_2, t))",
        "[task.losses(dss.interpolate(theta_1, theta_2, v)[None])[0] for v in t]",
    ),
    "dots": ("draw", BODY["draw"], DOTS.replace("LINE", "axes.hlines(L0, 0, 1)")),
    "dots and a line": ("draw", BODY["draw"], DOTS.replace("LINE", "axes.plot(t, [L0] * len(t))")),
    "loss of gradients": (
        "train_bead",
        "task.losses(theta[None])[0]",
        "task.gradients(theta[None])[0][0]",
    ),
    "all at once": (
        "segments",
        BODY["segments"],
        "    return (dss.losses_along(task, thetas, n_t)[1].amax(dim=1) <= L0).tolist()\n",
    ),
    "a tensor of answers": (
        "segments",
        BODY["segments"],
        "    return dss.losses_along(task, thetas, n_t)[1].amax(dim=1) <= L0\n",
    ),
    "level by level": ("find_string", BODY["find_string"], LEVEL_BY_LEVEL),
    "t* of the grid": (
        "find_string",
        "dss.t_star(task, theta_1, theta_2)",
        'dss.t_star(task, theta_1, theta_2, 33, "grid")',
    ),
    "refined maxima": ("Gamma_tilde", BODY["Gamma_tilde"], REFINED),
}
CHECKS = [(samples.grade_id(cell), name) for name in NAMES for cell in source(name).cells]
LONG = "x" * 10**6
ASSIGNMENT = {c[:-6]: name for c, name in reversed(CHECKS) if c.endswith("-check")}
GROUPS = [pytest.param(group, marks=[slow] if group else []) for group in (0, 7, 42, 99)]


def answers(table):
    """A parameter for each; those of 4_study take half a minute."""
    is_slow = {name for name, (cell, *_) in table.items() if ASSIGNMENT[cell] == "4_study"}
    return [pytest.param(name, marks=[slow] if name in is_slow else []) for name in table]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("answer", answers(WRONG))
def test_a_wrong_answer_loses_its_check(answer, group):
    cell, *_ = WRONG[answer]
    lost = dict(failures(ASSIGNMENT[cell], group, [WRONG[answer]], last=f"{cell}-check"))
    assert f"{cell}-check" in lost and cell not in lost
    assert "NameError" not in lost[f"{cell}-check"]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("answer", RIGHT)
def test_a_right_answer_loses_nothing(answer, group):
    cell, *_ = RIGHT[answer]
    assert failures(ASSIGNMENT[cell], group, [RIGHT[answer]]) == []


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
        monkeypatch.setattr(classroom, step, telling(step))
    monkeypatch.setattr(classroom, "check_kernel", lambda: ("graded", ""))
    monkeypatch.setattr(classroom, "result", lambda out, *row: row_of(*row))
    monkeypatch.setattr(classroom.resource, "setrlimit", lambda *_: None)
    classroom.grades(tmp_path)
    steps = (tmp_path / "order.txt").read_text().splitlines()
    assert steps == ["prepare ada", "autograde ada", "prepare bob", "autograde bob"]


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
    chatty = solved(released)
    (cell,) = [c for c in chatty.cells if samples.grade_id(c) == "t_star"]
    cell.source = "print('x' * 100_000_000)\n\n\n" + cell.source
    put("chatty", chatty)
    copied = solved(released)
    for cell in [c for c in copied.cells if samples.grade_id(c).startswith("segments")]:
        twin = nbformat.from_dict(cell | {"id": f"{cell.id}-copy"})
        copied.cells.insert(copied.cells.index(cell), twin)
    put("copied", copied)
    retyped = solved(released)
    (cell,) = [c for c in retyped.cells if samples.grade_id(c) == "explain"]
    cell.metadata.pop("nbgrader")
    put("retyped", retyped)
    wiped = solved(released)
    (cell,) = [c for c in wiped.cells if samples.grade_id(c) == "t_star"]
    folder = str(released / "autograded" / "wiped")
    cell.source = f"import shutil\n\nshutil.rmtree({folder!r})\n\n\n" + cell.source
    put("wiped", wiped)
    put("two", release_of(released, "2_bead"))
    samples.write(solved(released), submitted / "two/2_bead/2_bead-Copy1.ipynb")
    (submitted / "linked/2_bead").mkdir(parents=True)
    source_file = released / "source/2_bead/2_bead.ipynb"
    (submitted / "linked/2_bead/2_bead.ipynb").symlink_to(source_file)
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
def test_a_line_of_100_megabytes_is_cut(graded, released):
    row = graded[2][0].loc[("chatty", "2_bead")]
    assert (row.status, row.checks) == ("graded", 14)
    copy = released / "autograded" / "chatty" / "2_bead" / "2_bead.ipynb"
    assert copy.stat().st_size < 3_000_000


@slow
def test_slips_and_tricks_are_told(graded):
    rows = {
        s: graded[2][0].loc[(s, "2_bead")] for s in ("copied", "retyped", "wiped", "two", "linked")
    }
    assert {s: (row.status, row.checks) for s, row in rows.items()} == {
        "copied": ("graded", 14),
        "retyped": ("graded", 14),
        "wiped": ("refused", 0),
        "two": ("graded", 0),
        "linked": ("unreadable", 0),
    }
    assert rows["retyped"].deleted == "explain"
    assert "2_bead-Copy1.ipynb" in rows["two"].note


@slow
def test_nothing_that_was_handed_in_is_lost(graded):
    first, _, (table, _) = graded
    assert first.returncode == 0, first.stderr
    assert "Warning" not in first.stderr
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


@slow
def test_points_by_hand_reach_the_table_and_stay(graded, released):
    copy = released / "autograded/repaired/2_bead/2_bead.ipynb"
    with classroom.course(released).gradebook as gradebook:
        (notebook,) = gradebook.find_submission("2_bead", "repaired").notebooks
        for entry in notebook.grades:
            if entry.name == "explain":
                entry.manual_score, entry.needs_manual_grade = 2.5, False
        gradebook.db.commit()
    for option, is_run in (("--no-again", False), ("--again", True)):
        before = copy.stat().st_mtime_ns
        assert command("grade", released, option).returncode == 0
        row = table_of(released).loc[("repaired", "2_bead")]
        assert (row.status, row.checks, row.by_hand) == ("graded", 14, 2.5)
        assert (copy.stat().st_mtime_ns > before) is is_run
        assert ("explain" in row.waits) is is_run


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
    digests = {"ada": "other", "bob": classroom.digest(tmp_path, "bob", "2_bead")}
    rows = [{"student": s, "digest": v} | columns for s, v in digests.items()]
    pd.DataFrame(rows).to_csv(tmp_path / "grades.csv", index=False)

    def interrupted(jobs, calls, out):
        if list(calls) == ["the kernel"]:
            return {"the kernel": ("graded", "")}
        assert list(calls) == [("ada", "2_bead")]
        raise KeyboardInterrupt

    monkeypatch.setattr(classroom, "apart", interrupted)
    monkeypatch.setattr(classroom.resource, "setrlimit", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        classroom.grades(tmp_path)
    table = classroom.last(tmp_path).set_index("student")
    assert table.checks.tolist() == ["9", "9"]
    assert table.digest.to_dict() == {"ada": "", "bob": digests["bob"]}
    with pytest.raises(KeyboardInterrupt):
        classroom.grades(tmp_path)


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


@slow
def test_the_sandbox_stops_what_the_checks_cannot(tmp_path):
    bwrap = shutil.which("bwrap")
    if (
        not bwrap
        or subprocess.run([bwrap, "--unshare-all", "--ro-bind", "/", "/", "true"]).returncode
    ):
        pytest.skip("no bubblewrap that works here")
    out, secret = tmp_path / "course", tmp_path / "secret"
    assert command("release", out).returncode == 0
    secret.write_text("next year's exam")
    notebook = solved(out)
    (cell,) = [c for c in notebook.cells if samples.grade_id(c) == "t_star"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        cell.source += MALICE.format(
            secret=str(secret),
            port=server.getsockname()[1],
            gradebook=str(out / "gradebook.db"),
            tests=str(out / "source/2_bead/2_bead.ipynb"),
        )
        (cell,) = [c for c in notebook.cells if samples.grade_id(c) == "segments"]
        cell.source += "\nprint('looping', flush=True)\nwhile True:\n    pass\n"
        samples.write(notebook, out / "submitted/mallory/2_bead/2_bead.ipynb")
        done = command("grade", out, "--sandbox")
    assert done.returncode == 0, done.stderr
    row = table_of(out).loc[("mallory", "2_bead")]
    assert (row.status, row.checks, row.timed_out) == ("graded", 14, "segments")
    (cell,) = [
        c
        for c in samples.read(out / "autograded/mallory/2_bead/2_bead.ipynb").cells
        if samples.grade_id(c) == "t_star"
    ]
    said = "".join(o.text for o in cell.outputs)
    assert "done" not in said and said.count("stopped") == 5, said
