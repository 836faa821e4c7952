"""Hand out the assignments, grade what comes back, and show that grading finds what is planted.

All that concerns cells, points and grades is nbgrader's work; this starts it, in a process of its
own for each submission, and sees to it that every submission ends in the table.
"""

import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import warnings
from codecs import BOM_UTF8
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Annotated

import nbformat
import pandas as pd
import typer
from execution import Contained, DeduplicateIds, Execute, check_kernel
from nbgrader import preprocessors
from nbgrader.apps import NbGraderAPI
from nbgrader.converters import Autograde
from samples import SAMPLES, differences, grade_id, read, submit, write
from sqlalchemy.exc import SAWarning, SQLAlchemyError
from tqdm import tqdm
from traitlets.config import PyFileConfigLoader

from dss.commands import Terminated, errors_told, run, terminated_as_interrupted
from dss.files import write as write_file
from dss.given import folder_from

HERE = Path(__file__).resolve().parent
NAMES = sorted(path.name for path in (HERE / "source").iterdir() if path.is_dir())


def folder(text: str) -> Path:
    """The folder of a course, as it was typed."""
    try:
        folder_from(text, "the folder")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return Path(text).expanduser()


Folder = Annotated[Path, typer.Argument(help="Folder of the course.", parser=folder)]
Jobs = Annotated[int, typer.Option(min=1, help="Submissions at a time.")]
# nbgrader starts alembic by its name, wherever this Python was started from.
place = str(Path(sys.executable).parent)
os.environ["PATH"] = os.pathsep.join([place, os.environ.get("PATH", os.defpath)])
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
@errors_told(name="classroom")
def release(out: Folder, group: Annotated[int, typer.Option(help="0 to 99.")] = 0) -> None:
    """Make a course in OUT: OUT/release/ is for students, OUT/source/ holds the solutions."""
    if not 0 <= group <= 99:
        fail(f"group is {group}; 0 to 99 is allowed")
    if any((out / name).exists() for name in ("source", "release", "gradebook.db")):
        fail(f"{out} holds a release already; choose another folder, or remove that one")
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
    typer.echo(f"Group {group}: hand out {out}/release/, collect in {out}/submitted/<student>/")


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


def grades(out: Path, jobs: int = 1, memory: int = 12, again: bool = False) -> pd.DataFrame:
    """One row for each student and assignment, also written to OUT/grades.csv."""
    for name in ("nbgrader_config.py", "gradebook.db", "release", "submitted"):
        if not (out / name).exists():
            fail(f"there is no {out / name}; `release` makes a course, you fill {out}/submitted")
    if apart(1, {"the kernel": (check_kernel,)}, out)["the kernel"][0] != "graded":
        fail(f"no kernel of {sys.prefix} starts, or it is not as it must be; see {out}/logs", 1)
    found = [p for p in sorted((out / "submitted").glob("*")) if not p.name.startswith(".")]
    students = [path.name for path in found if path.is_dir()]
    pairs = [(student, name) for student in students for name in NAMES]
    stray = [(path.name, "") for path in found if not path.is_dir()]
    stray += [
        (student, path.name)
        for student in students
        for path in sorted((out / "submitted" / student).glob("*"))
        if path.name not in NAMES and not path.name.startswith(".")
    ]
    ends = dict.fromkeys(pairs, ("not submitted", ""))
    there = [pair for pair in pairs if out.joinpath("submitted", *pair).exists()]
    digests = {pair: digest(out, *pair) for pair in there}
    same = {} if again else unchanged(out, digests)
    forget(out, same)
    ceiling = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (memory * 2**30, ceiling))  # kernels inherit it
    todo = {pair: (anew, out, *pair) for pair in there if pair not in same}
    ends |= same | apart(jobs, todo, out)
    rows = [result(out, *pair, *ends[pair]) | {"digest": digests.get(pair, "")} for pair in pairs]
    note = "submitted/<student>/<assignment>/<assignment>.ipynb is expected"
    rows += [{"student": s, "assignment": a, "status": "unknown", "note": note} for s, a in stray]
    if not rows:
        fail(f"{out / 'submitted'} is empty; <student>/<assignment>/<assignment>.ipynb is expected")
    table = pd.DataFrame(rows)
    write_file(out / "grades.csv", table.to_csv(index=False).encode())
    return table


