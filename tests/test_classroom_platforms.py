"""A class of sixty hands in through Moodle and Canvas: every file is placed or named, none is lost.

Most of it needs no nbgrader: small notebooks with the marks of the released ones.
"""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bundle
import classroom
import collecting
import execution
import feedback
import grading
import nbformat
import pandas as pd
import platforms
import pytest
import versions
import wide
from classes import (
    ASSIGNMENTS,
    NAMES,
    cell_of,
    command,
    release_of,
    solved,
    source,
    table_of,
)
from nbgrader.api import Gradebook
from roster import Names, Person, people_from
from typer.testing import CliRunner

slow = pytest.mark.slow
FIRST = [
    "Ada",
    "Jörg",
    "Zoë",
    "Anna Maria",
    "Łukasz",
    "Marie-Luise",
    "Søren",
    "Iñigo",
    "Bo",
    "Élodie",
]
LAST = ["Lovelace", "Groß", "Müller-Lüdenscheidt", "O'Neil", "van der Waerden", "Ng"]
CLASS = [
    Person(f"s{10 * j + k:02}", f"{first} {last}", f"s{10 * j + k:02}@example.org")
    for j, last in enumerate(LAST)
    for k, first in enumerate(FIRST)
]
NOON = (2026, 12, 2, 12, 0, 0)
LATER = (2026, 12, 4, 8, 30, 0)


def roster_of(people=CLASS, extra=()):
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["id", "name", "email", *extra])
    for person in people:
        table.writerow([getattr(person, name) for name in ("id", "name", "email", *extra)])
    return text.getvalue().encode()


