"""`dss reproduce`: what is refused, what survives a failure, what is put into place."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import uuid
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
import torch
from filelock import FileLock
from papermill.iorw import LocalHandler
from scratch import BODY, FINISH, marked, marked_environment, wait_for, write_notebook
from typer.testing import CliRunner

import dss.runs.reproduce as module
from dss import provenance, sampling
from dss.commands import app
from dss.results import Results
from dss.runs import execute

# What `dss.Results` leaves, without dss, whose import takes longer than all the rest.
LIGHT = """\
import hashlib, json
from pathlib import Path
folder, table, picture = Path(out), f"alpha\\n{{alpha}}\\n".encode(), b"picture"
(folder / "{name}_numbers.csv").write_bytes(table)
(folder / "{name}_picture.png").write_bytes(picture)
entry = {{"notebook": "{name}.ipynb", "parameters": {{"alpha": alpha, "values": values}}}}
entry |= {{"tables": {{"{name}_numbers.csv": hashlib.sha256(table).hexdigest()}}, "seconds": 1.0}}
entry |= {{"sha256": hashlib.sha256(picture).hexdigest()}}
"""
LIGHT_FINISH = """\
(folder / "manifest.json").write_text(json.dumps({{"{name}_picture.png": entry}}))
print(alpha)
"""


def light(name, first=""):
    """Cells of a notebook that takes a second; `first` is run before anything else."""
    return [first, *(text.format(name=name) for text in (LIGHT, LIGHT_FINISH))]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with one good notebook, 01_good."""
    notebooks = tmp_path / "notebooks"
    (notebooks / "params").mkdir(parents=True)
    (notebooks / "params" / "paper.yaml").write_text("01_good:\n  alpha: 0.25\n")
    write_notebook(notebooks, "01_good", *light("01_good"))
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setattr(module, "NOTEBOOKS", notebooks)
    return tmp_path


@pytest.fixture
def real_project(project):
    """The same, with a notebook that draws and writes with dss."""
    write_notebook(project / "notebooks", "01_good", BODY.format(name="01_good"), FINISH)
    return project


def run(*arguments):
    return CliRunner().invoke(app, ["reproduce", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["07_none"], "no notebook '07_none'; known: 01_good"),
        (["-p", "gamma=1"], "no parameter 'gamma'; known: size, seed, alpha, values"),
        (["-p", "alpha=high"], "alpha is 'high' (str); float is needed"),
        (["-p", "seed=0.5"], "seed is 0.5 (float); int is needed"),
        (["-p", "seed=true"], "seed is True (bool); int is needed"),
        (["-p", "alpha"], "-p alpha: NAME=VALUE is needed"),
        (["--save-outputs", "-p", "alpha=0.5"], "default parameters only"),
        (["--device", "cuda"], "torch finds no CUDA here; allowed: auto, cpu"),
        (["-p", "device=cuda"], "torch finds no CUDA here; allowed: auto, cpu"),
        (["-p", "size=paper"], "size is no parameter to override here; use --size"),
        (["--jobs", "0"], "jobs is 0; a whole number >= 1 is needed"),
        (["--cell-timeout", "-5"], "cell_timeout is -5; a whole number >= 1 is needed"),
        (["-p", "out=/tmp"], "out is no parameter to override here; use --out"),
    ],
)
def test_a_bad_call_is_refused_before_anything_runs(project, arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert not (project / "figures").exists()


def test_files_and_manifest_are_put_into_place(project):
    folder = project / "figures" / "quick"
    folder.mkdir(parents=True)
    (folder / "01_good_stale.png").write_text("from an earlier version")
    (folder / "02_other_keep.png").write_text("of another notebook")
    stale = {"notebook": "01_good.ipynb", "tables": {}}
    (folder / "manifest.json").write_text(json.dumps({"01_good_stale.png": stale}))
    result = run("-p", "alpha=1e-1", "-p", "values=[3, 4e-1]")
    assert result.exit_code == 0, result.output
    names = {path.name for path in folder.glob("[!.]*")}
    assert names == {
        "01_good_numbers.csv",
        "01_good_picture.png",
        "02_other_keep.png",
        "manifest.json",
    }
    entry = json.loads((folder / "manifest.json").read_text())["01_good_picture.png"]
    assert entry["parameters"]["alpha"] == 0.1
    assert entry["parameters"]["values"] == [3, 0.4]
    assert "01_good_numbers.csv" in entry["tables"]


@pytest.mark.slow
def test_the_report_says_what_is_other_than_in_the_committed_figures(project):
    """Also where it takes their place."""
    elsewhere = "--out", str(project / "elsewhere")
    assert "  01_good           nothing to compare with\n" in run().output
    said = "alpha 0.8 (was 0.9); 1 of 1 tables differ: 01_good_numbers.csv\n"
    assert said in run("-p", "alpha=0.8").output
    assert "same parameters; tables: 1 identical\n" in run("-p", "alpha=0.8", *elsewhere).output


def test_paper_size_takes_its_overrides(project):
    assert run("--size", "paper").exit_code == 0
    assert (project / "figures/paper/01_good_numbers.csv").read_text() == "alpha\n0.25\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("x = 1\n1 / 0", "cell [2]: ZeroDivisionError"),
        ("import os\nos.kill(os.getpid(), 9)", "cell [2]: DeadKernelError"),
        ("import time\ntime.sleep(60)", "cell [2]: CellTimeoutError"),
        ("x = 1", "manifest"),
    ],
    ids=["exception", "killed kernel", "hung cell", "no finish"],
)
def test_a_failure_leaves_earlier_outputs_and_names_the_cell(project, body, reason):
    folder = project / "figures" / "quick"
    folder.mkdir(parents=True)
    (folder / "02_bad_picture.png").write_text("the last good one")
    write_notebook(project / "notebooks", "02_bad", body)
    result = run("02_bad", "--cell-timeout", "5")
    assert result.exit_code == 1
    assert reason in result.output
    assert "1 of 1 notebooks failed: 02_bad" in result.output
    assert (folder / "02_bad_picture.png").read_text() == "the last good one"
    assert not list(folder.glob(".*"))
    kept = folder / "failed" / "02_bad"
    assert f"what 02_bad made until it failed is in {kept}/" in result.output
    assert (kept / "02_bad.ipynb").exists()


