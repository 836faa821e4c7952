"""Every version that was handed in, with its time; and the one of them that counts."""

from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
from platforms import HandIn

from dss.files import write

TIME = "%Y%m%dT%H%M%SZ"
LEDGER = "versions.csv"
SECOND = timedelta(seconds=1)


@dataclass
class Version:
    """A row of OUT/versions.csv; all values are text.

    Attributes:
        student: whose folder it is in; a team has one.
        assignment: that it is of.
        file: its path below OUT/versions.
        time: when it came, in UTC.
        late: "yes" and "no" where the platform says so; empty where the time decides.
        order: number of the file and of the copy: of two with the same time, the larger is later.
        counts: "yes" for the one that is graded.
        source: its path in the download.
    """

    student: str
    assignment: str
    file: str
    time: str
    late: str
    order: str
    counts: str
    source: str

    @property
    def key(self) -> tuple:
        return self.time, *map(int, self.order.split("-")), self.file


Rule = Callable[[list[Version], list[Version]], Version]
# Which version counts, of all in the order in which they came, and of those that came in time.
RULES: dict[str, Rule] = {
    "last-on-time": lambda versions, in_time: (in_time or versions)[-1],
    "last": lambda versions, in_time: versions[-1],
    "first": lambda versions, in_time: versions[0],
}


def ledger(out: Path) -> list[Version]:
    """What OUT/versions.csv says.

    Raises:
        ValueError: the file was changed into something else.
    """
    path, columns = out / LEDGER, [field.name for field in fields(Version)]
    if not path.exists():
        return []
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(table.columns) != columns:
        raise ValueError(f"{path} has columns {list(table.columns)}; {columns} are needed")
    return [Version(**row) for row in table.to_dict("records")]


def keep(out: Path, known: list[Version], handed_in: list[HandIn]) -> list[Version]:
    """Write what is new below OUT/versions; returns the new ones.  What is there already, and what
    is the same as the version before it, is not new."""
    new = []
    for item in sorted(handed_in, key=lambda item: (item.time, item.order)):
        time = item.time.astimezone(UTC)
        late = {None: "", True: "yes", False: "no"}[item.late]
        order = "-".join(map(str, item.order))
        pair = item.folder, item.assignment
        entry = Version(*pair, "", f"{time:{TIME}}", late, order, "", item.source)
        others = [v for v in known + new if (v.student, v.assignment) == pair]
        same_time = [v for v in others if v.time == entry.time]
        before = sorted((v for v in others if v.key <= entry.key), key=lambda v: v.key)[-1:]
        same = [v for v in same_time + before if v.late == late]
        if any((out / "versions" / v.file).read_bytes() == item.content for v in same):
            continue
        entry.file = store(out / "versions", "/".join(pair), entry.time, item.content)
        new.append(entry)
    return new


def store(versions: Path, pair: str, time: str, content: bytes) -> str:
    """Write versions/<pair>/<time>-<n>.ipynb, over no other file; returns its path there."""
    (versions / pair).mkdir(parents=True, exist_ok=True)
    n = 1
    while (path := versions / pair / f"{time}-{n}.ipynb").exists():
        if path.read_bytes() == content:  # of a run that was interrupted
            break
        n += 1
    else:
        write(path, content)
    return path.relative_to(versions).as_posix()


def put_by_hand(out: Path, known: list[Version], names: list[str]) -> list[HandIn]:
    """What lies in OUT/submitted, but is no version: somebody put it there, or changed it."""
    contents = defaultdict(set)
    for v in known:
        content = (out / "versions" / v.file).read_bytes()
        contents[v.student, v.assignment].add(content.removeprefix(BOM_UTF8))
    found = []
    for path in sorted((out / "submitted").glob("*/*/*.ipynb")):
        student, name = path.parts[-3:-1]
        if name in names and path.stem == name and path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if content.removeprefix(BOM_UTF8) not in contents[student, name]:
                time = datetime.fromtimestamp(int(path.stat().st_mtime)).astimezone()
                source = path.relative_to(out).as_posix()
                found.append(HandIn(student, name, content, time, None, (0, 0), source))
    return found


def choose(versions: list[Version], rule: str, due: datetime | None) -> Version:
    """The version that counts, of one student and assignment; all are marked."""
    ordered = sorted(versions, key=lambda version: version.key)
    chosen = RULES[rule](ordered, [v for v in ordered if is_in_time(v, due)])
    for version in versions:
        version.counts = "yes" if version is chosen else ""
    return chosen


def is_in_time(version: Version, due: datetime | None) -> bool:
    """The platform's word where it has given one, else the time."""
    if version.late:
        return version.late == "no"
    return due is None or moment(version) <= due


def moment(version: Version) -> datetime:
    return datetime.strptime(version.time, TIME).replace(tzinfo=UTC)


def place(out: Path, version: Version, due: datetime | None) -> bool:
    """Put a version where it is graded, with the time that nbgrader reads; whether that is new."""
    folder = out / "submitted" / version.student / version.assignment
    target = folder / f"{version.assignment}.ipynb"
    content = (out / "versions" / version.file).read_bytes().removeprefix(BOM_UTF8)
    time = moment(version)
    if due and version.late:  # the time is that of a download, perhaps; the word is the platform's
        time = min(time, due) if version.late == "no" else max(time, due + SECOND)
    stamp = f"{time:%Y-%m-%d %H:%M:%S} UTC\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    changed = not target.exists() or target.read_bytes().removeprefix(BOM_UTF8) != content
    for path, value in ((folder / "timestamp.txt", stamp), (target, content)):
        if not path.exists() or path.read_bytes() != value:
            write(path, value)
    return changed


def save(out: Path, versions: list[Version]) -> None:
    """Write OUT/versions.csv, if that changes it."""
    columns = [field.name for field in fields(Version)]
    rows = [asdict(version) for version in sorted(versions, key=lambda v: (v.file, v.key))]
    content = pd.DataFrame(rows, columns=columns).to_csv(index=False).encode()
    path = out / LEDGER
    if not path.exists() or path.read_bytes() != content:
        write(path, content)
