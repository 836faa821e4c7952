"""A search that is killed and called again ends as if it had not been killed."""

import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import dss
from dss import checkpoint, sampling, train


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.fixture
def killed_at(monkeypatch):
    """`killed_at(n)`: the n-th call of `train_to` from here on, and all later ones, end the run."""

    def arm(n):
        calls = []

        def mortal(*arguments, **keywords):
            calls.append(1)
            if len(calls) >= n:
                raise Killed
            return dss.train_to(*arguments, **keywords)

        monkeypatch.setattr(sampling, "train_to", mortal)

    return arm


@pytest.fixture
def call(quad64, quad_pairs, seeded):
    """The search, with a checkpoint or without; also the state of its generator after it."""

    def search(path=None, task=quad64, seed=3, **changes):
        generator = seeded(seed)
        options = quad_pairs.search | {"max_steps": 300} | changes
        theta_1 = options.pop("theta_1", quad_pairs.theta_1)
        if "first_bead" in options:
            options["first_bead"] = task.init(len(theta_1), seeded(options["first_bead"]))
        strings = dss.find_strings(
            task, theta_1, quad_pairs.theta_2, **options, generator=generator, checkpoint=path
        )
        return strings, generator.get_state()

    return search


def assert_same(found, other):
    for a, b in zip(found, other, strict=True):
        for name, value in vars(a).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(b, name))
            else:
                assert repr(value) == repr(getattr(b, name)), name


OPTIONS = [{}, {"t_star": "coarse", "slack": 1.05}, {"max_depth": 2}, {"first_bead": 5}]


@pytest.mark.parametrize("options", OPTIONS)
def test_killed_at_any_level_it_ends_bit_identical(call, killed_at, tmp_path, options):
    undisturbed, state = call(**options)
    levels = max(s.depth for s in undisturbed)
    assert levels >= 2
    for level in range(1, levels + 1):
        path = tmp_path / f"{level}"
        killed_at(level)
        with pytest.raises(Killed):
            call(path, **options)
        assert path.exists()
        killed_at(99)
        again, same_state = call(path, **options)
        assert_same(again, undisturbed)
        assert torch.equal(same_state, state)


def test_killed_again_and_again_it_ends_bit_identical(call, killed_at, tmp_path):
    undisturbed, _ = call()
    for _ in range(30):
        killed_at(2)  # one level at a time
        try:
            found, _ = call(tmp_path / "c")
            break
        except Killed:
            continue
    assert_same(found, undisturbed)


def test_one_pair_alone_has_a_checkpoint(quad64, quad_pairs, tmp_path):
    ends = quad_pairs.theta_1[0], quad_pairs.theta_2[0]
    found = [
        dss.find_string(quad64, *ends, **quad_pairs.search, checkpoint=path)
        for path in (None, tmp_path / "c", tmp_path / "c")
    ]
    assert_same(found[:1] * 2, found[1:])


TRAINING = {"optimizer": "adam", "lr": 1e-2, "max_steps": 2_000}


def no_training(*arguments, **keywords):
    raise AssertionError("something is trained")


def trained(path, task, generator, **changes):
    arguments = {"target": torch.tensor([0.02, 0.01, 0.02])} | TRAINING | changes
    thetas = task.init(3, torch.Generator().manual_seed(1))
    return dss.train_to(task, thetas, **arguments, generator=generator, checkpoint=path)


def drawn(path, task, generator, **changes):
    arguments = {"n": 3, "L0": [0.02, 0.01]} | TRAINING | changes
    return dss.train_endpoints(task, **arguments, generator=generator, checkpoint=path)


def studied(path, task, generator, **changes):
    arguments = {"L0": [0.02, 0.01], "n_pairs": 2} | TRAINING | changes
    strings, table = dss.study(task, **arguments, generator=generator, checkpoint=path)
    return SimpleNamespace(thetas=torch.cat([s.thetas for s in strings]), table=table)


@pytest.mark.parametrize("compute", [trained, drawn, studied])
def test_what_was_trained_is_not_trained_again(compute, seeded, tmp_path, monkeypatch):
    task = dss.quad()
    states, found = [], []
    for path in (None, tmp_path / "c", tmp_path / "c"):
        generator = seeded(5)
        found.append(vars(compute(path, task, generator)))
        states.append(generator.get_state())
        if path:
            monkeypatch.setattr(train, "_train_groups", no_training)
    for other, state in zip(found[1:], states[1:], strict=True):
        assert torch.equal(states[0], state)
        for name, value in found[0].items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: str(a) == str(b)
            assert same(value, other[name]), name
    with pytest.raises(ValueError, match="lr is 0.01 there, 0.02 here"):
        compute(tmp_path / "c", task, seeded(5), lr=0.02)
    with pytest.raises(ValueError, match="generator is"):
        compute(tmp_path / "c", task, seeded(6))


