"""Numbers in prose: which are claimed, from which table, and whether they still hold.

`claims/` has a file per text, named after it.  A claim quotes a phrase with its numbers in braces,
and says how each is computed from a committed table:

    claims:
      - says: of {64} pairs {62} connect
        table: figures/quick/02_quad_pairs.csv
        is: ["len(t[t.L0 == 0.03])", "t[t.L0 == 0.03].connected.sum()"]

An expression sees the table as `t`, and what `scope_of` gives it.  A number is as exact as it is
written: {0.03} is anything that rounds to it; `within` loosens that (a fraction of the number).
Numbers may be words (`WORDS`), and those from three on must be claimed like any other.  A sentence
about numbers that names none has `holds`, an expression that is true.  `facts` are phrases whose
numbers are no results: dates, versions, definitions.

    python tests/claims.py [TEXT ...]     what is false, missing or unclaimed
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from dss.parameters import declared_parameters, paper_parameters
from dss.provenance import PROJECT

NOTEBOOKS = PROJECT / "notebooks"
CLAIMS = PROJECT / "tests" / "claims"
BENCHMARK = "tests/benchmarks/{}.csv"
WORDS = {word: k for k, word in enumerate(
    "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty".split())}  # fmt: skip
FRACTIONS = {"half": 1 / 2, "a third": 1 / 3, "two thirds": 2 / 3, "a quarter": 1 / 4}
FRACTIONS |= {"three quarters": 3 / 4, "a fifth": 1 / 5, "a tenth": 1 / 10, "twice": 2, "double": 2}
COUNTS = "|".join(word for word, value in WORDS.items() if value >= 3)  # "one", "two" are grammar
NUMBER = re.compile(
    rf"(?<![\w.^])[-−]?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?!\w|\.\d)|\b(?i:{COUNTS})\b"
)

# What holds numbers that are no results.  Whole lines: code, numbered headings and lists.
NO_LINES = re.compile(
    r"```.*?```|<!--.*?-->|\$\$.*?\$\$|^#+ \d+\.|^ *\d+\. ", re.DOTALL | re.MULTILINE
)
# Within a line: code, addresses, tags, places in papers and notebooks, names of networks.
PLACE = r"(?:Eqs?|Secs?|Figs?|[Nn]otebooks?|[Ee]xercises?|[Ss]teps?|arXiv|ICLR|NeurIPS|ICML)"
LIST = r"(?:(?:, |-| to | and |, and )\(?\d+\)?(?![.\d]*\d| [%a-z]))*"
NO_RESULT = re.compile(
    r"`[^`]*`|<[^>]*>|\[[^]]*\]\(references\.md[^)]*\)|\]\([^)]*\)|https?://\S+"
    r"|\\tag\{[^}]*\}|\[\d+\. "
    rf"|\b{PLACE}\b[.:]?\s?\(?\d[\d.]*\)?{LIST}"
    r"|\b\d+(?:-\d+){2,}\b|\b\d+x\d+(?:-\d+)*\b|\b95 % (?:confidence )?intervals?\b"
)
FORMULA = re.compile(r"\$[^$]*\$")  # only its decimals can be results


@dataclass(frozen=True)
class Claim:
    """One entry of a file in `claims/`."""

    says: str
    table: str = ""
    values: tuple[str, ...] = ()
    holds: str = "True"
    within: float = 0.0

    @property
    def phrase(self) -> str:
        """What stands in the text."""
        return re.sub("[{}]", "", self.says) if self.values else self.says

    @property
    def numbers(self) -> list[str]:
        return re.findall(r"\{([^{}]*)\}", self.says) if self.values else []


def texts() -> list[str]:
    """All texts whose numbers are tested; those of the references are years and pages."""
    paths = {PROJECT / "README.md", *NOTEBOOKS.glob("*.md"), *NOTEBOOKS.glob("*.ipynb")}
    return sorted(str(p.relative_to(PROJECT)) for p in paths if p.stem != "references")


def claims_of(text: str) -> tuple[list[Claim], list[str]]:
    """The claims about a text, and its phrases that are facts of another kind."""
    file = CLAIMS / f"{Path(text).stem}.yaml"
    entry = (yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None) or {}
    claims = []
    for row in entry.get("claims") or []:
        row = dict(row) | {"says": " ".join(row["says"].split())}
        values = row.pop("is", [])
        values = values if isinstance(values, list) else [values]
        claims.append(Claim(**row, values=tuple(str(value) for value in values)))
    return claims, [" ".join(phrase.split()) for phrase in entry.get("facts") or []]


def prose_of(path: Path) -> str:
    """The sentences of a page, or of a notebook's Markdown cells, on one line and without code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return " ".join(NO_LINES.sub(" ", text).split())


