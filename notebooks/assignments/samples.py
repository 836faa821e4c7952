"""Sample submissions: the reference solution with something replaced, and what that must lose."""

from dataclasses import dataclass, field
from pathlib import Path

import nbformat


@dataclass(frozen=True)
class Sample:
    """A student of the demonstration.

    Attributes:
        name: the student's.
        assignments: which ones are handed in; all of them where empty.
        replace: by solution cell, pairs (old, new): what is replaced in the reference solution.
        loses: the checks that give 0 points, all others giving all of theirs; `["all"]`: nothing
            is left.
        status: what the table says of the submission.
        times_out: whether a cell has to be stopped.
        solves: False hands in the release as it is.
    """

    name: str
    assignments: list[str] = field(default_factory=list)
    replace: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    loses: list[str] = field(default_factory=list)
    status: str = "graded"
    times_out: bool = False
    solves: bool = True


def wrong(assignment: str, name: str, cell: str, *replace: tuple[str, str], also: tuple = ()):
    """A plausible mistake in one cell, which loses the check of that cell, and `also`."""
    loses = [f"{cell}-check", *also]
    return Sample(name, [assignment], {cell: list(replace)}, loses)


def choice(parameter: str, values: str) -> list[tuple[str, str]]:
    """What to replace in the cell `choose` of 4_study, which varies alpha."""
    return [('"alpha"', f'"{parameter}"'), ("[0.5, 0.8, 0.95]", values)]


SAMPLES = [
    Sample("reference"),
    Sample("empty", solves=False, loses=["all"]),
    wrong(
        "1_gamma",
        "t-swapped",
        "interpolate",
        ("theta_1 * (1 - t) + theta_2 * t", "theta_1 * t + theta_2 * (1 - t)"),
    ),
    wrong(
        "1_gamma",
        "changed-in-place",
        "interpolate",
        (
            "    return theta_1 * (1 - t) + theta_2 * t",
            "    theta_1 *= 1 - t\n    theta_1 += theta_2 * t\n    return theta_1",
        ),
    ),
    wrong(
        "1_gamma",
        "calls-dss",
        "interpolate",
        ("theta_1 * (1 - t) + theta_2 * t", "dss.interpolate(theta_1, theta_2, t)"),
    ),
    wrong(
        "1_gamma",
        "grid-without-ends",
        "gamma",
        (
            "torch.linspace(0, 1, n_t, dtype=torch.float64)",
            "torch.linspace(0, 1, n_t + 2, dtype=torch.float64)[1:-1]",
        ),
    ),
    wrong(
        "1_gamma",
        "grid-without-last",
        "gamma",
        (
            "torch.linspace(0, 1, n_t, dtype=torch.float64)",
            "torch.arange(n_t, dtype=torch.float64) / n_t",
        ),
    ),
    wrong(
        "1_gamma",
        "training-sample",
        "gamma",
        ("interpolate(theta_1, theta_2, t))", 'interpolate(theta_1, theta_2, t), "train")'),
    ),
    wrong("1_gamma", "min-for-max", "height", ("gamma.max()", "gamma.min()")),
    wrong(
        "1_gamma",
        "dots-without-L0",
        "draw",
        ('axes.plot(t, gamma, "o-", markersize=3,', "axes.scatter(t, gamma,"),
        ('    axes.axhline(L0, color="black", linestyle="--", label="$L_0$")\n', ""),
    ),
    wrong(
        "2_bead",
        "lowest-point",
        "t_star",
        ("gamma.argmax()", "gamma.argmin()"),
    ),
    wrong(
        "2_bead",
        "inner-grid",
        "t_star",
        ("gamma.argmax().item()", "(gamma[1:-1].argmax().item() + 1)"),
    ),
    wrong("2_bead", "trained-to-L0", "train_bead", ("<= alpha * L0", "<= L0")),
    wrong(
        "2_bead",
        "start-overwritten",
        "train_bead",
        ("start.clone()", "start"),
        ("theta = theta - lr * gradients[0]", "theta -= lr * gradients[0]"),
    ),
    wrong(
        "2_bead",
        "last-step-untested",
        "train_bead",
        ("range(max_steps + 1)", "range(max_steps)"),
    ),
    wrong("2_bead", "tests-the-middle", "segments", (".max() <= L0", "[n_t // 2] <= L0")),
    wrong("2_bead", "tests-the-lowest", "segments", (".max() <= L0", ".min() <= L0")),
    wrong(
        "3_string",
        "beads-to-L0",
        "find_string",
        (
            "train_bead(task, start, alpha * L0, generator)",
            "train_bead(task, start, L0, generator)",
        ),
    ),
    wrong(
        "3_string",
        "always-half-way",
        "find_string",
        ("dss.t_star(task, theta_1, theta_2)", "0.5"),
    ),
    wrong(
        "3_string",
        "gives-up-early",
        "find_string",
        (
            "    right, right_low",
            "    if not left_low:\n        return torch.cat([left, theta_2[None]]), False\n"
            "    right, right_low",
        ),
    ),
    wrong(
        "3_string",
        "half-a-string",
        "find_string",
        ("find_string(task, bead, theta_2, *rest)", "torch.stack([bead, theta_2]), True"),
        also=("experiment-check",),
    ),
    Sample(
        "global-seed",
        ["3_string"],
        {
            "find_string": [
                ("    line = torch", "    torch.manual_seed(0)\n    line = torch"),
                ("alpha * L0, generator)", "alpha * L0, None)"),
            ]
        },
        ["generator-check"],
    ),
    wrong(
        "3_string",
        "beads-only",
        "Gamma_tilde",
        ("dss.interpolated_loss(task, thetas[:-1], thetas[1:], n_t)", "task.losses(thetas)"),
        also=("experiment-check",),
    ),
    wrong(
        "3_string",
        "length-not-normalized",
        "measure",
        ("float(length / (thetas[-1] - thetas[0]).norm())", "float(length)"),
    ),
    wrong("3_string", "ends-are-beads", "measure", ("len(thetas) - 2", "len(thetas)")),
    wrong(
        "3_string",
        "one-generator",
        "experiment",
        ("def search(", "own = torch.Generator().manual_seed(group)\n\n\ndef search("),
        ("alpha, d, torch.Generator().manual_seed(group))", "alpha, d, own)"),
    ),
    wrong(
        "3_string",
        "numbers-of-its-own",
        "experiment",
        ("def search(", "L0, alpha = 0.2, 0.9\n\n\ndef search("),
    ),
    wrong("3_string", "disconnected", "verdict", ('else "not found"', 'else "disconnected"')),
    Sample("chooses-depth", ["4_study"], {"choose": choice("max_depth", "[0, 2, 6]")}),
    Sample("chooses-width", ["4_study"], {"choose": choice("width", "[4, 8, 16]")}),
    Sample(
        "width-ignored",
        ["4_study"],
        {
            "choose": choice("width", "[4, 8, 16]"),
            "run": [("polynomial_task(value) if", "polynomial_task() if")],
        },
        ["run-check"],
    ),
    wrong("4_study", "two-values", "choose", ("[0.5, 0.8, 0.95]", "[0.5, 0.95]")),
    wrong(
        "4_study",
        "failures-dropped",
        "run",
        ("table.assign(value=value)", "table[table.connected].assign(value=value)"),
    ),
    wrong(
        "4_study",
        "seeded-globally",
        "run",
        ("generator = torch.Generator().manual_seed(seed)", "torch.manual_seed(seed)"),
        ("n_pairs, generator, **options", "n_pairs, **options"),
    ),
    wrong(
        "4_study",
        "one-generator-for-all",
        "run",
        ("    tables = []", "    tables, generator = [], torch.Generator().manual_seed(seed)"),
        ("        generator = torch.Generator().manual_seed(seed)\n", ""),
    ),
    wrong(
        "4_study",
        "beads-of-failures",
        "summarize",
        ("table[table.connected].groupby", "table.groupby"),
    ),
    Sample(
        "endless",
        ["2_bead"],
        {"t_star": [("def t_star(", "while True:\n    pass\n\n\ndef t_star(")]},
        ["t_star-check"],
        times_out=True,
    ),
    Sample(
        "crash",
        ["3_string"],
        {"measure": [("def measure(", "import os\n\nos._exit(1)\n\n\ndef measure(")]},
        ["all"],
        status="crashed",
    ),
]


