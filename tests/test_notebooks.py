"""The committed notebooks and figures: executed, in style, and made with the defaults."""

import ast
import hashlib
import json
from pathlib import Path

import nbformat
import pytest

from dss.provenance import notebook_sha256
from dss.runs.execute import DATA

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [
    *sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")),
    ROOT / "notebooks/sweep_report.ipynb",
]
MANIFEST = json.loads((ROOT / "figures" / "quick" / "manifest.json").read_text())


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4), request.param


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def taught(request):
    """The cells of a notebook."""
    return nbformat.read(request.param, as_version=4).cells


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in code_cells(notebook) if tag in cell.metadata.get("tags", [])]


def test_every_cell_was_executed_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook[0])]
    assert counts == list(range(1, len(counts) + 1))
    assert not [cell for cell in notebook[0].cells if "papermill" in cell.metadata]


def test_the_check_cell_prints_numbers_and_writes_the_manifest(notebook):
    (check,) = tagged(notebook[0], "nbval-check-output")
    assert "assert" in check.source and "run.finish()" in check.source
    assert len(check.outputs[0].text.splitlines()) >= 3


def test_anatomy(notebook):
    cells = code_cells(notebook[0])
    assert len([c for c in cells if "solution" not in c.metadata.get("tags", [])]) <= 20
    assert max(cell.source.count("\n") + 1 for cell in cells) <= 25
    prose = [cell for cell in notebook[0].cells if cell.cell_type == "markdown"]
    assert len(prose) >= len(cells)
    defs = [line for cell in cells for line in cell.source.split("\n") if line.startswith("def ")]
    assert len(defs) <= 1


def test_committed_figures_were_made_with_the_defaults(notebook):
    (cell,) = tagged(notebook[0], "parameters")
    defaults = {
        node.target.id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body
    }
    defaults.pop("out")
    entries = [v for v in MANIFEST.values() if v["notebook"] == notebook[1].name]
    assert entries
    for entry in entries:
        assert entry["parameters"] == defaults


def test_committed_figures_were_made_with_the_code_of_the_notebook(notebook):
    entries = [v for v in MANIFEST.values() if v["notebook"] == notebook[1].name]
    assert {entry["notebook_sha256"] for entry in entries} == {notebook_sha256(notebook[1])}


@pytest.mark.parametrize("size", ["quick", "paper"])
def test_every_file_is_what_its_manifest_says(size):
    folder = ROOT / "figures" / size
    manifest = json.loads((folder / "manifest.json").read_text())
    digests = {name: entry["sha256"] for name, entry in manifest.items()}
    for entry in manifest.values():
        digests |= entry["tables"]
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*_*.*")}
    assert found == digests


@pytest.mark.parametrize("size", ["quick", "paper"])
def test_what_a_notebook_read_of_others_is_what_is_committed(size):
    folder = ROOT / "figures" / size
    read = [
        e.get("tables_read", {})
        for e in json.loads((folder / "manifest.json").read_text()).values()
    ]
    assert any(read)
    for name, digest in {item for tables in read for item in tables.items()}:
        found = hashlib.sha256((ROOT / "figures" / "paper" / name).read_bytes()).hexdigest()
        assert found == digest, f"{name} has changed since it was read"


def test_no_output_names_a_place_of_the_machine_it_came_from(notebook):
    """A warning of a library, say, which also changes from version to version."""
    for cell in code_cells(notebook[0]):
        text = json.dumps(cell.outputs)
        assert "site-packages" not in text and '"stderr"' not in text, cell.source


def test_every_picture_is_described(notebook):
    """The read-along page takes alternative texts from here."""
    drawing = [cell for cell in code_cells(notebook[0]) if "run.figure(" in cell.source]
    assert drawing
    for cell in drawing:
        assert len(cell.metadata["mystnb"]["image"]["alt"]) > 80


def test_a_notebook_asks_for_the_data_that_it_reads(notebook):
    """`dss reproduce` fetches what the metadata names before anything runs."""
    code = "".join(cell.source for cell in code_cells(notebook[0]))
    asked = notebook[0].metadata.get("dss", {}).get("data", [])
    assert asked == [name for name in DATA if f"dss.{name}(" in code]


def test_every_figure_has_a_caption_that_says_how_many_were_measured(taught):
    for cell, after in zip(taught, taught[1:], strict=False):
        if cell.cell_type == "code" and "run.figure(" in cell.source:
            assert after.cell_type == "markdown", cell.source
            caption = after.source.split("\n\n")[0].strip()
            assert caption.startswith("*") and caption.endswith("*"), after.source
            assert len(caption.split()) >= 15, caption


def test_every_prediction_is_taken_up_again(taught):
    prose = "\n".join(cell.source for cell in taught if cell.cell_type == "markdown")
    asked = prose.count("**Predict")
    assert asked and asked == prose.count("<summary>Your prediction")


def test_a_notebook_ends_with_two_exercises_whose_solutions_are_folded_and_checked(taught):
    heads = [k for k, cell in enumerate(taught) if cell.source.startswith("## Exercises")]
    assert len(heads) == 1
    last = taught[heads[0] + 1 :]
    solutions = [cell for cell in last if cell.cell_type == "code"]
    assert len(solutions) == 2
    for cell in solutions:
        assert set(cell.metadata["tags"]) >= {"solution", "hide-cell"}
        assert cell.metadata["jupyter"]["source_hidden"]
        assert "assert " in cell.source
