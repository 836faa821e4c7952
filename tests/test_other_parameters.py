"""Notebooks come to their end at other parameters too, with all tables and figures.

Each is run without a kernel, cell by cell, in a process of its own that begins with everything
imported (`classes.SERVER`).
"""

import contextlib
import io
import json
import traceback
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from classes import SERVER
from printing import unreadable

from dss.parameters import check_parameters, declared_parameters
from dss.results import Results

ROOT = Path(__file__).resolve().parents[1]
QUICK = ROOT / "figures" / "quick"
MANIFEST = json.loads((QUICK / "manifest.json").read_text())
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Several odd values at a time: one of everything, thresholds that rise, depths 0 and 1, even n_t,
# thresholds that no network or every network reaches, a step that is much too long.
SETTINGS = {
    "00_start_here": [
        {"max_depth": 0, "n_t": 4, "alpha": 1},
        {"max_depth": 1, "n_t": 3, "seed": 4294967295},
        {"alpha": 1e-9, "max_steps": 10},
    ],
    "01_definitions": [
        {"max_depth": 0, "n_t": 4, "alpha": 1},
        {"max_depth": 1, "n_t": 3, "L0": 0.041, "lr": 0.1, "seed": 4294967295},
        {"L0": 10, "n_t": 34},
        {"alpha": 1e-9, "max_steps": 1, "max_depth": 20},
    ],
    "02_quad": [
        {"n_pairs": 1, "n_pairs_losses": 1, "L0": [0.01], "L0_mae": [0.05], "L0_huber": [0.01],
         "max_depth": 1, "n_t": 4},
        {"n_pairs": 2, "n_pairs_losses": 1, "L0": [0.001, 0.01, 0.03], "L0_mae": [1e-9],
         "L0_huber": [1000], "max_depth": 0, "max_steps": 3, "seed": 4294967295},
        {"n_pairs": 6, "n_pairs_losses": 1, "L0": [100, 1000], "L0_mae": [1], "L0_huber": [10, 20],
         "alpha": 1, "n_t": 3},
        {"n_pairs": 2, "n_pairs_losses": 1, "L0": [0.0003, 0.01], "L0_mae": [0.1],
         "L0_huber": [0.01], "max_depth": 1, "max_steps": 1000, "more": 1, "noise": 10},
    ],
    "03_mnist": [
        {"n_pairs": 1, "L0": [2.0], "L0_error": [0.7], "max_depth": 0, "n_t": 4, "n_eval": 1},
        {"n_pairs": 2, "L0": [1.5, 2.0], "L0_error": [1], "max_depth": 1, "n_t": 3,
         "n_eval": 10_000, "n_train": 1, "n_points": 2, "alpha": 1, "seed": 4294967295},
        {"n_pairs": 1, "L0": [1e-9], "L0_error": [1e-6], "n_eval": 10, "n_held_out": 1,
         "max_steps": 1},
        {"n_pairs": 1, "L0": [2.0], "L0_error": [0.06], "n_eval": 200, "n_held_out": 1,
         "n_train": 1, "n_points": 2},
    ],
    "04_alpha": [
        {"n_pairs": 1, "alphas": [0.7], "L0": [0.003], "L0_curvature": [0.01], "max_depth": 1,
         "n_t": 4, "n_chords": 1, "n_proofs": 0},
        {"n_pairs": 2, "alphas": [1, 0.12345678, 0.9], "L0": [0.0212345678912],
         "L0_step": [0.0212345678912], "L0_curvature": [0.01, 0.03], "max_depth": 3, "n_proofs": 3,
         "seed": 4294967295},
        {"n_pairs": 3, "alphas": [1.0], "L0": [1e-9, 1000], "L0_curvature": [1000], "max_depth": 0,
         "lr": 1, "max_steps": 1, "n_t": 3},
    ],
    "05_depth": [
        {"n_pairs": 1, "L0": [0.01], "widths": [1], "L0_width": 0.05, "max_depth": 1, "n_t": 4,
         "shallow": 0},
        {"n_pairs": 2, "L0": [0.003, 0.0123456789123, 0.03], "widths": [9, 3], "L0_width": 0.05,
         "max_depth": 0, "seed": 4294967295},
        {"n_pairs": 2, "L0": [1000, 1e-9], "widths": [2], "L0_width": 1e-9, "max_depth": 2,
         "max_steps": 1, "lr": 1, "n_t": 3},
        {"n_pairs": 1, "L0": [1e-9], "widths": [1], "L0_width": 1e-9, "max_steps": 1},
    ],
    "06_certificates": [
        {"n_pairs": 1, "L0": [0.02], "L0_sigmoid": 0.1, "n_coarse": 1, "n_t_coarse": 3,
         "L0_mnist": 1.0, "n_eval": 10, "n_eval_cnn": 10, "budget": 1},
        {"n_pairs": 2, "L0": [0.01, 0.02], "L0_sigmoid": 1000, "n_coarse": 2, "n_t_coarse": 4,
         "L0_mnist": 1000, "n_eval": 1, "n_eval_cnn": 1, "budget": 64, "seed": 4294967295},
        {"n_pairs": 1, "L0": [1e-9], "L0_sigmoid": 1e-9, "n_coarse": 1, "n_t_coarse": 3,
         "L0_mnist": 1e-9, "n_eval": 10, "n_eval_cnn": 10, "budget": 1, "max_steps": 1},
    ],
    "07_disconnections": [
        {"n_pairs": 1, "L0_swap": [0.1], "widths": [4], "sigmas": [0.3], "L0_clusters": [0.55],
         "n_linear": 1, "L0_linear": [0.1], "hidden": [4], "L0_quad": 0.02, "max_depth": 1,
         "alphas": [0.5], "n_tries": 1},
        {"n_pairs": 2, "L0_swap": [0.05, 0.2], "widths": [5, 4], "sigmas": [0.6, 0.2],
         "L0_clusters": [0.4], "n_linear": 2, "L0_linear": [0.1, 1], "hidden": [2, 1],
         "L0_quad": 0.03, "max_depth": 0, "max_steps": 50, "seed": 4294967295},
    ],
    "08_authors": [
        {"n_pairs": 1, "n_points": 33, "L0_quadratic": [0.2], "L0_cubic": [0.32], "n_again": 0,
         "L0_check_quadratic": 0.2, "L0_check_cubic": 0.32, "L0_mnist": [1], "n_eval": 10,
         "L0_plateau": [0.17], "n_plateau": 1, "points_plateau": [33], "looks": [1],
         "ends_at": [1]},
        {"n_pairs": 2, "n_points": 100, "L0_quadratic": [0.15, 0.3], "L0_cubic": [1000],
         "L0_check_quadratic": 1000, "L0_check_cubic": 0.32, "n_check": 1, "L0_mnist": [0.95, 1],
         "n_pairs_mnist": [1, 2], "n_eval": 20, "check_every": 7, "seed": 4294967,
         "L0_plateau": [0.24, 0.2], "n_plateau": 3, "points_plateau": [10_000, 10], "n_draws": 2,
         "looks": [7, 1000], "ends_at": [0.99]},
        {"n_pairs": 1, "n_points": 10_000, "L0_quadratic": [1e-9], "L0_cubic": [1e-9],
         "L0_check_quadratic": 1e-9, "L0_check_cubic": 1e-9, "n_again": 1, "max_steps": 1,
         "L0_mnist": [1e-6, 0.01], "n_pairs_mnist": [1, 1], "n_eval": 10, "max_steps_mnist": 1,
         "L0_plateau": [1e-9, 1000], "n_plateau": 1, "n_draws": 3, "ends_at": [0.001]},
        {"n_pairs": 1, "n_points": 20, "L0_quadratic": [0.3], "L0_cubic": [0.32], "n_again": 0,
         "L0_check_quadratic": 0.3, "L0_check_cubic": 0.32, "L0_plateau": [0.2], "n_plateau": 1,
         "points_plateau": [20], "mnist_from": str(QUICK / "authors_mnist_pairs.csv")},
    ],
    "09_networks": [
        {"networks": ["LSTM"], "methods": ["Bezier"], "n_rows": 50, "n_rows_eval": 2, "n_words": 5,
         "L0_lstm": 1000, "batch": 2, "n_t": 3, "max_steps": 1},
        {"networks": ["adapters", "ResNet"], "methods": ["DSS paper", "one bend"], "n_images": 4,
         "n_eval": 3, "L0_resnet": 1e-9, "n_rows": 20, "n_rows_eval": 1, "n_words": 3, "rank": 40,
         "base_steps": 1, "L0_adapters": 1.2, "batch": 50, "n_pairs": 2, "n_t": 4, "max_steps": 2},
        {"networks": ["LSTM", "ResNet"], "methods": ["AutoNEB", "layer by layer"], "n_images": 2,
         "n_eval": 1, "L0_resnet": 1e-9, "n_rows": 1, "n_rows_eval": 1, "n_words": 2,
         "L0_lstm": 1e-9, "n_t": 3, "max_steps": 1, "seed": 4294967},
        {"networks": ["LSTM"], "n_rows": 50, "n_rows_eval": 2, "n_words": 5, "L0_lstm": 1000,
         "batch": 2, "n_t": 3, "max_steps": 1, "pairs_from": str(QUICK / "09_networks_pairs.csv")},
    ],
    "10_later_paper": [
        {"n_train": 200, "n_eval": 10, "L0_cifar10": [0.95], "n_pairs_cifar10": 1, "n_rows": 100,
         "n_rows_eval": 2, "n_words": 10, "L0_ptb": [9], "n_pairs_ptb": 1, "L0_resnet": 1,
         "batch_resnet": 2, "n_t": 3, "check_every": 5, "max_steps": 20},
        {"n_train": 100, "n_eval": 3, "L0_cifar10": [0.5, 1], "n_pairs_cifar10": 1, "n_rows": 50,
         "n_rows_eval": 1, "n_words": 2, "L0_ptb": [1000, 1e-9], "n_pairs_ptb": 2,
         "L0_resnet": 0.9, "n_t": 4, "max_steps": 1, "seed": 4294967},
        {"n_train": 2, "n_eval": 2, "L0_cifar10": [1e-6], "n_pairs_cifar10": 1, "n_rows": 1,
         "n_rows_eval": 1, "L0_ptb": [1e-9], "n_pairs_ptb": 1, "L0_resnet": 1e-6, "n_t": 3,
         "max_steps": 1},
    ],
    "11_topology": [
        {"many": ["clusters"], "n_networks": 3, "tasks": ["digits cnn"], "widths": [1], "n_each": 2,
         "L0_clusters": [1000], "L0_images": [1000], "n_eval": 10, "steps_ends": 1, "max_steps": 1,
         "max_depth": 0, "n_hulls": 1, "n_points": 1},
        {"many": ["QUAD"], "n_networks": 5, "tasks": ["clusters", "QUAD"], "widths": [3, 2],
         "n_layers": [2], "n_each": 3, "L0_quad": [0.001, 0.05], "L0_clusters": [0.5, 2],
         "steps_ends": 300, "max_steps": 20, "max_depth": 2, "n_hulls": 2,
         "seed": 4294967},
        {"many": ["cubic", "QUAD"], "n_networks": 3, "tasks": ["cubic", "digits mlp"],
         "widths": [1], "n_layers": [3], "n_each": 2, "L0_quad": [1e-9], "L0_cubic": [1e-9],
         "L0_images": [1e-9], "n_eval": 1, "steps_ends": 1, "max_steps": 1},
    ],
    "12_symmetry": [
        {"tasks": ["QUAD"], "widths": [1, 3], "L0_quad": 0.05, "n_pairs": 1, "n_t": 3,
         "max_steps": 300, "max_depth": 0},
        {"tasks": ["digits cnn", "CIFAR ResNet"], "channels": [2], "L0_images": 2.0,
         "L0_resnet": 1e-9, "n_images": 4, "n_eval": 3, "n_pairs": 2, "n_t": 4, "max_steps": 30,
         "max_depth": 1, "seed": 4294967},
        {"tasks": ["digits mlp", "QUAD"], "widths": [2], "L0_images": 1e-9, "L0_quad": 1e-9,
         "n_eval": 2, "n_pairs": 1, "max_steps": 1},
        {"tasks": ["PTB LSTM", "cubic", "CIFAR CNN"], "widths": [2], "L0_words": 6.9,
         "L0_cubic": 0.1, "L0_cifar": 2.3, "n_rows": 10, "n_images": 10, "n_eval": 4, "n_pairs": 1,
         "n_t": 5, "max_steps": 50, "max_depth": 1},
    ],
    "13_saddles": [
        {"L0": [0.05], "n_pairs": 1, "n_climbs": 1, "most_hessians": 2, "L0_flat": 0.05,
         "n_flat": 1, "diary_steps": 10, "n_diary": 3, "residual": ["norm"], "n_images": 20,
         "n_eval": 2, "steps_residual": 1, "n_probes": 2, "max_steps": 500, "max_depth": 1,
         "when": ["after", "before"]},
        {"activation": "relu", "width": 2, "L0": [0.1, 1000], "n_pairs": 2, "n_climbs": 0,
         "L0_flat": 1000, "n_flat": 2, "diary_steps": 100, "n_diary": 5, "diary_lr": 10,
         "residual": ["skip"], "n_images": 2, "n_eval": 1, "steps_residual": 1, "n_probes": 2,
         "seed": 4294967},
        {"activation": "sigmoid", "width": 1, "L0": [1e-9], "n_pairs": 1, "L0_flat": 1e-9,
         "n_flat": 1, "diary_steps": 20, "n_diary": 4, "residual": ["plain"], "n_images": 3,
         "n_eval": 2, "steps_residual": 1, "n_probes": 2, "max_steps": 1},
    ],
    "14_sgd": [
        {"T_rugged": [0.05], "lr_rugged": [0.15], "n_runs": 2, "time_rugged": 1, "n_cloud": 10,
         "T_cloud": 0.05, "times": [0.01], "batches": [1], "T_wells": [0.5],
         "T_clusters": [0.01], "T_passes": [0.5], "T_networks": [1], "n_networks": 1,
         "steps_networks": 20, "tasks": ["QUAD"], "lr_tasks": [0.1], "batch_tasks": [1],
         "n_ends": 2, "max_steps": 100, "smooth": [0], "n_samples": 64},
        {"T_rugged": [10, 0.001], "lr_rugged": [0.001], "n_runs": 5, "time_rugged": 1.5,
         "n_cloud": 50, "T_cloud": 10, "times": [1, 0.05], "batches": [32, 3],
         "T_wells": [10, 2], "T_clusters": [10, 0.05], "T_passes": [10], "T_networks": [1e-9],
         "n_networks": 2,
         "steps_networks": 50, "tasks": ["digits mlp", "QUAD"], "lr_tasks": [10, 0.5],
         "batch_tasks": [100000], "n_ends": 2, "max_steps": 200, "smooth": [10, 0.5, 1, 2],
         "n_samples": 65, "seed": 4294967},
        {"T_rugged": [0.5], "lr_rugged": [0.1, 0.05], "n_runs": 3, "time_rugged": 3, "n_cloud": 20,
         "times": [0.5, 2], "batches": [2], "T_wells": [1], "T_passes": [1, 3],
         "T_networks": [1e-3, 0.1], "n_networks": 3, "steps_networks": 40,
         "tasks": ["digits mlp"], "lr_tasks": [1e-5, 0.2], "batch_tasks": [64], "n_ends": 3,
         "max_steps": 1, "smooth": [0.1], "n_samples": 100},
    ],
    "15_neighbours": [
        {"networks": ["digits cnn"], "L0_cnn": [2.0], "n_pairs": 1, "n_eval": 10, "max_steps": 50,
         "patience": 10, "L0_quad": [0.02], "n_quad": 1, "L0_failed": 0.02, "n_failed": 1,
         "most_failed": 20, "L0_cycle": 0.3, "n_cycles": 1, "L0_cubic": [0.3], "n_cubic": 1},
        {"networks": ["digits mlp", "mnist mlp"], "L0": [1.5, 1000], "n_pairs": 1, "n_eval": 20,
         "max_steps": 1, "patience": 1, "L0_quad": [1000], "n_quad": 1, "L0_failed": 1000,
         "n_failed": 1, "most_failed": 1, "seed": 4294967, "n_cycles": 2, "L0_cubic": [1000, 0.2],
         "n_cubic": 2},
        {"networks": ["digits mlp"], "L0": [1e-9], "n_pairs": 2, "n_eval": 5, "max_steps": 2,
         "L0_quad": [0.001, 0.02], "n_quad": 2, "L0_failed": 1e-9, "n_failed": 2,
         "L0_cycle": 1e-9, "L0_cubic": [1e-9], "n_cubic": 1},
    ],
    "16_how_nonconvex": [
        {"tables": str(QUICK), "share": 0.5, "n_resamples": 100},
        {"tasks": ["cubic"], "share": 1, "n_resamples": 200, "seed": 4294967},
        {"tables": str(QUICK), "tasks": ["CIFAR ResNet", "PTB LSTM"], "n_resamples": 100},
    ],
    "sweep_report": [
        {"table": str(QUICK / "sweep_report_rows.csv"), "seed": 4294967293, "log_x": True},
    ],
}  # fmt: skip
# Tables of a sweep, made from the committed one, and what is asked of them.
SWEEPS = {
    "one row": (lambda rows: rows.head(1), {}),
    "none connected": (lambda rows: rows.assign(connected=False), {}),
    "no column connected": (lambda rows: rows.drop(columns="connected"), {"values": ["n_t"]}),
    "lines by seed": (lambda rows: rows, {"by": "seed", "x": "L0", "values": ["n_beads"]}),
    "many lines": (lambda rows: rows.assign(group=rows.index % 15), {"by": "group"}),
    "all jobs failed": (lambda rows: rows[["alpha", "seed"]].head(2).assign(error="gone"), {}),
}