@pytest.mark.slow
def test_what_a_failed_check_was_about_is_kept_until_it_succeeds(project):
    """Also where it went on from a checkpoint, and where an earlier failure left other files."""
    first, last = light("02_two"), project / "checked"
    check = f"from pathlib import Path\nassert Path({str(last)!r}).exists(), 'no such result'"
    search = """\
from pathlib import Path
found = Path(out) / ".checkpoints" / "found"
print("resumed" if found.exists() else "begun")
found.touch()"""
    write_notebook(project / "notebooks", "02_two", search, *first[1:2], check, first[2])
    folder = project / "figures" / "quick"
    kept, gone = folder / "failed" / "02_two", folder / "failed" / "02_two" / "gone.csv"
    kept.mkdir(parents=True)
    gone.touch()
    for said in ("begun", "resumed"):
        result = run("02_two")
        assert result.exit_code == 1 and "AssertionError: no such result" in result.output
        assert f"what 02_two made until it failed is in {kept}/" in result.output
        files = {path.name for path in kept.iterdir()}
        assert files == {"02_two_numbers.csv", "02_two_picture.png", "02_two.ipynb"}
        assert said in (kept / "02_two.ipynb").read_text()
        assert not (folder / "02_two_numbers.csv").exists()
    last.touch()
    assert run("02_two").exit_code == 0
    assert not kept.parent.exists() and not list(folder.glob(".0*"))
    line = ["git", "check-ignore", "--no-index", "figures/quick/failed/02_two/02_two.ipynb"]
    root = Path(provenance.__file__).parents[1]
    assert subprocess.run(line, cwd=root, capture_output=True).returncode == 0


def test_a_parameter_that_was_not_used_is_not_stated(project):
    """A cell that sets it again undoes what was asked; the table of a sweep would state that."""
    write_notebook(project / "notebooks", "02_two", *light("02_two", "alpha = 0.5"))
    result = run("02_two", "-p", "alpha=0.8")
    said = "its manifest: alpha is 0.5 there, 0.8 was asked for"
    assert result.exit_code == 1 and said in result.output
    assert not list((project / "figures" / "quick").glob("*.csv"))


def test_a_failure_does_not_stop_the_other_notebooks(project):
    write_notebook(project / "notebooks", "00_bad", "1 / 0")
    result = run()
    assert result.exit_code == 1
    assert "1 of 2 notebooks failed: 00_bad" in result.output
    assert (project / "figures/quick/01_good_picture.png").exists()


