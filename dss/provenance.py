"""Where something came from: versions, commit, hashes and hardware, as the manifests state them."""

import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parents[1]


def environment(device: str = "auto") -> dict:
    """Versions, commit and hardware of this process."""
    cuda = torch.cuda.is_available() and device != "cpu"
    return {
        "dss": _version(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--", "dss", "notebooks/*.ipynb")),
        "lock_sha256": lock_sha256(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
    }


def notebook_sha256(path: Path) -> str | None:
    """Of the code of a notebook, which its outputs and prose do not change; None without a file.

    Raises:
        ValueError: the file is not a notebook.
    """
    if not path.exists():
        return None
    try:
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a notebook: {error!r}") from error
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def lock_sha256() -> str | None:
    """Of `requirements.lock`; None where dss is installed without the project around it."""
    path = PROJECT / "requirements.lock"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _version() -> str | None:
    try:
        return version("dss")
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", PROJECT, *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
