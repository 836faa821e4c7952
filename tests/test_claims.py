"""Every number that a text states as a result is what a committed table gives."""

import re

import claims
import pandas as pd
import pytest


@pytest.mark.parametrize("text", claims.texts())
def test_every_number_is_what_its_table_gives(text):
    assert claims.faults_of(text) == []


def test_every_file_of_claims_has_a_text():
    stems = {text.rpartition("/")[2].rpartition(".")[0] for text in claims.texts()}
    assert {path.stem for path in claims.CLAIMS.glob("*.yaml")} <= stems


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A text with claims and a table, and what is wrong with them once they are changed."""
    monkeypatch.setattr(claims, "CLAIMS", tmp_path)
    (tmp_path / "02_quad.yaml").write_text("""
claims:
  - says: of {64} pairs {62} connect, with {7.6} beads
    table: pairs.csv
    is: [len(t), t.connected.sum(), t.n_beads.mean()]
  - says: more than {half} of all, and at most {three} fail
    table: pairs.csv
    is: [0.5, up(2.5)]
  - says: most are short
    table: pairs.csv
    holds: (t.n_beads < 10).mean() > 0.5
facts: [seen in 1984]
""")
    prose = (
        "# Results Of {} pairs of $64$ tried, that is to say of 64 pairs 62 connect, with 7.6 "
        "beads; more than half of all, and at most three fail; most are short, seen in 1984, at "
        "$L_0=0.03$ and $L_0^{-1/2}$, Eq. (4), `x = 17`, notebook 9."
    )
    table = pd.DataFrame({"connected": [True] * 62 + [False] * 2, "n_beads": [7.6] * 64})

    def faults(old="", new="", table=table):
        changed = prose.replace(old, new) if old else prose
        return claims.faults_of("notebooks/02_quad.ipynb", changed, lambda path: table)

    return faults, table


def test_what_holds_is_left_in_peace(example):
    assert example[0]() == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("62 connect", "61 connect", "no longer says 'of 64 pairs 62 connect"),
        ("7.6 beads", "7.9 beads", "no longer says"),
        ("most are short", "most are long", "no longer says 'most are short'"),
        ("at most three", "at most four", "no longer says"),
        ("1984", "1985", "no longer says 'seen in 1984'"),
        ("most are short", "most are short, 13 % of them", "13 in '"),
        ("$L_0=0.03$", "$L_0=0.031$", "0.031 in '"),
        ("notebook 9", "notebook 9, 33.3 times", "33.3 in '"),
        ("most are short", "most are short, seven of ten", "seven in '"),
    ],
)
def test_a_doctored_sentence_is_found(example, old, new, said):
    faults = example[0](old, new)
    assert faults and said in faults[0], faults


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"connected": False}, "62 should be 0"),
        ({"n_beads": 7.66}, "7.6 should be 7.66"),
        ({"n_beads": 12}, "'most are short' is false"),
    ],
)
def test_a_doctored_table_is_found(example, change, said):
    faults, table = example
    assert any(said in fault for fault in faults(table=table.assign(**change)))


def test_every_committed_claim_fails_on_other_tables():
    """None is written so that it holds whatever the table says."""
    idle = []
    for text in claims.texts():
        for claim in claims.claims_of(text)[0]:
            is_measured = claim.table or re.search(
                r"read\(|bench\(", f"{claim.values}{claim.holds}"
            )
            if is_measured and not claims.faults_of_claim(claim, claim.phrase, _doctored):
                idle.append(claim.says)
    assert idle == []


def _doctored(path):
    """The committed table with other numbers, or without rows where that is what is counted."""
    table = claims.table_of(path)
    if path.startswith("tests/benchmarks/"):
        values = pd.to_numeric(table.value, errors="coerce")
        return table.assign(value=(-7.3 * values - 11.1).where(values.notna(), table.value))
    numbers = table.select_dtypes("number").columns
    flags = table.select_dtypes("bool").columns
    changed = table.assign(**{name: -7.3 * table[name] - 11.1 for name in numbers if name != "L0"})
    return changed.assign(**{name: ~table[name] for name in flags})


@pytest.mark.parametrize(
    ("number", "found", "agrees"),
    [
        ("0.03", 0.0349, True), ("0.03", 0.0351, False), ("2,567", 2567.4, True),
        ("-0.30", -0.304, True), ("three", 3, True), ("three", 3.6, False), ("a third", 0.35, True),
        ("a third", 0.4, False), ("12", 12.4, True),
    ],
)  # fmt: skip
def test_a_number_is_as_exact_as_it_is_written(number, found, agrees):
    assert claims.agrees(number, found) == agrees


def test_messages_name_text_sentence_value_and_table(example):
    faults, table = example
    (fault,) = faults(table=table.assign(n_beads=9.0))
    pattern = r"notebooks/02_quad.ipynb: 'of 64 pairs .*': 7.6 should be 9 \(pairs.csv: t.n_beads"
    assert re.match(pattern, fault)