def faults_of(
    text: str, prose: str | None = None, read: Callable[[str], pd.DataFrame] | None = None
) -> list[str]:
    """What is wrong with the numbers of a text, a sentence for each fault.

    Args:
        text: its path in the project.
        prose: in place of what stands there.
        read: gives the table of a path, in place of the committed one.
    """
    prose = prose_of(PROJECT / text) if prose is None else prose
    claims, facts = claims_of(text)
    faults = [
        fault for claim in claims for fault in faults_of_claim(claim, prose, read or table_of)
    ]
    faults += [f"the text no longer says {fact!r} (facts)" for fact in facts if fact not in prose]
    allowed = parameters_of(text)
    for around, number, is_percent in unclaimed(prose, claims, facts):
        value = value_of(number) / (100 if is_percent else 1)
        if not np.isclose(value, allowed, rtol=1e-9, atol=0).any():
            faults.append(f"{number} in '... {around} ...' is neither claimed nor a parameter")
    return [f"{text}: {fault}" for fault in faults]


def faults_of_claim(claim: Claim, prose: str, read: Callable) -> list[str]:
    if claim.phrase not in prose:
        return [f"the text no longer says {claim.phrase!r}, which is claimed"]
    if len(claim.numbers) != len(claim.values):
        return [f"{claim.says!r} has {len(claim.numbers)} numbers, its claim {len(claim.values)}"]
    try:
        scope = scope_of(claim.table, read)
        values = [float(eval(expression, dict(scope))) for expression in claim.values]
        holds = bool(eval(claim.holds, dict(scope)))
    except Exception as error:  # no such table, column or row
        return [f"{claim.phrase!r} cannot be computed ({claim.table}): {error!r}"]
    faults = [
        f"{claim.phrase!r}: {number} should be {found:.6g} ({claim.table}: {expression})"
        for number, found, expression in zip(claim.numbers, values, claim.values, strict=True)
        if not agrees(number, found, claim.within)
    ]
    return faults + ([] if holds else [f"{claim.phrase!r} is false ({claim.table}: {claim.holds})"])


def scope_of(table: str, read: Callable[[str], pd.DataFrame]) -> dict:
    """What an expression may use: its table `t`, others by `read(path)`, parameters by
    `quick(notebook)` and `paper(notebook)`, `seconds(notebook, size)`, tables of the last benchmark
    by `bench(section, device)`, `up`, `down`, np and pd."""
    names = {"np": np, "pd": pd, "read": read, "up": up, "down": down, "seconds": seconds}
    names |= {"quick": quick, "paper": paper}
    names["bench"] = lambda section, device="cpu": bench(read(BENCHMARK.format(device)), section)
    return names | ({"t": read(table)} if table else {})


@cache
def table_of(path: str) -> pd.DataFrame:
    return pd.read_csv(PROJECT / path)


def up(value: float, digits: int = 0) -> float:
    """The next number above, for "less than" and "at most"."""
    return np.ceil(value * 10**digits - 1e-9) / 10**digits


def down(value: float, digits: int = 0) -> float:
    """The next number below, for "more than" and "at least"."""
    return np.floor(value * 10**digits + 1e-9) / 10**digits


