"""Tables with one row for each person of the roster, in the columns that platforms import."""

from pathlib import Path

import pandas as pd
from roster import Person

from dss.files import write

KINDS = ["checks", "by hand", "total"]


def wide(grades: pd.DataFrame, people: list[Person], names: list[str]) -> pd.DataFrame:
    """Checks, points by hand and total of each assignment; empty where nothing was handed in.

    Args:
        grades: the rows of grades.csv.
        people: of the roster; all of a team have the points of the team.
        names: of the assignments.
    """
    points = grades.set_index(["student", "assignment"])
    rows = []
    for person in people:
        row = {"id": person.id, "name": person.name, "email": person.email}
        for name in names:
            row |= dict.fromkeys([f"{name} {kind}" for kind in KINDS], "")
            if (person.folder, name) in points.index:
                row |= entries(points.loc[(person.folder, name)], name)
        rows.append(row)
    return pd.DataFrame(rows)


def entries(submission: pd.Series, name: str) -> dict:
    """The points of one submission; none where grading itself failed or nothing was there."""
    if submission.status in ("not submitted", "not graded"):
        return {}
    checks, hand, penalty = submission[["checks", "by_hand", "penalty"]].astype(float)
    values = checks, hand, max(checks + hand - penalty, 0)
    return {f"{name} {kind}": f"{v:g}" for kind, v in zip(KINDS, values, strict=True)}


def moodle(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """For Grades > Import > CSV file: map "ID number" or "Email address", and each total."""
    columns = {"id": "ID number", "name": "Full name", "email": "Email address"}
    columns |= {f"{name} total": f"Assignment: {name} (Real)" for name in names}
    return table[list(columns)].rename(columns=columns)


def canvas(
    table: pd.DataFrame, people: list[Person], names: list[str], points: dict[str, float]
) -> pd.DataFrame:
    """For Grades > Import: the columns of Canvas's own export, in its order."""
    rows = pd.DataFrame(
        {
            "Student": [last_first(person) for person in people],
            "ID": [person.canvas for person in people],
            "SIS User ID": [person.id for person in people],
            "SIS Login ID": [person.email for person in people],
            "Section": "",
        }
    )
    possible = {"Student": "    Points Possible"}
    for name in names:
        rows[name] = table[f"{name} total"].to_numpy()
        possible[name] = f"{points[name]:g}"
    return pd.concat([pd.DataFrame([possible], columns=rows.columns), rows]).fillna("")


def last_first(person: Person) -> str:
    first, last = person.first_last
    return f"{last}, {first}" if first else last


def save(
    out: Path,
    grades: pd.DataFrame,
    people: list[Person],
    names: list[str],
    points: dict[str, float],
) -> None:
    """Write grades_wide.csv, moodle.csv and canvas.csv."""
    table = wide(grades, people, names)
    tables = {
        "grades_wide.csv": table,
        "moodle.csv": moodle(table, names),
        "canvas.csv": canvas(table, people, names, points),
    }
    for name, content in tables.items():
        write(out / name, content.to_csv(index=False).encode("utf-8"))