def run(name, values, folder):
    """Run a notebook with other parameters; what it printed, and the error or ""."""
    ours, theirs = SERVER.Pipe()
    process = SERVER.Process(target=_run, args=(theirs, name, values | {"out": str(folder)}))
    process.start()
    theirs.close()  # so that its death is an EOFError here
    printed, error, faults = ours.recv()
    process.join()
    assert not faults, faults
    return printed, error


def _run(end, name, values):
    import matplotlib

    matplotlib.use("Agg")
    faults, save = [], Results.figure

    def save_readable(results, figure, name):
        faults.extend(f"{name}: {fault}" for fault in unreadable(figure))
        return save(results, figure, name)

    Results.figure = save_readable  # in this process only
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    variables, printed, error = {"__name__": "__main__"}, io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    exec(compile(cell.source, f"<{name}>", "exec"), variables)
                    if "parameters" in cell.metadata.get("tags", []):
                        variables |= values
        except Exception:
            error = traceback.format_exc()
    end.send((printed.getvalue(), error, faults))


def header(path):
    return path.read_text().partition("\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"),
    [(name, values) for name, several in SETTINGS.items() for values in several],
    ids=[f"{name}-{i}" for name, several in SETTINGS.items() for i in range(len(several))],
)
def test_a_rerun_ends_with_all_tables_and_figures(name, values, tmp_path):
    check_parameters(ROOT / "notebooks" / f"{name}.ipynb", values)
    printed, error = run(name, values, tmp_path)
    assert not error, error
    entries = {k: v for k, v in MANIFEST.items() if v["notebook"] == f"{name}.ipynb"}
    tables = {table for entry in entries.values() for table in entry["tables"]}
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", *entries, *tables}
    assert set(json.loads((tmp_path / "manifest.json").read_text())) == set(entries)
    for table in tables:
        assert header(tmp_path / table) == header(QUICK / table)
    assert ": found" in printed or ": not found" in printed


