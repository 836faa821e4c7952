"""The source notebooks of the assignments: their form, and that the reference solution passes."""

import pytest
from answers import failures
from classes import NAMES, source


@pytest.mark.parametrize("name", NAMES)
def test_anatomy(name):
    notebook = source(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    no_checks = [cell for cell in code if not cell.metadata.nbgrader.grade]
    assert len(no_checks) <= 20
    assert len(notebook.cells) - len(code) >= len(no_checks)
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
    assert all(1 <= value <= 10 for value in points.values()), points
    stated = cells[0][0].source.split("*Points: ")[1].split()[0]
    assert int(stated) == sum(points.values())
    for cell, marks in cells:
        if marks.grade and cell.cell_type == "code":
            visible, _, hidden = cell.source.partition("### BEGIN HIDDEN TESTS")
            assert "assert" in visible
            assert "assert" in hidden or "check_" in hidden or marks.grade_id == "choose-check"


@pytest.mark.parametrize("name", NAMES)
def test_figures_have_an_alternative_text(name):
    for cell in source(name).cells:
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert len(cell.metadata.mystnb.image.alt) > 40


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 34, 99])
@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_for_other_groups(name, group):
    assert failures(name, group) == []
