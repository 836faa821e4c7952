"""The examples of README and pages run as pasted, and the files that they name exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dss.proofs.checker import check_certificate
from dss.runs.reproduce import notebook_names

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "notebooks").glob("*.md"))]


def examples(page, language="python", part=""):
    """Blocks of code of a page, from a heading on."""
    text = (ROOT / page).read_text().split(part, 1)[-1] if part else (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run_as_pasted(example, folder, monkeypatch, capsys, names=None):
    monkeypatch.chdir(folder)
    exec(compile(example, "example", "exec"), names or {})
    return capsys.readouterr().out


def test_the_short_example_of_the_readme(tmp_path, monkeypatch, capsys):
    x = torch.linspace(-1, 1, 50)[:, None]
    nets = [nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)) for _ in range(2)]
    names = {"net_1": nets[0], "net_2": nets[1], "x_train": x, "x_test": x}
    names |= {"y_train": torch.zeros_like(x), "y_test": torch.zeros_like(x)}
    for net in nets:
        net[2].weight.data.zero_()
        net[2].bias.data.fill_(0.05)
    (example,) = examples("README.md")
    assert run_as_pasted(example, tmp_path, monkeypatch, capsys, names) == "connected 0 1.0\n"


def test_the_example_of_an_own_network(tmp_path, monkeypatch, capsys):
    out = run_as_pasted(examples("notebooks/own_networks.md")[0], tmp_path, monkeypatch, capsys)
    assert out.startswith("connected ")
    assert (tmp_path / "string.safetensors").exists()


def test_the_example_of_a_proof(tmp_path, monkeypatch, capsys):
    out = run_as_pasted(examples("notebooks/proofs.md")[0], tmp_path, monkeypatch, capsys)
    assert out.startswith("True (0.00")
    assert check_certificate("pair.certificate", "pair.string") == []


@pytest.mark.slow
def test_the_example_of_a_study_without_notebooks(tmp_path):
    (example,) = examples("notebooks/reruns.md")
    (tmp_path / "example.py").write_text(example)
    command = [sys.executable, str(tmp_path / "example.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "fraction" in done.stdout and len(done.stdout.splitlines()) == 5


@pytest.mark.slow
def test_the_commands_of_a_sweep(tmp_path):
    commands = examples("notebooks/reruns.md", "sh", "## Grids of parameters")[0]
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
    commands = examples("README.md", "sh", "## Assignments")[0]
    commands = commands.replace("courses/", f"{tmp_path}/")
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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_linked_file_exists(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_the_table_of_notebooks_is_complete():
    """It is the one place beside itself where a new notebook is entered."""
    rows = r"^\| \[(\w+)\]\(notebooks/\1\.ipynb\)"
    names = re.findall(rows, README.read_text(), re.MULTILINE)
    assert names == notebook_names()