@pytest.mark.slow
def test_saved_outputs_carry_no_trace_of_papermill(real_project):
    project = real_project
    path = project / "notebooks" / "01_good.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["dss"] = {"data": []}
    notebook.cells[-1].metadata["jupyter"] = {"source_hidden": True}
    nbformat.write(notebook, path)
    assert run("--save-outputs").exit_code == 0
    path = project / "notebooks" / "01_good.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert "papermill" not in path.read_text() and "injected" not in path.read_text()
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert notebook.cells[-1].outputs[0].text == "0.9\n"
    assert notebook.metadata.dss == {"data": []}, "what it needs is not lost"
    assert notebook.cells[-1].metadata.jupyter.source_hidden, "a folded solution stays folded"


@pytest.mark.slow
def test_plain_papermill_runs_from_any_folder(real_project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "papermill", "../notebooks/01_good.ipynb", "out.ipynb"]
    command += ["-p", "alpha", "0.8", "-p", "out", str(elsewhere / "figures")]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "figures/01_good_numbers.csv").read_text() == "alpha\n0.8\n"


def test_the_module_and_the_script_are_one_command():
    for command in (["-m", "dss", "--help"], ["-c", "from dss.__main__ import main; main()"]):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=60
        )
        assert "reproduce" in done.stdout and "data" in done.stdout


