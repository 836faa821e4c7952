"""CIFAR-10 on disk: the official files, or JPEG copies of all images, each checked.

The official pixels come from the files that torchvision knows by their md5.  Where their site
cannot be reached, a folder named by `$DSS_CIFAR_DIR` may hold them, or `cifar10_jpeg.npz`: the same
60,000 images, compressed with loss.  What was used is part of the name of a task.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dss.checks import check_whole
from dss.data import data_root
from dss.given import folder_from
from dss.provenance import note_data
from dss.sources import Source, download, first_of, install, published

if TYPE_CHECKING:
    from torch import Tensor

BATCHES, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
COPIES = "cifar10_jpeg.npz"
COPIES_SHA256 = "a148c51cd669eceedc06b48bd3b514557040e0008c2818d6f4e6d7a095aa351d"
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images


def ensure_cifar10(root: str | Path | None = None) -> Source:
    """Make sure that CIFAR-10 is on disk, byte for byte.

    Tries in this order: official files already there; a folder named by `$DSS_CIFAR_DIR` with the
    official files, their archive, or the JPEG copies; the official site.

    Args:
        root: folder to hold `cifar-10-batches-py/`; `data_root()` by default.

    Raises:
        ValueError: the folder is no place on this machine, or lies in a file.
        RuntimeError: every source failed; the message lists each with its reason.
    """
    root = folder_from(root, "root") if root is not None else data_root()
    places = [partial(place, root) for place in (_from_batches, _from_given_folder, _from_site)]
    try:
        return first_of(places, between="\n  - ")
    except ValueError as error:
        raise RuntimeError(
            f"CIFAR-10 is not in {root}. Tried:\n  - {error}\nPut {ARCHIVE}, {BATCHES}/ or "
            f"{COPIES} into a folder and set DSS_CIFAR_DIR to it, or use dss.mnist() or "
            "dss.digits()."
        ) from error


def load_cifar10(
    n_train: int | None = None, n_eval: int | None = None, root: str | Path | None = None
) -> tuple[tuple[tuple[Tensor, Tensor], ...], Source]:
    """The first images of CIFAR-10 as `(x_train, y_train), (x_test, y_test)`, and their source.

    Args:
        n_train, n_eval: how many, at most 50,000 and 10,000; all by default.
        root: as in `ensure_cifar10`, which is called first.

    Returns:
        x float32 `(n, 3, 32, 32)`, each channel less its mean and over its standard deviation on
        the training images; y int64.

    Raises:
        TypeError, ValueError: n_train or n_eval is no such number.
        RuntimeError: the data cannot be had.
    """
    import torch

    n_train = 50_000 if n_train is None else check_whole(n_train, "n_train", 1, 50_000)
    n_eval = 10_000 if n_eval is None else check_whole(n_eval, "n_eval", 1, 10_000)
    source, splits = ensure_cifar10(root), []
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
    for split, n in (("train", n_train), ("test", n_eval)):
        pixels, labels = READERS[source.kind](source.path, split, n)
        splits.append(((pixels.float() / 255 - mean) / deviation, labels.long()))
    note_data("cifar10", source.kind, source.sha256)
    return tuple(splits), source


def _files(*splits: str) -> list[tuple[str, str]]:
    """Official file names with their md5, as torchvision knows them, of some splits or both."""
    from torchvision.datasets import CIFAR10

    lists = {"train": CIFAR10.train_list, "test": CIFAR10.test_list}
    return [tuple(entry) for split in splits or lists for entry in lists[split]]


def _from_batches(root: Path) -> Source:
    return published(root / BATCHES, _files())


def _from_given_folder(root: Path) -> Source:
    given = os.environ.get("DSS_CIFAR_DIR")
    if not given:
        raise ValueError("DSS_CIFAR_DIR: not set")
    folder = folder_from(given, "DSS_CIFAR_DIR")
    readers = [
        lambda: published(folder / BATCHES, _files()),
        lambda: _unpacked((folder / ARCHIVE).read_bytes(), root),
        lambda: _copies(folder / COPIES),
    ]
    try:
        return first_of(readers)
    except ValueError as error:
        raise ValueError(f"DSS_CIFAR_DIR={given}: {error}") from error


def _from_site(root: Path) -> Source:
    from torchvision.datasets import CIFAR10

    return _unpacked(download(CIFAR10.url, "the official site"), root)


def _unpacked(archive: bytes, root: Path) -> Source:
    """Write the official files of their archive below `root`, each when its md5 is right."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:

        def content_of(name: str) -> bytes:
            return files.extractfile(f"{BATCHES}/{name}").read()

        return install(content_of, _files(), root / BATCHES, ARCHIVE)


def _copies(path: Path) -> Source:
    size, changed = path.stat().st_size, path.stat().st_mtime_ns
    sha256 = _sha256(path, size, changed)
    if sha256 != COPIES_SHA256:
        raise ValueError(f"{path}: {size} bytes, not the file with sha256 {COPIES_SHA256}")
    return Source("jpeg", path, sha256)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_official(folder: Path, split: str, n: int) -> tuple[Tensor, Tensor]:
    import torch

    pixels, labels = [], []
    for name, _ in _files(split):  # their md5 is right, so that the pickle is the published one
        batch = pickle.loads((folder / name).read_bytes(), encoding="latin1")
        pixels.append(np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
        labels += batch["labels"]
        if len(labels) >= n:
            break
    return torch.from_numpy(np.concatenate(pixels)[:n]), torch.tensor(labels[:n])


def _read_copies(path: Path, split: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n images of a fixed permutation: the file is ordered by class."""
    import torch
    from PIL import Image

    with np.load(path, allow_pickle=False) as copies:
        sizes, labels = copies[f"{split}_size"], copies[f"{split}_label"]
        stream = copies[f"{split}_jpeg"]
    ends = np.cumsum(sizes, dtype=np.int64)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(0))[:n].numpy()
    images = [
        np.asarray(Image.open(io.BytesIO(stream[ends[k] - sizes[k] : ends[k]])).convert("RGB"))
        for k in order
    ]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(labels[order].astype(np.int64))


READERS = {"official": _read_official, "jpeg": _read_copies}