def digest(out: Path, student: str, name: str) -> str:
    """Of what was handed in, and of what checks it."""
    paths = (out / "source" / name, out / "submitted" / student / name)
    files = [path / f"{name}.ipynb" for path in paths]
    contents = [file.read_bytes().removeprefix(BOM_UTF8) for file in files if file.is_file()]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def last(out: Path) -> pd.DataFrame:
    """grades.csv of the last run; empty where there is none, or one that nbgrader exported."""
    path = out / "grades.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame()
    return table if "digest" in table else pd.DataFrame(columns=["student", "assignment", "digest"])


def forget(out: Path, same: dict) -> None:
    """Take the digests of all others out of grades.csv: should this run be interrupted, the next
    one knows nothing of what this one began, and the old table is still there."""
    if len(table := last(out)):
        pairs = zip(table.student, table.assignment, strict=True)
        table.loc[[pair not in same for pair in pairs], "digest"] = ""
        write_file(out / "grades.csv", table.to_csv(index=False).encode())


def unchanged(out: Path, digests: dict) -> dict:
    """How those ended that were graded in full, in the last run, and are the same still."""
    old = {(row["student"], row["assignment"]): row for row in last(out).to_dict("records")}
    return {
        pair: ("graded", row["note"])
        for pair, value in digests.items()
        if (row := old.get(pair, {})).get("digest") == value
        and (row["status"], row["timed_out"]) == ("graded", "")
        and out.joinpath("autograded", *pair).exists()
    }


def anew(out: Path, student: str, name: str) -> tuple[str, str]:
    """Grade one submission.  Only now are its old points taken away: should the grading of a class
    be interrupted, all that was not reached yet keeps what it had."""
    try:
        status, note = prepare(out, student, name)
    except SQLAlchemyError as error:
        return "not graded", f"{type(error).__name__}: {error}".splitlines()[0][:100]
    if status == "graded":
        status, why = autograde(out, student, name)
        note = why or note
        if status != "graded":
            prepare(out, student, name)  # what was saved before it failed counts no more
    return status, note


def prepare(out: Path, student: str, name: str) -> tuple[str, str]:
    """Enter a 0 for everything, which grading then overwrites; say whether there is what to grade.

    What was graded before and is no longer there, a check that was deleted, a kernel that died: all
    of it stays 0.  Points given by hand stay.
    """
    folder = out / "submitted" / student / name
    warnings.simplefilter("ignore", SAWarning)  # nbgrader's own
    with course(out).gradebook as gradebook:
        gradebook.update_or_create_student(student)
        for notebook in gradebook.update_or_create_submission(name, student).notebooks:
            for entry in notebook.grades:
                entry.auto_score, entry.needs_manual_grade = 0, False
        gradebook.db.commit()
    shutil.rmtree(out / "autograded" / student / name, ignore_errors=True)
    path = folder / f"{name}.ipynb"
    if any(p.is_symlink() for p in (folder.parent, folder, path)):
        return "unreadable", "a link, which may lead to anything; a file is expected"
    rest = ", ".join(sorted(p.name for p in folder.glob("[!.]*") if p != path))
    if not path.is_file():
        return "no notebook", f"{path.name} is missing; there is {rest or 'nothing'}"
    content = path.read_bytes()
    if content.startswith(BOM_UTF8):  # as editors on Windows write it; nbgrader reads none
        write_file(path, content.removeprefix(BOM_UTF8))
    try:
        nbformat.validate(read(path))
    except Exception as error:  # whatever nbformat makes of a damaged file
        return "unreadable", f"{type(error).__name__}: {error}".splitlines()[0][:100]
    return "graded", rest and f"not looked at: {rest}"


def apart(jobs: int, calls: dict, out: Path) -> dict:
    """Make each call in a process of its own, `jobs` at a time, with a log in OUT/logs."""
    fork = multiprocessing.get_context("fork")  # importing nbgrader anew takes 4 s
    waiting, running, ends = list(calls), {}, {}
    bar = tqdm(total=len(calls), desc="grading", unit="submission", disable=len(calls) < 2)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                key = waiting.pop(0)
                log = out / "logs" / f"{key if isinstance(key, str) else '-'.join(key)}.txt"
                log.parent.mkdir(exist_ok=True)
                receive, send = fork.Pipe(duplex=False)
                process = fork.Process(target=logged, args=(send, log, *calls[key]))
                process.start()
                send.close()
                running[process.sentinel] = key, process, receive
            for sentinel in connection.wait(running):
                key, process, receive = running.pop(sentinel)
                process.join()
                try:
                    ends[key] = receive.recv()
                except EOFError:
                    note = f"the process that graded it ended with {process.exitcode}"
                    ends[key] = "crashed", note
                bar.update()
    except BaseException:  # Ctrl-C, SIGTERM
        end([process for _, process, _ in running.values()])
        raise
    finally:
        bar.close()
    return ends


