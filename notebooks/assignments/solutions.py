"""The teacher's notebooks: solutions with their hidden tests, slips, rubric and graded specimens.

Made from the sources of a course (`classroom.py solutions`) and never released.
"""

import contextlib
import io
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from difflib import ndiff
from pathlib import Path

import nbformat
import pandas as pd
import yaml
from nbclient import NotebookClient
from samples import SAMPLES, Sample, grade_id, read

from dss.files import write as write_file

HERE = Path(__file__).resolve().parent
TITLE = """**For the teacher: never hand this out.** Below each solution stands what the task is
for, and what sample slips lose and are told. Below each answer in words stand the lines of its
rubric, and graded specimens. The specimens are of group 0, all else is of group {group}."""


@dataclass(frozen=True)
class Line:
    """A line of a rubric: its number, its points, and what earns them."""

    number: int
    points: int
    earned_by: str


def rubric(text: str | None = None) -> dict[str, list[Line]]:
    """Lines by answer (`1_gamma, explain`; `prediction` is that of every assignment).

    Args:
        text: with the table below "Grading by hand"; README.md by default.
    """
    text = text or (HERE / "README.md").read_text(encoding="utf-8")
    part = text.partition("## Grading by hand")[2].partition("\n## ")[0]
    table = [line.strip("| ").split("|") for line in part.splitlines() if re.match(r"\|.*\d", line)]
    lines, answer = {}, ""
    for *names, number, points, earned_by in table:
        answer = names[0].strip() if names else answer
        line = Line(int(number), int(points), earned_by.strip())
        lines.setdefault(answer, []).append(line)
    return lines


def teaching() -> dict:
    """Comments and specimens, by assignment."""
    return yaml.safe_load((HERE / "teaching.yaml").read_text(encoding="utf-8"))


def write_solutions(out: Path, run: bool = True) -> list[Path]:
    """Write OUT/solutions/<assignment>.ipynb from OUT/source; says where each is.

    Args:
        out: folder of a course.
        run: whether notebooks without outputs are run, so that teachers see the group's numbers.

    Raises:
        FileNotFoundError: OUT holds no release.
    """
    sources = sorted((out / "source").glob("*/*.ipynb"))
    if not sources:
        raise FileNotFoundError(f"there is no {out / 'source'}; `release` makes a course")
    written = []
    for source in sources:
        notebook = teachers_notebook(read(source), source.stem)
        if run and not any(cell.get("outputs") for cell in notebook.cells):
            NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
        path = out / "solutions" / source.name
        path.parent.mkdir(exist_ok=True)
        write_file(path, nbformat.writes(notebook).encode())
        written.append(path)
    return written