def notebook(name, answer=""):
    """A small notebook with the marks of an assignment."""
    cells = [
        {"cell_type": "code", "metadata": {"nbgrader": {"grade_id": i}}, "source": answer}
        for i in ("title", f"{name}-task", f"{name}-check")
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


def archive_of(path, files, time=NOON):
    """A zip archive: contents by name, or pairs (content, time)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, entry in files.items():
            content, when = entry if isinstance(entry, tuple) else (entry, time)
            archive.writestr(zipfile.ZipInfo(name, when), content, zipfile.ZIP_DEFLATED)
    return path


def moodle_name(person, file="1.ipynb", number=12345, end="_/"):
    return f"{person.name}_{number}_assignsubmission_file{end}{file}"


def canvas_name(person, file="1.ipynb", late=False, number=67890):
    first, last = person.first_last
    plain = re.sub(r"\W", "", last + first).lower()
    return f"{plain}{'_LATE' if late else ''}_12345_{number}_{file}"


@pytest.fixture(scope="module")
def empty_course(tmp_path_factory):
    """A folder that looks like a course, with a gradebook but small notebooks."""
    out = tmp_path_factory.mktemp("small") / "course"
    for name in NAMES:
        (out / "release" / name).mkdir(parents=True)
        (out / "release" / name / f"{name}.ipynb").write_bytes(notebook(name))
    shutil.copy(ASSIGNMENTS / "nbgrader_config.py", out)
    with Gradebook(f"sqlite:///{out}/gradebook.db", "dss") as gradebook:
        for name in NAMES:
            gradebook.update_or_create_assignment(name)
    return out


@pytest.fixture
def course(empty_course, tmp_path):
    out = shutil.copytree(empty_course, tmp_path / "course")
    (tmp_path / "roster.csv").write_bytes(roster_of())
    return out


def collect(out, download, *options, roster=True):
    options = [*options, *(["--roster", str(out.parent / "roster.csv")] if roster else [])]
    return CliRunner().invoke(classroom.app, ["collect", str(out), str(download), *options])


def set_due(out, *dates):
    done = CliRunner().invoke(classroom.app, ["due", str(out), *dates])
    assert done.exit_code == 0, done.output


def handed_in(out, student, name="1_gamma"):
    return (out / "submitted" / student / name / f"{name}.ipynb").read_bytes()


def state_of(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".db"]
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths
    }


# Names


@pytest.mark.parametrize("person", CLASS, ids=lambda person: person.id)
def test_everybody_is_found_as_moodle_and_canvas_write_them(person):
    names = Names(CLASS)
    for file in (moodle_name(person), moodle_name(person, end="/"), moodle_name(person, end="_")):
        assert platforms.person(file, names) == (person.id, None, 12345)
    for late in (False, True):
        file = canvas_name(person, late=late)
        assert platforms.person(f"course_2026_1_x/{file}", names) == (person.id, late, 67890)
    for known in (person.id, person.email, person.name):
        assert platforms.person(f"{known}/any.ipynb", names) == (person.id, None, 0)
    assert platforms.person(f"{person.id}.ipynb", names) == (person.id, None, 0)


@pytest.mark.parametrize("written", ["großjörg", "grossjorg", "grossjoerg", "grojrg"])
def test_umlauts_are_found_however_they_are_written(written):
    assert Names(CLASS).find(written, drops_marks=True) == {"s11"}


def test_names_that_look_alike_are_told_apart_or_refused():
    pair = [Person("a", "Jörg Muller", ""), Person("b", "Jorg Müller", "")]
    twins = [Person("c", "Ann Lee", ""), Person("d", "Lee, Ann", "")]
    names = Names(pair + twins)
    for person in pair:
        assert platforms.person(moodle_name(person), names)[0] == person.id
        assert platforms.person(canvas_name(person), names)[0] == person.id
    for name in ("mullerjorg_1_2_x.ipynb", "Ann Lee_1_assignsubmission_file_/x.ipynb"):
        with pytest.raises(ValueError, match="may be any of .*, .*; write the id in place"):
            platforms.person(name, names)
    assert platforms.person("d_1_assignsubmission_file_/x.ipynb", names)[0] == "d"


def test_the_number_of_canvas_tells_people_of_one_name_apart():
    numbered = Names([Person("c", "Ann Lee", "", "", "71"), Person("d", "Ann Lee", "", "", "72")])
    for number, known in (("71", "c"), ("72", "d")):
        assert platforms.person(f"leeann_{number}_1_x.ipynb", numbered)[0] == known
    with pytest.raises(ValueError, match="may be any of c, d"):
        platforms.person("leeann_73_1_x.ipynb", numbered)
    with pytest.raises(ValueError, match="nobody"):
        platforms.person("kimbo_71_1_x.ipynb", numbered)


def test_nobody_is_taken_for_another():
    names = Names([Person("a", "Lena Meier", ""), Person("b", "Ng, Bo", "")])
    for name in ("Anna-Lena Meier", "Lena", "Meier", "Lena Meierhof", "Participant", ""):
        assert names.find(name) == set()


def test_a_team_has_one_folder():
    names = Names([Person("a", "Ada L", "", "red"), Person("b", "Bo K", "", "red")])
    for name in ("Ada L", "lada", "red-Bo K", "Red", "b"):
        assert names.find(name) == {"red"}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"id,name\n1,Ada\n", "no column email"),
        (b"id,name,email\n,Ada,\n", "lacks an id or a name"),
        (b"id,name,email\n1,Ada,\n1,Bo,\n", "'1' is there 2 times"),
        (b"id,name,email\nab,Ada,\nAB,Bo,\n", "'ab' is there 2 times"),
        (b"ID,id,name,email\n1,2,Ada,\n", "the column id more than once"),
        (b"id;name;name ;email\n1;Ada;Bo;\n", "the column name more than once"),
        (b"id,name,email,team\n1,Ada,,Red\n2,Bo,,red\n", "Red, red are one team"),
        (b"id,name,email,team\n1,Ada,,X\nx,Bo,,\n", "x is an id and a team"),
        (b"id,name,email\n../x,Ada,\n", "'../x' names no folder"),
        (b"id,name,email\n.x,Ada,\n", "'.x' names no folder"),
        (b"id,name,email,team\n1,Ada,,2\n2,Bo,,\n", "2 is an id and a team"),
        (b"id,name,email\n", "lists nobody"),
        (b"", "no table"),
        (b"id,name,email\ns1,Gross, Jo,j@x.org\n", "a comma in a name needs quotes"),
        (b"id,name,email\ns1,Jo,j@x.org\ns2,Gross, Jo,j@x.org\n", "no table"),
        ("id,name,email\n1,Jörg,\n".encode("latin-1"), "not in UTF-8"),
    ],
)
def test_a_roster_that_cannot_be_used_is_refused(content, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        people_from(content, "roster.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_roster_as_spreadsheets_save_it(separator):
    text = f"\ufeffID{separator}Name{separator}Email\r\n007{separator}Jörg Groß {separator}\r\n"
    assert people_from(text.encode(), "roster.csv") == [Person("007", "Jörg Groß", "")]


# A class


def test_sixty_hand_in_through_moodle_and_canvas(course, tmp_path):
    first = {
        moodle_name(p, "final.ipynb", 100 + k): notebook("1_gamma", p.id)
        for k, p in enumerate(CLASS)
    }
    second = {
        canvas_name(p, "1_gamma-1.ipynb", number=500 + k): notebook("2_bead", p.id)
        for k, p in enumerate(CLASS)
    }
    for name, files in (("moodle.zip", first), ("canvas.zip", second)):
        done = collect(course, archive_of(tmp_path / name, files))
        assert done.exit_code == 0, done.output
        assert "60 files: 60 new versions, 60 to grade" in done.output
    for person in CLASS:
        for name in ("1_gamma", "2_bead"):
            assert handed_in(course, person.id, name) == notebook(name, person.id)
    assert len(list((course / "versions").rglob("*.ipynb"))) == 120
    before = state_of(course)
    for name in ("moodle.zip", "canvas.zip"):
        done = collect(course, tmp_path / name, roster=False)
        assert done.exit_code == 0 and "60 files: 0 new versions, 0 to grade" in done.output
    assert state_of(course) == before, "the same again changes nothing"
    with execution.course(course).gradebook as gradebook:
        entry = gradebook.find_student("s12")
        assert (entry.first_name, entry.last_name) == ("Zoë", "Groß")


def test_what_cannot_be_placed_is_listed_and_the_rest_is_placed(course, tmp_path):
    ada = CLASS[0]
    files = {
        moodle_name(ada, "ok.ipynb"): notebook("1_gamma"),
        "Nobody Known_1_assignsubmission_file_/x.ipynb": notebook("1_gamma"),
        moodle_name(CLASS[1], "empty.ipynb"): b'{"cells": []}',
        moodle_name(CLASS[2], "damaged.ipynb"): b'{"cells": [',
        moodle_name(CLASS[3], "list.ipynb"): b"[1]",
        moodle_name(CLASS[4], "report.pdf"): b"%PDF",
        "notes.ipynb": notebook("1_gamma"),
        moodle_name(CLASS[5], "both.ipynb"): json.dumps(
            {"cells": [c for n in NAMES[:2] for c in json.loads(notebook(n))["cells"]]}
        ).encode(),
        "__MACOSX/._x.ipynb": b"",
    }
    done = collect(course, archive_of(tmp_path / "m.zip", files))
    assert done.exit_code == 1
    for line in (
        "7 could not be placed",
        "Nobody Known_1_assignsubmission_file_/x.ipynb: nobody on the roster is called",
        "empty.ipynb: no cell of it bears a mark",
        "damaged.ipynb: not a notebook",
        "list.ipynb: not a notebook",
        "report.pdf: not a notebook (.ipynb)",
        "notes.ipynb: it is not named as by Moodle or Canvas",
        "both.ipynb: as many cells of it are of 2_bead as of 1_gamma",
    ):
        assert line in done.output
    assert [path.name for path in (course / "submitted").iterdir()] == [ada.id]


def test_an_unpacked_download_is_collected_too(course, tmp_path):
    place = tmp_path / "download" / moodle_name(CLASS[0], "")
    place.mkdir(parents=True)
    (place / "x.ipynb").write_bytes(notebook("3_string"))
    secret = tmp_path / "secret.ipynb"
    secret.write_bytes(notebook("1_gamma"))
    (place / "link.ipynb").symlink_to(secret)
    os.utime(place / "x.ipynb", (1_700_000_000, 1_700_000_000))
    done = collect(course, tmp_path / "download")
    assert done.exit_code == 1 and "link.ipynb: a link; a file is expected" in done.output
    assert handed_in(course, "s00", "3_string") == notebook("3_string")
    assert versions.ledger(course)[0].time == "20231114T221320Z"


# Versions


def test_of_two_uploads_the_later_counts_and_both_are_kept(course, tmp_path):
    ada, bo = CLASS[0], CLASS[8]
    files = {
        moodle_name(ada, "1_gamma (1).ipynb"): notebook("1_gamma", "second"),
        moodle_name(ada, "1_gamma.ipynb"): notebook("1_gamma", "first"),
        canvas_name(bo, "1_gamma-1.ipynb", number=71): notebook("1_gamma", "second"),
        canvas_name(bo, "2_bead.ipynb", number=70): notebook("1_gamma", "first"),
    }
    done = collect(course, archive_of(tmp_path / "m.zip", files))
    assert done.exit_code == 0 and "2 versions, counts: s00/1_gamma/" in done.output
    for person in (ada, bo):
        assert handed_in(course, person.id) == notebook("1_gamma", "second")
        kept = sorted((course / "versions" / person.id / "1_gamma").iterdir())
        assert [path.read_bytes() for path in kept] == [
            notebook("1_gamma", "first"),
            notebook("1_gamma", "second"),
        ]


@pytest.mark.parametrize(
    "rule, counts", [("last-on-time", "on time"), ("last", "late"), ("first", "early")]
)
@pytest.mark.parametrize("platform", ["Moodle", "Canvas"])
def test_a_late_correction_does_not_destroy_what_was_on_time(
    course, tmp_path, rule, counts, platform
):
    set_due(course, "1_gamma=2026-12-02T23:59")
    ada, early = CLASS[0], (2026, 12, 1, 9, 0, 0)
    uploads = [("early", early, False, 1), ("on time", NOON, False, 2), ("late", LATER, True, 3)]
    for answer, time, late, number in uploads:
        file = {
            "Moodle": moodle_name(ada, number=number),
            "Canvas": canvas_name(ada, late=late, number=number),
        }[platform]
        entry = {file: (notebook("1_gamma", answer), time)}
        done = collect(course, archive_of(tmp_path / f"{number}.zip", entry), "--count", rule)
        assert done.exit_code == 0, done.output
    assert handed_in(course, "s00") == notebook("1_gamma", counts)
    kept = (course / "versions/s00/1_gamma").iterdir()
    assert {path.read_bytes() for path in kept} == {notebook("1_gamma", a) for a, *_ in uploads}
    marked = {v.file[-22:]: v.late for v in versions.ledger(course)}
    assert list(marked.values()) == (["", "", ""] if platform == "Moodle" else ["no", "no", "yes"])
    stamp = (course / "submitted/s00/1_gamma/timestamp.txt").read_text()
    assert stamp.startswith(
        {"late": "2026-12-04", "on time": "2026-12-02"}.get(counts, "2026-12-01")
    )


def test_who_was_only_late_is_graded_all_the_same(course, tmp_path):
    set_due(course, "1_gamma=2026-12-02T23:59")
    file = {moodle_name(CLASS[0]): (notebook("1_gamma"), LATER)}
    done = collect(course, archive_of(tmp_path / "m.zip", file))
    assert done.exit_code == 0 and ", late" in done.output
    assert handed_in(course, "s00") == notebook("1_gamma")


def test_an_extension_is_of_one_student(course, tmp_path):
    set_due(course, "1_gamma=2026-12-02T23:59")
    for n, time in enumerate((NOON, LATER)):
        if n:
            set_due(course, "1_gamma=2026-12-05T12:00", "--student", "s01")
        files = {moodle_name(p): (notebook("1_gamma", str(n)), time) for p in CLASS[:2]}
        collect(course, archive_of(tmp_path / f"{n}.zip", files))
    assert [handed_in(course, f"s0{k}") for k in (0, 1)] == [
        notebook("1_gamma", "0"),
        notebook("1_gamma", "1"),
    ]


def test_a_due_date_is_said_as_it_was_understood(course, tmp_path):
    """Hours lie between time zones."""
    done = CliRunner().invoke(classroom.app, ["due", str(course), "1_gamma=2026-12-02T23:59"])
    assert "1_gamma is due Wednesday, 2026-12-02 23:59 " in done.output
    done = CliRunner().invoke(classroom.app, ["due", str(course), "1_gamma=none"])
    assert done.output == "1_gamma is due never\n"


def test_canvas_says_itself_what_is_in_time(course, tmp_path):
    """Its archives hold the time of the download."""
    set_due(course, "1_gamma=2026-12-02T23:59")
    files = {canvas_name(CLASS[0]): (notebook("1_gamma"), LATER)}
    done = collect(course, archive_of(tmp_path / "c.zip", files))
    assert done.exit_code == 0 and ", late" not in done.output
    due = collecting.time_from("2026-12-02T23:59", "due")
    stamp = (course / "submitted/s00/1_gamma/timestamp.txt").read_text()
    assert stamp == f"{due:%Y-%m-%d %H:%M:%S} UTC\n"


def test_what_canvas_calls_late_is_late_for_nbgrader_too(course, tmp_path):
    files = {canvas_name(CLASS[0], late=True): (notebook("1_gamma"), NOON)}
    path = archive_of(tmp_path / "c.zip", files)
    assert (
        "late for the platform, not for `grade`: 1_gamma has no due date"
        in collect(course, path).output
    )
    set_due(course, "1_gamma=2026-12-02T23:59")
    assert collect(course, path).exit_code == 0
    late = collecting.time_from("2026-12-02T23:59", "due") + timedelta(seconds=1)
    stamp = (course / "submitted/s00/1_gamma/timestamp.txt").read_text()
    assert stamp == f"{late:%Y-%m-%d %H:%M:%S} UTC\n"


def test_the_time_of_a_download_can_be_given(course, tmp_path):
    set_due(course, "1_gamma=2026-12-02T23:59")
    files = {moodle_name(CLASS[0]): (notebook("1_gamma"), LATER)}
    path = archive_of(tmp_path / "m.zip", files)
    done = collect(course, path, "--received", "2026-12-02T20:00+00:00")
    assert done.exit_code == 0 and ", late" not in done.output
    assert versions.ledger(course)[0].time == "20261202T200000Z"


def test_what_was_put_there_by_hand_is_kept(course, tmp_path):
    path = course / "submitted/s00/1_gamma/1_gamma.ipynb"
    path.parent.mkdir(parents=True)
    path.write_bytes(notebook("1_gamma", "by hand"))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    file = {moodle_name(CLASS[0]): notebook("1_gamma", "uploaded")}
    assert collect(course, archive_of(tmp_path / "m.zip", file)).exit_code == 0
    assert handed_in(course, "s00") == notebook("1_gamma", "uploaded")
    kept = (course / "versions/s00/1_gamma").iterdir()
    assert notebook("1_gamma", "by hand") in [path.read_bytes() for path in kept]


def test_an_interrupted_run_leaves_nothing_twice(course, tmp_path, monkeypatch):
    path = archive_of(tmp_path / "m.zip", {moodle_name(CLASS[0]): notebook("1_gamma")})
    with monkeypatch.context() as patch:
        patch.setattr(versions, "place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert collect(course, path).exit_code == 130
    assert collect(course, path).exit_code == 0
    assert len(list((course / "versions").rglob("*.ipynb"))) == len(versions.ledger(course)) == 1


def test_one_hand_in_counts_for_a_team(course, tmp_path):
    people = [Person(p.id, p.name, p.email, "red" if k < 3 else "") for k, p in enumerate(CLASS)]
    (tmp_path / "roster.csv").write_bytes(roster_of(people, extra=["team"]))
    files = {
        moodle_name(people[1]): notebook("1_gamma"),
        moodle_name(people[3]): notebook("1_gamma"),
    }
    assert collect(course, archive_of(tmp_path / "m.zip", files)).exit_code == 0
    assert sorted(path.name for path in (course / "submitted").iterdir()) == ["red", "s03"]


# Archives that mean harm, and slips


@pytest.mark.parametrize("name", ["../x.ipynb", "/etc/x.ipynb", "a/../../x.ipynb", "C:\\x.ipynb"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(course, tmp_path, name):
    files = {moodle_name(CLASS[0]): notebook("1_gamma"), name: notebook("1_gamma")}
    done = collect(course, archive_of(tmp_path / "m.zip", files))
    assert done.exit_code == 2 and "made to do harm" in done.output
    assert not (course / "submitted").exists() and not (course / "roster.csv").exists()


def test_what_would_fill_the_memory_is_not_read(course, tmp_path, monkeypatch):
    monkeypatch.setattr(platforms, "MAX_NOTEBOOK", 10_000)
    bomb = notebook("1_gamma", "x" * 10**6)
    files = {moodle_name(CLASS[0]): bomb, moodle_name(CLASS[1]): notebook("1_gamma")}
    path = archive_of(tmp_path / "m.zip", files)
    assert path.stat().st_size < 10_000
    done = collect(course, path)
    assert done.exit_code == 1 and "too large: 3 MB" in done.output
    assert [p.name for p in (course / "submitted").iterdir()] == ["s01"]
    monkeypatch.setattr(platforms, "MAX_FILES", 1)
    done = collect(course, path)
    assert done.exit_code == 2 and "holds 2 files; at most 1" in done.output
    monkeypatch.setattr(platforms, "MAX_FILES", 9)
    monkeypatch.setattr(platforms, "MAX_NOTEBOOK", 10**7)
    monkeypatch.setattr(platforms, "MAX_TOTAL", 10**6)
    done = collect(course, path)
    assert done.exit_code == 2 and "at most 0.0 GB are read" in done.output


def test_a_size_that_lies_is_found_out(course, tmp_path):
    path = archive_of(tmp_path / "m.zip", {moodle_name(CLASS[0]): notebook("1_gamma", "x" * 999)})
    size = len(notebook("1_gamma", "x" * 999)).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (100).to_bytes(4, "little")))
    done = collect(course, path)
    assert done.exit_code == 1 and "cannot be read" in done.output


@pytest.mark.parametrize(
    "options, message",
    [
        (["--count", "best"], "--count is 'best'; last-on-time, last, first are allowed"),
        (["--received", "noon"], "'noon' is no time"),
    ],
)
def test_a_slip_is_told_before_anything_is_written(course, tmp_path, options, message):
    path = archive_of(tmp_path / "m.zip", {moodle_name(CLASS[0]): notebook("1_gamma")})
    before = state_of(course)
    done = collect(course, path, *options)
    assert done.exit_code == 2 and message in done.output
    (tmp_path / "text.zip").write_text("no archive")
    done = collect(course, tmp_path / "text.zip")
    assert done.exit_code == 2 and "is no zip archive and no folder" in done.output
    (tmp_path / "alone.ipynb").write_bytes(notebook("1_gamma"))
    done = collect(course, tmp_path / "alone.ipynb")
    assert done.exit_code == 2 and "called like the student's id" in done.output
    done = collect(course, path, roster=False)
    assert done.exit_code == 2 and "--roster names a CSV file" in done.output
    assert state_of(course) == before


def test_an_extension_of_nobody_is_refused(course):
    arguments = ["due", str(course), "1_gamma=2026-12-02T23:59", "--student", "s01"]
    done = CliRunner().invoke(classroom.app, arguments)
    assert done.exit_code == 1 and "no student or team is called 's01'" in done.output


# The last two are days alone: midnight would make all who come on that day late.
@pytest.mark.parametrize(
    "date",
    [
        "5_more=2026-12-02T23:59",
        "1_gamma",
        "1_gamma=soon",
        "1_gamma=",
        "1_gamma=2026-12-02",
        "1_gamma=2026-W49-3",
    ],
)
def test_a_due_date_that_is_none_is_refused(course, date):
    done = CliRunner().invoke(classroom.app, ["due", str(course), date])
    assert done.exit_code == 1 and repr(date) in done.output
    done = CliRunner().invoke(classroom.app, ["release", str(course / "new"), "--due", date])
    assert done.exit_code == 1 and not (course / "new").exists()


# Tables


def grades_of(*rows):
    columns = ["student", "assignment", "status", "checks", "by_hand", "penalty"]
    return pd.DataFrame(rows, columns=columns)


def test_everybody_on_the_roster_is_in_the_wide_tables(tmp_path):
    people = [
        Person("1", "Ada Lovelace", "a@x", "red", "901"),
        Person("2", "Groß, Jörg", "j@x", "red"),
        Person("3", "Bo", "b@x"),
        Person("4", "Zoë Ng", "z@x"),
    ]
    grades = grades_of(
        ("red", "1_gamma", "graded", 12.5, 4, 0),
        ("3", "1_gamma", "crashed", 0, 0, 0),
        ("red", "2_bead", "graded", 14, 6, 20),
        ("3", "2_bead", "not submitted", float("nan"), float("nan"), float("nan")),
        ("4", "1_gamma", "not graded", 3, 0, 0),
        ("5", "loose.zip", "unknown", float("nan"), float("nan"), float("nan")),
    )
    wide.save(tmp_path, grades, people, NAMES[:2], {"1_gamma": 22, "2_bead": 20})

    def lines(name):
        return list(csv.reader((tmp_path / name).read_text(encoding="utf-8").splitlines()))

    columns = [f"{n} {k}" for n in NAMES[:2] for k in ("checks", "by hand", "total")]
    assert lines("grades_wide.csv") == [
        ["id", "name", "email", *columns],
        ["1", "Ada Lovelace", "a@x", "12.5", "4", "16.5", "14", "6", "0"],
        ["2", "Groß, Jörg", "j@x", "12.5", "4", "16.5", "14", "6", "0"],
        ["3", "Bo", "b@x", "0", "0", "0", "", "", ""],
        ["4", "Zoë Ng", "z@x", "", "", "", "", "", ""],
    ]
    assert lines("moodle.csv")[:2] == [
        ["ID number", "Full name", "Email address"]
        + [f"Assignment: {name} (Real)" for name in NAMES[:2]],
        ["1", "Ada Lovelace", "a@x", "16.5", "0"],
    ]
    assert lines("canvas.csv") == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "1_gamma", "2_bead"],
        ["    Points Possible", "", "", "", "", "22", "20"],
        ["Lovelace, Ada", "901", "1", "a@x", "", "16.5", "0"],
        ["Groß, Jörg", "", "2", "j@x", "", "16.5", "0"],
        ["Bo", "", "3", "b@x", "", "0", ""],
        ["Ng, Zoë", "", "4", "z@x", "", "", ""],
    ]


def test_a_penalty_follows_the_due_date(course):
    with (course / "nbgrader_config.py").open("a") as config:
        config.write('c.LateSubmissionPlugin.penalty_method = "zero"\n')
    api = execution.course(course)
    with api.gradebook as gradebook:
        gradebook.add_notebook("1_gamma", "1_gamma")
        gradebook.add_grade_cell("check", "1_gamma", "1_gamma", max_score=5, cell_type="code")
        gradebook.add_student("s00")
        time = "2026-12-04 08:30:00 UTC"
        submission = gradebook.add_submission("1_gamma", "s00", timestamp=time)
        submission.notebooks[0].grades[0].auto_score = 3
        for due, penalty in ((None, 0), ("2026-12-03", 3), ("2026-12-05", 0)):
            gradebook.find_assignment("1_gamma").duedate = due and datetime.fromisoformat(due)
            gradebook.db.commit()
            assert grading.penalize(api, submission) == penalty


# Messages


def check_cell(*outputs):
    cell = nbformat.v4.new_code_cell("assert x", outputs=list(outputs))
    cell.metadata["nbgrader"] = {"grade": True, "solution": False, "grade_id": "c"}
    return cell


def error(name, text):
    return nbformat.v4.new_output("error", ename=name, evalue=text, traceback=["secret", text])


@pytest.mark.parametrize(
    "cell, said",
    [
        (None, "deleted"),
        (nbformat.v4.new_markdown_cell("done"), "turned into text"),
        (check_cell(), ""),
        (check_cell(error("AssertionError", "t = 0 is wrong; a\nb")), "t = 0 is wrong, a"),
        (check_cell(error("AssertionError", "")), "AssertionError"),
        (check_cell(error("NameError", "no x")), "NameError: no x"),
        (check_cell(error("AssertionError", "x" * 200)), "x" * 96 + " ..."),
        (
            check_cell(
                nbformat.v4.new_output("stream", name="stderr", text="\x1b[31mhot\x1b[0m\n")
            ),
            "it wrote to the error stream: hot",
        ),
    ],
)
def test_the_message_of_a_failed_check(cell, said):
    assert feedback.message(cell) == said


def test_a_page_shows_no_hidden_test():
    hidden = "assert interpolate(1, 'b') == \"hidden value\""
    check = check_cell(error("AssertionError", "t = 0 is wrong"))
    check.source = f"visible\n### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"
    answer = nbformat.v4.new_code_cell("### BEGIN HIDDEN TESTS\nprint(In)")
    answer.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=repr(["x", hidden])),
        nbformat.v4.new_output("stream", name="stdout", text="42"),
    ]
    notebook = nbformat.v4.new_notebook(cells=[answer, check])
    notebook, _ = feedback.MessagesOnly().preprocess(notebook, {})
    text = str(notebook)
    assert "hidden value" not in text and "secret" not in text
    assert check.source == "visible" and check.outputs[0].text == "t = 0 is wrong\n"
    assert answer.outputs[1].text == "42" and "left out" in answer.outputs[0].text


# What students get


def archived(out):
    with zipfile.ZipFile(out / "students.zip") as archive:
        return {Path(name).name: archive.read(name) for name in archive.namelist()}


@slow
def test_the_archive_for_students_holds_no_solution(released):
    parts = archived(released)
    (wheel,) = [name for name in parts if name.endswith(".whl")]
    assert set(parts) == {"README.md", "requirements.txt", wheel, *(f"{n}.ipynb" for n in NAMES)}
    inside = zipfile.ZipFile(io.BytesIO(parts.pop(wheel)))
    parts |= {name: inside.read(name) for name in inside.namelist()}
    assert "dss/__init__.py" in parts
    assert (bundle.ROOT / "notebooks/assignments/samples.py").read_bytes() not in parts.values()
    for name, content in parts.items():
        for word in (b"BEGIN SOLUTION", b"HIDDEN TESTS", b"assignments/samples"):
            assert word not in content, name
        assert not re.search(r"^(notebooks|data|tests)|ubyte|\.(gz|npz|safetensors)$", name)
    for name in NAMES:
        assert (
            parts[f"{name}.ipynb"] == (released / "release" / name / f"{name}.ipynb").read_bytes()
        )


def test_students_install_what_the_assignments_import():
    needed = [line.partition("==")[0] for line in bundle.requirements()]
    pins = tomllib.loads((bundle.ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    assert set(bundle.requirements()) <= set(pins["constraint-dependencies"])
    for name in NAMES:
        code = "\n".join(cell.source for cell in source(name).cells if cell.cell_type == "code")
        imported = set(re.findall(r"^\s*(?:import|from)\s+(\w+)", code, re.MULTILINE))
        assert imported - sys.stdlib_module_names <= {*needed, "dss"}, name


# From the release to the tables


def test_feedback_goes_back_to_moodle_under_the_names_it_came_by(course):
    """Of the version that counts; pages of those who came another way are in no archive."""
    ada, bo, zoe = CLASS[0], CLASS[8], CLASS[2]
    flat = moodle_name(bo, end="_", number=77)
    files = {moodle_name(ada, end="/"): notebook("1_gamma"), flat: notebook("1_gamma")}
    archive_of(course.parent / "moodle.zip", files)
    archive_of(course.parent / "canvas.zip", {canvas_name(zoe): notebook("1_gamma")})
    for name in ("moodle", "canvas"):
        assert collect(course, course.parent / f"{name}.zip").exit_code == 0
    for person in (ada, bo, zoe):
        page = course / "feedback" / person.id / "1_gamma" / "1_gamma.html"
        page.parent.mkdir(parents=True)
        page.write_text(person.id)
    (course / "feedback" / "2_bead_moodle.zip").touch()
    assert feedback.moodle_archives(course) == [course / "feedback" / "1_gamma_moodle.zip"]
    assert not (course / "feedback" / "2_bead_moodle.zip").exists(), "of an earlier time"
    with zipfile.ZipFile(course / "feedback" / "1_gamma_moodle.zip") as archive:
        found = {name: archive.read(name).decode() for name in archive.namelist()}
    assert found == {
        f"{ada.name}_12345_assignsubmission_file_/1_gamma.html": ada.id,
        f"{bo.name}_77_assignsubmission_file_/1_gamma.html": bo.id,
    }
    for name in found:
        assert platforms.person(name, Names(CLASS))[0] in {ada.id, bo.id}, "as it is read here"


@slow
def test_a_course_from_end_to_end(released, tmp_path):
    """Two hand in through Moodle, one of them again and late through Canvas; points by hand are
    entered, nbgrader exports, and what was graded is not graded again."""
    out, people = tmp_path / "course", CLASS[:3]
    shutil.copytree(released, out)
    (tmp_path / "roster.csv").write_bytes(roster_of(people))
    set_due(out, "1_gamma=2026-12-02T23:59")
    wrong = solved(out, "1_gamma")
    cell_of(wrong, "height").source = "def height(gamma, L0):\n    return -1.0"
    notebooks = [nbformat.writes(n).encode() for n in (wrong, release_of(out, "1_gamma"))]
    files = {moodle_name(p): n for p, n in zip(people[:2], notebooks, strict=True)}
    assert collect(out, archive_of(tmp_path / "moodle.zip", files)).exit_code == 0
    done = command(tmp_path, "grade", out)
    assert done.returncode == 0, done.stderr
    table = table_of(out)
    points = {s: table.loc[(s, "1_gamma")].checks for s in ("s00", "s01")}
    assert 0 < points["s00"] < table.loc[("s00", "1_gamma")].checks_max and points["s01"] == 0
    assert re.search(
        r"height-check -\d+ \(a curve below L0 gives -1\.0", table.loc[("s00", "1_gamma")].lost
    )
    with execution.course(out).gradebook as gradebook:
        (entry,) = gradebook.find_submission("1_gamma", "s00").notebooks
        grade = next(g for g in entry.grades if g.cell_type == "markdown")
        grade.manual_score, grade.needs_manual_grade = 1.5, False
        gradebook.db.commit()
    nbgrader = [sys.executable, "-m", "nbgrader", "export", "--CsvExportPlugin.to=grades.csv"]
    subprocess.run(nbgrader, cwd=out, check=True, capture_output=True)
    assert "digest" not in (out / "grades.csv").read_text()
    late = {canvas_name(people[0], late=True): (nbformat.writes(solved(out, "1_gamma")), LATER)}
    path = archive_of(tmp_path / "canvas.zip", late)
    assert ", late" not in collect(out, path).output, "what was on time counts"
    graded = {s: out / "autograded" / s / "1_gamma/1_gamma.ipynb" for s in ("s00", "s01")}
    ages = {s: graded[s].stat().st_mtime_ns for s in graded}
    assert command(tmp_path, "grade", out).returncode == 0
    assert {s: graded[s].stat().st_mtime_ns for s in graded} == ages, "nothing is run again"
    assert table_of(out).loc[("s00", "1_gamma")].by_hand == 1.5
    assert ", late" in collect(out, path, "--count", "last").output
    assert command(tmp_path, "grade", out).returncode == 0
    row = table_of(out).loc[("s00", "1_gamma")]
    assert row.checks == row.checks_max and row.by_hand == 1.5 and row.lost == ""
    due = collecting.time_from("2026-12-02T23:59", "due")
    assert float(row.late) == (datetime(*LATER).astimezone(UTC) - due).total_seconds()
    assert float(row.penalty) == 0 and graded["s01"].stat().st_mtime_ns == ages["s01"]
    rows = pd.read_csv(out / "grades_wide.csv", dtype=str, keep_default_na=False).set_index("id")
    assert rows["1_gamma total"].tolist() == [f"{row.checks + 1.5:g}", "0", ""]
    done = command(tmp_path, "feedback", out)
    assert done.returncode == 0 and "2 pages" in done.stdout, done.stderr
    assert "1_gamma_moodle.zip: for Moodle" in done.stdout
    assert "1 of them show 0 points" in done.stdout
    page = (out / "feedback/s01/1_gamma/1_gamma.html").read_text()
    assert "NotImplementedError" in page
    visible = "\n".join(cell.source for cell in release_of(out, "1_gamma").cells)
    for hidden in feedback.HIDDEN.findall("\n".join(c.source for c in source("1_gamma").cells)):
        for line in filter(lambda line: len(line) > 30, map(str.strip, hidden.splitlines())):
            assert line in visible or line not in re.sub(r"<[^>]+>", "", page)
