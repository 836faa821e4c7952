"""How student code is run: outputs are cut as they arrive; in a sandbox, where there is one."""

import sys
from collections import Counter
from pathlib import Path

import nbformat
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbgrader import preprocessors
from nbgrader.apps import NbGraderAPI
from nbgrader.converters import Autograde
from traitlets.config import PyFileConfigLoader

import dss
from dss.runs.kernels import OwnKernel, Scratch, refuse_other

# Characters that are kept of what a cell writes, in each of its streams and of its figures.
MAX_OUTPUT = 2_000_000
# What a kernel in the sandbox sees of this machine, read-only: the system and this Python.
SEEN = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/passwd", "/etc/fonts"]
SEEN += [sys.base_prefix, sys.prefix, str(Path(dss.__file__).parent)]
MAX_PROCESSES = 256  # and threads


class Contained(OwnKernel):
    """A kernel under bubblewrap: no network, no folder of yours, and it ends with all it started.

    The only folder that it shares with the grader holds the sockets over which the two talk.
    """

    def __init__(self, **options):
        self.shared = Scratch("kernel")
        place = {"transport": "ipc", "connection_file": f"{self.shared.name}/kernel.json"}
        super().__init__(**options | place)

    def format_kernel_cmd(self, extra_arguments=None):
        self.kernel_spec.interrupt_mode = "message"  # a signal would end bwrap itself
        command = ["bwrap", "--unshare-all", "--cap-drop", "ALL", "--die-with-parent", "--clearenv"]
        command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for path in SEEN:
            command += ["--ro-bind-try", path, path]
        command += ["--bind", self.shared.name, self.shared.name, "--chdir", "/tmp"]
        command += ["--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin:/bin"]
        for name, value in self.environment().items():
            command += ["--setenv", name, value]
        command += ["prlimit", f"--nproc={MAX_PROCESSES}"]
        return command + super().format_kernel_cmd(extra_arguments)


class Execute(preprocessors.Execute):
    """nbgrader's, but outputs are cut as they arrive: its LimitOutput counts lines, and a single
    line of hundreds of megabytes would be carried through all that follows."""

    manager = OwnKernel  # or Contained

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options, kernel_manager_class=self.manager)

    def preprocess(self, *arguments, **options):
        self.said = Counter()
        return super().preprocess(*arguments, **options)

    def process_message(self, msg, cell, cell_index):
        kind, content = msg["msg_type"], msg["content"]
        if kind in ("stream", "display_data", "execute_result", "update_display_data", "error"):
            key = cell_index, kind, content.get("name")
            if self.said[key] >= MAX_OUTPUT:  # the first of each kind is kept: it may cost points
                return None
            content, size = cut(kind, content, MAX_OUTPUT - self.said[key])
            self.said[key] += size
            msg = msg | {"content": content}
        return super().process_message(msg, cell, cell_index)


def course(out: Path) -> NbGraderAPI:
    """nbgrader in the folder of the course, with the settings there."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(out)).load_config()
    config.CourseDirectory.root = str(out.resolve())
    ours = {preprocessors.Execute: Execute, preprocessors.DeduplicateIds: DeduplicateIds}
    for name in ("sanitize_preprocessors", "autograde_preprocessors"):
        steps = Autograde.class_traits()[name].default()
        config.Autograde[name] = [ours.get(step, step) for step in steps]
    return NbGraderAPI(config=config)


def check_kernel() -> tuple[str, str]:
    """Whether kernels start, are of this environment, and check what they run; else points would
    say nothing."""
    cell = nbformat.v4.new_code_cell("import matplotlib.pyplot\nfrom dss import *")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    client = NotebookClient(notebook, timeout=120, kernel_manager_class=Execute.manager)
    with client.setup_kernel():
        run_sync(refuse_other)(client.kc)
        client.execute_cell(cell, 0)
    return "graded", ""


class DeduplicateIds(preprocessors.DeduplicateIds):
    """nbgrader's, but a copy of a cell keeps no marks at all: of empty ones nbgrader thinks that
    they are of an old version, and refuses the whole notebook."""

    def preprocess_cell(self, cell, resources, cell_index):
        cell, resources = super().preprocess_cell(cell, resources, cell_index)
        if cell.metadata.get("nbgrader") == {}:
            del cell.metadata["nbgrader"]
        return cell, resources


def cut(kind: str, content: dict, room: int) -> tuple[dict, int]:
    """A message of the kernel with at most about `room` characters; and the size it had."""
    if kind == "stream":
        text = content["text"]
        short = text if len(text) <= room else text[:room] + " ... cut ..."
        return content | {"text": short}, len(text)
    if kind == "error":  # its name stays: nbgrader looks for it
        lines = [line[:10_000] for line in content["traceback"][:1000]]
        size = sum(map(len, lines))
        return content | {"evalue": content["evalue"][:10_000], "traceback": lines}, size
    sizes = {form: len(str(value)) for form, value in content["data"].items()}
    kept = {form: value for form, value in content["data"].items() if sizes[form] <= room}
    return content | {"data": kept or {"text/plain": "... cut ..."}}, sum(sizes.values())
