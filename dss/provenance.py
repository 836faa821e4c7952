"""Where something came from: versions, commit, hashes and hardware, as the manifests state them."""

import ast
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
PROJECT = PACKAGE.parent


def source(*roots: str) -> str:
    """A digest of modules of dss: the slightest change may round otherwise.

    Args:
        roots: names of modules (`dss.sampling`); these count, and all that they import, directly
            or not.  Without any the whole package counts.
    """
    modules = module_files()
    names = reached_from(roots, modules) if roots else modules
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\n".encode() + modules[name].read_bytes())
    return digest.hexdigest()[:16]


def module_files() -> dict[str, Path]:
    """The files of dss and its wings, by name of the module."""
    paths = {path.relative_to(PROJECT): path for path in PACKAGE.rglob("*.py")}
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): file
        for path, file in paths.items()
    }


def reached_from(roots: Iterable[str], modules: Mapping[str, Path]) -> set[str]:
    """Modules that some modules import, directly or not, and these themselves."""
    reached, waiting = set(), list(roots)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += imported_modules(modules[name].read_text(), name, modules)
    return reached


def imported_modules(text: str, name: str, modules: Collection[str]) -> set[str]:
    """Names of the modules of dss that a source imports, anywhere in it.

    Args:
        text: the source.
        name: of its module; what it imports from `.` is beside it.
        modules: names of all modules of dss.
    """
    targets = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A package is its own parent.
            n_up = node.level - any(module.startswith(f"{name}.") for module in modules)
            parts = name.split(".")
            above = parts[: len(parts) - n_up] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            targets |= {target if target in modules else base for target in inner}
    return targets & set(modules)


def environment(device: str = "auto") -> dict:
    """Versions, commit and hardware of this process."""
    import torch

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
