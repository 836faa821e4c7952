"""What learning platforms hand back: which file is of whom, for which assignment, and when it came.

| from | name in the download |
|---|---|
| Moodle, a folder each | `Full name_12345_assignsubmission_file_/any name.ipynb` (or `_file/`) |
| Moodle, flat | `Full name_12345_assignsubmission_file_any name.ipynb` |
| Moodle, teams | `Team-Full name_12345_...`, or `Team_12345_...` |
| Canvas | `lastnamefirstname_12345_67890_any-name.ipynb`: number of the person, of the file |
| Canvas, late | `lastnamefirstname_LATE_12345_67890_any-name.ipynb` |
| anything else | a folder or file that is called like an id, e-mail or name of the roster |

A second upload gets ` (1)` from a browser, `-1` from Canvas.  Only the time, the file's number and
that count say which is later; the name of a file says nothing about its assignment.

Nothing is ever unpacked by its name, only notebooks are read, and those that are too large are not.
"""

import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from roster import Names

MAX_NOTEBOOK = 50_000_000  # bytes, unpacked
MAX_TOTAL = 4_000_000_000  # bytes of all notebooks of one download, unpacked
MAX_FILES = 20_000
IGNORED = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}
COPY = re.compile(r"(?:\((\d+)\)|-(\d+))\.ipynb$", re.IGNORECASE)
DAMAGED = zipfile.BadZipFile, zlib.error, lzma.LZMAError
MOODLE = re.compile(r"(?P<name>.+?)_(?P<number>\d+)_assignsubmission_[a-z]+(_.*)?")
CANVAS = re.compile(
    r"(?P<name>.+?)(?P<late>_LATE)?_(?P<person>\d+)_(?P<number>\d+)_.+", re.IGNORECASE
)


@dataclass(frozen=True)
class File:
    """A file of a download: its path there, size, time, and how to read it."""

    path: str
    size: int
    time: datetime
    read: Callable[[], bytes]
    why_not: str = ""  # why it is not to be read


@dataclass(frozen=True)
class HandIn:
    """A notebook that has been placed.

    Attributes:
        folder: of the person or team.
        assignment: that its cells are of.
        content: of the file.
        time: when it came.
        late: True and False where the platform says so, None where it does not.
        order: which of two with the same time is the later one.
        source: its path in the download.
    """

    folder: str
    assignment: str
    content: bytes
    time: datetime
    late: bool | None
    order: tuple[int, int]
    source: str


def files_of(download: Path) -> list[File]:
    """The files of a zip archive or a folder.

    Raises:
        ValueError: it is neither, damaged, or an archive made to do harm: with names that lead out
            of it, with too many files or notebooks of too many bytes.
    """
    if download.is_dir():
        found = list(files_of_folder(download))
    else:
        try:
            found = list(files_of_archive(zipfile.ZipFile(download)))
        except zipfile.BadZipFile as error:
            hint = "; a notebook alone goes into a folder that is called like the student's id"
            why = hint if is_notebook(str(download)) else f": {error}"
            raise ValueError(f"{download} is no zip archive and no folder{why}") from error
    if len(found) > MAX_FILES:
        raise ValueError(f"{download} holds {len(found)} files; at most {MAX_FILES} are read")
    total = sum(file.size for file in found if is_notebook(file.path) and not file.why_not)
    if total > MAX_TOTAL:
        raise ValueError(
            f"{download} holds notebooks of {total / 1e9:.1f} GB; at most {MAX_TOTAL / 1e9:.1f} GB "
            "are read"
        )
    return found


def files_of_folder(folder: Path) -> Iterator[File]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - IGNORED)
        for name in sorted(set(names) - IGNORED):
            path = Path(place, name)
            state = path.lstat()
            time = datetime.fromtimestamp(state.st_mtime).astimezone()
            why_not = (
                "a link; a file is expected" if path.is_symlink() else too_large(state.st_size)
            )
            known = path.relative_to(folder).as_posix()
            yield File(known, state.st_size, time, path.read_bytes, why_not)