@pytest.mark.parametrize("other", ["activation", "loss", "initial values"])
def test_what_was_trained_with_other_functions_is_refused(other, seeded, tmp_path):
    task = dss.quad()
    trained(tmp_path / "c", task, seeded(5))
    changed = {
        "activation": dss.quad("tanh"),
        "loss": replace(task, loss=task.loss, metric="mae"),
        "initial values": replace(task, init_function=lambda n, g: 2 * task.init(n, g)),
    }[other]
    with pytest.raises(ValueError, match="is of another search"):
        trained(tmp_path / "c", replace(changed, name=task.name), seeded(5))


def own_loss(scale):
    def loss(output, y):
        return scale * (output - y).square().mean()

    return loss


def test_an_edited_loss_function_is_refused(seeded, tmp_path):
    x = torch.linspace(0, 1, 8)[:, None]
    tasks = [
        dss.Task.from_module(torch.nn.Linear(1, 1), own_loss(k), train=(x, x), test=(x, x))
        for k in (1, 10)
    ]
    trained(tmp_path / "c", tasks[0], seeded(5))
    with pytest.raises(ValueError, match="loss of a network is"):
        trained(tmp_path / "c", tasks[1], seeded(5))


def test_training_that_cannot_be_held_is_an_error_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_train_groups", no_training)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        trained(tmp_path / "nowhere" / "c", dss.quad(), None)


def test_a_finished_search_returns_at_once(call, killed_at, tmp_path):
    undisturbed, _ = call(tmp_path / "c")
    killed_at(1)
    again, _ = call(tmp_path / "c")
    assert_same(again, undisturbed)


SIGKILL = """
import os, signal, sys, torch, dss
from dss import sampling
torch.set_num_threads(1)
task, calls, train_to = dss.quad(), [], sampling.train_to

def mortal(*arguments, **keywords):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_to(*arguments, **keywords)

ends = dss.train_endpoints(task, 16, [0.003], **task.train_settings).thetas[0]
sampling.train_to = mortal
strings = dss.find_strings(task, ends[::2], ends[1::2], 0.003, checkpoint=sys.argv[1] or None,
                           **task.settings)
torch.save([s.thetas for s in strings], sys.argv[3])
"""


def test_after_a_real_sigkill(tmp_path):
    def run(path, level, out):
        command = [sys.executable, "-c", SIGKILL, str(path), str(level), str(tmp_path / out)]
        return subprocess.run(command, capture_output=True, text=True)

    assert run("", 0, "undisturbed").returncode == 0
    killed = run(tmp_path / "c", 3, "none")
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "c").exists()
    resumed = run(tmp_path / "c", 0, "resumed")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (torch.load(tmp_path / name) for name in ("undisturbed", "resumed"))
    assert len(a) == 8 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"lr": 0.02}, "lr is 0.01 there, 0.02 here"),
        ({"L0": 0.0031}, "L0 is torch.float64"),
        ({"max_depth": 5}, "max_depth is 6 there, 5 here"),
        ({"t_star": "grid"}, "t_star is 'max' there, 'grid' here"),
        ({"seed": 4}, "seeds is torch.int64 (7,)"),
        ({"task": "eval"}, "test x is"),
        ({"task": "metric"}, "metric is 'mse' there, 'mae' here"),
        ({"theta_1": 1}, "theta_1 is"),
        ({"first_bead": 1}, "insert_first is False there, True here"),
    ],
)
def test_a_checkpoint_of_another_call_is_refused_by_name(
    call, killed_at, quad64, quad_pairs, tmp_path, changes, named
):
    killed_at(3)
    with pytest.raises(Killed):
        call(tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    if "task" in changes:
        x, y = quad64.splits["test"]
        others = {
            "eval": {"splits": quad64.splits | {"test": (x + 1e-9, y)}},
            "metric": {"metric": "mae"},
        }
        changes = {"task": replace(quad64, **others[changes["task"]])}
    if "theta_1" in changes:
        changes = {"theta_1": quad_pairs.theta_1 * (1 + 1e-12)}
    with pytest.raises(ValueError, match="not a readable checkpoint.*of another search") as error:
        call(tmp_path / "c", **changes)
    assert named in str(error.value)
    assert (tmp_path / "c").read_bytes() == content


def test_a_checkpoint_of_another_version_is_refused(call, killed_at, monkeypatch, tmp_path):
    killed_at(3)
    with pytest.raises(Killed):
        call(tmp_path / "c")
    monkeypatch.setattr(checkpoint, "source", lambda *roots: "9.9")
    with pytest.raises(ValueError, match="source of dss is '.*' there, '9.9' here"):
        call(tmp_path / "c")


def test_a_damaged_checkpoint_is_noticed(call, killed_at, tmp_path):
    killed_at(3)
    with pytest.raises(Killed):
        call(tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    flipped = bytearray(content)
    flipped[-9] ^= 4
    for damaged in (b"", content[:100], content[:-8], bytes(flipped)):
        (tmp_path / "c").write_bytes(damaged)
        with pytest.raises(ValueError, match="not a readable checkpoint file"):
            call(tmp_path / "c")


def test_a_checkpoint_that_cannot_be_written_is_an_error_at_once(call, killed_at, tmp_path):
    killed_at(1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        call(tmp_path / "nowhere" / "c")
