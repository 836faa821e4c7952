"""Running one notebook through papermill: checked parameters, a clear reason when it fails."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dss.checks import lookup
from dss.cifar import ensure_cifar10
from dss.data import ensure_mnist
from dss.given import json_from, manifest_from
from dss.provenance import PROJECT, lock_sha256, notebook_sha256, source
from dss.results import CHECKPOINTS, portable
from dss.treebank import ensure_ptb

if TYPE_CHECKING:
    from traitlets.config import Config

NOTEBOOKS = PROJECT / "notebooks"
ENGINE = "dss"  # of papermill: its own, with a call after each cell
# Folders that hold the connection file of a kernel which runs now.
_connections: set[str] = set()
# What a notebook can say in its metadata that it cannot begin without.
DATA = {"mnist": ensure_mnist, "cifar10": ensure_cifar10, "ptb": ensure_ptb}


def fetch_data(notebooks: Iterable[Path]) -> None:
    """Fetch what notebooks say in their metadata that they need: `"dss": {"data": ["mnist"]}`.

    Raises:
        ValueError: data of an unknown name.
        RuntimeError: data that cannot be had.
    """
    needed = {}
    for notebook in notebooks:
        metadata = json_from(notebook).get("metadata", {})
        needed |= dict.fromkeys(metadata.get("dss", {}).get("data", []))
    for name in needed:
        lookup(DATA, name, "data in a notebook's metadata")()


def n_cells(notebook: Path) -> int:
    """Cells that papermill runs; it adds one for the parameters."""
    return 1 + len(json_from(notebook)["cells"])


def versions_of(notebook: Path) -> dict[str, str | None]:
    """What a run depends on beside its parameters: code of the notebook, `dss`, pinned versions."""
    return {
        "notebook": notebook_sha256(notebook),
        "source of dss": source(),
        "lock": lock_sha256(),
    }


def key_of(versions: Mapping, parameters: Mapping) -> str:
    """A digest of all that decides what a run gives, the content of files it is given included."""
    texts = [value for value in parameters.values() if isinstance(value, str)]
    files = [text for text in texts if os.path.isabs(text) and os.path.isfile(text)]
    contents = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    parts = json.dumps([dict(versions), dict(parameters), *contents], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def execute(
    notebook: Path,
    parameters: Mapping,
    folder: Path,
    executed: Path,
    cell_timeout: int | None = None,
    on_cell: Callable[[], object] = lambda: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Run a notebook to its end, in its own folder, with its files going to `folder`.

    Long searches in it find a folder for their checkpoints there, with what an attempt that was
    killed has left in it.

    Args:
        notebook: the file; it needs a parameter `out` and calls `Results.finish` at its end.
        parameters: plain JSON values, already checked.
        folder: for tables, figures and manifest; its parent must exist.
        executed: file for the executed notebook.
        cell_timeout: seconds after which a cell counts as hung.
        on_cell: called after every cell, code or prose.
        is_stopped: whether `end_kernels` was called, so that a kernel that died is no failure.

    Returns:
        An empty string, or which cell failed and why.

    Raises:
        Stopped: it was stopped; what is in its checkpoints stays.
    """
    import papermill

    from dss.runs.kernels import OtherKernel

    _use_engine()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    executed.parent.mkdir(parents=True, exist_ok=True)
    for transport in ("ipc", "tcp", "tcp"):
        if is_stopped():
            raise Stopped
        executed.unlink(missing_ok=True)
        try:
            with _kernel_settings(transport) as config:
                papermill.execute_notebook(
                    _unformatted(notebook),
                    _unformatted(executed),
                    parameters=dict(parameters) | {"out": str(folder)},
                    kernel_name="python3",
                    language="python",  # where the notebook names none
                    progress_bar=False,
                    execution_timeout=cell_timeout,
                    engine_name=ENGINE,
                    # The folder of the kernel alone; papermill's own cwd is of the whole process.
                    resources={"metadata": {"path": str(notebook.parent)}},
                    config=config,
                    on_cell=on_cell,
                )
            # papermill may return from a run that did not end: the manifest is written last.
            if not (folder / "manifest.json").exists():
                raise RuntimeError(
                    "it ended without a manifest; its last cell must call run.finish()"
                )
            return _other_than_asked(folder, parameters)
        except Exception as failure:
            if is_stopped():
                raise Stopped from failure
            if isinstance(failure, OSError) and failure.errno:  # of this process: a full disk
                return f"its files: {failure}"
            number = _cell_of(failure, executed)
            where = f"cell [{number}]" if number else "before the first cell"
            error = f"{where}: {_reason(failure)}"
            if number or isinstance(failure, OtherKernel):
                break
    return error


