"""`dss.sweep` and `dss sweep`: the same table wherever it runs, and nothing finished runs twice."""

import errno
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import dask
import distributed
import nbformat
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from scratch import (
    BODY,
    FINISH,
    marked,
    marked_environment,
    nothing_left_behind,
    wait_for,
    write_notebook,
)
from typer.testing import CliRunner

import dss
from dss import commands, files
from dss.commands import app
from dss.runs import execute, grid, sweeps

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = """\
size: str = "quick"  # label
seed: int = 0  # of the generator
alpha: float = 0.5  # a number
case: str = "good"  # what happens
values: list = [1, 2]  # a list
out: str = ""  # folder
"""
# Without dss, whose import takes longer than all the rest.
TINY = """\
import os, signal, time
from pathlib import Path
with open({log!r}, "a") as log:
    log.write(f"{{alpha}} {{case}}\\n")
once, folder = Path({once!r}), Path(out)
if case == "raise":
    raise ValueError("no such\\nluck")
if case == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if case == "once" and not once.exists():
    raise OSError("the first time")
if case == "killer" and not once.exists():
    once.touch()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
if case == "hang" and not once.exists():
    time.sleep(600)
"""
WRITES = """\
omp, trim = os.environ.get("OMP_NUM_THREADS"), os.environ.get("MALLOC_TRIM_THRESHOLD_", "none")
text = f"twice,alpha,omp,trim,parent\\n{2 * alpha},{alpha},{omp},{trim},{os.getppid()}\\n"
(folder / "tiny_numbers.csv").write_text(text)
(folder / "tiny_others.csv").write_text("n\\n1\\n2\\n")
if case != "unfinished":
    (folder / "manifest.json").write_text("{}")
"""


pytestmark = pytest.mark.timeout(300)
N_WORKERS = 2
with_workers = pytest.mark.xdist_group("sweeps")  # in one process, which starts them once


@pytest.fixture(scope="module")
def workers():
    """A client of workers, set up as `dss sweep --jobs` does."""
    with nothing_left_behind(), grid.connected_client(None, N_WORKERS) as client:
        yield client


@pytest.fixture
def tiny(tmp_path):
    """A notebook that takes a second, the log of its runs, and calls that sweep it."""
    log, once = tmp_path / "log", tmp_path / "once"
    cells = TINY.format(log=str(log), once=str(once)), WRITES
    path = write_notebook(tmp_path, "tiny", *cells, parameters=PARAMETERS)

    def ran():
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return sorted(lines)

    def swept(client, grid, **options):
        return sweeps.sweep_notebook(path, grid, client=client, out=tmp_path / "out", **options)

    return SimpleNamespace(path=path, out=tmp_path / "out", log=log, once=once, ran=ran, run=swept)


def command(*arguments):
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


# --- of a function


def double(i, j=0):
    return {"twice": 2 * i}


def test_a_row_for_each_point_the_last_name_fastest():
    found = dss.sweep(double, {"j": [7, 5], "i": [3, 1]})
    assert found.to_dict("list") == {
        "j": [7, 7, 5, 5],
        "i": [3, 1, 3, 1],
        "twice": [6, 2, 6, 2],
        "error": [""] * 4,
    }


@pytest.mark.parametrize(
    "result", [[{"y": 1}, {"y": 2}], pd.DataFrame({"y": [1, 2]})], ids=["list", "DataFrame"]
)
def test_a_result_of_several_rows_repeats_the_point(result):
    found = dss.sweep(lambda x: result, {"x": ["a", "b"]})
    assert found.x.tolist() == ["a", "a", "b", "b"] and found.y.tolist() == [1, 2, 1, 2]


def test_a_point_that_fails_is_a_row_with_its_error():
    def inverse(x):
        return {"y": 1 / x} if x < 2 else 3

    found = dss.sweep(inverse, {"x": [1, 0, 2]})
    assert found.y.fillna(-1).tolist() == [1, -1, -1]
    assert found.error[0] == "" and found.error[1].startswith("ZeroDivisionError: ")
    assert found.error[2].startswith("TypeError: the function returned int; a mapping")


def test_a_column_of_the_grid_keeps_its_value():
    assert dss.sweep(lambda x: {"x": x, "y": 0}, {"x": [1, 2]}).x.tolist() == [1, 2]
    nan = dss.sweep(lambda x: {"x": x, "y": 0}, {"x": [float("nan"), 2.0]})
    assert nan.error.tolist() == ["", ""]


