"""Files are whole or not there, belong to their user, and say what is wrong with their path."""

import errno
import os
from pathlib import Path

import pytest
import torch

import dss
from dss.files import write

STRING = dss.String(torch.eye(2), "connected", 0.3, 0.9, 1.1, 33, 0.2)


@pytest.fixture
def umask():
    """Sets the umask of this test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path, umask, mask):
    umask(mask)
    STRING.save(tmp_path / "s")
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~mask}


def test_an_old_file_keeps_its_permissions(tmp_path):
    STRING.save(tmp_path / "s").chmod(0o600)
    assert STRING.save(tmp_path / "s").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path, there):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link = tmp_path / "s"
    link.symlink_to("elsewhere/string")
    if there:
        (folder / "string").write_bytes(b"old")
    assert STRING.save(link) == link and link.is_symlink()
    assert [path.name for path in folder.iterdir()] == ["string"]
    assert torch.equal(dss.String.load(folder / "string").thetas, STRING.thetas)


def test_a_name_as_long_as_a_system_takes(tmp_path):
    write(tmp_path / ("ß" * 127), b"content")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"content"]


def a_folder(tmp_path):
    return tmp_path


def no_folder(tmp_path):
    return tmp_path / "none" / "s"


def a_file_as_folder(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file" / "s"


def a_circle(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    return tmp_path / "a"


def a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


PATHS = [
    (lambda _: "", ValueError, "path is empty"),
    (lambda _: "s3://bucket/x", ValueError, "'s3://bucket/x', an address"),
    (lambda _: Path("https://host/x"), ValueError, "an address"),
    (lambda _: "a\0b", ValueError, "null byte"),
    (lambda _: 3, TypeError, "path is a int"),
    (lambda _: b"s", TypeError, "path is a bytes"),
    (a_folder, IsADirectoryError, "name of a file is needed: '{}'"),
    (no_folder, FileNotFoundError, "no such folder.*: '{}'"),
    (a_file_as_folder, NotADirectoryError, "its folder is a file: '{}'"),
    (a_circle, OSError, "circle: '{}'"),
    (a_pipe, OSError, "neither a file nor a new name: '{}'"),
]


def certify():
    task = dss.quad(n_train=4, n_eval=4)
    string = dss.String(task.init(2), "connected", 9.0, 0.9, 1.0, 33, float("nan"))
    return dss.certify(task, string)


SAVED = [STRING.save, certify().save]


@pytest.mark.parametrize("save", SAVED, ids=["string", "certificate"])
@pytest.mark.parametrize("path, error, message", PATHS)
def test_a_path_that_cannot_be_written_is_named(tmp_path, path, error, message, save):
    bad = path(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message.format(bad)):
        save(bad)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("load", [dss.String.load, dss.Certificate.load])
@pytest.mark.parametrize("path, error, message", PATHS[:6])
def test_a_path_that_is_none_is_not_read(tmp_path, path, error, message, load):
    with pytest.raises(error, match=message):
        load(path(tmp_path))
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        load(tmp_path)


def nothing(*arguments, **keywords):
    raise AssertionError("something is trained")


@pytest.mark.parametrize("path, error, message", PATHS)
def test_a_checkpoint_that_cannot_be_is_refused_before_anything(
    tmp_path, path, error, message, monkeypatch
):
    monkeypatch.setattr(dss.train, "_train_groups", nothing)
    monkeypatch.setattr(dss.sampling, "measure_segments", nothing)
    task, bad = dss.quad(n_train=4, n_eval=4), path(tmp_path)
    thetas = task.init(2)
    for call in (
        lambda: dss.study(task, [0.1], 1, checkpoint=bad),
        lambda: dss.train_endpoints(task, 1, [0.1], checkpoint=bad),
        lambda: dss.train_to(task, thetas, 0.1, checkpoint=bad),
        lambda: dss.find_string(task, *thetas, 9.0, checkpoint=bad),
    ):
        with pytest.raises(error, match=message.format(bad)):
            call()


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
def test_an_error_of_the_system_names_the_file(tmp_path, monkeypatch, failing):
    path = STRING.save(tmp_path / "s")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'") as error:
        STRING.save(path)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == [path]
