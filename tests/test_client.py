"""`find_strings(client=)`: the strings of a local run, whatever becomes of the workers."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import cloudpickle
import distributed
import pytest
import torch
from scratch import nothing_left_behind

import dss
from dss import apart, sampling
from dss.descent import OPTIMIZERS, Training
from dss.runs import grid, workers
from dss.train import train_endpoints

pytestmark = [pytest.mark.timeout(200), pytest.mark.xdist_group("client")]
with_workers = pytest.mark.slow  # they take seconds to start

QUAD = {"optimizer": "adam", "lr": 1e-2, "max_steps": 300, "patience": 200}
DIGITS = {"optimizer": "adam", "lr": 2e-3, "max_steps": 120, "check_every": 10, "batch_size": 128}
MOMENTUM = {"optimizer": "nesterov", "lr": 0.05}


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import this file


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.fixture(scope="module")
def client():
    """Of two workers, each a process of its own."""
    with nothing_left_behind(), grid.local_cluster(2) as cluster, grid.client_of(cluster) as client:
        yield client


@pytest.fixture(autouse=True)
def _stacks_of_a_hang(request):
    """What the workers do when a test has taken long, in its report should it not end in time."""
    if "client" not in request.fixturenames:
        yield
        return
    client = request.getfixturevalue("client")

    def tell():
        for part in (client.processing(), client.call_stack(), client.scheduler_info()):
            print(str(part)[:5000], file=sys.stderr)

    timer = threading.Timer(100, tell)
    timer.start()
    yield
    timer.cancel()


TASKS = {
    "quad": (dss.quad, 0.003, QUAD),
    "quad64": (lambda: dss.quad().to(dtype=torch.float64), 0.003, QUAD),
    "digits": (partial(dss.digits, "mlp", n_eval=200), 0.5, DIGITS),
    "error": (partial(dss.digits, "mlp", "error", n_eval=200), 0.15, DIGITS),
    "cnn": (partial(dss.digits, "cnn", n_eval=100), 0.7, DIGITS),
}


@pytest.fixture(scope="module")
def searches():
    """Calls of `find_strings` by task, of four pairs each: `searches(name)(**changes)`."""

    @cache
    def search_of(name):
        make, L0, training = TASKS[name]
        task = make()
        ends = train_endpoints(task, 8, [L0], **training | {"max_steps": 1_000}).thetas[0]
        options = {"max_depth": 3} | training
        return partial(dss.find_strings, task, ends[::2], ends[1::2], L0, **options)

    return search_of


@pytest.fixture
def jobs(monkeypatch):
    """How many beads there were in each job."""
    sizes = []

    def seen(*arguments):
        for job in apart_jobs(*arguments):
            sizes.append(len(job[2]))
            yield job

    apart_jobs = apart.jobs_of
    monkeypatch.setattr(apart, "jobs_of", seen)
    return sizes


def assert_same(found, other):
    """Bit for bit, in every field."""
    assert len(found) == len(other)
    for a, b in zip(found, other, strict=True):
        for name, value in vars(a).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(b, name)), name
            else:
                assert repr(value) == repr(getattr(b, name)), name


def of_method(method):
    return {"method": method} | (MOMENTUM if method == "averaged" else {})


# --- the same strings


@with_workers
@pytest.mark.parametrize("method", ["paper", "averaged"])
@pytest.mark.parametrize(
    "name, one_a_job",
    [("quad", True), ("quad64", True), ("digits", False), ("error", True), ("cnn", False)],
)
def test_the_strings_are_those_of_the_local_run(name, one_a_job, method, client, searches, jobs):
    search = partial(searches(name), **of_method(method))
    local = search()
    assert max(string.depth for string in local) >= 1 and jobs == []
    assert_same(search(client=client), local)
    assert sum(jobs) > len(jobs) or one_a_job, "several beads at a level"
    assert set(jobs) == {1} or not one_a_job


@with_workers
@pytest.mark.parametrize("name, method", [("digits", "averaged"), ("cnn", "paper")])
def test_groups_of_a_given_size_are_the_same_here_and_there(name, method, client, searches, jobs):
    search = partial(searches(name), side_by_side=1, **of_method(method))
    local = search()
    assert_same(search(client=client), local)
    assert len(jobs) > 2 and set(jobs) == {1}


@with_workers
def test_options_of_a_search_reach_the_workers(client, searches):
    search = partial(searches("quad"), t_star="coarse", slack=1.1, alpha=torch.full((4,), 0.8))
    assert_same(search(client=client), search())
    first_bead = dss.quad().init(4, torch.Generator().manual_seed(1))
    search = partial(searches("quad"), first_bead=first_bead)
    assert_same(search(client=client), search())


@with_workers
def test_a_study_and_one_string_pass_the_client_on(client, jobs):
    task = dss.quad()
    options = {"L0": [0.01, 0.003], "n_pairs": 2, "max_depth": 2} | QUAD
    (found, _), (local, _) = (dss.study(task, client=c, **options) for c in (client, None))
    assert_same(found, local)
    n_jobs = len(jobs)
    assert n_jobs
    ends = local[-1].thetas[[0, -1]]
    one = [
        dss.find_string(task, *ends, 0.003, max_depth=1, insert_first=True, client=c, **QUAD)
        for c in (client, None)
    ]
    assert_same(one[:1], one[1:])
    assert len(jobs) == n_jobs + 1


# --- what company changes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_company_does_not_change_the_bits_of_polynomials(dtype, optimizer):
    task = dss.quad().to(dtype=dtype)
    thetas = task.init(9, torch.Generator().manual_seed(2))
    train = partial(dss.train_to, task, target=0.01, lr=1e-2, max_steps=30, optimizer=optimizer)
    together = train(thetas)
    for size in (1, 2, 4):
        parts = [train(part) for part in thetas.split(size)]
        for name in ("thetas", "losses", "steps"):
            assert torch.equal(
                getattr(together, name), torch.cat([getattr(p, name) for p in parts])
            )


@pytest.mark.parametrize(
    "task, matters",
    [
        (partial(dss.quad), False),
        (partial(dss.quad, "tanh", "huber"), False),
        (partial(dss.digits, "mlp"), True),
        (partial(dss.digits, "mlp", "error"), False),
        (partial(dss.digits, "cnn"), True),
    ],
)
def test_company_is_looked_at_per_task(task, matters):
    for dtype in (torch.float32, torch.float64):
        assert apart.company_matters(task(), Training(), dtype) is matters


def test_networks_that_run_one_at_a_time_are_alone_in_any_company(monkeypatch):
    task = dss.digits("cnn")
    large = replace(task, budget=replace(task.budget, n_activations=10**8))
    monkeypatch.setattr(apart, "train_to", None)  # nothing has to be tried
    assert apart.company_matters(large, Training(), torch.float32) is False


# --- workers and jobs


@with_workers
def test_jobs_go_to_both_workers_and_come_back_in_order(client):
    def where(task, seconds, i):
        time.sleep(seconds)
        return i, task, os.getpid(), torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        run = workers.sender(client, SimpleNamespace(name="a task", x=torch.ones(2)))
    finally:
        torch.set_num_threads(1)
    found = run(where, [(0.3 - i / 20, i) for i in range(6)])
    assert [i for i, *_ in found] == list(range(6))
    assert {threads for *_, threads in found} == {2}
    assert len({pid for *_, pid, _ in found}) == 2 and os.getpid() not in {p for *_, p, _ in found}


def own_loss(action):
    """A squared error that calls `action` each time."""

    def loss(output, y):
        action()
        return (output - y).square().mean()

    return loss


def linear_task(loss):
    x = torch.linspace(0, 1, 16)[:, None]
    module = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    return dss.Task.from_module(module, loss, (x, x * x), (x, x * x), name="own")


def strings_of(task, client, **options):
    ends = task.init(6, torch.Generator().manual_seed(5))
    options = {"insert_first": True, "max_depth": 1, "max_steps": 60} | options
    return dss.find_strings(task, ends[::2], ends[1::2], 9.0, client=client, **options)


def fails(mark, driver):
    if os.getpid() != driver and not os.path.exists(mark):
        if mark:
            open(mark, "w").close()
        raise OSError("no room")


@with_workers
def test_an_error_on_a_worker_is_tried_again_and_then_told(client, tmp_path):
    once = linear_task(own_loss(partial(fails, str(tmp_path / "mark"), os.getpid())))
    assert_same(strings_of(once, client), strings_of(once, None))
    always = linear_task(own_loss(partial(fails, "", os.getpid())))
    with pytest.raises(RuntimeError, match="failed for good on the workers: OSError: no room"):
        strings_of(always, client)


@with_workers
def test_a_worker_with_another_source_is_refused(client, monkeypatch):
    monkeypatch.setattr(workers, "source", lambda: "other")
    with pytest.raises(RuntimeError, match="this worker has dss .* the caller dss other"):
        strings_of(dss.quad(), client)


class Counted:
    """A loss that counts how often it is packed."""

    packed = 0

    def __call__(self, output, y):
        return (output - y).square().mean()

    def __reduce__(self):
        Counted.packed += 1
        return (own_loss, (int,))


@with_workers
def test_the_task_is_sent_once(client, jobs):
    strings_of(linear_task(Counted()), client, side_by_side=1)
    assert len(jobs) == 3 and Counted.packed == 1


# --- checkpoints


@with_workers
@pytest.mark.parametrize("method", ["paper", "averaged"])
@pytest.mark.parametrize("first, then", [("here", "there"), ("there", "here"), ("there", "there")])
def test_a_search_goes_on_elsewhere(first, then, method, client, searches, monkeypatch, tmp_path):
    place = {"here": None, "there": client}
    search = partial(searches("quad"), **of_method(method))
    undisturbed, levels = search(), []
    assert max(string.depth for string in undisturbed) >= 2

    def mortal(*arguments):
        levels.append(1)
        if len(levels) == 2:
            raise Killed
        return measure(*arguments)

    measure = sampling.measure_segments
    monkeypatch.setattr(sampling, "measure_segments", mortal)
    with pytest.raises(Killed):
        search(client=place[first], checkpoint=tmp_path / "c")
    levels.append(1)
    assert_same(search(client=place[then], checkpoint=tmp_path / "c"), undisturbed)


def test_a_checkpoint_of_other_groups_is_refused(searches, tmp_path):
    searches("quad")(checkpoint=tmp_path / "c", max_depth=1)
    with pytest.raises(ValueError, match="side_by_side is nothing there, 1 here"):
        searches("quad")(checkpoint=tmp_path / "c", max_depth=1, side_by_side=1)


# --- what is refused


class NoWait(distributed.Client):
    asynchronous = True

    def __init__(self):
        pass

    __del__ = __init__


@pytest.fixture
def nothing_computed(monkeypatch):
    monkeypatch.setattr(sampling, "begin", None)
    monkeypatch.setattr("dss.studies.train_endpoints", None)


BAD_CLIENTS = ["tcp://127.0.0.1:8786", 2, True, {}, distributed.Client, NoWait()]


@pytest.mark.parametrize("bad", BAD_CLIENTS)
def test_what_is_no_client_is_refused(bad, nothing_computed):
    with pytest.raises(TypeError, match="client is .*; a dask.distributed.Client is needed"):
        strings_of(dss.quad(), bad)
    with pytest.raises(TypeError, match="client is .*; a dask.distributed.Client is needed"):
        dss.study(dss.quad(), [0.01], 2, client=bad)


@with_workers
def test_a_closed_client_is_refused(client, nothing_computed):
    with grid.client_of(client.cluster.scheduler_address) as other:
        pass
    with pytest.raises(ValueError, match="client is closed; one that is connected is needed"):
        strings_of(dss.quad(), other)


def test_without_dask_the_error_says_how_to_install_it(monkeypatch, nothing_computed):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"is missing.*pip install .\[sweep\]"):
        strings_of(dss.quad(), "tcp://127.0.0.1:8786")


@pytest.mark.parametrize(
    "bad, error", [(0, ValueError), (1.5, ValueError), ("2", TypeError), (True, TypeError)]
)
def test_a_bad_size_of_groups_is_refused(bad, error, nothing_computed):
    with pytest.raises(error, match="side_by_side is .*a whole number >= 1 is needed"):
        strings_of(dss.quad(), None, side_by_side=bad)


@with_workers
def test_a_task_that_cannot_be_sent_is_refused(client, nothing_computed):
    lock = threading.Lock()
    task = linear_task(own_loss(lambda: lock.locked()))
    with pytest.raises(TypeError, match="task own cannot be sent.*lock.*without open files, locks"):
        strings_of(task, client)
    with pytest.raises(TypeError, match="task own cannot be sent"):
        dss.study(task, [0.01], 2, client=client)


@with_workers
def test_lambdas_and_classes_of_a_notebook_can_be_sent(client):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x):
            return self.layer(x)

    x = torch.linspace(0, 1, 16)[:, None]
    loss = lambda output, y: (output - y).abs().mean()  # noqa: E731
    task = dss.Task.from_module(Own(), loss, (x, x), (x, x))
    assert_same(strings_of(task, client), strings_of(task, None))
    valley = dss.landscape(lambda v: (v * v).sum(-1), 2)
    assert_same(strings_of(valley, client), strings_of(valley, None))


# --- workers that die, last: they take seconds to start again


def dies(mark, driver, n_calls, calls):
    """Kills a worker at some call, until the file `mark` is there."""
    if os.getpid() == driver:
        return
    calls.append(None)
    if len(calls) == n_calls and not os.path.exists(mark):
        if mark:
            open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)


@with_workers
def test_a_bead_whose_worker_dies_is_run_again(client, tmp_path):
    mark = str(tmp_path / "mark")
    kill = partial(dies, mark, os.getpid(), 15, [])
    task = linear_task(own_loss(kill))
    options = {"alpha": 1e-4, "side_by_side": 1}  # a long descent
    found = strings_of(task, client, **options)
    assert os.path.exists(mark), "a worker died"
    assert max(s.trace[-1]["gradient_steps"] for s in found) > 20
    assert_same(found, strings_of(task, None, **options))


@with_workers
def test_a_bead_that_kills_every_worker_is_an_error(client, monkeypatch):
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)
    task = linear_task(own_loss(partial(dies, "", os.getpid(), 5, [])))
    with pytest.raises(RuntimeError, match="job . of a level failed for good.*KilledWorker"):
        strings_of(task, client, alpha=1e-4)