COUNTED = """\
import os, time
from pathlib import Path
import torch
from dss import sampling

def log(text):
    with open({log!r}, "a") as file:
        file.write(text + "\\n")

calls, train_to = [], sampling.train_to

def counted(*arguments, **keywords):
    calls.append(1)
    if len(calls) == 3 and not Path({once!r}).exists():
        log("stuck")
        time.sleep(600)
    return train_to(*arguments, **keywords)

sampling.train_to = counted
"""
SEARCH = """\
from pathlib import Path
import torch, dss
torch.set_num_threads(1)  # as all notebooks do
run, task = dss.Results("{name}", globals()), dss.quad()
ends = dss.train_endpoints(
    task, 4, [0.003], **task.train_settings, generator=torch.Generator().manual_seed(seed),
    checkpoint=run.checkpoint("ends"),
).thetas[0]
strings = dss.find_strings(
    task, ends[::2], ends[1::2], 0.003, **task.settings, checkpoint=run.checkpoint("search"),
    generator=torch.Generator().manual_seed(seed),
)
sums = [s.thetas.double().square().sum().item().hex() for s in strings]
Path(out, "{name}_strings.csv").write_text("\\n".join(["sums", *sums]))
"""
PATCHED = """\
from pathlib import Path
from dss import __main__
from dss.results import Results
from dss.runs import reproduce
reproduce.PROJECT = Path.cwd()
reproduce.NOTEBOOKS = Path.cwd() / "notebooks"
__main__.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_in_the_middle_of_a_search_it_goes_on_there(project, monkeypatch):
    log, once, folder = project / "log", project / "once", project / "figures" / "quick"
    counted = COUNTED.format(log=str(log), once=str(once))
    search = SEARCH.format(name="02_two") + 'log(f"{len(calls)} levels")\nrun.finish()\n'
    begin = f'print("first", file=open({str(log)!r}, "a"))'
    write_notebook(project / "notebooks", "01_good", *light("01_good", begin))
    write_notebook(project / "notebooks", "02_two", counted, search)
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", PATCHED, "reproduce", "--jobs", "1"],
        cwd=project,
        env=marked_environment(mark),
    )
    try:
        wait_for(lambda: log.exists() and "stuck" in log.read_text(), "third level")
        second = run("02_two")
        assert second.exit_code == 1
        assert "not begun: another process is at it in this folder" in second.output
    finally:
        process.kill()
    process.wait()
    wait_for(lambda: not marked(mark), "end of the kernel", seconds=20)
    assert (folder / "01_good_picture.png").exists()
    assert not (folder / "02_two_strings.csv").exists()

    once.touch()
    result = run()
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.output.splitlines() if line.startswith("01_good "))
    assert line.split() == ["01_good", "before", "1"]
    assert {path.name for path in folder.glob(".*")} <= {".lock"}

    calm = project / "calm"  # undisturbed, and in this process, which has torch
    monkeypatch.setattr(sampling, "train_to", sampling.train_to)
    exec(counted + search, {"size": "quick", "seed": 0, "out": str(calm)})
    first, stuck, resumed, undisturbed = log.read_text().splitlines()
    assert (first, stuck) == ("first", "stuck")
    levels = int(undisturbed.split()[0])
    assert levels > 3 and resumed == f"{levels - 2} levels"
    tables = [path / "02_two_strings.csv" for path in (folder, calm)]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_what_was_finished_runs_again_when_its_code_has_changed(project):
    notebooks = project / "notebooks"
    write_notebook(notebooks, "02_bad", "1 / 0")

    def seconds_of_01():
        (line,) = (line for line in run().output.splitlines() if line.startswith("01_good "))
        return line.split()[1]

    assert seconds_of_01() != "before"
    assert seconds_of_01() == "before"
    write_notebook(notebooks, "01_good", *light("01_good"), "1 + 1")
    assert seconds_of_01() != "before"


@pytest.mark.slow
def test_the_manifest_says_how_a_figure_was_made(project):
    rules = ', {"beads*": 0.05}, ["seconds*"])'
    body = BODY.format(name="01_good").replace("())", "()" + rules)
    path = write_notebook(project / "notebooks", "01_good", body, FINISH)
    assert run("-p", "seed=7").exit_code == 0
    folder = project / "figures" / "quick"
    entry = json.loads((folder / "manifest.json").read_text())["01_good_picture.png"]
    digest = hashlib.sha256((folder / "01_good_numbers.csv").read_bytes()).hexdigest()
    assert entry["tables"] == {"01_good_numbers.csv": digest}
    picture = hashlib.sha256((folder / "01_good_picture.png").read_bytes()).hexdigest()
    assert entry["sha256"] == picture and entry["notebook"] == "01_good.ipynb"
    assert entry["seed"] == entry["parameters"]["seed"] == 7
    assert entry["tolerances"] == {"beads*": 0.05} and entry["timings"] == ["seconds*"]
    assert entry["dss"] == version("dss")
    lock = Path(provenance.__file__).parents[1] / "requirements.lock"
    assert entry["lock_sha256"] == hashlib.sha256(lock.read_bytes()).hexdigest()
    assert provenance.notebook_sha256(path) is not None and "notebook_sha256" in entry


def test_other_parameters_in_the_same_folder_do_not_spoil_a_run(project):
    """What another process is at, with other parameters, is left alone, and is no error."""
    left = project / "figures" / "quick" / ".01_good-0123456789abcdef"
    left.mkdir(parents=True)
    with FileLock(left / ".lock"):
        result = run()
    assert result.exit_code == 0, result.output
    assert left.exists()
    assert run().exit_code == 0 and not left.exists()


@pytest.mark.slow
def test_figures_of_another_run_are_not_taken_for_those_of_a_killed_one(project):
    write_notebook(project / "notebooks", "02_bad", "1 / 0")
    folder = project / "figures" / "quick"
    assert run().exit_code == 1
    assert "before" in (output := run().output)
    assert "01_good           nothing to compare with" in output, "not with itself"
    assert run("01_good", "-p", "alpha=0.1").exit_code == 0
    assert "before" not in run().output
    assert (folder / "01_good_numbers.csv").read_text() == "alpha\n0.9\n"
    for path in folder.glob("[!.]*.*"):
        path.unlink()
    assert "before" not in run().output
    assert (folder / "01_good_numbers.csv").exists()


def test_a_run_elsewhere_leaves_the_executed_notebooks_alone(project, tmp_path):
    assert run().exit_code == 0
    executed = project / "runs" / "quick" / "01_good.ipynb"
    content = executed.read_bytes()
    assert run("-p", "alpha=0.1", "--out", str(tmp_path / "mine")).exit_code == 0
    assert executed.read_bytes() == content
    assert (tmp_path / "mine" / "quick" / "executed" / "01_good.ipynb").exists()


# --- side by side

MEETS = """\
import time
from pathlib import Path
here = Path({folder!r})
(here / "{name}").touch()
end = time.monotonic() + {patience}
while len(list(here.iterdir())) < {n}:
    assert time.monotonic() < end, "nobody came"
    time.sleep(0.05)
