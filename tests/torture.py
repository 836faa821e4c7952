"""`make torture`: sweeps, searches and `dss reproduce` under random kills, and every bad input.

Workers, kernels and drivers are killed with SIGKILL at random moments until a quota is reached;
what comes out must be what an undisturbed run gives, and nothing finished may run twice.

    python tests/torture.py [SEED [PART ...]]

It takes about a quarter of an hour on two cores.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pandas as pd
import psutil
import torch
from scratch import PARAMETERS, marked, marked_environment, wait_for, write_notebook

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(tempfile.mkdtemp(prefix="dss-torture-source-"))  # may be edited here meanwhile
QUOTA = {"worker": 7, "kernel": 8, "driver": 6}
PARTS = {"worker": "spawn_main", "kernel": "ipykernel_launcher"}
JOB = """\
import os, time
from pathlib import Path
def log(event):
    with open({log!r}, "a") as file:
        file.write(f"{{event}} {{Path(out).name}} {{time.time()}}\\n")
log("start")
import torch, dss, pandas as pd
import matplotlib.pyplot as plt
torch.set_num_threads(1)
run = dss.Results(Path({name!r}).stem, globals(), timings=["seconds*"])
"""
SEARCH = """\
tables = []
for n_pairs in (2, 4):
    strings, table = dss.study(
        dss.quad(), [0.01, 0.003], n_pairs, alpha=alpha, max_depth=5, lr=1e-2, max_steps=500,
        generator=torch.Generator().manual_seed(seed), checkpoint=run.checkpoint(f"{n_pairs}")
    )
    sums = [s.thetas.double().sum().item() for s in strings]
    tables.append(table.assign(n=n_pairs, checksum=sum(sums), seconds_all=time.time()))
    time.sleep(0.5)
"""
FINISH = """\
run.table(pd.concat(tables), "found")
run.figure(plt.figure(), "none")
log("end")
run.finish()
"""
SCRIPT = """
import sys, torch, dss
torch.set_num_threads(1)
task = dss.quad()
ends = dss.train_endpoints(
    task, 32, [0.003], **task.train_settings, generator=torch.Generator().manual_seed(1),
    checkpoint=sys.argv[1] + ".ends" if sys.argv[1] else None,
).thetas[0]
strings = dss.find_strings(
    task, ends[::2], ends[1::2], 0.003, checkpoint=sys.argv[1] or None, **task.settings,
    generator=torch.Generator().manual_seed(2),
)
torch.save([s.thetas for s in strings], sys.argv[2])
"""
REPRODUCE = """
import sys
from pathlib import Path
from dss.runs import reproduce
from dss.__main__ import main
reproduce.PROJECT = Path.cwd()
reproduce.NOTEBOOKS = Path.cwd() / "notebooks"
sys.argv[1:] = ["reproduce"]
main()
"""
summary, failures = [], []


def check(holds, what):
    print(f"  {'ok    ' if holds else 'FAILED'}  {what}", flush=True)
    if not holds:
        failures.append(what)


def start(arguments, mark, folder, log):
    """A Python process with a mark, its output going to a file."""
    environment = marked_environment(mark, PYTHONPATH=str(SOURCE), OMP_NUM_THREADS="1")
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=folder, env=environment, stdout=out,
            stderr=out,
        )  # fmt: skip


def none_left(mark):
    try:
        wait_for(lambda: not marked(mark), "end of all processes", seconds=30)
    except AssertionError:
        pass
    left = marked(mark)
    for process in left:
        print(f"  left behind: {process}")
        process.kill()
    return not left


def kill(kind, driver, mark, dice):
    """Kill one process of a kind; False where there is none."""
    if kind == "driver":
        driver.kill()
        driver.wait()
        return True
    victims = marked(mark, PARTS[kind])
    if victims:
        try:
            dice.choice(victims).kill()
        except psutil.Error:
            return False
    return bool(victims)


def whole(folder):
    """Names of visible files under a folder that are not whole."""
    bad = []
    for path in folder.rglob("[!.]*"):
        try:
            if path.suffix in (".json", ".ipynb"):
                json.loads(path.read_text())
            if path.suffix == ".csv":
                pd.read_csv(path)
            if path.suffix == ".parquet":
                pd.read_parquet(path)
        except Exception as error:
            bad.append(f"{path}: {error}")
    return bad


def events(log):
    """(what, job, when) as the notebooks logged them."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(what, job, float(when)) for what, job, when in lines]


