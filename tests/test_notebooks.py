"""The committed notebooks and figures: executed, in style, and made with the defaults."""

import ast
import hashlib
import json
from pathlib import Path

import nbformat
import pytest

from dss.provenance import notebook_sha256

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [
    *sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")),
    ROOT / "notebooks/sweep_report.ipynb",
]
MANIFEST = json.loads((ROOT / "figures" / "quick" / "manifest.json").read_text())


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4), request.param


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
    assert len(cells) <= 20
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


def test_every_picture_is_described(notebook):
    """The read-along page takes alternative texts from here."""
    drawing = [cell for cell in code_cells(notebook[0]) if "run.figure(" in cell.source]
    assert drawing
    for cell in drawing:
        assert len(cell.metadata["mystnb"]["image"]["alt"]) > 80


def test_a_notebook_that_reads_mnist_asks_for_it(notebook):
    """`dss reproduce` fetches what the metadata names before anything runs."""
    reads = any("dss.mnist(" in cell.source for cell in code_cells(notebook[0]))
    asked = notebook[0].metadata.get("dss", {}).get("data", [])
    assert asked == (["mnist"] if reads else [])
