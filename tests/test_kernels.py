"""Kernels are of this Python and this `dss`, with assertions on, whatever the user has set up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import classes  # noqa: F401  it knows the folder of the next
import execution
import pytest
from scratch import write_notebook

from dss.runs.execute import execute
from dss.runs.kernels import OtherKernel, OwnKernel, Scratch


@pytest.fixture
def own_setup(tmp_path, monkeypatch):
    """What a user, a conda environment or a container image may have set up."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    for path in (startup / "00-mine.py", tmp_path / "mine.py"):
        path.write_text("changed = True\n")
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = {"argv": ["false"], "display_name": "Mine", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(argv))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "mine.py"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")


def run(folder, *cells):
    path = write_notebook(folder, "some", *cells)
    return execute(path, {}, folder / "out", folder / "executed.ipynb")


def test_what_a_user_has_set_up_does_not_reach_a_notebook(own_setup, tmp_path):
    error = run(tmp_path, "assert False, f\"changed: {'changed' in globals()}\"")
    assert error == "cell [2]: AssertionError: changed: False"


def test_what_is_set_up_for_everybody_does_not_reach_a_notebook(tmp_path, monkeypatch):
    """`/etc/ipython`, or `etc/ipython` of the environment: another folder stands for them here."""
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "00-ours.py").write_text("changed = True\n")
    (tmp_path / "sitecustomize.py").write_text(
        "from IPython.core import application\n"
        f"application.SYSTEM_CONFIG_DIRS.append({str(tmp_path)!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error = run(tmp_path, "assert False, f\"changed: {'changed' in globals()}\"")
    assert error == "cell [2]: AssertionError: changed: False"


def test_a_relative_folder_of_data_is_the_same_in_a_kernel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSS_DATA", "mine")
    (tmp_path / "notebooks").mkdir()
    error = run(tmp_path / "notebooks", "import dss.data", "assert False, dss.data.data_root()")
    assert error == f"cell [3]: AssertionError: {tmp_path / 'mine'}"


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, young, other = (tmp_path / f"dss-{name}" for name in ("kernel-1", "kernel-2", "verify-1"))
    for folder in (left, young, other):
        folder.mkdir()
    with Scratch("kernel") as used:
        for folder in (left, other, used):
            os.utime(folder, (0, 0))
        with Scratch("kernel") as new:
            found = {path.name for path in tmp_path.iterdir()}
            assert found == {young.name, other.name, Path(used).name, Path(new).name}
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name}


def test_another_copy_of_dss_in_the_kernel_is_refused(tmp_path, monkeypatch):
    (tmp_path / "other" / "dss").mkdir(parents=True)
    (tmp_path / "other" / "dss" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    error = run(tmp_path, "1 / 0")
    assert error.startswith("before the first cell: OtherKernel: the kernel has dss ")
    assert str(tmp_path / "other" / "dss" / "__init__.py") in error and error.endswith("is needed")


def test_braces_in_paths_and_a_notebook_that_names_no_kernel(tmp_path):
    folder = tmp_path / "{alpha}{0}{"
    folder.mkdir()
    path = write_notebook(folder, "{x}", "(__import__('pathlib').Path(out) / 'here').touch()")
    notebook = json.loads(path.read_text())
    notebook["metadata"] = {}
    path.write_text(json.dumps(notebook))
    (folder / "{out}").mkdir()
    error = execute(path, {"alpha": 0.5}, folder / "{out}", folder / "executed {y}.ipynb")
    assert "without a manifest" in error, "it came to its end"
    assert (folder / "{out}" / "here").exists() and (folder / "executed {y}.ipynb").exists()


def test_grading_begins_with_a_kernel_that_checks(own_setup):
    assert execution.check_kernel() == ("graded", "")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"PYTHONOPTIMIZE": "1"}, "the kernel has assertions False; True is needed"),
        ({"PYTHONPATH": "{other}"}, "the kernel has sys.prefix '/other'; "),
    ],
)
def test_grading_does_not_begin_with_another(setting, message, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.prefix = '/other'\n")
    setting = {name: value.format(other=tmp_path) for name, value in setting.items()}
    usual = OwnKernel.environment
    monkeypatch.setattr(OwnKernel, "environment", lambda kernel: usual(kernel) | setting)
    with pytest.raises(OtherKernel, match=message):
        execution.check_kernel()


def test_results_are_not_for_a_kernel_of_another_kind_without_assertions(tmp_path):
    """Plain papermill and JupyterLab start kernels of their own."""
    code = "import dss; dss.Results('01_definitions', {'size': 'quick', 'seed': 0})"
    options = {"cwd": tmp_path, "env": os.environ | {"DSS_OUT": str(tmp_path / "out")}}
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, **options
    )
    assert "RuntimeError: assertions are off in this kernel" in done.stderr
    assert not (tmp_path / "out").exists()


def test_make_switches_assertions_on():
    makefile = Path(__file__).parents[1] / "Makefile"
    line = ["make", "-f", makefile, "--eval", 'shown:; @echo "<$$PYTHONOPTIMIZE>"', "shown"]
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # where `make test` runs this
    environment = {n: v for n, v in os.environ.items() if n not in outer} | {"PYTHONOPTIMIZE": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.stdout == "<>\n", done.stderr
