"""Kernels of this Python, with assertions on and nothing of the user's IPython in them."""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

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


class OtherKernel(Exception):
    """A kernel is not what results may come from."""


class OwnKernel(AsyncKernelManager):
    """A kernel of this very Python, whatever kernelspecs there are and whatever name is asked for.

    It has an IPython folder of its own, which is empty: start-up files of the user could change
    what notebooks compute.
    """

    @default("connection_file")
    def _in_own_folder(self) -> str:
        self.own = tempfile.TemporaryDirectory(prefix="dss-")
        return f"{self.own.name}/kernel.json"

    @property
    def kernel_spec(self) -> KernelSpec:
        if self._kernel_spec is None:
            self._kernel_spec = KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                env=self.environment(),
                display_name="Python 3",
                language="python",
                metadata={"debugger": False},
            )
        return self._kernel_spec

    def environment(self) -> dict[str, str]:
        """What differs in the environment of the kernel from that of this process."""
        ipython = str(Path(self.connection_file).parent / "ipython")
        return {"PYTHONOPTIMIZE": "", "PYTHONSTARTUP": "", "IPYTHONDIR": ipython}

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
