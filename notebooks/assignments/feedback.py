"""What a failed check says: in the teacher's table, and on pages that do not print the tests."""

import re
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.apps import NbGraderAPI
from nbgrader.preprocessors import ClearHiddenTests, GetGrades
from platforms import MOODLE
from versions import ledger

from dss.files import write

MAX_MESSAGE = 100
HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n(.*?)### END HIDDEN TESTS", re.DOTALL)
COLORS = re.compile(r"\x1b\[[0-9;]*m")


def message(cell: NotebookNode | None, limit: int = MAX_MESSAGE) -> str:
    """Why a check gave no points, in one line; empty where it does not say.

    Args:
        cell: the check, with its outputs; None where it was deleted.
        limit: characters that are kept.
    """
    if cell is None:
        return "deleted"
    if cell.cell_type != "code":
        return "turned into text"
    for output in cell.outputs:
        if output.output_type == "error":
            text = output.evalue.strip()
            if output.ename != "AssertionError" or not text:
                text = f"{output.ename}: {text}".rstrip(": ")
        elif output.output_type == "stream" and output.name == "stderr":
            text = f"it wrote to the error stream: {output.text.strip()}"
        else:
            continue
        line = COLORS.sub("", text).partition("\n")[0].replace(";", ",")
        return line if len(line) <= limit else line[: limit - 4].rstrip() + " ..."
    return ""


class MessagesOnly(ClearHiddenTests):
    """Of a check its visible part stays, and of what it wrote the message of its failure.  What
    other cells wrote stays, unless it shows a hidden test."""

    def preprocess(self, nb, resources):
        checks = [cell.source for cell in nb.cells if is_check(cell)]
        hidden = [part for source in checks for part in HIDDEN.findall(source)]
        self.lines = {line.strip() for part in hidden for line in part.splitlines()}
        self.lines = {plain(line) for line in self.lines if len(line) >= 20}
        return super().preprocess(nb, resources)

    def preprocess_cell(self, cell, resources, cell_index):
        if is_check(cell):
            said = message(cell, 1000)
            cell, resources = super().preprocess_cell(cell, resources, cell_index)
            cell.outputs = [stream(said)] if said else []
        elif cell.cell_type == "code":
            cell.outputs = [self.shown(output) for output in cell.outputs]
        return cell, resources

    def shown(self, output: NotebookNode) -> NotebookNode:
        text = plain(str(output.get("data", "")) + str(output.get("text", "")) + error_of(output))
        if any(line in text for line in self.lines):
            return stream("(left out: it shows a hidden test)")
        return output


def is_check(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and utils.is_grade(cell) and not utils.is_solution(cell)


def error_of(output: NotebookNode) -> str:
    return str(output.get("evalue", "")) + "\n".join(output.get("traceback", []))


def plain(text: str) -> str:
    """Without colours, quotation marks and backslashes, as `repr` adds them."""
    return re.sub(r"[\\'\"]", "", COLORS.sub("", text))


def stream(text: str) -> NotebookNode:
    return NotebookNode(output_type="stream", name="stdout", text=text + "\n")


STEPS = [GetGrades, MessagesOnly, CSSHTMLHeaderPreprocessor]


def pages(api: NbGraderAPI, name: str) -> str:
    """Write OUT/feedback/<student>/<assignment>/ of all that are graded; what went wrong, if
    anything did."""
    api.config.GenerateFeedback.preprocessors = STEPS
    done = api.generate_feedback(name)
    return "" if done["success"] else f"{name}: {done['error'] or done.get('log', '')}"


def moodle_archives(out: Path) -> list[Path]:
    """Write OUT/feedback/<assignment>_moodle.zip: the pages of those who came by Moodle, each in
    a folder that is called like the one it came in.  By that name Moodle knows whose page it is."""
    pages_of = defaultdict(list)
    for version in ledger(out):
        name = version.assignment
        page = out / "feedback" / version.student / name / f"{name}.html"
        folder = next(filter(None, map(MOODLE.fullmatch, version.source.split("/"))), None)
        if version.counts and folder and page.exists():
            place = f"{folder['name']}_{folder['number']}_assignsubmission_file_/{name}.html"
            pages_of[name].append((place, page.read_bytes()))
    written = []
    for name, entries in sorted(pages_of.items()):
        content = BytesIO()
        with ZipFile(content, "w", ZIP_DEFLATED) as archive:
            for place, page in entries:
                archive.writestr(place, page)
        written.append(out / "feedback" / f"{name}_moodle.zip")
        write(written[-1], content.getvalue())
    for path in set((out / "feedback").glob("*_moodle.zip")) - set(written):
        path.unlink()  # of an earlier time
    return written


def waiting_in(api: NbGraderAPI) -> set[tuple[str, str]]:
    """Students and assignments that wait for points by hand."""
    with api.gradebook as gradebook:
        return {
            (submission.student_id, assignment.name)
            for assignment in gradebook.assignments
            for submission in gradebook.assignment_submissions(assignment.name)
            if submission.needs_manual_grade
        }
