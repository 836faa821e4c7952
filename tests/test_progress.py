"""`progress=True`: what the line says is so, and nothing but the line is different."""

import re
import sys
from functools import partial

import pytest
import torch
import tqdm

import dss
from dss import sampling, watch
from dss.runs import workers

FAST = {"lr": 1e-2, "max_steps": 300, "patience": 100}


@pytest.fixture
def search(quad64, quad_pairs, seeded):
    """Four pairs: their strings, and the state of the generator after them."""

    def find(**options):
        generator = seeded(5)
        ends = quad_pairs.theta_1[:4], quad_pairs.theta_2[:4]
        options = quad_pairs.search | {"max_depth": 4} | options
        return dss.find_strings(quad64, *ends, **options, generator=generator), generator

    return find


@pytest.fixture
def every_check(monkeypatch):
    """Each check of a descent is shown."""
    monkeypatch.setattr(watch, "SECONDS", 0)
    monkeypatch.setattr(watch, "SECONDS_OF_LOGS", 0)


def lines_of(capsys):
    """What was shown on stderr, and nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    return [line.strip() for line in re.split(r"[\r\n]+", err) if line.strip()]


def same(a, b):
    for name, value in vars(a).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(b, name)), name
        else:
            assert repr(value) == repr(getattr(b, name)), name


@pytest.mark.parametrize("method", ["paper", "averaged"])
def test_a_search_that_is_watched_finds_the_same(search, every_check, capsys, method):
    plain, generator = search(method=method)
    assert lines_of(capsys) == []
    watched, after = search(method=method, progress=True)
    assert torch.equal(generator.get_state(), after.get_state())
    for a, b in zip(plain, watched, strict=True):
        same(a, b)


@pytest.mark.parametrize("method", ["paper", "averaged"])
def test_the_line_says_what_the_traces_say(search, every_check, capsys, method):
    strings, _ = search(method=method, progress=True)
    lines = lines_of(capsys)
    n_levels = max(string.depth for string in strings) + 1
    assert n_levels > 2
    for depth in range(n_levels):
        rows = [s.trace[depth] for s in strings if len(s.trace) > depth]
        is_open = [row for row in rows if row["open_segments"]]
        n_open = sum(row["open_segments"] for row in is_open)
        n_done = len(strings) - len(is_open)
        said = f"level {depth} of 4: {n_done} of 4 pairs done"
        line = next(x for x in lines if x.startswith(said) and f" {n_open} open segments" in x)
        steps = sum(r["gradient_steps"] for s in strings for r in s.trace[: depth + 1])
        assert depth == 0 or f"{steps:,} gradient steps" in line
        if is_open:
            worst = max(row["Gamma_tilde"] for row in is_open) / strings[0].L0
            assert f"worst loss {worst:.3g} L0" in line
    assert lines[-1].startswith(f"level {n_levels - 1} of 4: 4 of 4 pairs done")
    assert lines[-1].endswith(f"{steps:,} gradient steps")


def test_the_steps_of_a_level_are_shown_while_its_beads_descend(search, every_check, capsys):
    search(progress=True, check_every=7, alpha=0.5)
    shown = [re.search(r"(\d+) networks at step (\d+), worst", x) for x in lines_of(capsys)]
    steps = [int(found[2]) for found in shown if found]
    assert {7, 14, 21} <= set(steps)
    assert all(step % 7 == 0 or step == 600 for step in steps)


def test_a_descent_is_shown_once_in_a_while_only(search, capsys, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 1e9)
    monkeypatch.setattr(watch, "SECONDS_OF_LOGS", 1e9)
    search(progress=True)
    lines = lines_of(capsys)
    assert [line for line in lines if line.startswith("level 1 of 4")]
    assert not [line for line in lines if "at step" in line]


def test_training_shows_what_is_done(quad64, every_check, capsys, seeded):
    thetas = quad64.init(3, seeded())
    plain = dss.train_to(quad64, thetas, 0.01, **FAST)
    assert lines_of(capsys) == []
    trained = dss.train_to(quad64, thetas, 0.01, **FAST, progress=True)
    same(plain, trained)
    last = lines_of(capsys)[-1]
    assert last.startswith("3 of 3 networks done")
    assert last.endswith(f"{int(trained.steps.sum()):,} gradient steps")
    dss.train_endpoints(quad64, 2, [0.02, 0.01], **FAST, progress=True)
    assert lines_of(capsys)[-1].startswith("4 of 4 endpoints done")


def test_a_study_shows_its_endpoints_and_its_search(quad64, capsys):
    plain, table = dss.study(quad64, [0.02], 2, **FAST)
    assert lines_of(capsys) == []
    strings, again = dss.study(quad64, [0.02], 2, **FAST, progress=True)
    for a, b in zip(plain, strings, strict=True):
        same(a, b)
    assert table.equals(again)
    lines = lines_of(capsys)
    assert lines[0].startswith("0 of 4 endpoints done")
    assert "2 of 2 pairs done" in lines[-1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_search_that_ends_early_closes_its_line(search, monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "train_to", fail)
        with pytest.raises(error):
            search(progress=True)
    assert not list(tqdm.tqdm._instances)
    assert "0 of 4 pairs done" in lines_of(capsys)[-1]
    search()
    assert lines_of(capsys) == []


def test_a_resumed_search_begins_at_its_level(search, monkeypatch, tmp_path, capsys):
    """It was begun without a line: that does not count as another call."""
    plain, _ = search()
    calls = []

    def mortal(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return dss.train_to(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "train_to", mortal)
        with pytest.raises(KeyboardInterrupt):
            search(checkpoint=tmp_path / "c")
    assert lines_of(capsys) == []
    strings, _ = search(checkpoint=tmp_path / "c", progress=True)
    for a, b in zip(plain, strings, strict=True):
        same(a, b)
    levels = [re.match(r"level (\d) of 4", line) for line in lines_of(capsys)]
    assert [int(found[1]) for found in levels if found][0] == 2


def test_jobs_of_workers_are_counted(search, monkeypatch, capsys):
    def run_each(_, function, points, __):
        for i, point in enumerate(points):
            yield i, None, function(point), None

    def sender(_, task):
        here = workers.source(), torch.__version__, torch.get_num_threads()
        return partial(workers._run, None, task, here)

    monkeypatch.setattr(workers, "run_each", run_each)
    monkeypatch.setattr(sampling, "sender", sender)
    monkeypatch.setattr(sampling, "check_client", lambda client: None)
    plain, _ = search()
    strings, _ = search(client="a client", side_by_side=1, progress=True)
    assert [s.status for s in plain] == [s.status for s in strings]
    assert any("4 jobs of the workers ended" in line for line in lines_of(capsys))


CALLS = {
    "find_strings": lambda task, thetas, p: dss.find_strings(task, thetas, thetas, 9.0, progress=p),
    "find_string": lambda task, thetas, p: dss.find_string(task, *thetas, 9.0, progress=p),
    "study": lambda task, thetas, p: dss.study(task, [9.0], 1, progress=p),
    "train_to": lambda task, thetas, p: dss.train_to(task, thetas, 9.0, progress=p),
    "train_endpoints": lambda task, thetas, p: dss.train_endpoints(task, 1, [9.0], progress=p),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", ["yes", 1, None, [True]])
def test_a_progress_that_is_no_bool_is_refused(quad64, call, value):
    with pytest.raises(TypeError, match=f"progress is {re.escape(repr(value))}; True or False"):
        CALLS[call](quad64, quad64.init(2), value)


@pytest.mark.parametrize("call", CALLS)
def test_without_tqdm_it_is_refused_before_anything_runs(quad64, monkeypatch, call):
    thetas = quad64.init(2)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(type(quad64), "losses", None)
    monkeypatch.setattr(type(quad64), "init", None)
    with pytest.raises(ImportError, match="progress is True, and tqdm is missing"):
        CALLS[call](quad64, thetas, True)