def end(processes: list, seconds: float = 20) -> None:
    """End processes that grade, which end their kernels; those that do not are killed."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(seconds)
        process.kill()
        process.join()


def logged(send, log: Path, call, *arguments) -> None:
    """Call, with what it and its kernel write in a file, and send what comes back."""
    signal.alarm(1200)  # ends this process, should a cell refuse to be interrupted
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started this
    with log.open("w", encoding="utf-8") as file, suppress(Terminated), terminated_as_interrupted():
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        send.send(call(*arguments))


def autograde(out: Path, student: str, name: str) -> tuple[str, str]:
    """Have nbgrader run and grade one submission; how that ended, and why."""
    done = course(out).autograde(name, student)
    if done["success"]:
        return "graded", ""
    log = done.get("log", "") + done["error"]
    if "DeadKernelError" in log or "CellTimeoutError" in log:
        return "crashed", "the kernel died, or could not be interrupted"
    errors = [line for line in log.splitlines() if "Error: " in line or "database" in line]
    ours = any(v in log for v in ("OperationalError", "No space left", "Kernel didn't respond"))
    return "not graded" if ours else "refused", (errors or ["see the log"])[0][:100]


def result(out: Path, student: str, name: str, status: str, note: str) -> dict:
    """The row of a submission: its points from the gradebook, the rest from the graded copy."""
    if status == "not submitted":
        return {"student": student, "assignment": name, "status": status}
    path = out / "autograded" / student / name / f"{name}.ipynb"
    cells = {grade_id(c): c for c in read(path).cells} if status == "graded" else {}
    late = [
        cell_id or "a cell of their own"
        for cell_id, cell in cells.items()
        if any(o.get("ename") == "CellTimeoutError" for o in cell.get("outputs", []))
    ]
    with course(out).gradebook as gradebook:
        entries = [
            (e.name, e.score, e.max_score, e.needs_manual_grade, e.cell_type == "markdown")
            for notebook in gradebook.find_submission(name, student).notebooks
            for e in notebook.grades
        ]
    checks = {n: (score, top) for n, score, top, _, by_hand in entries if not by_hand}
    hand = {n: (score, top) for n, score, top, _, by_hand in entries if by_hand}
    return {
        "student": student,
        "assignment": name,
        "status": status,
        "checks": sum(score for score, _ in checks.values()),
        "checks_max": sum(top for _, top in checks.values()),
        "by_hand": sum(score for score, _ in hand.values()),
        "by_hand_max": sum(top for _, top in hand.values()),
        "lost": ", ".join(f"{n} {s - top:g}" for n, (s, top) in sorted(checks.items()) if s < top),
        "waits": ", ".join(n for n, *_, waits, _ in entries if waits),
        "timed_out": ", ".join(late),
        "deleted": ", ".join(n for n, *_ in entries if cells and n not in cells),
        "note": note,
    }


def show(table: pd.DataFrame) -> str:
    """The table as text; those who handed nothing in are counted at its end."""
    rows = [("student", "assignment", "checks", "by hand", "lost, and what else there is to say")]
    handed_in = table[table.status != "not submitted"].astype(object)
    for row in handed_in.where(handed_in.notna(), "").to_dict("records"):
        said = [row["status"] if row["status"] != "graded" else "", row["note"], row["lost"]]
        for name in ("timed_out", "deleted", "waits"):
            said.append(row[name] and f"{name.replace('_', ' ')}: {row[name]}")
        kinds = ("checks", "by_hand") if row["checks"] != "" else ()
        points = [f"{row[n]:g}/{row[n + '_max']:g}" for n in kinds] or ["-", "-"]
        rows.append((row["student"], row["assignment"], *points, "; ".join(filter(None, said))))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[4]]) for row in rows]
    return "\n".join([*lines, f"not submitted: {(table.status == 'not submitted').sum()}"])


def course(out: Path) -> NbGraderAPI:
    """nbgrader in the folder of the course, with the settings there."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(out)).load_config()
    config.CourseDirectory.root = str(out.resolve())
    ours = {preprocessors.Execute: Execute, preprocessors.DeduplicateIds: DeduplicateIds}
    for name in ("sanitize_preprocessors", "autograde_preprocessors"):
        steps = Autograde.class_traits()[name].default()
        config.Autograde[name] = [ours.get(step, step) for step in steps]
    return NbGraderAPI(config=config)


def fail(message: str, status: int = 2) -> None:
    typer.echo(f"classroom: {message}", err=True)
    raise typer.Exit(status)


if __name__ == "__main__":
    run(app, "classroom.py")
