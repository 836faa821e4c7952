"""Grading: every submission ends in the table, each in a process of its own.

All that concerns cells, points and grades is nbgrader's work.
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
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path

import collecting
import nbformat
import pandas as pd
import typer
import wide
from execution import check_kernel, course
from feedback import message
from nbgrader.api import MissingEntry, SubmittedAssignment
from nbgrader.apps import NbGraderAPI
from nbgrader.preprocessors import AssignLatePenalties
from samples import grade_id, read
from sqlalchemy.exc import SAWarning, SQLAlchemyError
from tqdm import tqdm

from dss.commands import Terminated, terminated_as_interrupted
from dss.files import write as write_file

SOURCE = Path(__file__).resolve().parent / "source"
NAMES = sorted(path.name for path in SOURCE.iterdir() if path.is_dir())
COLUMNS = ["student", "assignment", "status", "checks", "checks_max", "by_hand", "by_hand_max"]
COLUMNS += ["lost", "waits", "timed_out", "deleted", "note", "late", "penalty", "digest"]
STATE = "graded.csv"  # in a course: what was graded, for the next run


def grades(out: Path, jobs: int = 1, memory: int = 12, again: bool = False) -> pd.DataFrame:
    """One row for each student and assignment, also written to OUT/grades.csv."""
    check_course(out, "submitted")
    people = collecting.people_of(out)[0] if (out / collecting.ROSTER).exists() else []
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
    as_before = {p for p, row in known(out, digests).items() if row["status"] == "graded"}
    forget(out, same)
    ceiling = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (memory * 2**30, ceiling))  # kernels inherit it
    todo = {p: (anew, out, *p, p in as_before) for p in there if p not in same}
    ends |= same | apart(jobs, todo, out)
    rows = [result(out, *pair, *ends[pair]) | {"digest": digests.get(pair, "")} for pair in pairs]
    note = "submitted/<student>/<assignment>/<assignment>.ipynb is expected"
    rows += [{"student": s, "assignment": a, "status": "unknown", "note": note} for s, a in stray]
    if not rows:
        fail(f"{out / 'submitted'} is empty; <student>/<assignment>/<assignment>.ipynb is expected")
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    for name in (STATE, "grades.csv"):
        write_file(out / name, table.to_csv(index=False).encode())
    if people:
        wide.save(out, table, people, NAMES, points(out))
    return table


def points(out: Path) -> dict[str, float]:
    """What each assignment is worth, checks and by hand."""
    with course(out).gradebook as gradebook:
        return {name: gradebook.find_assignment(name).max_score for name in NAMES}


def check_course(out: Path, *others: str) -> None:
    for name in ("nbgrader_config.py", "gradebook.db", "release", *others):
        if not (out / name).exists():
            fail(f"there is no {out / name}; `release` makes a course, `collect` fills it")


def digest(out: Path, student: str, name: str) -> str:
    """Of what was handed in, and of what checks it."""
    paths = (out / "source" / name, out / "submitted" / student / name)
    files = [path / f"{name}.ipynb" for path in paths]
    contents = [file.read_bytes().removeprefix(BOM_UTF8) for file in files if file.is_file()]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def last(out: Path) -> pd.DataFrame:
    """The table of the last run; empty where there is none.  It has a file of its own: nbgrader's
    export writes over grades.csv."""
    path = out / STATE
    if not path.exists():  # a course that was graded before that file was
        path = out / "grades.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame()
    return table if "digest" in table else pd.DataFrame(columns=["student", "assignment", "digest"])


def forget(out: Path, same: dict) -> None:
    """Take the digests of all others out of that table: should this run be interrupted, the next
    one knows nothing of what this one began, and the old table is still there."""
    if len(table := last(out)):
        pairs = zip(table.student, table.assignment, strict=True)
        table.loc[[pair not in same for pair in pairs], "digest"] = ""
        write_file(out / STATE, table.to_csv(index=False).encode())


def known(out: Path, digests: dict) -> dict:
    """The rows of the last run, of those that are the same still."""
    rows = {(row["student"], row["assignment"]): row for row in last(out).to_dict("records")}
    return {p: rows[p] for p, value in digests.items() if rows.get(p, {}).get("digest") == value}


def unchanged(out: Path, digests: dict) -> dict:
    """How those ended that were graded in full, in the last run, and are the same still."""
    return {
        pair: ("graded", row["note"])
        for pair, row in known(out, digests).items()
        if (row["status"], row["timed_out"]) == ("graded", "")
        and out.joinpath("autograded", *pair).exists()
    }


def looked_at(out: Path, student: str, name: str) -> set[str]:
    """The cells of a submission that have points by hand and wait for nobody."""
    with suppress(MissingEntry), course(out).gradebook as gradebook:
        notebooks = gradebook.find_submission(name, student).notebooks
        entries = [entry for notebook in notebooks for entry in notebook.grades]
        return {e.name for e in entries if e.manual_score is not None and not e.needs_manual_grade}
    return set()  # the gradebook is a new one


def anew(out: Path, student: str, name: str, as_before: bool = False) -> tuple[str, str]:
    """Grade one submission.  Only now are its old points taken away: should the grading of a class
    be interrupted, all that was not reached yet keeps what it had.

    Args:
        as_before: whether its points by hand are of this very content, and need no second look.
    """
    try:
        seen = looked_at(out, student, name) if as_before else set()
        status, note = prepare(out, student, name)
    except SQLAlchemyError as error:
        return "not graded", f"{type(error).__name__}: {error}".splitlines()[0][:100]
    if status == "graded":
        status, why = autograde(out, student, name)
        note = why or note
        if status != "graded":
            prepare(out, student, name)  # what was saved before it failed counts no more
        elif seen:
            settle(out, student, name, seen)
    return status, note


def settle(out: Path, student: str, name: str, seen: set[str]) -> None:
    """Let cells wait no longer for a teacher."""
    with course(out).gradebook as gradebook:
        for notebook in gradebook.find_submission(name, student).notebooks:
            for entry in notebook.grades:
                entry.needs_manual_grade &= entry.name not in seen
        gradebook.db.commit()


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
    ours = {path.name, "timestamp.txt"}
    rest = ", ".join(sorted(p.name for p in folder.glob("[!.]*") if p.name not in ours))
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
    if (said := moved(out, name, list(cells))) not in note:  # which may be that of the last run
        note = "; ".join(filter(None, (note, said)))
    late = [
        cell_id or "a cell of their own"
        for cell_id, cell in cells.items()
        if any(o.get("ename") == "CellTimeoutError" for o in cell.get("outputs", []))
    ]
    api = course(out)
    time = api.coursedir.get_existing_timestamp(str(out / "submitted" / student / name))
    with api.gradebook as gradebook:
        submission = gradebook.find_submission(name, student)
        submission.timestamp = time
        penalty = penalize(api, submission)
        gradebook.db.commit()
        late_by = submission.total_seconds_late
        entries = [
            (e.name, e.score, e.max_score, e.needs_manual_grade, e.cell_type == "markdown")
            for notebook in submission.notebooks
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
        "lost": "; ".join(
            f"{n} {s - top:g}" + why(cells, n) for n, (s, top) in sorted(checks.items()) if s < top
        ),
        "waits": ", ".join(n for n, *_, waits, _ in entries if waits),
        "timed_out": ", ".join(late),
        "deleted": ", ".join(n for n, *_ in entries if cells and n not in cells),
        "note": note,
        "late": late_by,
        "penalty": penalty,
    }


def moved(out: Path, name: str, cells: list[str]) -> str:
    """A note, where cells of the release stand in another order: checks may fail for that alone."""
    given = [grade_id(c) for c in read(out / "source" / name / f"{name}.ipynb").cells]
    same = [c for c in cells if c in given] == [c for c in given if c in cells]
    return "" if same else "cells stand in another order"


def why(cells: dict, name: str) -> str:
    """What a failed check says, in brackets; nothing of a submission that was not run."""
    said = message(cells.get(name)) if cells else ""
    return said and f" ({said})"


def penalize(api: NbGraderAPI, submission: SubmittedAssignment) -> float:
    """The points that nbgrader's plugin takes off for being late, entered in the gradebook: what
    it entered itself is of the points at that time, and of the due date."""
    plugin = AssignLatePenalties(parent=api).plugin_class(parent=api)
    seconds = submission.total_seconds_late
    for notebook in submission.notebooks:
        found = plugin.late_submission_penalty(submission.student.id, notebook.score, seconds)
        penalty = min(max(found or 0, 0), notebook.score) if seconds > 0 else 0
        notebook.late_submission_penalty = penalty or None
    return sum(notebook.late_submission_penalty or 0 for notebook in submission.notebooks)


def show(table: pd.DataFrame) -> str:
    """The table as text; those who handed nothing in are counted at its end."""
    rows = [("student", "assignment", "checks", "by hand", "lost, and what else there is to say")]
    handed_in = table[table.status != "not submitted"].astype(object)
    for row in handed_in.where(handed_in.notna(), "").to_dict("records"):
        said = [row["status"] if row["status"] != "graded" else "", row["note"], row["lost"]]
        said.append(row["late"] and f"late: {timedelta(seconds=round(row['late']))}")
        for name in ("timed_out", "deleted", "waits"):
            said.append(row[name] and f"{name.replace('_', ' ')}: {row[name]}")
        kinds = ("checks", "by_hand") if row["checks"] != "" else ()
        points = [f"{row[n]:g}/{row[n + '_max']:g}" for n in kinds] or ["-", "-"]
        rows.append((row["student"], row["assignment"], *points, "; ".join(filter(None, said))))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[4]]) for row in rows]
    lines.append(f"not submitted: {(table.status == 'not submitted').sum()}")
    if waiting := (handed_in.waits.fillna("") != "").sum():
        lines.append(f"{waiting} wait for points by hand, which count 0 until then in all tables")
    return "\n".join(lines)


def fail(message: str, status: int = 2) -> None:
    typer.echo(f"classroom: {message}", err=True)
    raise typer.Exit(status)