def test_a_result_that_would_hide_something_is_an_error_of_its_row():
    results = {1: {"x": 2}, 2: {"error": 0.1}, 3: {"y": 5}, 4: []}
    found = dss.sweep(lambda x: results[x], {"x": [1, 2, 3, 4]})
    assert found.x.tolist() == [1, 2, 3, 4]
    assert "returned x=2 at {'x': 1}" in found.error[0]
    assert "returned error=0.1 at {'x': 2}" in found.error[1]
    assert found.error[2:].tolist() == ["", ""] and found.y[2] == 5


@pytest.mark.parametrize(
    "grid, message",
    [
        ({}, "the grid is empty"),
        ({"i": [1], "j": []}, "no value for j"),
        ({"i": [1, 2, 1]}, "the grid has i=1 twice"),
        ({"i": 3}, "i=3; a list of values is needed"),
        ({"i": "cnn"}, "i='cnn'; a list of values is needed"),
        ({"error": [1]}, "error is a column of every table"),
    ],
)
def test_a_grid_with_nothing_to_run_or_something_twice_is_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        dss.sweep(double, grid)


@pytest.mark.parametrize(
    "arguments, message",
    [({"jobs": 0}, "jobs is 0"), ({"jobs": 1, "client": object()}, "one is needed")],
)
def test_where_a_function_runs_is_checked_first(arguments, message):
    with pytest.raises(ValueError, match=message):
        dss.sweep(double, {"i": [1]}, **arguments)


def test_a_function_whose_assertions_are_off_is_not_called():
    code = "from dss.runs.grid import call_at, sweep\nprint(call_at(print, {}))\n"
    code += "sweep(print, {'x': [1]})"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert "RuntimeError: assertions are off in this process" in done.stderr
    assert done.stdout.startswith("([{}], 'RuntimeError: assertions are off in this worker")


def test_a_table_holds_what_one_type_cannot(tmp_path):
    parts = {"a": "x,error\n1,0.5\n", "b": "x,error\none,0.25\n"}
    for key, text in parts.items():
        folder = tmp_path / "jobs" / key
        folder.mkdir(parents=True)
        (folder / "t_numbers.csv").write_text(text)
        (folder / "manifest.json").write_text("{}")
    grid, fixed = {"n": [1, 2]}, {"options": {"k": [1]}}
    found = sweeps.put_together(tmp_path, list(parts), grid, fixed, {}, None)
    sweeps.write_table(tmp_path, found, Path("t.ipynb"), {}, grid, fixed, 2, {})
    for read in (pd.read_csv, pd.read_parquet):
        table = read(tmp_path / f"sweep.{read.__name__[5:]}")
        assert table.x.astype(str).tolist() == ["1", "one"]
        assert table.error_row.tolist() == [0.5, 0.25]
        assert table.options.tolist() == ['{"k": [1]}'] * 2 and table.n.tolist() == [1, 2]


@pytest.mark.slow
@with_workers
def test_a_job_whose_files_were_deleted_is_run_again(tiny, workers):
    tiny.run(workers, {"alpha": [1.0, 2.0]})
    tiny.ran()
    next((tiny.out / "jobs").glob("*/manifest.json")).unlink()
    assert len(tiny.run(workers, {"alpha": [1.0, 2.0]}).table) == 2
    assert len(tiny.ran()) == 1


@pytest.mark.slow
@with_workers
def test_workers_give_the_same_table_as_this_process(workers):
    def several(i, name):
        if i == 3:
            raise ValueError(f"{name} is unlucky")
        return [{"y": i / 7 + k, "label": name * k} for k in range(i)]

    grid = {"name": ["a", "b"], "i": [5, 1, 3, 2]}
    here, there = dss.sweep(several, grid), dss.sweep(several, grid, workers)
    pd.testing.assert_frame_equal(here, there)
    assert here.error.tolist().count("ValueError: a is unlucky") == 1


@pytest.mark.slow
def test_jobs_are_processes_of_this_machine():
    def where(i):
        import os
        import time

        time.sleep(0.2)
        return {"pid": os.getpid()}

    found = dss.sweep(where, {"i": range(8)}, jobs=2)
    assert found.i.tolist() == list(range(8)) and found.pid.nunique() == 2
    assert os.getpid() not in set(found.pid)


