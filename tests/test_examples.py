"""The strings that travel with the companion: whole, small, of their tasks, and proved again."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import dss
from dss import examples
from dss.commands import app
from dss.examples import EXAMPLES, FOLDER
from dss.proofs.checker import check_certificate
from dss.runs.examples import PAGE, make, sha256_of

MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
BOUNDED = [name for name, example in EXAMPLES.items() if example.is_bounded]
# Data that not every machine has.
FOLDERS = {"cifar10 cnn": "DSS_CIFAR_DIR", "ptb lstm": "DSS_PTB_DIR"}
LONG = {"mnist cnn", "cifar10 cnn"}  # for the checker: convolutions of a thousand images


def each(names):
    marks = {name: [pytest.mark.slow] for name in LONG}
    for name, variable in FOLDERS.items():
        absent = not os.environ.get(variable)
        marks.setdefault(name, []).append(pytest.mark.skipif(absent, reason=f"no {variable}"))
    return [pytest.param(name, marks=marks.get(name, [])) for name in names]


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder of strings."""
    return shutil.copytree(FOLDER, tmp_path / "strings")


@pytest.mark.parametrize("name", each(EXAMPLES))
def test_a_string_is_what_it_says(name):
    task, string = examples.load(name)
    said, L0 = MANIFEST[name]["string"], EXAMPLES[name].L0
    assert (string.L0, string.status, string.n_beads) == (L0, said["status"], said["n_beads"])
    found = dss.Gamma_tilde(task, string.thetas, string.n_t)
    assert found == pytest.approx(string.Gamma_tilde, rel=1e-3)
    limit = string.slack * L0 * (1 + 1e-5)
    assert (task.losses(string.thetas[[0, -1]]) <= limit).all()
    assert (found <= limit) == string.connected == (name != "one linear unit")
    straight = dss.Gamma_tilde(task, string.thetas[[0, -1]], string.n_t)
    assert straight > limit, "there was something to find"
    network = string.module(1)
    x, _ = task.splits["test"]
    with torch.no_grad():
        ours = network(x[:4])
    torch.testing.assert_close(ours, task.outputs(string.thetas[1:2], x[:4])[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", each(BOUNDED))
def test_a_certificate_is_confirmed_by_other_code(name, tmp_path):
    certificate = examples.certificate(name)
    path = certificate.save(tmp_path / "certificate")
    assert check_certificate(path, examples.path_of(name, ".string", None)) == []
    assert certificate.proved == (name != "one linear unit") != certificate.refuted
    assert certificate.limit == pytest.approx(EXAMPLES[name].L0 * MANIFEST[name]["string"]["slack"])


def test_one_unit_has_the_known_barrier_and_two_have_none():
    one, two = (examples.load(f"{n}")[1] for n in ("one linear unit", "two linear units"))
    assert one.Gamma_tilde == pytest.approx(1, abs=1e-3) and not one.connected
    assert (one.thetas[0].sign() != one.thetas[-1].sign()).all()
    assert examples.certificate("one linear unit").Gamma_tilde[1] >= 1
    assert two.connected and two.n_beads == 1


def test_the_files_are_those_of_the_manifest_and_small():
    assert list(MANIFEST) == list(EXAMPLES)
    digests = {n: d for entry in MANIFEST.values() for n, d in entry["files"].items()}
    assert sha256_of(PAGE) == digests.pop(PAGE.name)
    files = {path.name: sha256_of(path) for path in FOLDER.iterdir()}
    del files["manifest.json"]
    assert files == digests
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 3_000_000


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_manifest_states_how_a_string_was_made(name):
    entry, example = MANIFEST[name], EXAMPLES[name]
    assert (entry["task"], entry["seed"]) == (example.call, example.seed)
    assert example.options.items() <= entry["options"].items()
    assert len(entry["git_commit"]) == 40 and entry["git_dirty"] is False
    assert ("data" in entry) and (name.split()[0] in ("mnist", "cifar10", "ptb")) == bool(
        entry["data"]
    )


def test_a_string_is_found_again(tmp_path):
    """On another machine the descent may part, so that the number of beads is near."""
    ((name, entry),) = make(["quad"], tmp_path)
    assert entry["string"]["connected"] and entry["string"]["proved"]
    assert abs(entry["string"]["n_beads"] - MANIFEST["quad"]["string"]["n_beads"]) <= 3
    assert set(entry) == set(MANIFEST["quad"])
    task, string = examples.load("quad", folder=tmp_path)
    assert examples.certificate("quad", folder=tmp_path).proved and string.task is task


def test_unknown_names_list_the_known():
    for call in (examples.load, examples.certificate):
        with pytest.raises(ValueError, match="unknown example 'mnist'; known: 'quad', 'cubic', "):
            call("mnist")
    with pytest.raises(ValueError, match="ptb lstm has no certificate.*there are: 'quad'"):
        examples.certificate("ptb lstm")


def test_without_the_files_it_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder=.*EXAMPLES\['quad'\]\.find\(\)"):
        examples.load("quad", folder=tmp_path)
    (tmp_path / "quad.string").write_bytes((FOLDER / "quad.string").read_bytes())
    with pytest.raises(ValueError, match="unknown string of .*manifest.json 'quad'"):
        examples.load("quad", folder=tmp_path)


def test_without_the_data_it_names_the_string(monkeypatch):
    def missing():
        raise RuntimeError("MNIST is not complete")

    monkeypatch.setattr("dss.tasks.load_mnist", missing)
    with pytest.raises(RuntimeError, match="not complete\n.*dss.String.load.*mnist_mlp.string"):
        examples.load("mnist mlp")


def test_other_data_are_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["mnist mlp"]["data"]["mnist"] = {"kind": "jpeg", "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="found on mnist .jpeg, sha256 0000.*the string alone"):
        examples.load("mnist mlp", folder=folder)


@pytest.mark.parametrize("ending, call", [(".string", "load"), (".proof", "certificate")])
def test_a_damaged_file_is_refused(folder, ending, call):
    path = folder / f"quad{ending}"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"quad{ending} is not a readable .*sha256"):
        getattr(examples, call)("quad", folder=folder)
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match=f"quad{ending} is not a readable"):
        getattr(examples, call)("quad", folder=folder)
    (folder / "manifest.json").write_text('{"quad": 1}')
    with pytest.raises(ValueError, match="no manifest of strings|not a readable"):
        examples.load("quad", folder=folder)


def test_a_proof_of_another_string_is_refused(folder):
    shutil.copy(folder / "two_linear_units.proof", folder / "one_linear_unit.proof")
    with pytest.raises(ValueError, match="of other networks or samples"):
        examples.certificate("one linear unit", folder=folder)


def test_the_command_finds_strings(tmp_path):
    done = CliRunner().invoke(app, ["strings", "two linear units", "--out", str(tmp_path)])
    assert done.exit_code == 0 and "two linear units  connected" in done.output
    assert examples.load("two linear units", folder=tmp_path)[1].connected
    done = CliRunner().invoke(app, ["strings", "three"])
    assert done.exit_code == 1 and "unknown example 'three'" in done.output


def test_one_line_is_enough(tmp_path):
    code = "import dss; task, string = dss.examples.load('quad'); print(string.status.value)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "connected\n"
