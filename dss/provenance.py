"""Where something came from: versions, commit, hashes and hardware, as the manifests state them."""

import ast
import hashlib
import json
import platform
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dss.given import json_from

PACKAGE = Path(__file__).resolve().parent
PROJECT = PACKAGE.parent
# Which copy of each data set this process has read: the manifests of its figures name it.
DATA_READ: dict[str, dict[str, str]] = {}


def note_data(name: str, kind: str, sha256: str) -> None:
    """Note that a data set was read, for the manifests of this process."""
    DATA_READ[name] = {"kind": kind, "sha256": sha256}


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
            waiting += imported_modules(modules[name].read_text(encoding="utf-8"), name, modules)
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


def environment(device: str = "auto", is_here: bool = True) -> dict:
    """Versions, commit and hardware of this process; None for what cannot be told.

    Args:
        device: `"cpu"` where a GPU was not to be used.
        is_here: the work was done in this process, which knows whether it used the GPU; otherwise
            the one that the machine has is named.
    """
    import torch

    used = torch.cuda.is_initialized() if is_here else torch.cuda.is_available()
    cuda = used and device != "cpu"  # "auto" leaves small networks on the CPU
    commit, dirty = _commit()
    return {
        "dss": _version(),
        "git_commit": commit,
        "git_dirty": dirty,
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
        cells = json_from(path)["cells"]
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


def _commit() -> tuple[str | None, bool | None]:
    """Commit of dss, and whether its files differ from it; with a warning None where git is mute.

    A repository around an installed dss says nothing of it: the files must be in the repository.
    """
    try:
        _git("ls-files", "--error-unmatch", "--", "dss/__init__.py")
        changes = _git("status", "--porcelain", "--", "dss", "notebooks/*.ipynb")
        return _git("rev-parse", "HEAD"), bool(changes)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        warnings.warn(
            f"git does not say which commit {PACKAGE} is of, or whether it was changed; both are "
            f"recorded as unknown ({reason})",
            stacklevel=3,
        )
        return None, None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    how = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": 10}
    return subprocess.run(command, check=True, **how).stdout.strip()


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