@pytest.mark.slow
@with_workers
def test_a_long_grid_is_handed_out_a_few_points_at_a_time(workers):
    taken = itertools.count()
    points = (n_taken for n_taken, _ in zip(taken, range(10_000), strict=False))
    ends = grid.run_each(workers, lambda i: i, points)
    for n_ended, (i, point, result, failure) in enumerate(itertools.islice(ends, 300), start=1):
        assert i == point == result and failure is None
        n_taken = int(repr(taken)[6:-1])
        assert n_taken - n_ended <= 2 * N_WORKERS + 1
        assert len(workers.futures) <= 2 * N_WORKERS + 1
    ends.close()
    assert int(repr(taken)[6:-1]) < 320
    wait_for(lambda: not workers.futures, "end of the futures")


def test_points_of_a_vast_grid_are_made_one_at_a_time():
    vast = {name: range(1_000) for name in "abcdef"}
    second = list(itertools.islice(grid.points_of(vast), 2))[1]
    assert second == dict.fromkeys("abcde", 0) | {"f": 1}


# --- of a notebook


@pytest.mark.slow
@with_workers
def test_a_table_a_folder_for_each_job_and_nothing_runs_twice(workers, tiny):
    grid = {"case": ["good", "other"], "alpha": [0.25, 0.5, 1]}
    swept = tiny.run(workers, grid, parameters={"values": [3, 4]})
    assert tiny.ran() == sorted(f"{a} {c}" for c, a in itertools.product(*grid.values()))
    assert (swept.n_jobs, swept.n_before, swept.errors) == (6, 0, {})
    table = swept.table
    assert table.case.tolist() == ["good"] * 3 + ["other"] * 3
    assert table.alpha_parameter.tolist() == table.alpha.tolist() == [0.25, 0.5, 1] * 2
    assert (table.twice == 2 * table.alpha).all() and set(table["values"]) == {"[3, 4]"}
    # Kernels of workers compute on one thread, and keep the memory that they free.
    assert set(table.omp) == {1} and set(table.trim) == {"none"}
    for key, seconds in zip(table.job, table.seconds_job, strict=True):
        record = json.loads((tiny.out / "jobs" / key / "job.json").read_text())
        assert (record["status"], record["seconds"]) == ("done", seconds)
        assert not (tiny.out / "jobs" / key / ".checkpoints").exists()
    assert {path.name for path in (tiny.out / "jobs").iterdir()} == set(table.job)
    written = pd.read_csv(tiny.out / "sweep.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(written, pd.read_parquet(tiny.out / "sweep.parquet"))
    summary = json.loads((tiny.out / "sweep.json").read_text())
    assert (summary["jobs"], summary["failed"], summary["grid"]) == (6, {}, grid)
    assert summary["parameters"] == {"values": [3, 4]} and len(summary["lock_sha256"]) == 64

    again = tiny.run(workers, grid, parameters={"values": [3, 4]})
    assert tiny.ran() == [] and again.n_before == 6
    pd.testing.assert_frame_equal(again.table, table)
    wider = tiny.run(workers, grid | {"alpha": [0.5, 2]}, parameters={"values": [3, 4]})
    assert tiny.ran() == ["2 good", "2 other"] and wider.n_before == 2
    assert wider.table.alpha.tolist() == [0.5, 2] * 2

    forced = tiny.run(workers, {"alpha": [0.5, 2]}, parameters={"values": [3, 4]}, force=True)
    assert tiny.ran() == ["0.5 good", "2 good"] and forced.n_before == 0


@pytest.mark.slow
@with_workers
def test_another_table_than_the_first(workers, tiny):
    assert tiny.run(workers, {"alpha": [1]}, table="others").table.n.tolist() == [1, 2]
    (tiny.out / "sweep.csv").unlink()
    with pytest.raises(ValueError, match="no table 'none' in .*tiny_numbers.csv, tiny_others.csv"):
        tiny.run(workers, {"alpha": [1]}, table="none")
    assert len(tiny.ran()) == 1 and not (tiny.out / "sweep.csv").exists()


@pytest.mark.slow
@with_workers
def test_a_job_that_fails_is_a_row_and_runs_again_the_next_time(workers, tiny):
    cases = ["raise", "die", "unfinished", "once", "good"]
    swept = tiny.run(workers, {"case": cases})
    reasons = swept.table.set_index("case").error
    assert reasons["good"] == "" and swept.table.twice.notna().tolist() == [False] * 4 + [True]
    assert reasons["raise"] == "cell [2]: ValueError: no such"
    assert "cell [2]: DeadKernelError" in reasons["die"]
    assert "its last cell must call run.finish()" in reasons["unfinished"]
    assert set(swept.errors) == set(swept.table.job[:4])
    assert len(tiny.ran()) == 5
    records = [
        json.loads((tiny.out / "jobs" / key / "job.json").read_text()) for key in swept.errors
    ]
    assert {record["status"] for record in records} == {"failed"}
    tiny.once.touch()
    again = tiny.run(workers, {"case": ["once", "good", "raise"]})
    assert tiny.ran() == ["0.5 once", "0.5 raise"]
    assert (again.table.error != "").tolist() == [False, False, True]


@pytest.mark.slow
@with_workers
def test_a_hung_cell_is_a_failed_job(workers, tiny):
    (error,) = tiny.run(workers, {"case": ["hang"]}, cell_timeout=2).errors.values()
    assert "CellTimeoutError" in error


@pytest.mark.slow
@with_workers
def test_a_job_whose_worker_is_killed_is_done_again(workers, tiny):
    swept = tiny.run(workers, {"case": ["killer"], "alpha": [1, 2]})
    assert swept.errors == {} and swept.table.twice.tolist() == [2, 4]
    assert len(tiny.ran()) == 3
    workers.wait_for_workers(N_WORKERS, timeout=60)


@pytest.mark.slow
@with_workers
def test_what_the_notebook_wrote_with_results_is_found(workers, tmp_path):
    study = 'run.table(pd.DataFrame({"beads": [seed, seed + 1]}), "first")\n'
    body = BODY.format(name="real").replace("run.table", study + "run.table")
    path = write_notebook(tmp_path, "real", body, FINISH)
    swept = sweeps.sweep_notebook(path, {"seed": [4, 8]}, client=workers, out=tmp_path / "out")
    assert swept.table.beads.tolist() == [4, 5, 8, 9]
    again = sweeps.sweep_notebook(
        path, {"seed": [4]}, client=workers, out=tmp_path / "out", table="numbers"
    )
    assert again.n_before == 1 and again.table.alpha.tolist() == [0.9]


def test_a_key_is_of_what_is_in_the_files_that_a_parameter_names(tmp_path):
    table = tmp_path / "pairs.csv"
    keys = set()
    for content in ("alpha\n0.9\n", "alpha\n0.8\n"):
        table.write_text(content)
        keys |= {execute.key_of({}, {"table": str(table)}) for _ in range(2)}
    table.unlink()
    assert len(keys | {execute.key_of({}, {"table": str(table)})}) == 3
    assert execute.key_of({}, {"text": "/" + 5_000 * "x"}), "a text is no file"


def test_a_key_is_of_code_parameters_source_and_lock_and_of_nothing_else(tiny, monkeypatch):
    def key(**parameters):
        return execute.key_of(execute.versions_of(tiny.path), {"alpha": 1} | parameters)

    def edit(change):
        notebook = nbformat.read(tiny.path, as_version=4)
        change(notebook.cells)
        nbformat.write(notebook, tiny.path)

    first = key()
    edit(lambda cells: cells[1].outputs.append(nbformat.v4.new_output("stream", text="seen")))
    edit(lambda cells: cells.insert(1, nbformat.v4.new_markdown_cell("What follows is tiny.")))
    assert key() == first
    assert len({first, key(alpha=2), key(seed=1), key(alpha=1.5)}) == 4
    with monkeypatch.context() as patched:
        patched.setattr(execute, "source", lambda: "another")
        assert key() != first
    with monkeypatch.context() as patched:
        patched.setattr(execute, "lock_sha256", lambda: "another")
        assert key() != first
    edit(lambda cells: cells[2].update(source=cells[2].source + "\n1 + 1"))
    assert key() != first


def test_what_an_attempt_left_is_removed_the_record_first(tiny, monkeypatch):
    """Killed in between, no folder may look finished that has lost its tables."""
    folder = tiny.out / "jobs" / "key"
    (folder / "drawn").mkdir(parents=True)
    for name in ("a.csv", "job.json", "z.csv", "drawn/x.png", ".z.csv-half"):
        (folder / name).write_text("{}")
    removed, unlink = [], Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda p, **k: (removed.append(p.name), unlink(p, **k)))
    monkeypatch.setattr(sweeps, "execute", lambda *arguments: "stopped here")
    job = {"notebook": str(tiny.path), "parameters": {}, "made_by": {}, "folder": str(folder)}
    job |= {"made_by": execute.versions_of(tiny.path), "cell_timeout": None, "force": True}
    sweeps.run_job(job)
    assert removed[0] == "job.json"
    assert {path.name for path in folder.iterdir()} <= {"job.json", ".lock"}


