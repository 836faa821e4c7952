"""The README's examples run as pasted, and its files exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dss.proofs.checker import check_certificate
from dss.runs.reproduce import notebook_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def run_as_pasted(part, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (example,) = re.findall(r"```python\n(.*?)```", README.split(part)[1], flags=re.DOTALL)[:1]
    exec(compile(example, "README.md", "exec"), {})
    return capsys.readouterr().out


def test_the_example_of_an_own_network(tmp_path, monkeypatch, capsys):
    out = run_as_pasted("## Your own network", tmp_path, monkeypatch, capsys)
    assert out.startswith("connected ")
    assert (tmp_path / "string.safetensors").exists()


def test_the_example_of_a_proof(tmp_path, monkeypatch, capsys):
    out = run_as_pasted("## Proofs", tmp_path, monkeypatch, capsys)
    assert out.startswith("True (0.00")
    assert check_certificate("pair.certificate", "pair.string") == []


@pytest.mark.slow
def test_the_example_of_a_study_without_notebooks(tmp_path):
    section = README.split("## Reruns at scale")[1]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:1]
    (tmp_path / "example.py").write_text(example)
    command = [sys.executable, str(tmp_path / "example.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "fraction" in done.stdout and len(done.stdout.splitlines()) == 5


@pytest.mark.slow
def test_the_commands_of_a_sweep(tmp_path):
    (commands,) = re.findall(r"```sh\n(.*?)```", README.split("## Reruns at scale")[1], re.DOTALL)[
        :1
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands.replace("/tmp/", f"{tmp_path}/")],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "4 jobs: 4 succeeded" in done.stdout
    assert list((tmp_path / "report").glob("*/sweep_report_means.png"))


@pytest.mark.slow
def test_the_commands_of_a_course(tmp_path):
    commands = re.findall(r"```sh\n(.*?)```", README.split("## Assignments")[1], re.DOTALL)[1]
    commands = commands.replace("source .venv/bin/activate", "").replace("courses/", f"{tmp_path}/")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"ada +1_gamma +0/16", done.stdout)
    assert (tmp_path / "g7" / "grades.csv").exists()


def test_every_linked_file_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_table_of_notebooks_is_complete():
    """It is the one place beside itself where a new notebook is entered."""
    names = re.findall(r"^\| \[(\w+)\]\(notebooks/\1\.ipynb\)", README, re.MULTILINE)
    assert names == notebook_names()