@pytest.mark.slow
@pytest.mark.parametrize("case", SWEEPS)
def test_a_report_ends_with_its_figures_whatever_the_sweep_gave(case, tmp_path):
    change, values = SWEEPS[case]
    table, out = tmp_path / "sweep.csv", tmp_path / "out"
    change(pd.read_csv(QUICK / "sweep_report_rows.csv")).to_csv(table, index=False)
    _, error = run("sweep_report", values | {"table": str(table)}, out)
    assert not error, error
    assert {path.name for path in out.iterdir()} == {
        "manifest.json", "sweep_report_means.csv", "sweep_report_means.png",
        "sweep_report_pairs.png", "sweep_report_rows.csv",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [("L0", []), ("L0", [0.01, 0.01]), ("seed", 10**26), ("n_pairs", 0), ("alpha", 1.1)],
)
def test_what_is_out_of_range_is_refused_before_anything_is_computed(name, value, tmp_path):
    printed, error = run("02_quad", {name: value}, tmp_path)
    assert f"ValueError: 02_quad: {name} is {value!r}" in error
    assert "allowed: " in error
    assert printed == "" and not list(tmp_path.iterdir())


def ranges_by_name():
    """What each parameter may be, from all notebooks but the landscapes of 01: name -> ranges."""
    ranges = {}
    for notebook in NOTEBOOKS:
        if notebook.stem != "01_definitions":
            for name, parameter in declared_parameters(notebook).items():
                ranges.setdefault(name, set()).add(parameter.range)
    return ranges