# --- what is refused


GOOD = ["--grid", "alpha=1,2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "gamma=1"], "tiny has no parameter 'gamma'; known: size, seed, alpha, case"),
        ([*GOOD, "-p", "gamma=1"], "tiny has no parameter 'gamma'"),
        (["--grid", "alpha=1,high"], "alpha is 'high' (str); float is needed"),
        (["--grid", "seed=1,0.5"], "seed is 0.5 (float); int is needed"),
        (["--grid", "alpha=nan"], "alpha is nan (float); plain JSON is needed"),
        (["--grid", "alpha=1,inf"], "alpha is inf (float); plain JSON is needed"),
        (["--grid", "alpha=2020-01-02"], "'2020-01-02' (str); float is needed"),
        (["--grid", "values=[nan]"], "plain JSON is needed"),
        (["--grid", "alpha=[1"], "is not a plain value"),
        (["--grid", "alpha"], "--grid alpha: NAME=V1,V2,... is needed"),
        (["--grid", "alpha="], "the grid has no value for alpha"),
        (["--grid", "alpha=1,1.0"], "the grid has alpha=1.0 twice"),
        ([*GOOD, *GOOD], "--grid alpha is given twice"),
        ([*GOOD, "-p", "alpha=3"], "alpha: both fixed and in the grid"),
        (["--grid", "out=a,b"], "out is the sweep's own: every job has a folder; use --out"),
        ([*GOOD, "-p", "out=a"], "out is the sweep's own"),
        ([*GOOD, "--jobs", "0"], "jobs is 0; a whole number >= 1 is needed"),
        ([*GOOD, "--cell-timeout", "0"], "cell_timeout is 0; a whole number >= 1 is needed"),
        ([*GOOD, "--table", ""], "the name of the table is empty"),
        (["--grid", "alpha=1,"], "alpha=1, ends with a comma; a value is missing"),
        ([*GOOD, "--jobs", "2", "--scheduler", "tcp://127.0.0.1:9"], "--jobs starts processes"),
    ],
)
def test_a_bad_call_is_refused_before_anything_runs(tiny, arguments, message):
    result = command(tiny.path, *arguments, "--out", tiny.out)
    assert result.exit_code == 1 and result.output.startswith("dss: ")
    assert message in result.output
    assert not tiny.out.exists() and tiny.ran() == []


