"""Files that an earlier version wrote: they load, or are refused with what differs."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import dss
from dss.proofs.checker import check_certificate
from dss.runs import reproduce
from dss.runs import verify as verify_module
from dss.runs.verify import verify

# Written by version 0.1.0 before the package had wings; see the commit that added them.
FORMATS = Path(__file__).parent / "formats"
SEARCH = {"optimizer": "adam", "lr": 0.01, "alpha": 0.9}


@pytest.fixture(scope="module")
def task():
    return dss.quad(n_train=16, n_eval=16)


@pytest.fixture(scope="module")
def string():
    return dss.String.load(FORMATS / "quad.string")


def test_a_string_loads_and_is_what_it_was(task, string):
    assert string.status == "connected" and string.n_beads == 5
    assert string.normalized_length == pytest.approx(1.2, abs=0.3)
    found = dss.Gamma_tilde(task, string.thetas, string.n_t)
    assert found == pytest.approx(string.Gamma_tilde, rel=1e-5)


def test_a_certificate_loads_and_is_confirmed(string):
    path = FORMATS / "quad.certificate"
    assert check_certificate(path, FORMATS / "quad.string") == []
    certificate = dss.Certificate.load(path)
    assert certificate.proved and torch.equal(certificate.thetas, string.thetas)


def test_a_checkpoint_of_earlier_code_is_refused_with_what_differs(task, string, tmp_path):
    path = shutil.copy(FORMATS / "quad.checkpoint", tmp_path / "c")
    before = Path(path).read_bytes()
    ends = string.thetas[[0, -1]]
    with pytest.raises(ValueError, match="is of another search: source of dss is '[0-9a-f]{16}'"):
        dss.find_string(task, *ends, 0.01, checkpoint=path, **SEARCH)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize(
    "name, load",
    [("quad.string", dss.String.load), ("quad.certificate", dss.Certificate.load)],
)
def test_another_version_is_refused_by_its_name(name, load, tmp_path):
    content = (FORMATS / name).read_bytes()
    kind = f"dss-{name[5:]}-1".encode()
    assert content.count(kind) == 1
    (tmp_path / name).write_bytes(content.replace(kind, kind[:-1] + b"9"))
    with pytest.raises(ValueError, match=f"format is 'dss-{name[5:]}-9'; 'dss-{name[5:]}-1' is"):
        load(tmp_path / name)


def test_a_manifest_names_what_there_is_to_verify(tmp_path):
    folder = tmp_path / "quick"
    shutil.copytree(FORMATS / "quick", folder)
    with pytest.raises(ValueError, match="there is of: 01_definitions"):
        verify(["07_none"], committed=tmp_path)


def test_the_tables_of_an_old_manifest_are_verified(tmp_path, monkeypatch):
    """Its files are given again, but for one number within its tolerance and one beyond."""
    manifest = json.loads((FORMATS / "quick" / "manifest.json").read_text())
    (tables,) = {tuple(entry["tables"]) for entry in manifest.values()}
    old, new = tmp_path / "old" / "quick", tmp_path / "new" / "quick"
    for folder, length in ((old, 1.2), (new, 1.21)):
        shutil.copytree(FORMATS / "quick", folder)
        for name in tables:
            (folder / name).write_text(f"normalized_length,L0\n{length},{length}\n")

    def run(names, size, device, out, cell_timeout, jobs):
        shutil.copytree(new, Path(out) / size)
        return [reproduce.Outcome(name, 1.0, []) for name in names]

    monkeypatch.setattr(verify_module, "reproduce", run)
    found = verify([], committed=old.parent).set_index(["table", "column"]).verdict
    assert set(found.xs("normalized_length", level="column")) == {"within tolerance"}
    assert set(found.xs("L0", level="column")) == {"DIFFERS"}
    assert len(tables) >= 3 and set(tables) <= set(found.index.get_level_values("table"))


def test_a_checkpoint_of_another_version_is_refused_by_its_name(task, string, tmp_path):
    content, path = (FORMATS / "quad.checkpoint").read_bytes(), tmp_path / "c"
    path.write_bytes(content.replace(b"dss-checkpoint-1", b"dss-checkpoint-9"))
    with pytest.raises(ValueError, match="format is 'dss-checkpoint-9'; 'dss-checkpoint-1' is kn"):
        dss.find_string(task, *string.thetas[[0, -1]], 0.01, checkpoint=path, **SEARCH)