def quick(notebook: str) -> dict:
    """The parameters that a notebook is committed with."""
    known = declared_parameters(NOTEBOOKS / f"{notebook}.ipynb")
    return {name: parameter.default for name, parameter in known.items()}


def paper(notebook: str) -> dict:
    """Its parameters at paper size."""
    return quick(notebook) | paper_parameters(NOTEBOOKS / f"{notebook}.ipynb")


def seconds(notebook: str, size: str) -> float:
    """How long the committed run of a notebook took."""
    manifest = json.loads((PROJECT / "figures" / size / "manifest.json").read_text())
    entries = [e for e in manifest.values() if e["notebook"] == f"{notebook}.ipynb"]
    return entries[0]["seconds"]


def bench(long: pd.DataFrame, section: str) -> pd.DataFrame:
    """A table of the committed benchmark, numbers where there are only numbers."""
    table = long[long.section == section].pivot(index="row", columns="variable", values="value")
    for name in table:
        with contextlib.suppress(ValueError):
            table[name] = pd.to_numeric(table[name])
    return table


def value_of(number: str) -> float:
    """A number as a text writes it: `2,567`, `-0.30`, `three`, `a third`."""
    words = WORDS | FRACTIONS
    if number.lower() in words:
        return words[number.lower()]
    return float(number.replace(",", "").replace("−", "-"))


def agrees(number: str, found: float, within: float = 0.0) -> bool:
    """Whether a value rounds to a number as it is written, or is within a fraction of it."""
    said = value_of(number)
    if number.lower() in FRACTIONS:
        return abs(found - said) <= max(within, 0.1) * said
    half_digit = 0.5 * 10.0 ** -len(number.partition(".")[2])
    return abs(found - said) <= max(half_digit * (1 + 1e-9), within * abs(said))


def unclaimed(prose: str, claims: list[Claim], facts: list[str]) -> list[tuple[str, str, bool]]:
    """Numbers that no claim and no fact holds: words around each, itself, whether `%` follows."""
    held = [match.span() for match in NO_RESULT.finditer(prose)]
    held += [match.span() for fact in facts for match in re.finditer(re.escape(fact), prose)]
    held += [span for claim in claims for span in claimed_spans(prose, claim)]
    formulas = [match.span() for match in FORMULA.finditer(prose)]
    found = []
    for match in NUMBER.finditer(prose):
        begin, end = match.span()
        is_symbol = "." not in match[0] and _within_any(begin, end, formulas)
        if not is_symbol and not _within_any(begin, end, held):
            is_percent = re.match(r"\$? ?\\?%", prose[end:]) is not None
            found.append((prose[max(0, begin - 50) : end + 30], match[0], is_percent))
    return found


def claimed_spans(prose: str, claim: Claim) -> list[tuple[int, int]]:
    """Where the numbers of a claim stand, wherever its phrase does."""
    spans, length = [], 0
    for k, part in enumerate(re.split("[{}]", claim.says) if claim.values else []):
        spans += [(length, length + len(part))] if k % 2 else []
        length += len(part)
    places = [match.start() for match in re.finditer(re.escape(claim.phrase), prose)]
    return [(place + begin, place + end) for place in places for begin, end in spans]


def _within_any(begin: int, end: int, spans: list[tuple[int, int]]) -> bool:
    return any(first <= begin and end <= last for first, last in spans)


@cache
def parameters_of(text: str) -> list[float]:
    """Numbers that a text may quote without a claim: parameters of its notebook, or of all."""
    file = PROJECT / text
    files = [file] if file.suffix == ".ipynb" else sorted(NOTEBOOKS.glob("*.ipynb"))
    values = [v for f in files for size in (quick, paper) for v in size(f.stem).values()]
    flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
    return [float(v) for v in flat if isinstance(v, int | float) and not isinstance(v, bool)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", help="paths in the project; all by default")
    faults = [f for text in parser.parse_args().texts or texts() for f in faults_of(text)]
    print("\n".join(faults) or "every number holds")
    sys.exit(bool(faults))
