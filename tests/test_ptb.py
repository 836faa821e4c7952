"""The Penn Treebank: where it comes from, how it is cut, and networks that are trained on it."""

import hashlib
import json
import math
import os
import zipfile
from dataclasses import replace

import pytest
import torch

import dss
from dss import plots, provenance, results, treebank
from dss.networks.losses import LOSSES
from dss.networks.sequences import WordGPT
from dss.status import Status

TEXTS = {
    "ptb.train.txt": " the cat sat \n the dog sat on the cat \n a cat ate the dog \n" * 8,
    "ptb.valid.txt": " the cat \n",
    "ptb.test.txt": " the bird sat \n a dog sat on the cat \n the cat ate a fish \n" * 3,
}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Neither a folder nor a mirror; and three small files are the known ones."""
    monkeypatch.delenv("DSS_PTB_DIR", raising=False)

    def unreachable(*arguments, **keywords):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    known = [(n, hashlib.md5(text.encode()).hexdigest()) for n, text in TEXTS.items()]
    monkeypatch.setattr(treebank, "FILES", known)
    return tmp_path / "data"


@pytest.fixture
def given(alone, monkeypatch, tmp_path):
    """A folder that holds the files."""
    folder = tmp_path / "given"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    monkeypatch.setenv("DSS_PTB_DIR", str(folder))
    return folder


def test_every_source_is_named_when_none_has_the_files(alone):
    with pytest.raises(RuntimeError, match="DSS_PTB_DIR: not set") as error:
        treebank.ensure_ptb(alone)
    assert str(error.value).count("a mirror: no network") == len(treebank.MIRRORS)
    assert "ptb.train.txt" in str(error.value) and not alone.exists()


def test_a_folder_an_archive_or_a_mirror_serves(alone, given, monkeypatch):
    of_folder = treebank.ensure_ptb(alone)
    assert (of_folder.kind, of_folder.path) == ("official", given)
    with zipfile.ZipFile(given / treebank.ARCHIVE, "w") as archive:
        for name, text in TEXTS.items():
            archive.writestr(f"some/folder/{name}", text)
            (given / name).unlink()
    assert treebank.ensure_ptb(alone).path == alone / treebank.FOLDER
    monkeypatch.delenv("DSS_PTB_DIR")
    assert treebank.ensure_ptb(alone).sha256 == of_folder.sha256, "kept"
    mirror = (given.parent / "mirror").resolve()
    mirror.mkdir()
    for name, text in TEXTS.items():
        (mirror / name).write_text(text)
    known = list(treebank.FILES)
    monkeypatch.undo()  # the real urlopen reads addresses of files
    monkeypatch.setattr(treebank, "MIRRORS", (f"{mirror.as_uri()}/",))
    monkeypatch.setattr(treebank, "FILES", known)
    monkeypatch.delenv("DSS_PTB_DIR", raising=False)
    assert treebank.ensure_ptb(given.parent / "other").sha256 == of_folder.sha256


def test_a_damaged_file_never_gets_in(alone, given):
    text = (given / "ptb.test.txt").read_text()
    (given / "ptb.test.txt").write_text(text[:-1] + "!")
    with pytest.raises(RuntimeError, match="not the published file"):
        treebank.ensure_ptb(alone)
    with zipfile.ZipFile(given / treebank.ARCHIVE, "w") as archive:
        for name, text in TEXTS.items():
            archive.writestr(name, text + "!")
    with pytest.raises(RuntimeError, match="ptb.zip: ptb.train.txt is not the published file"):
        treebank.ensure_ptb(alone)
    assert not list(alone.glob("ptb/*"))


def test_rows_follow_the_stream_and_targets_the_rows(given, alone):
    (x, y), (x_test, y_test) = treebank.load_ptb(10, 5, root=alone)
    # By frequency, then by the alphabet; <unk> always.
    kept = ["<unk>", "the", "<eos>", "cat", "dog", "sat", "a", "ate", "on"]
    words = TEXTS["ptb.train.txt"].replace("\n", " <eos> ").split()
    stream = [kept.index(word) for word in words]
    assert x.flatten().tolist() == stream[: x.numel()] and len(x) == (len(stream) - 1) // 5
    assert y.flatten().tolist() == stream[1 : y.numel() + 1]
    test_words = TEXTS["ptb.test.txt"].replace("\n", " <eos> ").split()
    numbers = [kept.index(w) if w in kept else 0 for w in test_words]
    assert x_test.flatten().tolist() == numbers[: x_test.numel()], "fish and bird are <unk>"
    (few, _), _ = treebank.load_ptb(3, 5, 4, 2, alone)
    assert few.flatten().tolist() == [k if k < 3 else 0 for k in stream[:20]]


def test_perplexity_is_of_the_mean_however_the_sample_is_cut(given):
    options = {"n_eval": 7, "context": 4, "n_words": 9}
    loss, perplexity = (dss.ptb("lstm", metric, **options) for metric in ("loss", "perplexity"))
    thetas = loss.init(2) * 3
    expected = loss.losses(thetas).exp()
    torch.testing.assert_close(perplexity.losses(thetas), expected)
    for chunk in (1, 3, None):
        cut = replace(perplexity, eval_chunk=chunk)
        torch.testing.assert_close(cut.losses(thetas), expected, rtol=1e-5, atol=0)
    between = perplexity.losses_between(thetas[:1], thetas[1:], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(between[0], expected, rtol=1e-5, atol=0)
    losses, gradients = perplexity.gradients(thetas)
    torch.testing.assert_close((losses, gradients), loss.gradients(thetas))


@pytest.mark.parametrize("network", ["lstm", "gpt"])
def test_a_string_between_networks(given, network, seeded):
    task = dss.ptb(network, "perplexity", n_eval=12, context=4, n_words=9)
    L0 = 8.0  # of nine words
    training = task.settings | {"max_steps": 400, "check_every": 10}
    ends = dss.train_endpoints(task, 2, [L0], seeded(), **dict(task.train_settings)).thetas[0]
    string = dss.find_string(task, *ends, L0, generator=seeded(), **training)
    assert string.status is Status.CONNECTED
    x, y = task.splits["test"]
    for theta in string.thetas:  # the plain module gives the same
        with torch.no_grad():
            output = task.network(theta)(x)
        plain = torch.nn.functional.cross_entropy(output.flatten(0, 1), y.flatten()).exp()
        assert float(plain) == pytest.approx(float(task.losses(theta[None])), rel=1e-5)
        assert float(plain) <= L0 * (1 + 1e-5)


def test_no_word_sees_a_later_one(seeded):
    network = WordGPT(9, 6, 8, 2, 2).eval()
    words = torch.randint(9, (3, 6), generator=seeded())
    changed = words.clone()
    changed[:, 4:] = (words[:, 4:] + 1) % 9
    with torch.no_grad():
        first, second = network(words), network(changed)
    torch.testing.assert_close(first[:, :4], second[:, :4])
    assert (first[:, 4:] - second[:, 4:]).abs().max() > 1e-4
    names = [name for name, _ in network.named_parameters()]
    assert "embed.weight" in names and "head.weight" not in names, "tied"


def test_the_authors_network(given, seeded):
    task = dss.ptb(preset="authors", n_words=9)
    shapes = {name: tuple(p.shape) for name, p in task.module.named_parameters()}
    assert shapes["lstm.weight_hh_l1"] == (800, 200) and shapes["head.weight"] == (9, 200)
    assert len(task.splits["test"][0]) == (len(TEXTS["ptb.test.txt"].split()) + 9 - 1) // 20
    theta = task.init(1, seeded())
    assert theta.abs().max() <= 0.1 < 2 * theta.abs().mean() * 1.1
    of_rows, per_word = (
        replace(task, loss_function=LOSSES[f"cross_entropy_of_{kind}"])
        for kind in ("rows", "words")
    )
    (rows, clipped), (words, free) = (t.gradients(theta) for t in (of_rows, per_word))
    torch.testing.assert_close(rows, 20 * words)
    assert float(clipped.norm()) <= 5.001 and float(free.norm()) < 5
    steep = theta * 30
    clipped, free = (replace(of_rows, clip=c).gradients(steep)[1] for c in (5.0, math.inf))
    assert float(clipped.norm()) == pytest.approx(5, rel=1e-4) and float(free.norm()) > 10
    torch.testing.assert_close(clipped, 5 * free / free.norm(), rtol=1e-3, atol=1e-4)
    assert float(task.losses(theta)) == pytest.approx(math.exp(float(words)), rel=0.1)


def test_a_manifest_names_the_source(given, alone, monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "DATA_READ", {})
    monkeypatch.setattr(results, "DATA_READ", provenance.DATA_READ)
    run = results.Results("none", {"size": "quick", "seed": 0, "out": str(tmp_path / "out")})
    treebank.load_ptb(9, 4, root=alone)
    run.figure(plots.nothing("no picture"), "picture")
    run.finish()
    (entry,) = json.loads((tmp_path / "out" / "manifest.json").read_text()).values()
    sha256 = hashlib.sha256("".join(TEXTS.values()).encode()).hexdigest()
    assert entry["data"] == {"ptb": {"kind": "official", "sha256": sha256}}


@pytest.mark.skipif(not os.environ.get("DSS_PTB_DIR"), reason="no folder with the Penn Treebank")
def test_the_real_files(tmp_path):
    (x, _), (x_test, _) = treebank.load_ptb(10_000, 20, root=tmp_path)
    assert x.max() == 9_999 and x_test.max() <= 9_999, "10,000 words"
    assert x.numel() == 929_580 and x_test.numel() == 82_420