def teachers_notebook(source: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """A source notebook with what teachers need below each answer, and no mark of nbgrader."""
    lines, texts, told = rubric(), teaching().get(name, {}), messages(source, name)
    parameter = next(c for c in source.cells if "parameters" in c.metadata.get("tags", []))
    group = re.search(r"group: int = (\d+)", parameter.source)[1]
    notebook = nbformat.v4.new_notebook(metadata=source.metadata)
    for number, cell in enumerate(source.cells):
        marks, cell_id = cell.metadata.get("nbgrader", {}), grade_id(cell)
        notebook.cells.append(nbformat.from_dict(dict(cell) | {"metadata": {}}))
        said = [TITLE.format(group=group)] if number == 0 else []
        if marks.get("solution") and cell.cell_type == "code":
            said += [of_code(texts.get("comments", {}).get(cell_id, ""), told.get(cell_id, []))]
        elif marks.get("solution"):
            specimens = texts.get("specimens", {}).get(cell_id, {})
            found = lines.get(f"{name}, {cell_id}") or lines.get(cell_id, [])
            said += [of_words(found, specimens)]
        notebook.cells += [nbformat.v4.new_markdown_cell(text) for text in said if text]
    return notebook


def of_code(comment: str, slips: list[tuple[Sample, dict[str, str], str]]) -> str:
    """What a task is for, and each slip with what it loses and is told."""
    parts = [f"**For the teacher.** {comment}".strip()] if comment or slips else []
    parts += ["Slips that were tried:"] if slips else []
    for sample, told, change in slips:
        if sample.times_out or sample.status != "graded":
            why = "stopped after a minute" if sample.times_out else sample.status
            told = dict.fromkeys(sample.loses, why)
        checks = {}
        for check, message in told.items():
            checks.setdefault(message, []).append(f"`{check}`")
        losses = "; ".join(f"{', '.join(names)}: {said}" for said, names in checks.items())
        parts.append(f"*{sample.name}*. {losses}\n\n```diff\n{change}\n```")
    return "\n\n".join(parts)


def of_words(lines: list[Line], specimens: dict) -> str:
    """The rubric of an answer, and its specimens with their points by line."""
    if not lines:
        return ""
    table = pd.DataFrame(lines).rename(columns={"number": "line", "earned_by": "is earned by"})
    table = table.assign(**{kind: row["points"] for kind, row in specimens.items()})
    parts = [f"**For the teacher: the rubric.**\n\n{markdown_table(table)}"]
    for kind, row in specimens.items():
        text = "\n".join(f"> {line}".rstrip() for line in row["text"].splitlines())
        total = f"{sum(row['points'])} of {table.points.sum()}"
        parts.append(f"**Specimen, {kind}: {total}.** {row['why']}\n\n{text}")
    return "\n\n".join(parts)


def markdown_table(table: pd.DataFrame) -> str:
    rows = [list(table), ["---"] * table.shape[1], *table.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def messages(source: nbformat.NotebookNode, name: str) -> dict[str, list]:
    """By solution cell, triples: a sample that changes it, what checks tell it, and the change.

    All is run in a process of its own, which the notebook may do with as it likes.
    """
    cells = [(grade_id(c), c.source) for c in source.cells if c.cell_type == "code"]
    planted = [v for v in SAMPLES if v.replace and v.loses and name in v.assignments]
    tried = [v for v in planted if v.status == "graded" and not v.times_out]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        told = pool.submit(try_all, cells, tried).result()
    code, found = dict(cells), {}
    for sample in planted:
        change = "\n".join(difference(code[cell], pairs) for cell, pairs in sample.replace.items())
        first = next(cell for cell, _ in cells if cell in sample.replace)
        found.setdefault(first, []).append((sample, told.get(sample.name, {}), change))
    return found


def difference(code: str, pairs: list[tuple[str, str]]) -> str:
    """The lines that are replaced, as a diff."""
    changed = code
    for old, new in pairs:
        changed = changed.replace(old, new)
    lines = ndiff(code.splitlines(), changed.splitlines())
    return "\n".join(line.rstrip() for line in lines if line[0] in "+-")


def try_all(cells: list[tuple[str, str]], samples: list[Sample]) -> dict[str, dict[str, str]]:
    """Run a notebook; before the first cell that a sample changes, a copy of this process goes on
    with the sample's code.  By sample: what its lost checks say."""
    import matplotlib

    matplotlib.use("Agg")
    fork = multiprocessing.get_context("fork")
    variables, told = {"__name__": "__main__"}, {}
    for number, (_, code) in enumerate(cells):
        for sample in (v for v in samples if first_changed(cells, v) == number):
            receive, send = fork.Pipe(duplex=False)
            arguments = send, cells[number:], variables, sample
            process = fork.Process(target=try_one, args=arguments)
            process.start()
            send.close()
            with contextlib.suppress(EOFError):
                told[sample.name] = receive.recv()
            process.join()
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, variables)
    return told


def first_changed(cells: list[tuple[str, str]], sample: Sample) -> int:
    return next(k for k, (cell, _) in enumerate(cells) if cell in sample.replace)


def try_one(send, cells: list[tuple[str, str]], variables: dict, sample: Sample) -> None:
    """Run the rest of a notebook with the code of a sample, and send what its checks say."""
    told = {}
    for cell, code in cells:
        for old, new in sample.replace.get(cell, ()):
            code = code.replace(old, new)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, variables)
        except Exception as error:
            told[cell] = str(error) or type(error).__name__
        if told.keys() >= set(sample.loses):
            break
    send.send({cell: message for cell, message in told.items() if cell in sample.loses})
