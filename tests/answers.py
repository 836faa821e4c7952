"""Answers to the assignments, run without a kernel, each from its own cell on.

What stands before an answer is the same for all answers to a cell.  So a source notebook is run
once for a group, in a process of its own, which leaves a copy of itself before each solution
(`os.fork`: all objects, the functions with their globals, the random numbers).  Each answer is run
in a copy of that copy, and none sees what another one did.
"""

import contextlib
import functools
import io
import os
import signal
import traceback

import matplotlib
from classes import SERVER, samples, source

TOP = 0  # the first cell
SECONDS = 300  # that an answer may take


def code_cells(name, group=0):
    """Pairs (grade_id, code) of a source notebook."""
    cells = [cell for cell in source(name).cells if cell.cell_type == "code"]
    parameter = "group: int = {}".format
    assert sum(parameter(0) in cell.source for cell in cells) == 1
    return [(samples.grade_id(c), c.source.replace(parameter(0), parameter(group))) for c in cells]


def failures(name, group, replace=(), last=None, start=None):
    """Cells of a source notebook that raise, for a group: pairs (grade_id, error).

    Args:
        name: of the assignment.
        group: the student group.
        replace: `(cell, old, new)`, as often as needed: what is replaced in a solution.
        last: the cell after which no more are run.
        start: number of the cell that is run first, all before it being those of the reference;
            the first that is changed, where None.
    """
    return run_answer(name, group, replace, last, start)[0]


def run_answer(name, group, replace=(), last=None, start=None):
    """As `failures`, and what the cells printed."""
    changed = {cell for cell, *_ in replace}
    if start is None:
        numbers = [k for k, (cell, _) in enumerate(code_cells(name)) if cell in changed]
        start = min(numbers, default=TOP)
    outcome = reference(name, group).ask(start, (list(replace), last))
    if isinstance(outcome, str):
        raise RuntimeError(f"{name}, group {group}, {changed}: {outcome}")
    return outcome


@functools.cache
def reference(name, group):
    return Reference(name, group)


class Reference:
    """A source notebook that is run for a group, as far as answers need it."""

    def __init__(self, name, group):
        solutions = [k for k, (_, code) in enumerate(code_cells(name)) if "### BEGIN SOL" in code]
        self.starts, self.at = [TOP, *solutions], 0
        self.go, go = SERVER.Pipe()
        pipes = {k: SERVER.Pipe() for k in self.starts}
        self.ends = {k: ours for k, (ours, _) in pipes.items()}
        theirs = {k: end for k, (_, end) in pipes.items()}
        SERVER.Process(target=leave_copies, args=(name, group, go, theirs), daemon=True).start()
        for end in (go, *theirs.values()):  # so that the other side's death is an EOFError here
            end.close()

    def ask(self, start, request):
        while self.starts[self.at] < start:
            self.go.send("on")
            self.at += 1
        self.ends[start].send(request)
        return self.ends[start].recv()


def leave_copies(name, group, go, ends):
    """Run a notebook, and leave a copy of this process before each cell whose number is in `ends`;
    it goes on from there when it is told to.

    Each copy, and this process, ends when the one that asks has ended.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that has begun with a GPU has no copies
    matplotlib.use("Agg")
    cells, variables = code_cells(name, group), {"__name__": "__main__"}
    with contextlib.suppress(EOFError):
        for k, (_, code) in enumerate(cells):
            if k in ends:
                if os.fork() == 0:
                    answer_all(ends[k], cells[k:], variables)
                go.recv()
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, variables)


def answer_all(end, cells, variables):
    """Run each answer that is asked for in a copy of this process, which never returns."""
    with contextlib.suppress(EOFError):
        while True:
            replace, last = end.recv()
            if (copy := os.fork()) == 0:
                try:
                    signal.alarm(SECONDS)
                    end.send(run(cells, variables, replace, last))
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            if status := os.waitpid(copy, 0)[1]:
                end.send(f"the process that ran it ended with {os.waitstatus_to_exitcode(status)}")
    os._exit(0)


def run(cells, variables, replace, last):
    """Cells that raise, and what all cells print."""
    found, printed = [], io.StringIO()
    for cell, code in cells:
        for _, old, new in (change for change in replace if change[0] == cell):
            assert code.count(old) == 1, old
            code = code.replace(old, new)
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, variables)
        except Exception as error:
            found.append((cell, repr(error)))
        if cell == last:
            break
    return found, printed.getvalue()
