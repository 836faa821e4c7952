"""Places and files that commands are given: refused in every command, or done as asked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scratch import PARAMETERS, write_notebook
from typer.testing import CliRunner

import dss
from dss.commands import app
from dss.given import folder_from, json_from, manifest_from

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"": "is empty", " ": "is empty", "s3://bucket/x": "an address", "file:///x": "an address"}
COMMANDS = [
    ["reproduce", "00_start_here", "--out"],
    ["verify", "--committed"],
    ["sweep", "00_start_here", "--grid", "seed=1,2", "--out"],
    ["check-certificate", "some.certificate", "--string"],
    ["check-certificate"],
]


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(("place", "reason"), PLACES.items())
def test_what_is_no_place_on_this_machine_is_refused(command, place, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*command, place)
    assert result.exit_code == 1 and result.output.startswith("dss: "), result.output
    name = command[-1] if command[-1].startswith("--") else "FILE"
    assert f"{name} is" in result.output and reason in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS[:3], ids=" ".join)
def test_a_file_is_no_folder(command, tmp_path):
    (tmp_path / "file").touch()
    result = call(*command, tmp_path / "file")
    assert result.exit_code == 1 and "which is a file; a folder is needed" in result.output


@pytest.mark.parametrize(("place", "reason"), PLACES.items())
def test_a_notebook_does_not_write_there_either(place, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = {"size": "quick", "seed": 0, "out": place}
    if not place:
        monkeypatch.setenv("DSS_OUT", place)
    with pytest.raises(ValueError, match=f"out, or DSS_OUT, is .*{reason.split()[-1]}"):
        dss.Results("none", parameters)
    assert not list(tmp_path.iterdir())


def test_a_folder_may_be_new_and_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_from("~/new", "--out") == folder_from(tmp_path / "new", "--out")
    assert folder_from("~/new", "--out") == tmp_path.resolve() / "new"


DEEP = "[" * 100_000
DAMAGED = {"": "is not JSON", "[]": "holds a list", DEEP: "is nested too deeply"}
NO_MANIFEST = DAMAGED | {
    '{"a.png": 1}': "'a.png' has no notebook",
    '{"a.png": {"notebook": "a.ipynb", "tables": []}}': "'a.png' has no tables",
}


@pytest.mark.parametrize(("text", "reason"), NO_MANIFEST.items(), ids=NO_MANIFEST.values())
@pytest.mark.parametrize("command", COMMANDS[:2], ids=" ".join)
def test_a_manifest_that_is_none_is_named(command, text, reason, tmp_path):
    path = tmp_path / "quick" / "manifest.json"
    path.parent.mkdir()
    path.write_text(text)
    result = call(*command, tmp_path)
    assert result.exit_code == 1 and f"dss: {path}" in result.output and reason in result.output


@pytest.mark.parametrize(("text", "reason"), DAMAGED.items(), ids=DAMAGED.values())
def test_json_that_is_none_is_named(text, reason, tmp_path):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path} {reason}"):
        json_from(path)
    assert manifest_from(tmp_path) == {}


def test_a_notebook_that_is_nested_too_deeply_is_named(tmp_path):
    path = write_notebook(tmp_path, "deep", "1", parameters=PARAMETERS)
    path.write_text(path.read_text().replace('"cells": [', f'"more": {DEEP}, "cells": [', 1))
    result = call("sweep", path, "--grid", "seed=1", "--out", tmp_path / "out")
    assert result.exit_code == 1 and f"dss: {path} is not a notebook" in result.output
    result = call("sweep", write_notebook(tmp_path, "some", "1"), "--grid", f"values={DEEP}")
    assert result.exit_code == 1 and "nested too deeply" in result.output


# --- signals and locales


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("command", "module", "name"),
    [
        (["reproduce"], "dss.runs.reproduce", "reproduce"),
        (["verify"], "dss.runs.verify", "verify"),
        (["sweep", "some", "--grid", "a=1"], "dss.runs.sweeps", "sweep_notebook"),
    ],
)
def test_sigterm_ends_a_command_as_control_c_does(command, module, name, monkeypatch):
    cleaned = []

    def terminated(**options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not disturb this
            cleaned.append(name)

    monkeypatch.setattr(f"{module}.{name}", terminated)
    before = signal.getsignal(signal.SIGTERM)
    result = call(*command)
    assert result.exit_code == 143 and "dss: stopped" in result.output and cleaned == [name]
    assert signal.getsignal(signal.SIGTERM) == before


SAYS = r"""import sys
from dss import __main__
from dss.runs import reproduce
outcome = reproduce.Outcome("01_caf\u00e9", 1.0, [], "cell [1]: \u03b3 > \u03b1")
reproduce.reproduce = lambda **options: [outcome]
sys.argv = ["dss", "reproduce"]
__main__.main()
"""


def test_an_ascii_locale_gets_its_tables_too():
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    environment = os.environ | ascii_only | {"PYTHONCOERCECLOCALE": "0"}
    line = [sys.executable, "-c", SAYS]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "01_caf\u00e9" in done.stdout and "FAILED in cell [1]: \u03b3 > \u03b1" in done.stdout
    with pytest.raises(ValueError, match="in this locale; one with UTF-8 is needed"):
        folder_from("/tmp/caf\udcc3\udca9", "--out")