def seen_done(out, first):
    """Remember when each job was first seen to be done, and its record."""
    for path in out.glob("jobs/*/job.json"):
        text = path.read_text()
        if json.loads(text)["status"] == "done":
            first.setdefault(path.parent.name, (path.stat().st_mtime, text))


def without_timings(table):
    return table.drop(columns=[c for c in table if c.startswith("seconds")])


def sweeps_under_fire(scratch, dice):
    log, jobs = scratch / "log", [0.5, 0.7, 0.9]
    name = write_notebook(
        scratch, "job", JOB.format(log=str(log), name="job"), SEARCH, FINISH
    )  # fmt: skip
    arguments = ["-m", "dss", "sweep", name, "--jobs", "2", "--grid", "seed=1,2"]
    arguments += ["--grid", f"alpha={','.join(map(str, jobs))}"]
    mark = uuid.uuid4().hex
    clock = time.monotonic()
    calm = start([*arguments, "--out", scratch / "calm"], mark, scratch, scratch / "calm.txt")
    check(calm.wait() == 0, "the undisturbed sweep succeeds")
    seconds_calm = time.monotonic() - clock
    reference = pd.read_csv(scratch / "calm/sweep.csv")
    print(f"  undisturbed: {seconds_calm:.0f} s, {len(reference)} rows", flush=True)
    kills, n_rounds, n_starts = dict.fromkeys(QUOTA, 0), 0, 0
    clock = time.monotonic()
    while any(kills[kind] < QUOTA[kind] for kind in QUOTA):
        n_rounds += 1
        out, first, mark = scratch / f"fire{n_rounds}", {}, uuid.uuid4().hex
        log.unlink(missing_ok=True)
        status, n_round = None, 0
        while status != 0 and n_round < 40:
            driver = start([*arguments, "--out", out], mark, scratch, scratch / "fire.txt")
            n_starts, n_round = n_starts + 1, n_round + 1
            n_events = len(events(log))
            while driver.poll() is None and len(events(log)) == n_events:
                time.sleep(0.1)
                seen_done(out, first)
            pause = time.monotonic() + dice.uniform(0, 4)
            while (status := driver.poll()) is None:
                seen_done(out, first)
                time.sleep(0.05)
                if time.monotonic() < pause:
                    continue
                open_kinds = [kind for kind in QUOTA if kills[kind] < QUOTA[kind]]
                if not open_kinds:
                    continue
                # A driver that dies soon costs the others their turn.
                weights = [1 if kind == "driver" else 2 for kind in open_kinds]
                kind = dice.choices(open_kinds, weights)[0]
                if kill(kind, driver, mark, dice):
                    kills[kind] += 1
                    print(f"  {time.monotonic() - clock:6.1f} s: {kind} killed", flush=True)
                pause = time.monotonic() + dice.uniform(0.5, 4)
            seen_done(out, first)
        check(status == 0, f"round {n_rounds}: the sweep succeeds at last, call {n_round}")
        found = pd.read_csv(out / "sweep.csv")
        same = without_timings(found).equals(without_timings(reference))
        check(same, f"round {n_rounds}: the table is that of the undisturbed sweep")
        records = {path.parent.name: path.read_text() for path in out.glob("jobs/*/job.json")}
        kept = all(records.get(key) == text for key, (_, text) in first.items())
        check(kept, f"round {n_rounds}: no finished job was lost or written again")
        starts = [(job, when) for what, job, when in events(log) if what == "start"]
        late = [job for job, when in starts if job not in first or when > first[job][0]]
        check(not late, f"round {n_rounds}: no finished job ran again ({len(starts)} starts)")
        check(len(records) == 2 * len(jobs), f"round {n_rounds}: every job has its record")
        check(none_left(mark), f"round {n_rounds}: no process is left behind")
        check(not (bad := whole(out)), f"round {n_rounds}: all files are whole {bad or ''}")
        left = [path for path in out.glob("jobs/*/.*") if path.name != ".lock"]
        check(not left, f"round {n_rounds}: no checkpoint or temporary file in a job {left or ''}")
    text = ", ".join(f"{n} {kind}s" for kind, n in kills.items())
    summary.append(f"sweep: {text} killed in {n_rounds} rounds and {n_starts} calls")