def submit(out: Path, sample: Sample, names: list[str]) -> None:
    """Put the submission of a sample where students' submissions go."""
    for name in sample.assignments or names:
        notebook, solved = (read(out / f / name / f"{name}.ipynb") for f in ("release", "source"))
        solutions = {grade_id(cell): cell.source for cell in solved.cells}
        for cell in notebook.cells:
            if sample.solves and cell.metadata.nbgrader.solution:
                cell.source = solutions[grade_id(cell)]
                for old, new in sample.replace.get(grade_id(cell), ()):
                    if cell.source.count(old) != 1:
                        raise ValueError(f"{sample.name}: {old!r} is not once in {cell.source}")
                    cell.source = cell.source.replace(old, new)
        write(notebook, out / "submitted" / sample.name / name / f"{name}.ipynb")


def differences(sample: Sample, table, names: list[str]) -> list[str]:
    """What the table says of a sample, where that is not what was planted."""
    found = []
    for name in sample.assignments or names:
        row = table.loc[(sample.name, name)]
        lost = {entry.split()[0] for entry in row.lost.split("; ") if entry}
        everything = row.checks == 0 and row.checks_max > 0
        if row.status != sample.status or (row.timed_out != "") != sample.times_out:
            found.append(f"{sample.name}, {name}: {row.status}, timed out: {row.timed_out}")
        if not everything if sample.loses == ["all"] else lost != set(sample.loses):
            found.append(f"{sample.name}, {name}: lost {row.lost}; planted: {sample.loses}")
    return found


def grade_id(cell: nbformat.NotebookNode) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
