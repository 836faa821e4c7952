"""Who is in the course, and under which names learning platforms know them."""

import io
import re
import unicodedata
import warnings
from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

COLUMNS = ["id", "name", "email"]
OPTIONAL = ["team", "canvas"]
FOLDER = re.compile(r"[\w@-][\w.@-]*")  # what an id or a team may be: it names a folder


@dataclass(frozen=True)
class Person:
    """A row of the roster.

    Attributes:
        id: names the folder of what the person hands in, and the student in nbgrader.
        name: as the platform writes it; "Last, First" is understood too.
        email: may be empty.
        team: one hand-in counts for all of a team; empty for one who works alone.
        canvas: the number that Canvas gave the person, for its import; may be empty.
    """

    id: str
    name: str
    email: str
    team: str = ""
    canvas: str = ""

    @property
    def folder(self) -> str:
        """Where the person's hand-ins go: shared by a team."""
        return self.team or self.id

    @property
    def first_last(self) -> tuple[str, str]:
        """First names and last name."""
        if "," in self.name:
            last, first = self.name.split(",", 1)
            return first.strip(), last.strip()
        *first, last = self.name.split()
        return " ".join(first), last


def people_from(content: bytes, what: str) -> list[Person]:
    """The people of a CSV file with the columns id, name, email and perhaps team, canvas.

    Args:
        content: of the file; separated by commas, semicolons or tabs.
        what: how messages call it.

    Raises:
        ValueError: it is not UTF-8, lacks a column or a value, has a column or an id twice (in any
            case), an id or team that can name no folder, or a team with the name of a person.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not in UTF-8; save it as CSV UTF-8 ({error})") from None
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    options = {"sep": separator, "dtype": str, "keep_default_na": False, "index_col": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(io.StringIO(text), **options)
    except pd.errors.ParserWarning:
        raise ValueError(
            f"{what} has rows of more values than {header!r}; a comma in a name needs quotes"
        ) from None
    except ValueError as error:
        raise ValueError(f"{what} is no table: {error}") from error
    names = [name.strip(' "\r').lower() for name in header.split(separator)]
    if twice := [name for name in COLUMNS + OPTIONAL if names.count(name) > 1]:
        raise ValueError(f"{what} has the column {', '.join(twice)} more than once: {header!r}")
    table.columns = [str(column).strip().lower() for column in table.columns]
    if missing := [column for column in COLUMNS if column not in table]:
        raise ValueError(f"{what} has no column {', '.join(missing)}; its first line is {header!r}")
    table = table[[c for c in COLUMNS + OPTIONAL if c in table]].apply(lambda c: c.str.strip())
    people = [Person(**row) for row in table.to_dict("records") if any(row.values())]
    check(people, what)
    return people


def check(people: list[Person], what: str) -> None:
    ids = [person.id.casefold() for person in people]  # a disk may not tell two cases apart
    teams = {person.team.casefold() for person in people}
    for person in people:
        if not person.id or not person.name:
            raise ValueError(f"{what}: {person} lacks an id or a name")
        for text in filter(None, (person.id, person.team)):
            if not FOLDER.fullmatch(text):
                raise ValueError(
                    f"{what}: {text!r} names no folder; letters, digits and _ - . @ are allowed"
                )
    for text in ids:
        if ids.count(text) > 1:
            raise ValueError(f"{what}: the id {text!r} is there {ids.count(text)} times")
    if len(teams) < len(spelled := {person.team for person in people}):
        folded = [team.casefold() for team in spelled]
        alike = sorted(team for team in spelled if folded.count(team.casefold()) > 1)
        raise ValueError(f"{what}: {', '.join(alike)} are one team; spell it in one way")
    if both := teams & set(ids):
        raise ValueError(f"{what}: {', '.join(sorted(both))} is an id and a team; one is allowed")
    if not people:
        raise ValueError(f"{what} lists nobody")


class Names:
    """Finds the folder of a person or a team by a name, however the platform spells it.

    Compared are letters and digits alone, in any case, first or last name first.  "Jörg Groß" is
    also found as jorggross, joerggross (transcribed) and jrggro (letters dropped).  `numbered` are
    the folders by the number that Canvas gives a person.
    """

    def __init__(self, people: list[Person]):
        self.teams = {letters(person.team) for person in people if person.team}
        self.exact, self.loose, self.numbered = (defaultdict(set) for _ in range(3))
        for person in people:
            self.numbered[person.canvas].add(person.folder)
            known = [*orders(person.name), person.id, person.email, person.team]
            for text in filter(None, known):
                self.exact[letters(text)].add(person.folder)
                for spelling in spellings(text):
                    self.loose[spelling].add(person.folder)

    def find(self, name: str, drops_marks: bool = False) -> set[str]:
        """The folders that a name may mean: one where it is known, more where it is ambiguous.

        Args:
            name: as a file or folder has it; a team and "-" may stand before it.
            drops_marks: whether the platform may have taken marks off letters: then a plain "jorg"
                is no better sign of Jorg than of Jörg.
        """
        plain = letters(name)
        exact, loose = self.exact.get(plain, set()), self.loose.get(plain, set())
        if found := exact | loose if drops_marks and plain.isascii() else exact or loose:
            return found
        stripped = spellings(name)[0]  # a name with marks, of one who is written without
        if found := self.loose.get(stripped, set()):
            return found
        for dash in re.finditer("-", name):
            if letters(name[: dash.start()]) in self.teams:
                return self.find(name[dash.end() :], drops_marks)
        return set()


def orders(name: str) -> list[str]:
    """A name with its words in turn at the front: First Last, Last First."""
    words = name.replace(",", " ").split()
    return [" ".join(words[k:] + words[:k]) for k in range(len(words))]


def letters(text: str) -> str:
    composed = unicodedata.normalize("NFC", text).casefold()
    return "".join(c for c in unicodedata.normalize("NFC", composed) if c.isalnum())


TRANSCRIBED = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "æ": "ae"})


def spellings(text: str) -> list[str]:
    """A name without marks on its letters, transcribed, and with such letters dropped."""
    plain = letters(text)
    base = "".join(c for c in unicodedata.normalize("NFKD", plain) if c.isalnum())
    raw = unicodedata.normalize("NFC", text).lower()  # where ß is one letter, and no ss
    dropped = "".join(c for c in raw if c.isalnum() and c.isascii())
    return [base, *filter(None, (plain.translate(TRANSCRIBED), dropped))]
