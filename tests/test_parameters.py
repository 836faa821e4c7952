"""Parameters cells are read by a parser, texts typed by their declaration, ranges kept."""

import json
from pathlib import Path

import nbformat
import pytest

from dss import parameters, results
from dss.checks import short
from dss.parameters import Text, check_parameters, declared_parameters, typed_values

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
CELL = """\
from typing import Literal
kind: Literal['x', "y=z"] = 'x'  # b = 3, no range
name: str | None = None  # of somebody
p = 1; q: int = 2  # in [0, 4294967295]; two on a line
L0: list[float] = [
    0.03,
    0.01,
]  # each > 0; thresholds
alpha: float = 0.9  # in (0, 1]; of L0
n: list[int] = [1, 1]  # each in [1, 9], may repeat, as many as L0; pairs
device: str = "auto"  # one of auto, cpu, cuda
kinds: list[str] = ["skip norm"]  # each one of skip norm,
#   plain; of networks
grid: dict = {"a": 1}
untold = None
derived = p + 1
"""


@pytest.fixture
def notebook(tmp_path):
    return written(tmp_path / "some.ipynb", CELL)


def written(path, *cells):
    made = nbformat.v4.new_notebook()
    made.cells = [
        nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]}) for cell in cells
    ]
    nbformat.write(made, path)
    return path


def test_a_cell_is_read_by_a_parser(notebook):
    known = declared_parameters(notebook)
    found = {name: (p.type, p.default, p.range) for name, p in known.items()}
    assert found == {
        "kind": ("Literal['x', 'y=z']", "x", ""),
        "name": ("str | None", None, ""),
        "p": ("int", 1, "in [0, 4294967295]"),
        "q": ("int", 2, "in [0, 4294967295]"),
        "L0": ("list[float]", [0.03, 0.01], "each > 0"),
        "alpha": ("float", 0.9, "in (0, 1]"),
        "n": ("list[int]", [1, 1], "each in [1, 9], may repeat, as many as L0"),
        "device": ("str", "auto", "one of auto, cpu, cuda"),
        "kinds": ("list[str]", ["skip norm"], "each one of skip norm, plain"),
        "grid": ("dict", {"a": 1}, ""),
        "untold": ("NoneType", None, ""),
    }


ALLOWED = [
    {"kind": "y=z", "name": "ada", "p": 4294967295, "alpha": 1},
    {"L0": [1e-9, 5], "n": [9, 9]},
    {"kinds": ["plain", "skip norm"]},
    {"n": [1, 2], "device": "cpu", "grid": {"b": [1, {"c": None}]}, "untold": None},
]
REFUSED = {
    "kind": (["z", "x=", None, 1], "Literal['x', 'y=z'] is needed"),
    "name": ([1, [], False], "str | None is needed"),
    "p": ([-1, 2**32, 10**26], "allowed: in [0, 4294967295]"),
    "q": ([True, 1.0, "1", None, [1]], "int is needed"),
    "alpha": ([0, 0.0, 1.0001, -1, 10**400], ""),
    "L0": ([[0.1, 0.1], [0.1, -1], [0.1, 0], [], [0.1, "a"], [0.1, True], 0.1, "a"], ""),
    "n": ([[1], [1, 1, 1], [0, 1], [1, 1.5]], ""),
    "device": (["", "gpu", "auto, cpu"], "allowed: one of auto, cpu, cuda"),
    "kinds": ([["skip"], ["plain", "skip norm, plain"], ["Plain"]], "each one of skip norm, plain"),
    "grid": ([{"a": float("nan")}, {1: 2}, {"a": {1, 2}}], "plain JSON is needed"),
    "nobody": ([1], "no parameter 'nobody'; known: kind, name, p, q, L0"),
}


@pytest.mark.parametrize("point", ALLOWED)
def test_what_is_in_range_passes(notebook, point):
    check_parameters(notebook, point)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [(name, value, message) for name, (values, message) in REFUSED.items() for value in values],
)
def test_what_is_not_is_refused_with_its_name_and_value(notebook, name, value, message):
    with pytest.raises(ValueError) as caught:
        check_parameters(notebook, {"q": 3}, {name: value})
    said = str(caught.value)
    assert said.startswith("some") and name in said and message in said
    assert name == "nobody" or short(value) in said


def test_a_comment_goes_on_only_in_a_line_of_its_own(tmp_path):
    cell = "a: int = 1  # > 0,\nb: int = 2  # > 1; last,"
    known = declared_parameters(written(tmp_path / "a.ipynb", cell))
    assert (known["a"].range, known["b"].range) == ("", "> 1")


