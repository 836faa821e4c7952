"""`dss reproduce`: what is refused, what survives a failure, what is put into place."""

import json
import subprocess
import sys

import nbformat
import pytest
from scratch import BODY, FINISH, write_notebook
from typer.testing import CliRunner

import dss.reproduce as module
from dss.__main__ import _app


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with one good notebook, 01_good."""
    notebooks = tmp_path / "notebooks"
    (notebooks / "params").mkdir(parents=True)
    (notebooks / "params" / "paper.yaml").write_text("01_good:\n  alpha: 0.25\n")
    write_notebook(notebooks, "01_good", BODY.format(name="01_good"), FINISH)
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setattr(module, "NOTEBOOKS", notebooks)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(_app(), ["reproduce", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["07_none"], "no notebook '07_none'; known: 01_good"),
        (["-p", "gamma=1"], "no parameter 'gamma'; known: size, seed, alpha, values"),
        (["-p", "alpha=high"], "alpha is 'high' (str); float is needed"),
        (["-p", "seed=0.5"], "seed is 0.5 (float); int is needed"),
        (["-p", "seed=true"], "seed is True (bool); int is needed"),
        (["-p", "alpha"], "-p alpha: NAME=VALUE is needed"),
        (["--save-outputs", "-p", "alpha=0.5"], "default parameters only"),
    ],
)
def test_a_bad_call_is_refused_before_anything_runs(project, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert not (project / "figures").exists()


def test_files_and_manifest_are_put_into_place(project):
    folder = project / "figures" / "quick"
    folder.mkdir(parents=True)
    (folder / "01_good_stale.png").write_text("from an earlier version")
    (folder / "02_other_keep.png").write_text("of another notebook")
    stale = {"notebook": "01_good.ipynb", "tables": {}}
    (folder / "manifest.json").write_text(json.dumps({"01_good_stale.png": stale}))
    result = run("-p", "alpha=1e-1", "-p", "values=[3, 4e-1]")
    assert result.exit_code == 0, result.output
    names = {path.name for path in folder.glob("[!.]*")}
    assert names == {
        "01_good_numbers.csv",
        "01_good_picture.png",
        "02_other_keep.png",
        "manifest.json",
    }
    entry = json.loads((folder / "manifest.json").read_text())["01_good_picture.png"]
    assert entry["parameters"]["alpha"] == 0.1
    assert entry["parameters"]["values"] == [3, 0.4]
    assert "01_good_numbers.csv" in entry["tables"]


def test_paper_size_takes_its_overrides(project):
    assert run("--size", "paper").exit_code == 0
    assert (project / "figures/paper/01_good_numbers.csv").read_text() == "alpha\n0.25\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("x = 1\n1 / 0", "cell [2]: ZeroDivisionError"),
        ("import os\nos.kill(os.getpid(), 9)", "cell [2]: DeadKernelError"),
        ("import time\ntime.sleep(60)", "cell [2]: CellTimeoutError"),
        ("x = 1", "manifest"),
    ],
    ids=["exception", "killed kernel", "hung cell", "no finish"],
)
def test_a_failure_leaves_earlier_outputs_and_names_the_cell(project, body, reason):
    folder = project / "figures" / "quick"
    folder.mkdir(parents=True)
    (folder / "02_bad_picture.png").write_text("the last good one")
    write_notebook(project / "notebooks", "02_bad", body)
    result = run("02_bad", "--cell-timeout", "5")
    assert result.exit_code == 1
    assert reason in result.output
    assert "1 of 1 notebooks failed: 02_bad" in result.output
    assert (folder / "02_bad_picture.png").read_text() == "the last good one"
    assert not list(folder.glob(".*"))


def test_a_failure_does_not_stop_the_other_notebooks(project):
    write_notebook(project / "notebooks", "00_bad", "1 / 0")
    result = run()
    assert result.exit_code == 1
    assert "1 of 2 notebooks failed: 00_bad" in result.output
    assert (project / "figures/quick/01_good_picture.png").exists()


def test_saved_outputs_carry_no_trace_of_papermill(project):
    assert run("--save-outputs").exit_code == 0
    path = project / "notebooks" / "01_good.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert "papermill" not in path.read_text() and "injected" not in path.read_text()
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert notebook.cells[-1].outputs[0].text == "0.9\n"


def test_plain_papermill_runs_from_any_folder(project, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "papermill", "../notebooks/01_good.ipynb", "out.ipynb"]
    command += ["-p", "alpha", "0.8", "-p", "out", str(elsewhere / "figures")]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "figures/01_good_numbers.csv").read_text() == "alpha\n0.8\n"


def test_the_module_and_the_script_are_one_command():
    for command in (["-m", "dss", "--help"], ["-c", "from dss.__main__ import main; main()"]):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=60
        )
        assert "reproduce" in done.stdout and "data" in done.stdout
