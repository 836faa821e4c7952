"""`dss verify`: which differences are found, which are allowed, and how it ends."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scratch import write_notebook
from typer.testing import CliRunner

import dss.runs.reproduce as reproducing
import dss.runs.verify as module
from dss.commands import app
from dss.runs.compare import agreement, compare

BODY = """\
import random, time
import matplotlib.pyplot as plt
import pandas as pd
import dss
run = dss.Results("{name}", globals(), {tolerances}, ["seconds*"])
noise = {noise} * random.random()
table = {{"alpha": [alpha, 2.0], "noisy": [1 + noise, 2.0], "seconds_all": [time.time(), 0.0]}}
run.table(pd.DataFrame(table), "numbers")
run.figure(plt.figure(), "picture")
run.finish()
"""
STUDY = """\
import matplotlib.pyplot as plt
import torch, dss
run = dss.Results("01_one", globals(), timings=["seconds*"])
generator = torch.Generator().manual_seed(seed)
strings, table = dss.study(
    dss.quad(), [0.01], n_pairs=4, max_depth=5, lr=1e-2, max_steps=500, generator=generator
)
sums = [s.thetas.double().square().sum().item() for s in strings]
run.table(table.assign(seconds_all=torch.rand(()).item()), "rows")
run.table(table[:4].assign(sums=sums, seconds_all=generator.seed()), "strings")
run.figure(plt.figure(), "picture")
run.finish()
"""


def verdicts(before, after, *rules):
    found = compare(pd.DataFrame(before), pd.DataFrame(after), *rules)
    return dict(zip(found.column, found.verdict, strict=True))


def test_numbers_do_not_appear_or_vanish_within_a_tolerance():
    few, none = [0.0] * 50 + [5.0], [math.nan] * 50 + [5.0]
    for before, after in ((few, none), (none, few)):
        for rows_vary in (False, True):
            found = compare(
                pd.DataFrame({"x": before}), pd.DataFrame({"x": after}), {"x": 0.5}, (), rows_vary
            )
            assert found.verdict[found.column == "x"].tolist() == ["DIFFERS"]


@pytest.mark.parametrize(
    "after, verdicts",
    [
        ([1.0, 2.0, 3.0, 4.0], ["identical", "identical"]),
        ([2.0, 1.0, 4.0, 3.0], ["identical", "within tolerance"]),
        ([1.0, 2.0, 3.0, 4.0, 2.5], ["DIFFERS", "within tolerance"]),
        ([1.0, 2.0, 3.0, 5.0], ["identical", "DIFFERS"]),
    ],
)
def test_rows_that_vary_are_compared_as_sets(after, verdicts):
    before = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0]})
    tolerances = {"x": 0.09, "rows": 0.1}
    found = compare(before, pd.DataFrame({"x": after}), tolerances, rows_vary=True)
    assert found.column.tolist() == ["(rows)", "x"] and found.verdict.tolist() == verdicts


def test_a_column_without_a_tolerance_moves_with_the_rows():
    before, after = (pd.DataFrame({"kind": ["a"] * n + ["b"] * 10}) for n in (10, 11))
    found = compare(before, after, {"rows": 0.1}, rows_vary=True)
    assert found.verdict.tolist() == ["within tolerance"] * 2
    assert compare(before, after, {}, rows_vary=True).verdict.tolist() == ["DIFFERS"] * 2


@pytest.mark.parametrize(
    "before, after, verdict",
    [
        ([1, 2], [1, 2], "identical"),
        ([1.5, math.nan], [1.5, math.nan], "identical"),
        ([0.1 + 0.2], [0.3], "DIFFERS"),
        ([0.0, 0.0], [0.0, 1e-300], "DIFFERS"),
        ([1.0, math.nan], [1.0, 0.0], "DIFFERS"),
        ([1.0, 0.0], [1.0, math.nan], "DIFFERS"),
        ([math.inf, 1.0], [math.inf, 2.0], "DIFFERS"),
        (["a", "b"], ["a", "b"], "identical"),
        (["a", None], ["a", None], "identical"),
        (["a", "b"], ["a", "c"], "DIFFERS"),
        ([True, False], [True, False], "identical"),
        ([True, False], [True, True], "DIFFERS"),
        ([True, False], [1, 0], "DIFFERS"),
        ([], [], "identical"),
    ],
)
def test_a_column_without_a_tolerance_must_be_equal(before, after, verdict):
    assert verdicts({"x": before}, {"x": after}) == {"x": verdict}


@pytest.mark.parametrize(
    "before, after, distance",
    [
        ([1.0, 3.0], [1.0, 2.0], 0.25),
        ([4, 0], [3, 1], 0.5),
        ([-1.0, 1.0], [-1.5, 1.0], 0.25),
        ([1.0, 3.0], [math.nan, 3.0], 0.5),
        ([0.0, 0.0], [0.0, 1e-9], math.inf),
        ([math.inf, 1.0], [math.inf, 3.0], 2),
        ([math.inf, 1.0], [2.0, 1.0], math.inf),
        ([2.0, 1.0], [math.inf, 1.0], math.inf),
        (["a", "b", "c", "d"], ["a", "b", "c", "e"], 0.25),
        ([True, False], [True, True], 0.5),
    ],
)
def test_the_distance_of_two_columns(before, after, distance):
    tables = pd.DataFrame({"x": before}), pd.DataFrame({"x": after})
    assert compare(*tables).distance[0] == pytest.approx(distance, rel=1e-12)
    if math.isfinite(distance):
        verdict = {
            rule: compare(*tables, {"x": rule * distance}).verdict[0] for rule in (0.99, 1.01)
        }
        assert verdict == {0.99: "DIFFERS", 1.01: "within tolerance"}
    else:
        assert compare(*tables, {"x": 1e9}).verdict[0] == "DIFFERS"


def test_a_number_against_a_missing_one_is_never_identical():
    found = compare(pd.DataFrame({"x": [1.0, 0.0]}), pd.DataFrame({"x": [1.0, np.nan]}))
    assert found.distance[0] > 0


def test_the_first_pattern_that_matches_decides():
    before = {"n_beads": [100.0], "n_steps": [100.0], "beads": [100.0], "seconds": [1.0]}
    after = {"n_beads": [104.0], "n_steps": [104.0], "beads": [104.0], "seconds": [9.0]}
    rules = {"n_beads": 0.05, "n_*": 0.01, "*": 0}
    assert verdicts(before, after, rules, ["sec*"]) == {
        "n_beads": "within tolerance",
        "n_steps": "DIFFERS",
        "beads": "DIFFERS",
        "seconds": "not compared",
    }
    swapped = {"n_*": 0.01, "n_beads": 0.05}
    assert verdicts(before, after, swapped)["n_beads"] == "DIFFERS"


def test_columns_and_rows_that_only_one_side_has():
    found = compare(pd.DataFrame({"x": [1], "y": [1]}), pd.DataFrame({"x": [1], "z": [1]}))
    assert found.column.tolist() == ["x", "y", "z"]
    assert found.rule.tolist() == ["exact", "only before", "only now"]
    assert found.verdict.tolist() == ["identical", "DIFFERS", "DIFFERS"]
    (row,) = compare(pd.DataFrame({"x": [1]}), pd.DataFrame({"x": [1, 1]})).itertuples()
    assert row.rule == "1 rows before, 2 now" and row.verdict == "DIFFERS"
    timed = {"timings": ["seconds*"]}
    (_, row) = compare(
        pd.DataFrame({"x": [1]}), pd.DataFrame({"x": [1], "seconds": [1]}), **timed
    ).itertuples()
    assert row.verdict == "DIFFERS"


def test_a_pattern_covers_the_number_of_rows_too():
    before, after = pd.DataFrame({"x": [1.0] * 3}), pd.DataFrame({"x": [1.0] * 4})
    for tolerances in ({"*": 0.5}, {"rows": 0.5}):
        found = compare(before, after, tolerances, rows_vary=True)
        assert found.verdict.tolist()[0] == "within tolerance", tolerances


# --- of notebooks


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project(noise, tolerances)`: a project with one notebook, 01_one, and what it gave."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for target in (reproducing, module):
        monkeypatch.setattr(target, "PROJECT", tmp_path)
    monkeypatch.setattr(reproducing, "NOTEBOOKS", notebooks)

    def write(noise=0, tolerances=None, body=BODY):
        values = {"name": "01_one", "noise": noise, "tolerances": tolerances or {}}
        write_notebook(notebooks, "01_one", body.format(**values) if "{" in body else body)
        return tmp_path / "figures" / "quick"

    return write


def call(name, *arguments):
    return CliRunner().invoke(app, [name, *map(str, arguments)])


@pytest.fixture
def made(tmp_path, monkeypatch):
    """What a run would give now, without running it: the folder can be edited."""
    given = tmp_path / "given"
    given.mkdir()
    table = b"alpha\n0.9\n"
    (given / "01_one_numbers.csv").write_bytes(table)
    (given / "01_one_picture.png").write_bytes(b"picture")
    entry = {
        "sha256": hashlib.sha256(b"picture").hexdigest(),
        "notebook": "01_one.ipynb",
        "tables": {"01_one_numbers.csv": hashlib.sha256(table).hexdigest()},
        "tolerances": {},
        "timings": [],
    }
    (given / "manifest.json").write_text(json.dumps({"01_one_picture.png": entry}))
    shutil.copytree(given, tmp_path / "figures" / "quick")

    def run(names, size, device, out, cell_timeout, jobs):
        shutil.copytree(given, Path(out) / size)
        return [reproducing.Outcome("01_one", 1.0, ["01_one_picture.png"])]

    monkeypatch.setattr(module, "reproduce", run)
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    return given


@pytest.mark.slow
def test_what_is_identical_or_within_its_tolerance_passes_and_the_rest_is_named(project):
    folder = project(noise=1e-3, tolerances={"noisy": 0.01})
    assert call("reproduce").exit_code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = call("verify")
    assert result.exit_code == 0, result.output
    rows = {
        line.split()[0]: line.split()[1:] for line in result.output.splitlines() if line.strip()
    }
    assert rows["alpha"] == ["exact", "0", "identical"]
    assert rows["noisy"][:2] == ["within", "0.01"] and rows["noisy"][3:] == ["within", "tolerance"]
    assert rows["seconds_all"] == ["timing", "not", "compared"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    project(noise=1, tolerances={"noisy": 1e-9})
    result = call("verify", "01_one")
    assert result.exit_code == 1 and "1 columns DIFFERS" in result.output
    (line,) = (line for line in result.output.splitlines() if line.endswith("  DIFFERS"))
    assert line.split()[0] == "noisy"


@pytest.mark.slow
def test_a_notebook_that_fails_differs_and_what_it_made_is_kept(
    project, made, monkeypatch, tmp_path
):
    project(body="(__import__('pathlib').Path(out) / 'made.csv').touch()\n1 / 0")
    monkeypatch.setattr(module, "reproduce", reproducing.reproduce)
    result = call("verify")
    assert result.exit_code == 1 and "it failed in cell [2]: ZeroDivisionError" in result.output
    kept = tmp_path / "runs" / "failed" / "quick" / "01_one"
    assert f"what it made is in {kept}/" in result.output
    assert {path.name for path in kept.iterdir()} == {"made.csv", "01_one.ipynb"}


def test_the_number_of_jobs_is_handed_on(made, monkeypatch):
    asked, run = [], module.reproduce

    def noting(names, size, jobs, **more):
        asked.append(jobs)
        return run(names, size, jobs=jobs, **more)

    monkeypatch.setattr(module, "reproduce", noting)
    assert call("verify", "--jobs", 3).exit_code == call("verify").exit_code == 0
    assert asked == [3, None]


def test_the_same_files_again_are_verified(made):
    result = call("verify")
    assert result.exit_code == 0 and result.output.endswith("1 columns identical\n")


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("01_one_numbers.csv", "alpha\n0.90\n", "it is not the file that the manifest was"),
        ("01_one_picture.png", "another", "it is not the file that the manifest was"),
        ("01_one_numbers.csv", None, "it is missing"),
        ("01_one_picture.png", None, "it is missing"),
    ],
)
def test_a_file_that_was_edited_or_removed_by_hand_is_named(made, tmp_path, name, content, reason):
    path = tmp_path / "figures" / "quick" / name
    path.unlink()
    if content:
        path.write_text(content)
    result = call("verify")
    assert result.exit_code == 1
    assert f"\n{name}\n" in result.output and reason in result.output
    assert "1 columns DIFFERS" in result.output


def test_a_number_that_was_edited_by_hand_differs(made, tmp_path):
    (tmp_path / "figures" / "quick" / "01_one_numbers.csv").write_text("alpha\n0.8\n")
    result = call("verify")
    assert result.exit_code == 1 and "2 columns DIFFERS" in result.output


def test_a_notebook_without_figures_on_one_side_differs(made, tmp_path):
    committed = tmp_path / "figures" / "quick" / "manifest.json"
    text = committed.read_text()
    (made / "manifest.json").write_text("{}")
    result = call("verify")
    assert result.exit_code == 1 and "it has no figure any more" in result.output
    (made / "manifest.json").write_text(text)
    committed.write_text("{}")
    result = call("verify")
    assert result.exit_code == 1 and "names no figure" in result.output
    committed.write_text(text)
    result = call("verify", "02_two")
    assert result.exit_code == 1 and "there is nothing of '02_two'" in result.output
    committed.unlink()
    result = call("verify")
    assert result.exit_code == 1
    assert f"dss: there is no {committed} to compare with" in result.output


def test_a_table_that_only_one_side_has_differs(made):
    manifest = made / "manifest.json"
    manifest.write_text(manifest.read_text().replace("numbers.csv", "others.csv"))
    result = call("verify")
    assert result.exit_code == 1 and "only before" in result.output
    assert "only now" in result.output


@pytest.mark.slow
def test_two_runs_of_a_study_are_bit_identical(project):
    folder = project(body=STUDY)
    assert call("reproduce").exit_code == 0
    entry = json.loads((folder / "manifest.json").read_text())["01_one_picture.png"]
    assert set(entry["tables"]) == {"01_one_rows.csv", "01_one_strings.csv"}
    found = module.verify([])
    counts = found[~found.column.str.startswith("seconds")].verdict.value_counts()
    assert set(counts.index) == {"identical"} and counts["identical"] > 10
    assert (found.verdict[found.column.str.startswith("seconds")] == "not compared").all()


@pytest.mark.parametrize(
    "alpha, table, tolerances, said",
    [
        (0.9, "alpha\n0.9\n", {}, "same parameters; tables: 1 identical"),
        (0.8, "alpha\n0.9\n", {}, "alpha 0.8 (was 0.9); tables: 1 identical"),
        (0.9, "alpha\n0.91\n", {"alpha": 0.1}, "same parameters; tables: 1 within tolerance"),
        (0.9, "alpha\n1.9\n", {"alpha": 0.1}, "same parameters; 1 of 1 tables differ: {table}"),
        (0.9, None, {}, "same parameters; 2 of 2 tables differ: {table}, 01_one_new.csv"),
        (0.9, "", {}, "cannot be compared with {old}: EmptyDataError: "),
    ],
)
def test_agreement_is_told_in_a_line(made, tmp_path, alpha, table, tolerances, said):
    old, path = tmp_path / "figures" / "quick", made / "manifest.json"
    for folder, value in ((old, 0.9), (made, alpha)):
        manifest = json.loads((folder / "manifest.json").read_text())
        entry = manifest["01_one_picture.png"]
        entry |= {"parameters": {"alpha": value}, "tolerances": tolerances}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if table is None:
        path.write_text(path.read_text().replace('"01_one_numbers.csv"', '"01_one_new.csv"'))
    else:
        (made / "01_one_numbers.csv").write_text(table)
    expected = said.format(table="01_one_numbers.csv", old=old)
    assert agreement("01_one", old, made).startswith(expected)
    assert agreement("02_two", old, made) == "nothing to compare with"