def test_a_label_that_would_not_be_true_is_refused(tmp_path):
    for option in ("--grid", "-p"):
        result = command("05_depth", "--grid", "seed=1", option, "size=paper", "--out", tmp_path)
        assert result.exit_code == 1 and "size is a label" in result.output
    assert not list(tmp_path.iterdir())


def test_cuda_that_is_not_there_is_refused_once(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments in (["seed=1", "-p", "device=cuda"], ["device=cpu,cuda"]):
        result = command("05_depth", "--grid", *arguments, "--out", tmp_path)
        assert (
            result.output
            == "dss: device is 'cuda', and torch finds no CUDA here; allowed: auto, cpu\n"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["09_none", "none.ipynb"])
def test_an_unknown_notebook_is_refused(name):
    result = command(name, *GOOD)
    assert result.exit_code == 1
    assert f"no notebook '{name}'; a path, or one of: 00_start_here, 01_def" in result.output


def test_a_notebook_that_has_no_out_or_is_none_is_refused(tmp_path):
    path = write_notebook(tmp_path, "bare", "alpha", parameters="alpha: float = 1\n")
    assert "bare has no parameter 'out'" in command(path, *GOOD).output
    path.write_text("not a notebook")
    result = command(path, *GOOD)
    assert result.exit_code == 1 and result.output.startswith("dss: ")


def test_a_folder_that_cannot_be_written_is_refused(tiny):
    for out in (tiny.path / "below", "/proc/none"):
        result = command(tiny.path, *GOOD, "--out", out)
        assert result.exit_code == 1 and str(out) in result.output and tiny.ran() == []


def test_a_second_sweep_in_a_folder_is_refused(tiny):
    tiny.out.mkdir()
    (tiny.out / ".owner").write_text("process 7 on elsewhere")
    with FileLock(tiny.out / ".lock"):
        result = command(tiny.path, *GOOD, "--out", tiny.out)
    assert result.exit_code == 1 and tiny.ran() == []
    assert f"process 7 on elsewhere is sweeping in {tiny.out}; wait for it" in result.output


@contextmanager
def small_disk(folder):
    """A folder on a disk of 256 kB; the test is skipped where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@with_workers
def test_on_a_full_disk_nothing_is_half_written_and_later_it_goes_on(workers, tiny, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        tiny.out = disk / "out"

        def swept():
            return sweeps.sweep_notebook(
                tiny.path, {"alpha": [1, 2]}, client=workers, out=disk / "out"
            )

        (disk / "out").mkdir()
        (disk / "ballast").write_bytes(bytes(200_000))
        with pytest.raises(OSError) as caught:
            with open(disk / "rest", "wb", buffering=0) as rest:
                while True:
                    rest.write(bytes(4096))
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError) as caught:
            swept()
        assert caught.value.errno == errno.ENOSPC
        assert not list(disk.glob("out/sweep.*")) and not list(disk.glob("out/jobs/*/job.json"))
        assert not list(disk.glob("out/.writable*"))
        (disk / "ballast").unlink()
        assert swept().table.twice.tolist() == [2, 4]


def test_a_disk_that_fills_up_at_the_end_keeps_the_earlier_table(tiny, monkeypatch):
    tiny.out.mkdir()
    (tiny.out / "sweep.parquet").write_text("of before")
    found = pd.DataFrame({"y": np.arange(3)})

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        sweeps.write_table(tiny.out, found, tiny.path, {}, {}, {}, 3, {})
    assert [path.name for path in tiny.out.iterdir()] == ["sweep.parquet"]
    assert (tiny.out / "sweep.parquet").read_text() == "of before"


# --- what an ending leaves


@pytest.fixture
def quick_jobs(monkeypatch):
    """Jobs that start no kernel, and that workers can run without dss, whose import takes long."""

    def run_job(job):
        import json
        import time
        from pathlib import Path

        time.sleep(0.1)
        folder = Path(job["folder"])
        folder.mkdir()
        error = "no luck" if job["parameters"]["case"] == "raise" else ""
        record = {"status": "failed" if error else "done", "error": error, "seconds": 0.1}
        texts = {"t_numbers.csv": "n\n1\n", "manifest.json": "{}", "job.json": json.dumps(record)}
        for name, text in texts.items():
            (folder / name).write_text(text)
        return record

    monkeypatch.setattr(sweeps, "run_job", run_job)


@pytest.fixture
def silent_port():
    """The address of a port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def interrupted(function):
    """The function, with a Ctrl-C in the main thread half a second after it is called."""
    interrupt = partial(signal.pthread_kill, threading.main_thread().ident, signal.SIGINT)

    def start(*arguments, **options):
        threading.Timer(0.5, interrupt).start()
        return function(*arguments, **options)

    return start


STOPPED = "dss: stopped; what is finished stays"
ENDINGS = {  # exit status and message, by what happens when the first job has ended
    "success": (0, "6 jobs: 6 succeeded"),
    "failed jobs": (1, "3 of 6 jobs failed; the same command runs them again; until then /"),
    "Ctrl-C": (130, STOPPED),
    "a lost scheduler": (1, "dss: the scheduler was lost"),
    "an exception": (1, ""),
}


@pytest.mark.slow
@with_workers
@pytest.mark.parametrize("where", ["--jobs", "--scheduler"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_leaves_nothing_behind(
    ending, where, workers, tiny, quick_jobs, request, monkeypatch
):
    clients, client_of = [], grid.client_of

    @contextmanager
    def client_seen(*arguments):
        with client_of(*arguments) as client:
            clients.append(client)
            yield client

    monkeypatch.setattr(grid, "client_of", client_seen)
    options = [where, "1" if where == "--jobs" else workers.scheduler.address]
    if (ending, where) == ("a lost scheduler", "--scheduler"):
        cluster = request.getfixturevalue("cluster")
        cluster.worker()
        options = [where, cluster.address]
    end_job = sweeps._Progress.end_job

    def first_job_ends(*arguments):
        monkeypatch.setattr(sweeps._Progress, "end_job", end_job)
        if ending == "Ctrl-C":
            raise KeyboardInterrupt
        if ending == "an exception":
            raise ZeroDivisionError("in the driver")
        if ending == "a lost scheduler":
            if where == "--jobs":
                clients[0].cluster.sync(clients[0].cluster.scheduler.close)
            else:
                cluster.scheduler.kill()
            wait_for(lambda: clients[0].status != "running", "loss")
        return end_job(*arguments)

    monkeypatch.setattr(sweeps._Progress, "end_job", first_job_ends)
    monkeypatch.setitem(dask.config.config["distributed"]["comm"]["timeouts"], "connect", "1s")
    case = "case=good,raise" if ending == "failed jobs" else "case=good,other"
    with nothing_left_behind():
        result = command(
            tiny.path, "--grid", case, "--grid", "alpha=1,2,3", "--out", tiny.out, *options
        )
    status, message = ENDINGS[ending]
    assert result.exit_code == status and message in result.output, result.output
    assert (type(result.exception) is ZeroDivisionError) == (ending == "an exception")
    assert [client.status for client in clients] == ["closed"]
    assert (where == "--jobs") == (clients[0].cluster is not None)
    assert workers.submit(abs, -1, pure=False).result(timeout=60) == 1


@with_workers
def test_no_scheduler_at_the_address_is_an_error_that_leaves_nothing_behind(
    tiny, silent_port, monkeypatch
):
    monkeypatch.setattr(commands, "SECONDS_TO_ANSWER", 0.5)
    for address in ("tcp://127.0.0.1:9", silent_port, "nonsense", "foo://127.0.0.1:9"):
        with nothing_left_behind():
            result = command(tiny.path, *GOOD, "--scheduler", address, "--out", tiny.out)
        assert result.exit_code == 1
        assert f"dss: no scheduler answers at {address}" in result.output
    assert not tiny.out.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("where", ["--jobs", "--scheduler"])
def test_control_c_in_a_start_leaves_nothing_behind(where, tiny, silent_port, monkeypatch):
    kind, name = {
        "--jobs": (distributed.LocalCluster, "__init__"),
        "--scheduler": (distributed.comm, "connect"),
    }[where]
    monkeypatch.setattr(kind, name, interrupted(getattr(kind, name)))
    options = [where, "2" if where == "--jobs" else silent_port]
    with nothing_left_behind():
        result = command(tiny.path, *GOOD, "--out", tiny.out, *options)
    assert result.exit_code == 130 and STOPPED in result.output
    assert tiny.ran() == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_client_whose_start_is_interrupted_is_closed(silent_port):
    with nothing_left_behind(), pytest.raises(KeyboardInterrupt):
        interrupted(grid.client_of(silent_port).__enter__)()


# --- as a process


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_control_c_stops_cleanly_and_the_same_command_goes_on(tiny):
    mark = uuid.uuid4().hex
    line = [sys.executable, "-m", "dss", "sweep", str(tiny.path), "--out", str(tiny.out)]
    line += ["--jobs", "2", "--grid", "case=good,hang,other"]
    options = {"cwd": ROOT, "env": marked_environment(mark), "text": True}
    process = subprocess.Popen(line, **options, stderr=subprocess.PIPE, start_new_session=True)
    try:
        wait_for(lambda: tiny.log.exists() and "hang" in tiny.log.read_text(), "hanging cell")
        wait_for(lambda: len(list(tiny.out.glob("jobs/*/job.json"))) == 2, "finished job")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "\ndss: stopped; what is finished stays, and the same command goes on\n" in told
    assert "Traceback" not in told and "Warning" not in told
    wait_for(lambda: not marked(mark), "end of all processes", seconds=20)
    assert tiny.ran() == ["0.5 good", "0.5 hang", "0.5 other"]
    assert not (tiny.out / "sweep.csv").exists()
    tiny.once.touch()
    done = subprocess.run(line, **options, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "3 jobs: 3 succeeded (2 of them before), 0 failed; 3 rows in" in done.stdout
    assert tiny.ran() == ["0.5 hang"]
    wait_for(lambda: not marked(mark), "end of all processes", seconds=20)


@pytest.fixture
def cluster(tmp_path_factory):
    """A scheduler as a command of its own, its address, and `worker(source)` for workers of it."""
    folder, mark = tmp_path_factory.mktemp("cluster"), uuid.uuid4().hex
    with ExitStack() as stack:

        def start(*arguments, source=ROOT):
            environment = marked_environment(mark, PYTHONPATH=str(source))
            environment |= {"MALLOC_TRIM_THRESHOLD_": "65536"}  # as the nannies of dask set it
            line = [sys.executable, "-m", "dask", *arguments]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(line, cwd=folder, env=environment, **quiet)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            return process

        file = folder / "scheduler.json"
        scheduler = start(
            *("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
            *("--scheduler-file", file),
        )
        wait_for(lambda: file.exists() and file.read_text().endswith("}"), "scheduler")
        address = json.loads(file.read_text())["address"]

        def worker(source=ROOT):
            options = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
            return start("worker", address, *options, source=source)

        yield SimpleNamespace(address=address, scheduler=scheduler, worker=worker)
    wait_for(lambda: not marked(mark), "end of all processes", seconds=20)


@pytest.mark.slow
def test_a_scheduler_and_workers_that_were_started_as_commands(cluster, tiny, tmp_path):
    from distributed import Client

    def swept(grid):
        return command(tiny.path, "--scheduler", cluster.address, "--out", tiny.out, "--grid", grid)

    workers = [cluster.worker(), cluster.worker()]
    with Client(cluster.address) as client:
        client.wait_for_workers(2, timeout=120)
        result = swept("alpha=1,2,3,4")
        assert result.exit_code == 0, result.output
        assert "4 jobs: 4 succeeded (0 of them before), 0 failed" in result.output
        table = pd.read_csv(tiny.out / "sweep.csv")
        assert table.twice.tolist() == [2, 4, 6, 8]
        assert set(table.parent) == {worker.pid for worker in workers}
        assert set(table.omp) == {1} and set(table.trim) == {"none"}
        for worker in workers:
            worker.terminate()
        wait_for(lambda: not client.nthreads(), "end of the workers")
        shutil.copytree(ROOT / "dss", tmp_path / "other" / "dss")
        with open(tmp_path / "other" / "dss" / "stats.py", "a") as file:
            file.write("\n# another\n")
        cluster.worker(source=tmp_path / "other")
        client.wait_for_workers(1, timeout=120)
        refused = swept("alpha=1,5")
    assert refused.exit_code == 1 and "1 of 2 jobs failed" in refused.output
    assert "has another source of dss than the sweep began with" in refused.output
    assert tiny.ran() == ["1 good", "2 good", "3 good", "4 good"]


@pytest.mark.slow
def test_a_scheduler_that_is_lost_ends_the_sweep_and_the_next_call_goes_on(cluster, tiny):
    def swept(*where):
        grid = "--grid", "case=good,hang"
        return command(tiny.path, *where, "--out", tiny.out, *grid)

    worker = cluster.worker()
    with ThreadPoolExecutor() as pool:
        end = pool.submit(swept, "--scheduler", cluster.address)
        wait_for(lambda: "hang" in (tiny.log.read_text() if tiny.log.exists() else ""), "the job")
        cluster.scheduler.kill()
        result = end.result(timeout=60)
    assert result.exit_code == 1
    assert "dss: the scheduler was lost" in result.output and "call again" in result.output
    assert tiny.ran() == ["0.5 good", "0.5 hang"]
    worker.kill()  # it would keep the job for half a minute, until it gives up
    tiny.once.touch()
    result = swept("--jobs", "1")
    assert "2 jobs: 2 succeeded (1 of them before), 0 failed" in result.output
    assert tiny.ran() == ["0.5 hang"]