def _unformatted(path: Path) -> str:
    """A path for papermill, which takes what is in braces for the name of a parameter."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _other_than_asked(folder: Path, parameters: Mapping) -> str:
    """Which parameter a manifest states with another value than the run was given, or ""."""
    for entry in manifest_from(folder).values():
        stated = entry.get("parameters", {})
        for name, value in portable(parameters).items():
            if stated.get(name, value) != value:
                return f"its manifest: {name} is {stated[name]!r} there, {value!r} was asked for"
    return ""


@contextmanager
def _kernel_settings(transport: str) -> Iterator["Config"]:
    """How to talk to a kernel.

    Ports of kernels that start at one time can collide; sockets in a folder of their own cannot,
    but their names may not be long.
    """
    from traitlets.config import Config

    from dss.runs.kernels import Scratch

    with Scratch("kernel") as folder:
        settings = {"connection_file": f"{folder}/kernel.json"}
        if transport == "ipc" and os.name == "posix" and len(folder) < 80:
            settings |= {"transport": "ipc", "ip": f"{folder}/kernel"}
        _connections.add(folder)
        try:
            yield Config({"KernelManager": settings})
        finally:
            _connections.discard(folder)


class Stopped(Exception):
    """A run was ended from outside."""


def end_kernels() -> None:
    """Kill the kernels that `execute` runs in this process; it raises `Stopped` in each thread."""
    import psutil

    for process in psutil.Process().children():
        with suppress(psutil.Error):
            arguments = " ".join(process.cmdline())
            if any(folder in arguments for folder in list(_connections)):
                process.kill()


def _use_engine() -> None:
    """Teach papermill the engine `ENGINE`: kernels of this Python, each asked what it is first."""
    from jupyter_core.utils import run_sync
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

    from dss.runs.kernels import OwnKernel, refuse_other

    class Client(PapermillNotebookClient):
        def papermill_execute_cells(self):
            run_sync(refuse_other)(self.kc)
            super().papermill_execute_cells()

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(
            cls, nb_man, kernel_name, on_cell, config, resources, execution_timeout=None, **_
        ):
            complete = nb_man.cell_complete

            def cell_complete(*arguments, **keywords):
                complete(*arguments, **keywords)
                on_cell()

            nb_man.cell_complete = cell_complete
            client = Client(
                nb_man,
                kernel_name=kernel_name,
                kernel_manager_class=OwnKernel,
                config=config,
                resources=resources,
                timeout=execution_timeout,
                log=logging.getLogger("papermill"),
            )
            return client.execute()

    papermill_engines.register(ENGINE, Engine)


def _cell_of(failure: Exception, executed: Path) -> int | None:
    """Which cell failed, as the notebook counts, without the parameters that papermill injects.

    A dead kernel or a time-out is found as the last cell that began.
    """
    number = getattr(failure, "exec_count", None)
    if number is None:
        cells = []
        with suppress(OSError, ValueError):  # it is not there, or half written
            cells = json_from(executed)["cells"]
        code = [cell["metadata"] for cell in cells if cell["cell_type"] == "code"]
        began = [i for i, c in enumerate(code, 1) if c.get("papermill", {}).get("start_time")]
        number = began[-1] if began else None
    return number and number - 1


def _reason(failure: Exception) -> str:
    name = getattr(failure, "ename", type(failure).__name__)
    text = str(getattr(failure, "evalue", failure)).strip().splitlines() or [""]
    return f"{name}: {text[0]}"
