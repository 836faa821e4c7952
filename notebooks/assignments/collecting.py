"""A download of a learning platform becomes versions, of which one is graded."""

import warnings
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import versions
from nbgrader.api import Gradebook, MissingEntry
from platforms import HandIn, files_of, hand_in, own_ids
from roster import Names, Person, people_from
from sqlalchemy.exc import SAWarning

from dss.files import write

ROSTER = "roster.csv"


@dataclass
class Collected:
    """What came of a download.

    Attributes:
        n_files: in the download.
        n_new: versions that were not known.
        placed: one line for each submission that is another one than before.
        not_placed: one line for each file that could not be placed, and why.
        notes: what else there is to say.
    """

    n_files: int
    n_new: int
    placed: list[str]
    not_placed: list[str]
    notes: list[str]


def people_of(out: Path, roster: Path | None = None) -> tuple[list[Person], bytes]:
    """The people of a roster, or of the copy in OUT, and the content of that file."""
    path = roster or out / ROSTER
    if not path.is_file():
        raise ValueError(f"there is no {path}; --roster names a CSV file: id, name, email")
    content = path.read_bytes()
    return people_from(content, str(path)), content


def collect(
    out: Path,
    download: Path,
    gradebook: Gradebook,
    names: list[str],
    rule: str,
    roster: Path | None = None,
    received: datetime | None = None,
) -> Collected:
    """Keep what is new of a download, and put what counts into OUT/submitted.

    Args:
        out: the course.
        download: a zip archive or a folder.
        gradebook: of the course; it has the due dates.
        names: of the assignments.
        rule: which version counts, of those who are in the download: a key of `versions.RULES`.
        roster: a CSV file; the copy in OUT where None.
        received: when all of it came; the times of the files where None.

    Raises:
        ValueError: the roster or the download cannot be used; nothing is written then.
    """
    people, content = people_of(out, roster)
    files = files_of(download)
    placed, refused = sort(files, Names(people), own_ids(out / "release", names), received)
    known = versions.ledger(out)
    notes = changed_roster(out, people)
    if not (out / ROSTER).exists() or (out / ROSTER).read_bytes() != content:
        write(out / ROSTER, content)
    enter(gradebook, people)
    known += versions.keep(out, known, versions.put_by_hand(out, known, names))
    new = versions.keep(out, known, placed)
    known += new
    pairs = sorted({(item.folder, item.assignment) for item in placed})
    lines = []
    for pair in pairs:
        due = due_date(gradebook, *pair)
        mine = [v for v in known if (v.student, v.assignment) == pair]
        chosen = versions.choose(mine, rule, due)
        if versions.place(out, chosen, due):
            late = "" if versions.is_in_time(chosen, due) else ", late"
            if late and not due:
                late += f" for the platform, not for `grade`: {pair[1]} has no due date here"
            which = f"{len(mine)} versions, counts: {chosen.file}" if len(mine) > 1 else chosen.file
            lines.append(f"{' '.join(pair)}: {which}{late}")
    versions.save(out, known)
    return Collected(len(files), len(new), lines, refused, notes)


def sort(
    files: list, names: Names, ids: dict[str, set[str]], received: datetime | None
) -> tuple[list[HandIn], list[str]]:
    """What can be placed, and for each other file a line that says why not."""
    placed, refused = [], []
    for file in files:
        try:
            placed.append(hand_in(file, names, ids, received))
        except ValueError as error:
            refused.append(f"{file.path}: {error}")
    return placed, refused


def changed_roster(out: Path, people: list[Person]) -> list[str]:
    """A note, where the new roster no longer has people or teams that have handed something in."""
    folders = {person.folder for person in people}
    gone = [p.name for p in sorted((out / "versions").glob("*")) if p.name not in folders]
    return [f"no longer on the roster, their hand-ins stay: {', '.join(gone)}"] if gone else []


def enter(gradebook: Gradebook, people: list[Person]) -> None:
    """Names and e-mail addresses in nbgrader's gradebook; a team has the names of all."""
    members = defaultdict(list)
    for person in people:
        members[person.folder].append(person)
    for folder, group in members.items():
        first, last = group[0].first_last
        if len(group) > 1:
            first, last = ", ".join(person.name for person in group), folder
        entry = {"first_name": first, "last_name": last, "email": group[0].email}
        gradebook.update_or_create_student(folder, **entry)


def due_date(gradebook: Gradebook, student: str, assignment: str) -> datetime | None:
    """When an assignment is due, with the extension of a student."""
    try:
        due = gradebook.find_submission(assignment, student).duedate
    except MissingEntry:
        due = gradebook.find_assignment(assignment).duedate
    return due and due.replace(tzinfo=UTC)


def dates_from(texts: list[str], names: list[str]) -> dict[str, datetime | None]:
    """Due dates by assignment, from `1_gamma=2026-12-02T23:59`; None from `1_gamma=none`.

    Raises:
        ValueError: another form, an assignment that is not there or is named twice, no date.
    """
    dates: dict[str, datetime | None] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in names or name in dates:
            raise ValueError(
                f"{text!r}: one of {', '.join(names)}, once, and =2026-12-02T23:59 are needed"
            )
        dates[name] = None if value == "none" else time_from(value, text)
    return dates


def time_from(value: str, what: str) -> datetime:
    """A time as it was typed, of this machine's time zone where it names none, in UTC."""
    needed = "2026-12-02T23:59, or with +01:00, is needed"
    try:
        time = datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{what!r}: {value!r} is no time; {needed}") from None
    if len(value) <= len("2026-12-02"):  # midnight, so that whoever comes on that day is late
        raise ValueError(f"{what!r}: {value!r} has no time of day; {needed}")
    return time


def described(dates: dict[str, datetime | None], student: str | None = None) -> list[str]:
    """Due dates in words, in this machine's time zone; None is none, or no extension."""
    never = "when it is for all" if student else "never"
    of = f" of {student}" if student else ""
    return [
        f"{name}{of} is due {date.astimezone():%A, %Y-%m-%d %H:%M %Z}"
        if date
        else f"{name}{of} is due {never}"
        for name, date in dates.items()
    ]


def set_due(
    gradebook: Gradebook, dates: dict[str, datetime | None], student: str | None = None
) -> None:
    """Enter due dates, of everybody or as an extension of one student or team.

    Raises:
        ValueError: nobody is so called; the assignment has no due date that could be extended, or
            it is later.
    """
    naive = {name: date and date.replace(tzinfo=None) for name, date in dates.items()}
    if student is None:
        for name, date in naive.items():
            gradebook.find_assignment(name).duedate = date
        gradebook.db.commit()
        return
    if student not in {entry.id for entry in gradebook.students}:
        raise ValueError(f"no student or team is called {student!r}; `collect` enters the roster")
    extensions = {}
    for name, date in naive.items():
        of_all = gradebook.find_assignment(name).duedate
        if date and (of_all is None or date < of_all):
            raise ValueError(f"{name} is due {of_all or 'never'}; an extension must be later")
        extensions[name] = (date - of_all).total_seconds() / 60 if date else 0
    warnings.simplefilter("ignore", SAWarning)  # nbgrader's own
    for name, minutes in extensions.items():
        gradebook.update_or_create_submission(name, student)
        gradebook.grant_extension(name, student, minutes=minutes)