def files_of_archive(archive: zipfile.ZipFile) -> Iterator[File]:
    for entry in archive.infolist():
        name = entry.filename
        if not entry.flag_bits & 0x800:  # not said to be UTF-8; it is, where a Mac packed it
            try:
                name = name.encode("cp437").decode("utf-8")
            except UnicodeError:
                pass
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
            raise ValueError(f"{archive.filename} was made to do harm: it holds {name!r}")
        if entry.is_dir() or IGNORED & set(path.parts):
            continue
        try:
            time = datetime(*entry.date_time).astimezone()
        except ValueError:  # no date at all
            time = datetime.fromtimestamp(Path(archive.filename).stat().st_mtime).astimezone()
        why_not = "encrypted" if entry.flag_bits & 1 else too_large(entry.file_size)

        def read(entry=entry) -> bytes:
            with archive.open(entry) as file:
                return file.read(MAX_NOTEBOOK)

        yield File(path.as_posix(), entry.file_size, time, read, why_not)


def too_large(size: int) -> str:
    allowed = f"at most {MAX_NOTEBOOK / 1e6:.0f} MB are read"
    return f"too large: {size / 1e6:.0f} MB; {allowed}" if size > MAX_NOTEBOOK else ""


def is_notebook(path: str) -> bool:
    return path.lower().endswith(".ipynb")


def hand_in(file: File, names: Names, ids: dict[str, set[str]], time: datetime | None) -> HandIn:
    """Whose file it is and which assignment.

    Args:
        file: of the download.
        names: of the roster.
        ids: by assignment the grade_ids that no other assignment has.
        time: when it came, where that is not the time of the file.

    Raises:
        ValueError: it cannot be placed; the message says why.
    """
    folder, late, number = person(file.path, names)
    if not is_notebook(file.path):
        raise ValueError("not a notebook (.ipynb)")
    if file.why_not:
        raise ValueError(file.why_not)
    try:
        content = file.read()
    except (OSError, EOFError, NotImplementedError, *DAMAGED) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    copy = COPY.search(file.path)
    order = number, int(next(filter(None, copy.groups()))) if copy else 0
    late = late if late or time is None else None  # a given time is better than no mark
    return HandIn(
        folder, assignment(content, ids), content, time or file.time, late, order, file.path
    )


def person(path: str, names: Names) -> tuple[str, bool | None, int]:
    """The folder of whom a path names, whether the platform says late, and the file's number.

    Raises:
        ValueError: nobody is known by that name, or more than one.
    """
    parts = path.split("/")
    for part in parts:
        if match := MOODLE.fullmatch(part):
            return one(names.find(match["name"]), match["name"]), None, int(match["number"])
    if match := CANVAS.fullmatch(parts[-1]):
        found = names.find(match["name"], drops_marks=True)
        found = found & names.numbered[match["person"]] or found
        return one(found, match["name"]), bool(match["late"]), int(match["number"])
    for part in parts:
        if found := names.find(part) or names.find(PurePosixPath(part).stem):
            return one(found, part), None, 0
    raise ValueError("it is not named as by Moodle or Canvas, nor like anybody on the roster")


def one(found: set[str], name: str) -> str:
    if not found:
        raise ValueError(f"nobody on the roster is called {name!r}")
    if len(found) > 1:
        raise ValueError(
            f"{name!r} may be any of {', '.join(sorted(found))}; write the id in place of the name"
        )
    return next(iter(found))


def own_ids(release: Path, names: list[str]) -> dict[str, set[str]]:
    """By assignment the grade_ids of its release that no other assignment has."""
    every = {}
    for name in names:
        path = release / name / f"{name}.ipynb"
        every[name] = grade_ids(json.loads(path.read_bytes()))
    others = {n: set().union(*(v for m, v in every.items() if m != n)) for n in names}
    return {name: every[name] - others[name] for name in names}


def grade_ids(notebook: dict) -> set[str]:
    cells = [cell for cell in notebook["cells"] if isinstance(cell, dict)]
    marks = [cell.get("metadata", {}).get("nbgrader", {}) for cell in cells]
    return {mark["grade_id"] for mark in marks if isinstance(mark.get("grade_id"), str)}


def assignment(content: bytes, ids: dict[str, set[str]]) -> str:
    """The assignment that a notebook's cells are of.

    Raises:
        ValueError: it is no notebook, has cells of no assignment, or as many of two.
    """
    try:
        found = grade_ids(json.loads(content.decode("utf-8-sig")))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise ValueError("not a notebook: its content is damaged or something else") from None
    common = sorted(((len(own & found), name) for name, own in ids.items()), reverse=True)
    (most, name), *rest = common
    if not most:
        raise ValueError("no cell of it bears a mark (grade_id) of an assignment of this course")
    if rest and rest[0][0] == most:
        raise ValueError(f"as many cells of it are of {name} as of {rest[0][1]}")
    return name