def script_under_fire(scratch, dice, quota=8):
    mark, n_kills = uuid.uuid4().hex, 0
    arguments = ["-c", SCRIPT, "", scratch / "calm.pt"]
    clock = time.monotonic()
    check(start(arguments, mark, scratch, scratch / "script.txt").wait() == 0, "undisturbed")
    print(f"  undisturbed: {time.monotonic() - clock:.0f} s", flush=True)
    reference, n_rounds, n_resumed = torch.load(scratch / "calm.pt"), 0, 0
    while n_kills < quota and n_rounds < 8:
        n_rounds += 1
        path, status = scratch / f"checkpoint{n_rounds}", None
        while status != 0:
            n_resumed += path.exists()
            arguments = ["-c", SCRIPT, path, scratch / "fire.pt"]
            before = path.stat().st_mtime_ns if path.exists() else 0
            process = start(arguments, mark, scratch, scratch / "script.txt")
            while process.poll() is None:  # until the search has begun, or taken its next level
                if path.exists() and path.stat().st_mtime_ns != before:
                    break
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 1))
            if process.poll() is None and n_kills < quota:
                process.kill()
                n_kills += 1
            status = process.wait()
            check(status in (0, -9), f"call ends with {status}")
        found = torch.load(scratch / "fire.pt")
        same = all(torch.equal(a, b) for a, b in zip(found, reference, strict=True))
        check(same, f"round {n_rounds}: bit-identical to the undisturbed search")
    check(none_left(mark), "no process is left behind")
    check(n_kills >= 5, f"{n_kills} kills of at least 5")
    summary.append(f"find_strings: killed {n_kills} times, gone on from a file {n_resumed} times")


def reproduce_under_fire(scratch, dice, quota=6):
    mark, n_kills, tables = uuid.uuid4().hex, 0, {}
    for kind in ("calm", "fire"):
        folder = scratch / kind
        (folder / "notebooks" / "params").mkdir(parents=True)
        (folder / "notebooks" / "params" / "paper.yaml").write_text("{}\n")
        for i, name in enumerate(("01_one", "02_two"), start=3):
            body = JOB.format(log=str(folder / "log"), name=name)
            parameters = PARAMETERS.replace("seed: int = 0", f"seed: int = {i}")
            write_notebook(folder / "notebooks", name, body, SEARCH, FINISH, parameters=parameters)
        status, out = None, folder / "figures" / "quick"
        while status != 0:
            n_events = len(events(folder / "log"))
            process = start(["-c", REPRODUCE], mark, folder, scratch / "reproduce.txt")
            if kind == "fire" and n_kills < quota:
                while process.poll() is None and len(events(folder / "log")) == n_events:
                    time.sleep(0.05)
                time.sleep(dice.uniform(0, 9))
                if process.poll() is None:
                    victim = dice.choice(["driver", "kernel"])
                    n_kills += kill(victim, process, mark, dice)
                    print(f"  {victim} killed", flush=True)
            status = process.wait()
        names = sorted(path.name for path in out.glob("[!.]*"))
        left = [path.name for path in out.glob(".*") if path.name != ".lock"]
        check(len(names) == 5 and not left, f"{kind}: all files are in place, {left or 'no other'}")
        check(not (bad := whole(out)), f"{kind}: all files are whole {bad or ''}")
        tables[kind] = [without_timings(pd.read_csv(path)) for path in sorted(out.glob("*.csv"))]
    same = all(a.equals(b) for a, b in zip(tables["calm"], tables["fire"], strict=True))
    check(same, "the tables are those of the undisturbed run")
    log = events(scratch / "fire" / "log")
    check(none_left(mark), "no process is left behind")
    n_ends = sum(what == "end" for what, *_ in log)
    summary.append(
        f"reproduce: killed {n_kills} times; {len(log) - n_ends} starts and {n_ends} ends of two "
        "notebooks"
    )


