"""What teachers get: the rubric, graded specimens, the reading list and the teacher's notebooks."""

import re

import nbformat
import pytest
from classes import ASSIGNMENTS, GROUP, NAMES, cell_of, release_of, samples, source

import solutions  # isort: skip  (classes tells where it is)

RUBRIC, TEACHING = solutions.rubric(), solutions.teaching()
SPECIMENS = {
    f"{name}, {cell}": specimens
    for name, texts in TEACHING.items()
    for cell, specimens in texts["specimens"].items()
}
README = (ASSIGNMENTS / "README.md").read_text()


def answers_in_words():
    """Points of each answer that is graded by hand, as the assignments state them."""
    return {
        (name, cell.metadata.nbgrader.grade_id): cell.metadata.nbgrader.points
        for name in NAMES
        for cell in source(name).cells
        if cell.metadata.nbgrader.solution and cell.cell_type == "markdown"
    }


def test_the_lines_of_the_rubric_add_up_to_the_points_of_the_assignments():
    for (name, cell), points in answers_in_words().items():
        lines = RUBRIC.get(f"{name}, {cell}") or RUBRIC[cell]
        assert [line.number for line in lines] == list(range(1, len(lines) + 1))
        assert sum(line.points for line in lines) == points, (name, cell)
        assert all(len(line.earned_by.split()) > 2 for line in lines)


def test_the_rubric_is_of_answers_that_exist():
    cells = {f"{name}, {cell}" for name, cell in answers_in_words()} | {"prediction"}
    assert set(RUBRIC) <= cells
    assert set(SPECIMENS) == set(RUBRIC) - {"prediction"}


@pytest.mark.parametrize("answer", SPECIMENS)
def test_specimens_are_graded_by_the_lines(answer):
    most = [line.points for line in RUBRIC[answer]]
    assert list(SPECIMENS[answer]) == ["full", "middling", "poor"]
    for specimen in SPECIMENS[answer].values():
        assert len(specimen["points"]) == len(most)
        assert all(0 <= v <= top for v, top in zip(specimen["points"], most, strict=True))
        assert len(specimen["text"].split()) >= 30
        assert specimen["why"].strip().endswith(".")
    full, middling, poor = (sum(v["points"]) for v in SPECIMENS[answer].values())
    assert SPECIMENS[answer]["full"]["points"] == most
    assert poor < middling < full
    assert poor <= 0.3 * full and 0.4 * full <= middling <= 0.7 * full


@pytest.mark.parametrize("answer", SPECIMENS)
def test_the_reference_answer_earns_every_line(answer):
    name, cell = answer.split(", ")
    text = " ".join(cell_of(source(name), cell).source.split())
    quotes = TEACHING[name]["reference"][cell]
    assert len(quotes) == len(RUBRIC[answer])
    assert [quote for quote in quotes if quote not in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_comments_are_on_tasks_that_exist(name):
    tasks = [c for c in source(name).cells if c.metadata.nbgrader.solution]
    tasks = {samples.grade_id(cell) for cell in tasks if cell.cell_type == "code"}
    assert TEACHING[name]["comments"].keys() <= tasks


def test_the_reading_list_names_sections_that_exist():
    """Titles in quotation marks, of the notebook that is named before them."""
    part = README.partition("## Two weeks")[2].partition("\n## ")[0]
    named = re.findall(
        r'(0\d_\w+), (?:from )?(?:the top to the end of )?((?:"[^"]+"(?: and )?)+)', part
    )
    assert len(named) == 5
    for notebook, titles in named:
        path = ASSIGNMENTS.parent / f"{notebook}.ipynb"
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for title in re.findall('"([^"]+)"', titles):
            assert re.search(rf"^##+ {re.escape(title)}", text, re.MULTILINE), (notebook, title)


TINY = [
    ("setup", "import torch\ngroup = 3"),
    ("f", "def f(x):\n    return x + group"),
    ("between", "print(f(1))"),
    ("f-check", "assert f(1) == 4, f'f(1) is {f(1)}; 4 is needed'"),
    ("g-check", "assert f(f(1)) == 7, 'twice'"),
]


def test_slips_are_told_what_the_checks_say(capfd):
    tried = [
        samples.Sample("minus", ["tiny"], {"f": [("+", "-")]}, ["f-check", "g-check"]),
        samples.Sample("raises", ["tiny"], {"f": [("x +", "x.y +")]}, ["f-check"]),
    ]
    told = solutions.try_all(TINY, tried)
    assert told["minus"] == {"f-check": "f(1) is -2; 4 is needed", "g-check": "twice"}
    assert told["raises"] == {"f-check": "'int' object has no attribute 'y'"}
    assert capfd.readouterr().out == ""


def test_a_slip_that_cannot_be_tried_says_how_it_ends():
    endless = samples.Sample("endless", loses=["f-check", "g-check"], times_out=True)
    crash = samples.Sample("crash", loses=["all"], status="crashed")
    text = solutions.of_code("Why.", [(endless, {}, "+ while True"), (crash, {}, "+ exit")])
    assert "*endless*. `f-check`, `g-check`: stopped after a minute" in text
    assert "*crash*. `all`: crashed" in text and "```diff\n+ exit\n```" in text


def test_a_change_is_shown_as_its_lines():
    changed = solutions.difference(TINY[1][1], [("x + group", "group")])
    assert changed == "-     return x + group\n+     return group"


def test_a_folder_that_is_no_course_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="source; `release` makes a course"):
        solutions.write_solutions(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_teachers_notebook_of_a_course(released, tmp_path):
    out = tmp_path / "course"
    samples.write(
        samples.read(released / "source/2_bead/2_bead.ipynb"), out / "source/2_bead/2_bead.ipynb"
    )
    (path,) = solutions.write_solutions(out)
    assert path == out / "solutions" / "2_bead.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert f"of group {GROUP}" in text and "### BEGIN HIDDEN TESTS" in text
    assert not [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert "range(max_steps)" in text and "test after the last step too" in text
    for specimen in SPECIMENS["2_bead, explain"].values():
        assert specimen["why"] in text and specimen["text"].splitlines()[-1] in text
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any("image/png" in o.get("data", {}) for cell in code for o in cell.outputs)


def test_nothing_of_it_is_released(released):
    for name in NAMES:
        text = nbformat.writes(release_of(released, name))
        assert "For the teacher" not in text
        for specimen in SPECIMENS.get(f"{name}, explain", SPECIMENS.get(f"{name}, essay")).values():
            assert specimen["text"].splitlines()[0] not in text
    assert not list(released.rglob("*solutions*")) and not list(released.rglob("teaching*"))