def test_lists_that_belong_together_have_one_length(notebook):
    with pytest.raises(ValueError, match=r"n is \[1, 1\]; 1 entries are needed, as many as L0"):
        check_parameters(notebook, {"L0": [0.01]})
    check_parameters(notebook, {"L0": [0.01], "n": [3]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(notebook, value):
    for point in ({"alpha": value}, {"L0": [0.1, value]}):
        with pytest.raises(ValueError, match="plain JSON is needed: finite"):
            check_parameters(notebook, point)


TEXTS = {
    ("p", "010"): 10,
    ("p", "1_000"): 1000,
    ("alpha", "1e-3"): 1e-3,
    ("alpha", "1"): 1,
    ("alpha", "high"): "high",
    ("kind", "1:30"): "1:30",
    ("kind", " #2"): " #2",
    ("name", "010"): "010",
    ("kind", "no"): "no",
    ("kind", "a: b"): "a: b",
    ("kind", "'5'"): "5",
    ("q", "'5'"): "5",
    ("q", "true"): True,
    ("name", "null"): None,
    ("name", "1"): "1",
    ("L0", "[1, 2e-3]"): [1, 2e-3],
    ("L0", "['1']"): ["1"],
    ("grid", "{a: [1, x]}"): {"a": [1, "x"]},
    ("nobody", "1.5"): 1.5,
    ("untold", "none"): None,
}


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_a_text_has_the_type_of_its_parameter(notebook, name, text):
    value = typed_values(notebook, {name: Text(text)})[name]
    assert (value, type(value)) == (TEXTS[name, text], type(TEXTS[name, text]))


@pytest.mark.parametrize("text", ["[1", "[1, 2] 3", "'a' b'", "[a #2]", "{a"])
def test_a_text_with_open_ends_is_refused(notebook, text):
    with pytest.raises(ValueError, match="is not a plain value"):
        typed_values(notebook, {"L0": Text(text)})


def test_several_texts_have_the_type_each(notebook):
    values = {"p": Text("1,010"), "L0": Text("[1],[2, 3]"), "kind": Text("x,'y=z'")}
    read = typed_values(notebook, values, several=True)
    assert read == {"p": [1, 10], "L0": [[1], [2, 3]], "kind": ["x", "y=z"]}


def test_a_file_of_values_has_the_same_types(notebook):
    text = "some:\n  L0: [1e-3, 2]  # two\n  kind: 1:30\n  p: 010\n  name: '5'\n"
    read = parameters.values_from_yaml(text, "some", notebook)
    assert read == {"L0": [1e-3, 2], "kind": "1:30", "p": 10, "name": "5"}
    assert parameters.values_from_yaml(text, "other", notebook) == {}
    assert parameters.values_from_yaml("", "some", notebook) == {}
    for bad in ("some: 1", "- some", "some: [", "some:\n  - p"):
        with pytest.raises(ValueError, match="values by notebook and name are needed"):
            parameters.values_from_yaml(bad, "some", notebook)


def test_two_cells_of_parameters_are_refused(tmp_path):
    path = written(tmp_path / "two.ipynb", "p: int = 1", "p: int = 2")
    with pytest.raises(ValueError, match="two.ipynb has 2 cells tagged 'parameters'"):
        declared_parameters(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [{}]}', "[" * 9_999])
def test_what_is_no_notebook_is_named(tmp_path, text):
    path = tmp_path / "bad.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.ipynb is not a notebook"):
        declared_parameters(path)
    with pytest.raises(ValueError, match="the parameters cell is not Python"):
        declared_parameters(written(path, "p = ("))


def test_no_parameters_are_none(tmp_path):
    assert declared_parameters(written(tmp_path / "none.ipynb")) == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_defaults_of_a_notebook_are_allowed(path):
    known = declared_parameters(path)
    assert known and json.dumps({name: p.default for name, p in known.items()})
    check_parameters(path, {name: p.default for name, p in known.items()})


def test_a_file_is_there_before_anything_runs(tmp_path, monkeypatch):
    cell = 'table: str = ""  # sweep.parquet or sweep.csv; what to draw\n'
    notebook = written(tmp_path / "some.ipynb", cell)
    (tmp_path / "mine.csv").touch()
    (tmp_path / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    found = typed_values(notebook, {"table": Text("mine.csv")})
    assert found == {"table": str(tmp_path / "mine.csv")}, "kernels are in another folder"
    grid = typed_values(notebook, {"table": Text("mine.csv,other.csv")}, several=True)
    assert grid == {"table": [str(tmp_path / "mine.csv"), str(tmp_path / "other.csv")]}
    check_parameters(notebook, found, typed_values(notebook, {"table": Text("")}))
    for bad in ("none.csv", "mine.txt", "."):
        with pytest.raises(ValueError, match="a file that is there is needed: sweep.parquet or"):
            check_parameters(notebook, typed_values(notebook, {"table": Text(bad)}))
    with pytest.raises(ValueError, match="table is 's3://b/t.csv', an address"):
        typed_values(notebook, {"table": Text("s3://b/t.csv")})


def test_a_folder_is_there_before_anything_runs(tmp_path, monkeypatch):
    notebook = written(tmp_path / "some.ipynb", 'tables: str = ""  # a folder; to read from\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.csv").touch()
    monkeypatch.chdir(tmp_path)
    found = typed_values(notebook, {"tables": Text("mine")})
    assert found == {"tables": str(tmp_path / "mine")}, "kernels are in another folder"
    check_parameters(notebook, found, typed_values(notebook, {"tables": Text("")}))
    for bad in ("none", "mine.csv"):
        with pytest.raises(ValueError, match="tables is .*; a folder that is there is needed"):
            check_parameters(notebook, typed_values(notebook, {"tables": Text(bad)}))


def test_a_file_of_the_paper_size_is_named_from_the_project(tmp_path, monkeypatch):
    """Whole while it is run, and in the manifest as it was named, whatever machine this is."""
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    notebook = written(tmp_path / "notebooks" / "some.ipynb", 'table: str = ""  # sweep.csv; old\n')
    yaml = notebook.parent / "params" / "paper.yaml"
    yaml.write_text("some:\n  table: figures/sweep.csv\n")
    chosen = parameters.paper_parameters(notebook)
    assert chosen == {"size": "paper", "table": str(tmp_path / "figures" / "sweep.csv")}
    monkeypatch.setattr(results, "PROJECT", tmp_path)
    elsewhere = {"other": "/elsewhere/figures/sweep.csv", "n": 3}
    assert results.portable(chosen | elsewhere) == {
        "size": "paper",
        "table": "figures/sweep.csv",
        **elsewhere,
    }
    yaml.write_text("some:\n  table: ''\n")
    assert parameters.paper_parameters(notebook)["table"] == ""