def long_grid():
    from dss.runs import sweeps

    def square(i):
        return {"y": i**2}

    clock = time.monotonic()
    found = sweeps.sweep(square, {"i": range(10_000)}, jobs=2)
    check((found.y == found.i**2).all(), f"10,000 points in {time.monotonic() - clock:.0f} s")
    summary.append(f"10,000 points on two workers: {time.monotonic() - clock:.0f} s")


def bad_inputs(scratch):
    import test_sweeps
    from filelock import FileLock
    from typer.testing import CliRunner

    from dss.commands import app

    path = write_notebook(scratch, "tiny", "alpha", parameters=test_sweeps.PARAMETERS)
    good, out = test_sweeps.GOOD, scratch / "bad"
    marks = test_sweeps.test_a_bad_call_is_refused_before_anything_runs.pytestmark
    calls = [[path, *arguments] for arguments, _ in marks[0].args[1]]
    calls += [["09_none", *good], [path, *good, "--out", path / "below"]]
    calls += [[path, *good, "--out", "/proc/none"]]
    calls += [[path, *good, "--scheduler", "tcp://127.0.0.1:9"]]

    def refused(call, *more):
        result = CliRunner().invoke(app, ["sweep", *map(str, [*call, *more])])
        lines = result.output.strip().splitlines() or ["(nothing)"]
        print(f"\n  {' '.join(map(str, call[1:]))}\n    {lines[-1]}", flush=True)
        return result.exit_code == 1 and result.output.startswith("dss: ")

    n = sum(refused(call, *([] if "--out" in call else ["--out", out])) for call in calls)
    check(n == len(calls), f"{n} of {len(calls)} bad calls refused, each with a message")
    check(not out.exists(), "nothing was written")
    out.mkdir()
    with FileLock(out / ".lock"):
        check(refused([path, *good, "--out", out]), "a second sweep in one folder")
    shutil.rmtree(out)
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(out)]
    if os.name == "posix" and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            (out / "jobs").mkdir()
            with open(out / "ballast", "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
            check(refused([path, *good, "--out", out]), "a full disk")
        finally:
            subprocess.run(["umount", "--lazy", str(out)], check=True)
    else:
        print("  no file system can be mounted here: a full disk was not tried")
    summary.append(f"{n} bad calls, a second sweep and a full disk refused")


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(1_000)
    print(f"seed {seed}", flush=True)
    dice, clock = random.Random(seed), time.monotonic()
    parts = {
        "sweep": lambda: sweeps_under_fire(scratch, dice),
        "script": lambda: script_under_fire(scratch, dice),
        "reproduce": lambda: reproduce_under_fire(scratch, dice),
        "long grid": long_grid,
        "bad inputs": lambda: bad_inputs(scratch),
    }
    shutil.copytree(ROOT / "dss", SOURCE / "dss")
    shutil.copy(ROOT / "requirements.lock", SOURCE)
    with tempfile.TemporaryDirectory(prefix="dss-torture-") as folder:
        for name, part in parts.items():
            if sys.argv[2:] and name not in sys.argv[2:]:
                continue
            scratch = Path(folder) / name.replace(" ", "_")
            scratch.mkdir()
            print(f"\n{name}", flush=True)
            part()
        if failures and (kept := os.environ.get("DSS_TORTURE_KEEP")):
            shutil.copytree(folder, kept, dirs_exist_ok=True)
    shutil.rmtree(SOURCE)
    print(f"\nseed {seed}, {time.monotonic() - clock:.0f} s")
    for line in summary:
        print(f"  {line}")
    print(f"{len(failures)} checks failed" if failures else "all held")
    for line in failures:
        print(f"  {line}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
