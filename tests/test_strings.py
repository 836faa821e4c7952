"""Saved strings come back bit for bit, or not at all."""

import errno
import math
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import dss
from dss.status import OF_STRINGS
from dss.strings import String

TRACE = [
    {
        "depth": 0,
        "Gamma_tilde": 0.9,
        "open_segments": 1,
        "beads_trained": 0,
        "gradient_steps": 0,
        "forward_passes": 30,
    },
    {
        "depth": 1,
        "Gamma_tilde": 0.1 + 0.2,
        "open_segments": 0,
        "beads_trained": 1,
        "gradient_steps": 412,
        "forward_passes": 3412,
    },
]


@pytest.fixture
def string():
    thetas = torch.tensor([[0.0, 0.1], [1 / 3, 2.0], [-4e-320, 0.3]], dtype=torch.float64)
    return String(thetas, "connected", 0.3, 0.9, 1.1, 33, 0.1 + 0.2, TRACE, "théta ≤ L0")


def assert_same(string, other):
    assert string.thetas.dtype == other.thetas.dtype
    assert torch.equal(string.thetas, other.thetas)
    names = ("status", "L0", "alpha", "slack", "n_t", "trace", "detail")
    assert all(getattr(string, name) == getattr(other, name) for name in names)
    assert string.Gamma_tilde == other.Gamma_tilde or math.isnan(string.Gamma_tilde)
    assert math.isnan(string.Gamma_tilde) == math.isnan(other.Gamma_tilde)
    assert (string.length_mask is None) == (other.length_mask is None)
    if string.length_mask is not None:
        assert torch.equal(string.length_mask, other.length_mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", [None, torch.tensor([True, False])])
def test_round_trip_bit_for_bit(tmp_path, string, dtype, mask):
    string = replace(string, thetas=string.thetas.to(dtype), length_mask=mask)
    path = string.save(tmp_path / "s.safetensors")
    assert path == tmp_path / "s.safetensors"
    assert_same(string, dss.String.load(path))


@pytest.mark.parametrize("status", OF_STRINGS)
def test_round_trip_of_every_status(tmp_path, string, status):
    string = replace(string, status=status, Gamma_tilde=math.nan, trace=[])
    loaded = dss.String.load(string.save(str(tmp_path / "s")))
    assert_same(string, loaded)
    assert loaded.connected == (status == "connected")
    assert loaded.depth == -1


def test_round_trip_of_a_view_and_of_a_real_run(tmp_path, ring, point, string):
    transposed = replace(string, thetas=string.thetas.repeat(1, 2).T[:3])
    assert_same(transposed, dss.String.load(transposed.save(tmp_path / "view")))
    found = dss.find_string(ring, point(1, 0), point(0, 1), 0.05)
    assert_same(found, dss.String.load(found.save(tmp_path / "run")))


def test_a_truncated_file_is_refused(tmp_path, string):
    path = string.save(tmp_path / "s")
    content = path.read_bytes()
    for length in (0, 4, 8, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"{path} is not a readable string file"):
            dss.String.load(path)


def refused(path, content):
    path.write_bytes(content)
    try:
        dss.String.load(path)
    except ValueError as error:
        return str(path) in str(error)
    return False


@pytest.mark.parametrize("flip", [0x01, 0x08, 0xFF])
def test_a_flipped_byte_is_refused_wherever_it_is(tmp_path, string, flip):
    path = string.save(tmp_path / "s")
    content = path.read_bytes()
    unseen = [
        i
        for i in range(len(content))
        if not refused(path, content[:i] + bytes([content[i] ^ flip]) + content[i + 1 :])
    ]
    assert unseen == []


def rewritten(path, old, new):
    """The string file again, with one part of its metadata replaced."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = {k: v.replace(old, new) for k, v in file.metadata().items()}
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("dss-string-1", "dss-string-9", "dss-string-9"),
        ('"connected"', '"disconnected"', "disconnected"),
        ('"n_t"', '"n_points"', ""),
        ('"status"', '"state"', "status"),
    ],
)
def test_metadata_that_is_not_known_is_refused(tmp_path, string, old, new, message):
    path = rewritten(string.save(tmp_path / "s"), old, new)
    with pytest.raises(ValueError, match=f"not a readable string file.*{message}"):
        dss.String.load(path)


def test_other_safetensors_files_are_refused(tmp_path, string):
    path = tmp_path / "weights.safetensors"
    save_file({"thetas": string.thetas}, path)
    with pytest.raises(ValueError, match="weights.safetensors is not a readable string file"):
        dss.String.load(path)


@pytest.mark.parametrize(
    "thetas",
    [torch.zeros(1, 2), torch.zeros(4), torch.full((2, 2), torch.nan), torch.zeros(2, 2).long()],
)
def test_networks_that_make_no_string_are_refused(tmp_path, string, thetas):
    path = replace(string, thetas=thetas).save(tmp_path / "s")
    with pytest.raises(ValueError, match="not a readable string file"):
        dss.String.load(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        dss.String.load(tmp_path / "none")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, string, monkeypatch, step):
    path = string.save(tmp_path / "s")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        replace(string, L0=7.0).save(path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path]
    assert_same(string, dss.String.load(path))


def test_a_missing_folder_is_an_error_that_leaves_nothing(tmp_path, string):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        string.save(tmp_path / "nowhere" / "s")
    assert list(tmp_path.iterdir()) == []


def test_to_frame_has_a_row_per_depth(string):
    frame = string.to_frame()
    assert list(frame.columns) == [*TRACE[0], "L0", "alpha", "status"]
    assert frame[list(TRACE[0])].to_dict("records") == TRACE
    assert (frame.L0 == 0.3).all() and (frame.alpha == 0.9).all()
    assert (frame.status == "connected").all()
    assert list(replace(string, trace=[]).to_frame().columns) == list(frame.columns)


def test_summary_says_what_the_string_is(string):
    length = float(string.thetas.diff(dim=0).norm(dim=1).sum())
    straight = float((string.thetas[-1] - string.thetas[0]).norm())
    assert string.summary() == {
        "L0": 0.3,
        "alpha": 0.9,
        "slack": 1.1,
        "n_t": 33,
        "status": "connected",
        "connected": True,
        "n_beads": 1,
        "normalized_length": pytest.approx(length / straight),
        "Gamma_tilde": 0.1 + 0.2,
        "depth_reached": 1,
        "gradient_steps": 412,
    }


def test_length_counts_the_masked_parameters_alone(string):
    masked = replace(string, length_mask=torch.tensor([False, True]))
    assert masked.normalized_length == pytest.approx((1.9 + 1.7) / 0.2)