"""


def write_meeting(project, n, patience=60):
    """Notebooks that all wait until `n` of them have begun."""
    folder = project / "meeting"
    folder.mkdir()
    for name in ("01_good", "02_two", "03_three")[:n]:
        cell = MEETS.format(folder=str(folder), name=name, n=n, patience=patience)
        write_notebook(project / "notebooks", name, *light(name, cell))


def test_notebooks_run_side_by_side(project):
    write_meeting(project, 3)
    result = run("--jobs", "3")
    assert result.exit_code == 0, result.output
    names = [line.split()[0] for line in result.output.splitlines() if line.endswith(" 1")]
    assert names == ["01_good", "02_two", "03_three"], "told in reading order"
    assert not (project / "figures" / "quick" / ".unfinished.json").exists()


def test_with_one_job_they_run_one_after_the_other(project):
    write_meeting(project, 2, patience=1)
    result = run("--jobs", "1")
    assert result.exit_code == 1 and "AssertionError: nobody came" in result.output
    assert "1 of 2 notebooks failed" in result.output


def test_the_longest_begins_first(project):
    log = project / "log"
    folder = project / "figures" / "quick"
    folder.mkdir(parents=True)
    names = {"01_good": 5.0, "02_two": 50.0, "03_three": 20.0}
    manifest = {f"{n}.png": {"notebook": f"{n}.ipynb", "seconds": v, "tables": {}}
                for n, v in names.items()}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in [*names, "04_new"]:
        begin = f'print("{name}", file=open({str(log)!r}, "a"))'
        write_notebook(project / "notebooks", name, *light(name, begin))
    assert run("--jobs", "1").exit_code == 0
    assert log.read_text().split() == ["04_new", "02_two", "03_three", "01_good"]


@pytest.mark.slow
def test_what_they_give_does_not_depend_on_how_many_run(project):
    """Nor on what runs beside it."""
    for name in ("01_good", "02_two"):
        write_notebook(project / "notebooks", name, SEARCH.format(name=name), "run.finish()")
    both = run("--jobs", "2", "--out", str(project / "2"))
    alone = run("01_good", "--jobs", "1", "--out", str(project / "1"))
    assert both.exit_code == alone.exit_code == 0, both.output + alone.output
    tables = sorted(path.read_bytes() for path in project.glob("[12]/quick/0*_strings.csv"))
    assert len(tables) == 3 and len(set(tables)) == 1 and tables[0].count(b"0x") == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("jobs", "number", "status"), [("1", signal.SIGINT, 130), ("2", signal.SIGTERM, 143)]
)
def test_a_signal_ends_all_kernels_and_the_same_command_goes_on(project, jobs, number, status):
    """Also where notebooks still wait for their turn."""
    log, once, folder = project / "log", project / "once", project / "figures" / "quick"
    hangs = f"""\
import time
from pathlib import Path
print("begun", file=open({str(log)!r}, "a"))
if not Path({str(once)!r}).exists():
    Path(out, ".checkpoints", "search").touch()
    time.sleep(600)
