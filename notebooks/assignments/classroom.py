"""Hand out the assignments, collect and grade what comes back, and show that grading finds what is
planted.

This is the command line.  What it does is in `bundle`, `collecting`, `grading`, `feedback` and
`solutions`.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import bundle
import collecting
import typer
from execution import Contained, Execute, course
from feedback import moodle_archives, pages, waiting_in
from grading import NAMES, check_course, fail, grades, show
from samples import SAMPLES, differences, read, submit, write
from solutions import write_solutions
from versions import RULES

from dss.commands import errors_told, run
from dss.given import folder_from

HERE = Path(__file__).resolve().parent


def folder(text: str) -> Path:
    """The folder of a course, as it was typed."""
    try:
        folder_from(text, "the folder")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return Path(text).expanduser()


Folder = Annotated[Path, typer.Argument(help="Folder of the course.", parser=folder)]
Jobs = Annotated[int, typer.Option(min=1, help="Submissions at a time.")]
DUE = "When an assignment is due: 1_gamma=2026-12-02T23:59, or =none."
# nbgrader starts alembic by its name, wherever this Python was started from.
place = str(Path(sys.executable).parent)
os.environ["PATH"] = os.pathsep.join([place, os.environ.get("PATH", os.defpath)])
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
@errors_told(name="classroom")
def release(
    out: Folder,
    group: Annotated[int, typer.Option(help="0 to 99.")] = 0,
    due: Annotated[list[str] | None, typer.Option(help=DUE)] = None,
) -> None:
    """Make a course in OUT: OUT/students.zip is for students, OUT/source/ holds the solutions."""
    if not 0 <= group <= 99:
        fail(f"group is {group}; 0 to 99 is allowed")
    if any((out / name).exists() for name in ("source", "release", "gradebook.db")):
        fail(f"{out} holds a release already; choose another folder, or remove that one")
    dates = collecting.dates_from(due or [], NAMES)
    wheel = bundle.wheel()
    for name in NAMES:
        notebook = read(HERE / "source" / name / f"{name}.ipynb")
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = cell.source.replace("group: int = 0", f"group: int = {group}")
            if cell.cell_type == "code":  # what it says is of group 0
                cell.outputs, cell.execution_count = [], None
        write(notebook, out / "source" / name / f"{name}.ipynb")
    shutil.copy(HERE / "nbgrader_config.py", out)
    for name in NAMES:
        done = course(out).generate_assignment(name)
        if not done["success"]:
            fail(f"nbgrader could not release {name}:\n{done['log']}\n{done['error']}", 1)
    with course(out).gradebook as gradebook:
        collecting.set_due(gradebook, dates)
    typer.echo("\n".join(collecting.described(dates)), nl=bool(dates))
    bundle.pack(out / "release", NAMES, wheel, out / "students.zip")
    typer.echo(f"Group {group}: hand out {out}/students.zip; `collect` takes what comes back")


@app.command()
@errors_told(name="classroom")
def due(
    out: Folder,
    dates: Annotated[list[str], typer.Argument(help=DUE)],
    student: Annotated[str | None, typer.Option(help="An extension of one id or team.")] = None,
) -> None:
    """Say when assignments are due, to all or to one; collect again to see who is late."""
    check_course(out)
    found = collecting.dates_from(dates, NAMES)
    with course(out).gradebook as gradebook:
        collecting.set_due(gradebook, found, student)
    typer.echo("\n".join(collecting.described(found, student)))


@app.command()
@errors_told(name="classroom")
def collect(
    out: Folder,
    download: Annotated[Path, typer.Argument(help="Zip archive or folder.", exists=True)],
    roster: Annotated[Path | None, typer.Option(help="CSV: id, name, email.", exists=True)] = None,
    count: Annotated[str, typer.Option(help=f"{', '.join(RULES)}.")] = "last-on-time",
    received: Annotated[str | None, typer.Option(help="When all of it came.")] = None,
) -> None:
    """Put what Moodle or Canvas downloads into OUT/versions, and what counts into OUT/submitted.

    --count chooses among the versions of those who are in the download.  The exit status is 0 when
    every file could be placed, 1 when not (all others are), 2 when nothing was done.
    """
    check_course(out)
    if count not in RULES:
        fail(f"--count is {count!r}; {', '.join(RULES)} are allowed")
    try:
        time = collecting.time_from(received, "--received") if received else None
        with course(out).gradebook as gradebook:
            done = collecting.collect(out, download, gradebook, NAMES, count, roster, time)
    except ValueError as error:
        fail(str(error))
    for line in done.placed + done.notes:
        typer.echo(line)
    typer.echo(f"{done.n_files} files: {done.n_new} new versions, {len(done.placed)} to grade")
    if done.not_placed:
        fail("\n  ".join([f"{len(done.not_placed)} could not be placed:", *done.not_placed]), 1)


@app.command()
@errors_told(name="classroom")
def feedback(out: Folder) -> None:
    """Write OUT/feedback/<student>/<assignment>/<assignment>.html, without the hidden tests; and an
    archive of these pages for Moodle."""
    check_course(out)
    there = {name: (out / "autograded").glob(f"*/{name}/{name}.ipynb") for name in NAMES}
    pairs = {(path.parts[-3], name) for name, paths in there.items() for path in paths}
    for path in (out / "feedback").glob("*/*"):
        if path.parts[-2:] not in pairs and path.name in NAMES:
            shutil.rmtree(path)  # of a submission that is no longer graded
    wrong = [pages(course(out), name) for name in sorted({name for _, name in pairs})]
    typer.echo(f"{len(pairs)} pages in {out}/feedback")
    for path in moodle_archives(out):
        typer.echo(f"{path}: for Moodle, to upload as feedback files in a zip")
    if waiting := len(pairs & waiting_in(course(out))):
        typer.echo(f"{waiting} of them show 0 points for answers that wait for points by hand")
    if wrong := list(filter(None, wrong)):
        fail("\n".join(wrong), 1)


@app.command()
@errors_told("stopped; submissions that were being graded have no points; grade again", "classroom")
def grade(
    out: Folder,
    jobs: Jobs = 1,
    memory: Annotated[int, typer.Option(min=1, help="GiB for each kernel.")] = 12,
    again: Annotated[bool, typer.Option(help="Grade unchanged submissions too.")] = False,
    sandbox: Annotated[bool, typer.Option(help="Run student code under bubblewrap.")] = False,
) -> None:
    """Grade OUT/submitted/<student>/<assignment>/ and write OUT/grades.csv.

    What has not changed since it was graded is not run again.  The exit status is 0 when every
    submission has a grade (a crash has one: 0), 1 when nbgrader or its gradebook failed, 2 when
    OUT is no course.
    """
    Execute.manager = Contained if sandbox else Execute.manager
    table = grades(out, jobs, memory, again)
    typer.echo(show(table))
    if failed := int((table.status == "not graded").sum()):
        fail(f"grading itself failed for {failed} submissions; see the column `note`", 1)


@app.command()
@errors_told(name="classroom")
def solutions(out: Folder) -> None:
    """Write OUT/solutions/<assignment>.ipynb for teachers: solutions, slips, rubric, specimens."""
    check_course(out)
    typer.echo("\n".join(map(str, write_solutions(out))))


@app.command()
@errors_told(name="classroom")
def demonstrate(out: Folder = Path("build/classroom"), jobs: Jobs = 2) -> None:
    """Release, submit the bundled samples, grade, and compare with what each should lose."""
    mark = out / "made-by-demonstrate"
    if out.exists() and not mark.exists():
        fail(f"{out} was not made by demonstrate, which would remove it; choose another folder")
    shutil.rmtree(out, ignore_errors=True)
    mark.parent.mkdir(parents=True)
    mark.touch()
    release(out, group=7)
    for sample in SAMPLES:
        submit(out, sample, NAMES)
    table = grades(out, jobs).set_index(["student", "assignment"], drop=False)
    typer.echo(show(table))
    wrong = [line for sample in SAMPLES for line in differences(sample, table, NAMES)]
    if wrong:
        fail("\n".join(["Not as planted:", *wrong]), 1)
    typer.echo(f"All {len(SAMPLES)} samples lost exactly what was planted.")


if __name__ == "__main__":
    run(app, "classroom.py")