def test_one_quantity_has_one_range():
    ranges = ranges_by_name()
    for name in ("alpha", "device", "lr", "max_depth", "max_steps", "n_eval", "n_t", "size"):
        assert len(ranges[name]) == 1, f"{name}: {ranges[name]}"
    for name, stated in ranges.items():
        if name.startswith("L0"):
            starts = ("in [1e-09, ", "in [1e-06, 1]")  # losses, error rates
            assert all(r.removeprefix("each ").startswith(starts) for r in stated), name


def test_every_search_can_be_cut_short():
    """At a target that no network reaches, only the most gradient steps end a descent."""
    for notebook in NOTEBOOKS:
        known = declared_parameters(notebook)
        is_searching = any(name == "alpha" or name.startswith("L0") for name in known)
        assert "max_steps" in known or not is_searching, notebook.stem


def test_every_notebook_is_tried():
    assert set(SETTINGS) == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_number_states_its_range(notebook):
    for parameter in declared_parameters(notebook).values():
        assert parameter.type != "list", parameter.name
        if "int" in parameter.type or "float" in parameter.type:
            assert parameter.range, parameter.name
        if parameter.name in ("size", "device"):
            assert parameter.range.startswith("one of"), parameter.name
        if parameter.type == "list[str]" and notebook.stem != "sweep_report":  # any columns
            assert parameter.range.startswith("each one of"), parameter.name
