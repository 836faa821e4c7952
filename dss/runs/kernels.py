"""Kernels of this Python, with assertions on and nothing of the user's IPython in them."""

import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from traitlets import default

if TYPE_CHECKING:
    from jupyter_client.asynchronous.client import AsyncKernelClient

# What a kernel is asked before its first cell, and what every answer must be.
IMPORTED = "__import__('importlib.util').util.find_spec('dss')"
QUESTIONS = {
    "sys.prefix": "__import__('sys').prefix",
    "dss": f"(lambda found: found and found.origin)({IMPORTED})",
    "assertions": "__debug__",
}


PLACES = ("DSS_DATA", "DSS_MNIST_DIR")  # variables that name a folder
# ipykernel, without start-up files and settings that are for everybody on this machine.
LAUNCH = """\
import runpy, sys
sys.path[:] = filter(None, sys.path)
from IPython.core.application import ENV_CONFIG_DIRS, SYSTEM_CONFIG_DIRS
ENV_CONFIG_DIRS.clear()
SYSTEM_CONFIG_DIRS.clear()
runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
"""


class Scratch(tempfile.TemporaryDirectory):
    """A temporary folder; those that killed processes have left are removed before it is made."""

    def __init__(self, what: str):
        prefix = f"dss-{what}-"
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with suppress(OSError, Timeout):
                is_old = time.time() - left.lstat().st_mtime > 60  # else it may be locked soon
                if is_old and not left.is_symlink():
                    with FileLock(left / ".lock", timeout=0):  # whose process lives, holds it
                        shutil.rmtree(left, ignore_errors=True)
        super().__init__(prefix=prefix)
        self.lock = FileLock(f"{self.name}/.lock", thread_local=False)
        self.lock.acquire()

    def cleanup(self) -> None:
        self.lock.release()
        super().cleanup()

    def __exit__(self, *_) -> None:
        self.cleanup()


class OtherKernel(Exception):
    """A kernel is not what results may come from."""


class OwnKernel(AsyncKernelManager):
    """A kernel of this very Python, whatever kernelspecs there are and whatever name is asked for.

    It has an IPython folder of its own, which is empty, and looks into no other: start-up files
    could change what notebooks compute.
    """

    @default("connection_file")
    def _in_own_folder(self) -> str:
        self.own = Scratch("kernel")
        return f"{self.own.name}/kernel.json"

    @property
    def kernel_spec(self) -> KernelSpec:
        if self._kernel_spec is None:
            self._kernel_spec = KernelSpec(
                argv=[sys.executable, "-c", LAUNCH, "-f", "{connection_file}"],
                env=self.environment(),
                display_name="Python 3",
                language="python",
                metadata={"debugger": False},
            )
        return self._kernel_spec

    def environment(self) -> dict[str, str]:
        """What differs in the environment of the kernel from that of this process."""
        ipython = str(Path(self.connection_file).parent / "ipython")
        # A relative path would lead elsewhere, from the folder of the notebook.
        paths = {
            n: str(Path(os.environ[n]).expanduser().absolute()) for n in PLACES if os.environ.get(n)
        }
        return {"PYTHONOPTIMIZE": "", "PYTHONSTARTUP": "", "IPYTHONDIR": ipython} | paths

    async def _async_cleanup_resources(self, restart: bool = False) -> None:
        await super()._async_cleanup_resources(restart)
        if not restart and hasattr(self, "own"):
            self.own.cleanup()

    cleanup_resources = _async_cleanup_resources


async def refuse_other(client: "AsyncKernelClient", seconds: float = 60) -> None:
    """Ask a kernel what it is.

    Args:
        client: of the kernel, which has no cell to run.
        seconds: after which a kernel that says nothing counts as dead.

    Raises:
        OtherKernel: it is of another environment, imports another copy of `dss`, or runs with
            assertions off.
    """
    reply = await client.execute(
        "", silent=True, user_expressions=QUESTIONS, allow_stdin=False, reply=True, timeout=seconds
    )
    expressions = reply["content"].get("user_expressions", {})
    found = find_spec("dss")
    expected = {"sys.prefix": sys.prefix, "dss": found and found.origin, "assertions": True}
    for name, value in expected.items():
        answer = expressions.get(name, {})
        said = answer.get("data", {}).get("text/plain", answer.get("evalue", "nothing"))
        if said != repr(value):
            raise OtherKernel(f"the kernel has {name} {said}; {value!r} is needed")
