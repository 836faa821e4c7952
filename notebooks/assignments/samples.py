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


def wrong(
    assignment: str, name: str, cell: str, *replace: tuple[str, str], loses: list[str] | None = None
) -> Sample:
    """A plausible mistake in one cell, and the checks that it loses: where none is named, the one
    that is called after the cell."""
    return Sample(name, [assignment], {cell: list(replace)}, loses or [f"{cell}-check"])


def choice(parameter: str, values: str) -> list[tuple[str, str]]:
    """What to replace in the cell `choose` of 4_study, which varies alpha."""
    return [('"alpha"', f'"{parameter}"'), ("[0.5, 0.8, 0.95]", values)]


# All that the first task of 3_string asks for.
STEPS = ("check", "ends", "segment", "t_star", "target", "depth", "halves", "failed_bead")
FIND_STRING = [f"find_string-{step}" for step in (*STEPS, "order", "low")] + ["generator-check"]

SAMPLES = [
    Sample("reference"),
    Sample("empty", solves=False, loses=["all"]),
    wrong(
        "1_gamma",
        "t-swapped",
        "interpolate",
        ("theta_1 * (1 - t) + theta_2 * t", "theta_1 * t + theta_2 * (1 - t)"),
        loses=["interpolate-values"],
    ),
    wrong(
        "1_gamma",
        "changed-in-place",
        "interpolate",
        (
            "    return theta_1 * (1 - t) + theta_2 * t",
            "    theta_1 *= 1 - t\n    theta_1 += theta_2 * t\n    return theta_1",
        ),
        loses=["interpolate-unchanged"],
    ),
    wrong(
        "1_gamma",
        "an-array",
        "interpolate",
        ("theta_1 * (1 - t) + theta_2 * t", "(theta_1 * (1 - t) + theta_2 * t).numpy()"),
        loses=["interpolate-check"],
    ),
    wrong(
        "1_gamma",
        "calls-dss",
        "interpolate",
        ("theta_1 * (1 - t) + theta_2 * t", "dss.interpolate(theta_1, theta_2, t)"),
        loses=["interpolate-check", "interpolate-values", "interpolate-unchanged"],
    ),
    wrong(
        "1_gamma",
        "calls-losses_along",
        "gamma",
        (
            "task.losses(dss.interpolate(theta_1, theta_2, t))",
            "dss.losses_along(task, torch.stack([theta_1, theta_2]), len(t))[1][0]",
        ),
        loses=["gamma-check", "gamma-grid", "gamma-values"],
    ),
    wrong(
        "1_gamma",
        "always-33-points",
        "gamma",
        ("torch.linspace(0, 1, n_t,", "torch.linspace(0, 1, 33,"),
        loses=["gamma-check"],
    ),
    wrong(
        "1_gamma",
        "grid-without-ends",
        "gamma",
        (
            "torch.linspace(0, 1, n_t, dtype=torch.float64)",
            "torch.linspace(0, 1, n_t + 2, dtype=torch.float64)[1:-1]",
        ),
        loses=["gamma-grid"],
    ),
    wrong(
        "1_gamma",
        "grid-without-last",
        "gamma",
        (
            "torch.linspace(0, 1, n_t, dtype=torch.float64)",
            "torch.arange(n_t, dtype=torch.float64) / n_t",
        ),
        loses=["gamma-grid"],
    ),
    wrong(
        "1_gamma",
        "training-sample",
        "gamma",
        ("interpolate(theta_1, theta_2, t))", 'interpolate(theta_1, theta_2, t), "train")'),
        loses=["gamma-values"],
    ),
    wrong(
        "1_gamma",
        "min-for-max",
        "height",
        ("gamma.max()", "gamma.min()"),
        loses=["height-value"],
    ),
    wrong(
        "1_gamma",
        "below-zero",
        "height",
        ("max(float(gamma.max()) - L0, 0.0)", "float(gamma.max()) - L0"),
        loses=["height-check"],
    ),
    wrong(
        "1_gamma",
        "dots-without-L0",
        "draw",
        ('axes.plot(t, gamma, "o-", markersize=3,', "axes.scatter(t, gamma,"),
        ('    axes.axhline(L0, color="black", linestyle="--", label="$L_0$")\n', ""),
        loses=["draw-lines"],
    ),
    wrong("1_gamma", "barrier-for-no-path", "barrier", ('{"a", "d"}', '{"a", "c", "d"}')),
    wrong(
        "2_bead",
        "lowest-point",
        "t_star",
        ("gamma.argmax()", "gamma.argmin()"),
        loses=["t_star-value"],
    ),
    wrong(
        "2_bead",
        "inner-grid",
        "t_star",
        ("gamma.argmax().item()", "(gamma[1:-1].argmax().item() + 1)"),
        loses=["t_star-value"],
    ),
    wrong("2_bead", "index-for-position", "t_star", (" / (n_t - 1)", "")),
    wrong(
        "2_bead",
        "calls-train_to",
        "train_bead",
        (
            "    theta = start.clone()\n",
            "    found = dss.train_to(\n"
            '        task, start, alpha * L0, optimizer="sgd", lr=lr, max_steps=max_steps\n'
            "    )\n"
            "    return found.thetas[0] if found.reached[0] else None\n"
            "    theta = start.clone()\n",
        ),
        loses=[f"train_bead-{step}" for step in ("check", "step", "stop", "unchanged", "limit")],
    ),
    wrong(
        "2_bead",
        "lr-of-its-own",
        "train_bead",
        ("lr * gradients[0]", "0.01 * gradients[0]"),
        loses=["train_bead-step"],
    ),
    wrong(
        "2_bead",
        "trained-to-L0",
        "train_bead",
        ("<= alpha * L0", "<= L0"),
        loses=["train_bead-stop"],
    ),
    wrong(
        "2_bead",
        "start-overwritten",
        "train_bead",
        ("start.clone()", "start"),
        ("theta = theta - lr * gradients[0]", "theta -= lr * gradients[0]"),
        loses=["train_bead-unchanged"],
    ),
    wrong(
        "2_bead",
        "last-step-untested",
        "train_bead",
        ("range(max_steps + 1)", "range(max_steps)"),
        loses=["train_bead-limit"],
    ),
    wrong(
        "2_bead",
        "failure-not-said",
        "train_bead",
        ("return None", "return theta"),
        loses=["train_bead-limit"],
    ),
    wrong(
        "2_bead",
        "tests-the-middle",
        "segments",
        (".max() <= L0", "[n_t // 2] <= L0"),
        loses=["segments-maximum"],
    ),
    wrong(
        "2_bead",
        "tests-the-lowest",
        "segments",
        (".max() <= L0", ".min() <= L0"),
        loses=["segments-maximum"],
    ),
    wrong(
        "3_string",
        "beads-to-L0",
        "find_string",
        (
            "train_bead(task, start, alpha * L0, generator)",
            "train_bead(task, start, L0, generator)",
        ),
        loses=["find_string-target"],
    ),
    wrong(
        "3_string",
        "always-half-way",
        "find_string",
        ("dss.t_star(task, theta_1, theta_2)", "0.5"),
        loses=["find_string-t_star"],
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
        loses=["find_string-halves"],
    ),
    wrong(
        "3_string",
        "half-a-string",
        "find_string",
        (
            "find_string(task, bead, theta_2, *rest)",
            "find_string(task, bead, theta_2, L0, alpha, 0, generator)",
        ),
        loses=["find_string-halves"],
    ),
    wrong(
        "3_string",
        "one-level-more",
        "find_string",
        ("if max_depth == 0", "if max_depth == -1"),
        loses=["find_string-depth"],
    ),
    wrong(
        "3_string",
        "tries-again",
        "find_string",
        (
            "    if bead is None:\n        return line, False\n",
            "    for _ in range(3):\n        if bead is None:\n"
            "            bead = train_bead(task, start, alpha * L0, generator)\n"
            "    if bead is None:\n        return line, False\n",
        ),
        loses=["find_string-failed_bead"],
    ),
    wrong(
        "3_string",
        "beads-twice",
        "find_string",
        ("right[1:]", "right"),
        loses=["find_string-order"],
    ),
    wrong(
        "3_string",
        "any-half-will-do",
        "find_string",
        ("left_low and right_low", "left_low or right_low"),
        loses=["find_string-low"],
    ),
    wrong(
        "3_string",
        "segments-to-alpha-L0",
        "find_string",
        (".max() <= L0", ".max() <= alpha * L0"),
        loses=["find_string-segment"],
    ),
    wrong(
        "3_string",
        "rounded-ends",
        "find_string",
        ("torch.stack([theta_1, theta_2])", "torch.stack([theta_1, theta_2]).float().double()"),
        loses=["find_string-ends"],
    ),
    wrong(
        "3_string",
        "calls-the-search",
        "find_string",
        (
            "    line = torch.stack([theta_1, theta_2])\n",
            '    options = {"alpha": alpha, "max_depth": max_depth, "generator": generator}\n'
            '    options |= {"optimizer": "sgd", "lr": 0.01}\n'
            "    found = dss.find_string(task, theta_1, theta_2, L0, **options)\n"
            "    return found.thetas, found.connected\n",
        ),
        loses=FIND_STRING,
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
    ),
    wrong("3_string", "divided-by-L0", "Gamma_tilde", ("n_t).max()", "n_t).max() / L0")),
    wrong(
        "3_string",
        "first-segment-only",
        "Gamma_tilde",
        ("thetas[:-1], thetas[1:]", "thetas[:1], thetas[1:2]"),
        loses=["Gamma_tilde-segments"],
    ),
    wrong(
        "3_string",
        "calls-Gamma_tilde",
        "Gamma_tilde",
        (
            "float(dss.interpolated_loss(task, thetas[:-1], thetas[1:], n_t).max())",
            "dss.Gamma_tilde(task, thetas, n_t)",
        ),
        loses=["Gamma_tilde-check", "Gamma_tilde-segments"],
    ),
    wrong(
        "3_string",
        "length-not-normalized",
        "measure",
        ("float(length / (thetas[-1] - thetas[0]).norm())", "float(length)"),
        loses=["measure-length"],
    ),
    wrong("3_string", "ends-are-beads", "measure", ("len(thetas) - 2", "len(thetas)")),
    wrong(
        "3_string",
        "one-generator",
        "experiment",
        ("def search(", "own = torch.Generator().manual_seed(group)\n\n\ndef search("),
        ("alpha, d, torch.Generator().manual_seed(group))", "alpha, d, own)"),
        loses=["experiment-numbers"],
    ),
    wrong(
        "3_string",
        "numbers-of-its-own",
        "experiment",
        ("def search(", "L0, alpha = 0.2, 0.9\n\n\ndef search("),
        loses=["experiment-numbers"],
    ),
    wrong(
        "3_string",
        "networks-to-another-threshold",
        "networks",
        ("L0_quad, alpha, d, seed", "0.01, alpha, d, seed"),
        loses=["networks-numbers"],
    ),
    wrong("3_string", "disconnected", "verdict", ('else "not found"', 'else "disconnected"')),
    wrong(
        "3_string", "failure-is-proof", "reading-height", ('"a", "c", "d"', '"a", "b", "c", "d"')
    ),
    Sample("chooses-depth", ["4_study"], {"choose": choice("max_depth", "[0, 2, 6]")}),
    Sample("chooses-width", ["4_study"], {"choose": choice("width", "[4, 8, 16]")}),
    Sample(
        "width-ignored",
        ["4_study"],
        {
            "choose": choice("width", "[4, 8, 16]"),
            "run": [("polynomial_task(value) if", "polynomial_task() if")],
        },
        ["run-parameter"],
    ),
    wrong("4_study", "two-values", "choose", ("[0.5, 0.8, 0.95]", "[0.5, 0.95]")),
    wrong(
        "4_study",
        "failures-dropped",
        "run",
        ("table.assign(value=value)", "table[table.connected].assign(value=value)"),
        loses=["run-rows"],
    ),
    wrong(
        "4_study",
        "seeded-globally",
        "run",
        ("generator = torch.Generator().manual_seed(seed)", "torch.manual_seed(seed)"),
        ("n_pairs, generator, **options", "n_pairs, **options"),
        loses=["run-generator"],
    ),
    wrong(
        "4_study",
        "one-generator-for-all",
        "run",
        ("    tables = []", "    tables, generator = [], torch.Generator().manual_seed(seed)"),
        ("        generator = torch.Generator().manual_seed(seed)\n", ""),
        loses=["run-generator"],
    ),
    wrong(
        "4_study",
        "settings-forgotten",
        "run",
        ("dict(task.settings) | option", "option"),
        loses=["run-parameter"],
    ),
    wrong(
        "4_study",
        "drops-values-without-a-path",
        "summarize",
        ('table.groupby("value")', 'table[table.connected].groupby("value")'),
        ("groups.size()", 'table.groupby("value").size()'),
        ("return summary.reset_index()", "return summary.dropna().reset_index()"),
        loses=["summarize-failed"],
    ),
    wrong(
        "4_study",
        "beads-of-failures",
        "differences",
        ("beads[value] - beads[least])[both]", "beads[value] - beads[least])"),
        loses=["differences-pairs"],
    ),
    wrong(
        "4_study",
        "means-of-whichever-connected",
        "differences",
        (
            "        gained, lost",
            "        here, there = beads[value][connected[value]], beads[least][connected[least]]\n"
            "        mean = here.mean() - there.mean()\n"
            "        gained, lost",
        ),
        loses=["differences-pairs"],
    ),
    wrong(
        "4_study",
        "interval-of-beads",
        "differences",
        (
            "        gained, lost",
            "        _, low, high = interval(beads[value][both])\n"
            "        low, high = mean - (high - low) / 2, mean + (high - low) / 2\n"
            "        gained, lost",
        ),
        loses=["differences-interval"],
    ),
    wrong(
        "4_study",
        "gained-for-lost",
        "differences",
        ("gained, lost =", "lost, gained ="),
        loses=["differences-failures"],
    ),
    wrong(
        "4_study",
        "no-intervals-drawn",
        "draw",
        ("    axes.vlines(compared.value, compared.low, compared.high)\n", ""),
        loses=["draw-values"],
    ),
    wrong(
        "4_study",
        "nothing-seen-is-nothing-there",
        "reading-interval",
        ('"a", "d", "e"', '"a", "b", "c", "e"'),
    ),
    Sample(
        "endless",
        ["2_bead"],
        {"t_star": [("def t_star(", "while True:\n    pass\n\n\ndef t_star(")]},
        ["t_star-check", "t_star-value"],
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