"""
    for name in ("02_two", "03_three"):
        write_notebook(project / "notebooks", name, *light(name, hangs))
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", PATCHED, "reproduce", "--jobs", jobs],
        cwd=project, env=marked_environment(mark), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: log.exists() and log.read_text().count("begun") == int(jobs), "notebooks")
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    assert "stopped; finished notebooks are in place, and the same command goes on" in said
    assert "Traceback" not in said
    wait_for(lambda: not marked(mark), "end of the kernels", seconds=20)
    left = [path for path in folder.glob(".0*/.checkpoints/search")]
    assert len(left) == int(jobs), "checkpoints stay"
    assert not list(folder.glob("0[23]*.csv"))
    once.touch()
    result = run("--jobs", "2")
    assert result.exit_code == 0, result.output
    assert {path.name for path in folder.glob(".*")} <= {".lock"}


@pytest.mark.parametrize("where", ["figures", "manifest", "note", "papermill"])
def test_a_full_disk_is_told_and_does_not_stop_the_others(project, monkeypatch, where):
    """Wherever it strikes while 01_good runs; what was there before is untouched."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(handler, text, path):
        """As papermill writes: the file is opened, and so emptied, first."""
        if "01_good" in path and "start_time" in text:
            Path(path).write_text(text[: len(text) // 2])
            full()
        return written(handler, text, path)

    def patched(of, name, is_ours):
        usual = getattr(of, name)
        monkeypatch.setattr(of, name, lambda *a, **k: (full if is_ours(*a) else usual)(*a, **k))

    folder = project / "figures" / "quick"
    folder.mkdir(parents=True)
    (folder / "01_good_numbers.csv").write_text("of before")
    of_01 = lambda name, *_: "01_good" in str(name)  # noqa: E731
    written = LocalHandler.write
    if where == "figures":
        patched(module, "_move_into_place", of_01)
    elif where == "manifest":
        patched(module, "update_manifest", of_01)
    elif where == "note":
        patched(module, "_note_unfinished", lambda folder, call, ended: "01_good" in (ended or {}))
    else:
        monkeypatch.setattr(LocalHandler, "write", half)
    write_notebook(project / "notebooks", "02_two", *light("02_two"))
    result = run("--jobs", "1")
    assert result.exit_code == (where != "note"), result.output
    assert "No space left on device" in result.output
    assert (folder / "02_two_picture.png").exists()
    if where != "note":
        assert "1 of 2 notebooks failed: 01_good" in result.output
        assert (folder / "01_good_numbers.csv").read_text() == "of before"


def test_outputs_that_cannot_be_saved_are_told(project, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_save_outputs", full)
    result = run("--save-outputs")
    assert result.exit_code == 1
    assert "FAILED in saving its outputs: [Errno 28] No space left" in result.output


def test_an_error_of_our_own_ends_the_run_and_does_not_hang(project, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(module, "_move_into_place", broken)
    for name in ("02_two", "03_three"):
        write_notebook(project / "notebooks", name, *light(name))
    with pytest.raises(ZeroDivisionError, match="ours"):
        module.reproduce([], jobs=1)


def test_a_notebook_asks_for_its_data_in_its_metadata(project, monkeypatch):
    asked = []
    monkeypatch.setitem(execute.DATA, "mnist", lambda: asked.append("mnist"))
    path = project / "notebooks" / "01_good.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["dss"] = {"data": ["mnist"]}
    nbformat.write(notebook, path)
    write_notebook(project / "notebooks", "02_two", *light("02_two"))
    assert run("02_two").exit_code == 0 and asked == []
    assert run().exit_code == 0 and asked == ["mnist"]
    notebook.metadata["dss"] = {"data": ["imagenet"]}
    nbformat.write(notebook, path)
    result = run()
    assert result.exit_code == 1
    assert "unknown data in a notebook's metadata 'imagenet'; known: 'mnist'" in result.output


def test_a_row_is_kept_where_a_run_has_checkpoints(tmp_path):
    run, calls = Results("none", {"size": "quick", "seed": 0, "out": str(tmp_path)}), []

    def compute():
        calls.append(None)
        return {"steps": 7, "length": 1.5, "status": "connected"}

    row = {"steps": 7, "length": 1.5, "status": "connected"}
    assert run.once("a", compute) == run.once("a", compute) == row and len(calls) == 2
    (tmp_path / ".checkpoints").mkdir()
    assert run.once("a", compute) == run.once("a", compute) == row and len(calls) == 3
    found = run.once("b", lambda: Path("x.csv"), ["name", "suffix"])
    assert found == run.once("b", compute) == {"name": "x.csv", "suffix": ".csv"}


def test_a_table_of_another_notebook_is_read_and_named_in_the_manifest(tmp_path):
    import pandas as pd

    made = Results("01_maker", {"size": "quick", "seed": 0, "out": str(tmp_path / "made")})
    made.table(pd.DataFrame({"L0": [0.1, 0.01]}), "rows")
    made.figures["01_maker_picture.png"] = "0"
    made.finish()
    run = Results("02_reader", {"size": "quick", "seed": 0, "out": str(tmp_path / "read")})
    assert run.read("01_maker_rows", str(tmp_path / "made")).L0.tolist() == [0.1, 0.01]
    run.figures["02_reader_picture.png"] = "0"
    run.finish()
    (entry,) = json.loads((tmp_path / "read" / "manifest.json").read_text()).values()
    path = tmp_path / "made" / "01_maker_rows.csv"
    assert entry["tables_read"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}

    path.write_text("L0\n0.2\n")  # a run that was stopped, or a hand
    with pytest.raises(ValueError, match="01_maker_rows.csv is not the table of .*01_maker.ipynb"):
        run.read("01_maker_rows", str(tmp_path / "made"))
    path.unlink()
    with pytest.raises(ValueError, match="rows.csv is not there; `dss reproduce 01_maker` makes"):
        run.read("01_maker_rows", str(tmp_path / "made"))
    with pytest.raises(ValueError, match="nobody_rows.csv is not there$"):
        run.read("nobody_rows", str(tmp_path / "made"))
    with pytest.raises(
        ValueError, match="the folder of the tables is .*manifest.json', which is a"
    ):
        run.read("01_maker_rows", str(tmp_path / "made" / "manifest.json"))


def test_tables_are_read_from_the_paper_size_of_the_project(tmp_path):
    run = Results("02_reader", {"size": "quick", "seed": 0, "out": str(tmp_path)})
    assert len(run.read("02_quad_pairs")) > 1000
    with pytest.raises(ValueError, match="authors_pairs.csv is not there; `dss reproduce 08_auth"):
        run.read("authors_pairs", str(tmp_path / "elsewhere"))
