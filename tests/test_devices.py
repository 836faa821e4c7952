"""Where tensors lie: on a device that only pretends, all is as on the CPU; and so it is on CUDA.

What the first covers and what not stands in `pretended`, whose own tests come first.  Where torch
finds CUDA the same work is done there too.  Kernels round in another order there, so that numbers
are compared to the digits that float32 and float64 leave.
"""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pretended import DEVICE, pretended
from torch import Tensor, nn

import dss
from dss import recursion, sampling, studies, tasks
from dss.geometry import neighbours
from dss.networks import memory
from dss.networks.architectures import resnet
from dss.proofs import checker

HERE, INDEX = torch.arange(6.0).view(2, 3), torch.tensor([1, 0])

# Of a tensor here and its copy there; every one ends with an error on CUDA.
REFUSED = {
    "a sum": lambda here, there: here + there,
    "a product in place": lambda here, there: there.mul_(here),
    "a change of what is here": lambda here, there: torch.tensor(1.0).add_(there.sum()),
    "cat": lambda here, there: torch.cat([here, there]),
    "stack": lambda here, there: torch.stack([here[0, 0], there[0, 0]]),
    "lerp": lambda here, there: torch.lerp(there, there, here),
    "lerp by a number here": lambda here, there: torch.lerp(there, there, torch.tensor(0.5)),
    "where": lambda here, there: torch.where(there > 1, there, here),
    "a condition here": lambda here, there: torch.where(here > 1, there, there),
    "a matrix product": lambda here, there: there @ here.T,
    "equal": lambda here, there: torch.equal(here, there),
    "gather": lambda here, there: there.gather(0, INDEX[:, None]),
    "an index there": lambda here, there: here[INDEX.to(DEVICE)],
    "values from here": lambda here, there: there.index_put_((INDEX,), here),
    "numpy": lambda here, there: there.numpy(),
    "an array": lambda here, there: np.asarray(there),
    "draws": lambda here, there: torch.randn(3, device=DEVICE, generator=torch.Generator()),
    "draws in place": lambda here, there: there.normal_(generator=torch.Generator()),
    "vmap": lambda here, there: torch.vmap(torch.add)(here, there),
}

ALLOWED = {
    "numbers": lambda v: 2 * v - 1,
    "a number here": lambda v: v * torch.tensor(2.0),
    "where with a number": lambda v: torch.where(v > 1, v, torch.inf),
    "an index here": lambda v: v[INDEX],
    "a list": lambda v: v[:, [0, -1]],
    "an array": lambda v: v[np.array([1])],
    "a mask here": lambda v: v[HERE > 1],
    "a list of values": lambda v: v + torch.tensor([1.0, 2.0, 3.0], device=v.device),
    "values": lambda v: torch.as_tensor(np.ones(3), device=v.device),
    "a slice from here": lambda v: v.clone()[:1].copy_(HERE[1:]),
    "item": lambda v: [v.sum().item(), float(v.max()), bool(v.any()), v.tolist(), f"{v.sum():.1f}"],
    "a layer": lambda v: nn.Linear(3, 2).requires_grad_(False).to(v.device).double().weight.shape,
}


def written(v: Tensor, index, values) -> Tensor:
    v = v.clone()
    v[index] = values
    return v


ALLOWED |= {
    "written by a list": lambda v: written(v, (slice(None), [0, -1]), 7.0),
    "a number written": lambda v: written(v, INDEX, torch.tensor(3.0)),
    "a slice written": lambda v: written(v, slice(1), HERE[1]),
}


def bits(value):
    """What a value holds, so that `==` sees every bit of it."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
        return str(value.dtype), value.shape, flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, dss.Task):
        return value.name
    if dataclasses.is_dataclass(value):
        return bits(vars(value))
    if isinstance(value, dict):
        return {name: bits(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [bits(v) for v in value]
    return value.to_csv() if isinstance(value, pd.DataFrame) else repr(value)


def close(there, here) -> bool:
    """Whether two values agree, but for what another order of sums changes."""
    if isinstance(here, Tensor):
        there, here = there.detach().cpu(), here.detach()
        if not here.is_floating_point():
            return torch.equal(there, here)
        digits = 1e-4 if here.dtype == torch.float32 else 1e-6  # some losses come from float32
        rows = (here, there) if here.dim() > 1 else (here[None], there[None])
        for one, other in zip(*rows, strict=True):  # a large network hides no wrong one beside it
            largest = float(one.nan_to_num(0, 0, 0).abs().max()) if one.numel() else 0.0
            allowed = {"rtol": 0, "atol": digits * largest, "equal_nan": True}
            torch.testing.assert_close(other, one, **allowed)
        return True
    if isinstance(here, dss.Task):
        return there.name == here.name
    if isinstance(here, np.ndarray) and here.dtype.kind in "biuf":
        return close(torch.as_tensor(there), torch.as_tensor(here))
    if dataclasses.is_dataclass(here):
        return close(vars(there), vars(here))
    if isinstance(here, dict):
        return there.keys() == here.keys() and all(close(there[k], here[k]) for k in here)
    if isinstance(here, list | tuple):
        return len(there) == len(here) and all(map(close, there, here))
    if isinstance(here, pd.DataFrame):
        return close(there.to_dict("list"), here.to_dict("list"))
    if isinstance(here, float):
        return math.isclose(there, here, rel_tol=1e-4, abs_tol=1e-12) or there == here
    return repr(there) == repr(here)


CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA"))


@pytest.fixture(params=["pretended", CUDA])
def on_both(request, monkeypatch):
    """Compare what work gives on the CPU and on a device; it is given what moves a task there."""
    is_real = request.param == "cuda"
    for limits in (memory.CHUNK_ELEMENTS, memory.MOST_OF_OTHERS):
        monkeypatch.setitem(limits, "cuda" if is_real else DEVICE.type, limits["cpu"])

    def compare(work):
        here = work(lambda task: task)
        if is_real:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            assert close(work(lambda task: task.to("cuda")), here)
            assert torch.cuda.max_memory_allocated() > before, "nothing was done there"
            return
        with pretended() as device:
            there = bits(work(lambda task: task.to(device)))
        assert there == bits(here)

    return compare


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(name):
    refused = "same device|cannot draw|can't convert"
    with pretended(), pytest.raises((RuntimeError, TypeError), match=refused):
        REFUSED[name](HERE.clone(), HERE.to(DEVICE))


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_gives_the_same(name):
    with pretended():
        found = ALLOWED[name](HERE.to(DEVICE))
    if isinstance(found, Tensor):
        assert found.device == DEVICE
    assert bits(found) == bits(ALLOWED[name](HERE))


def test_gradients_and_vmap_stay_there():
    def slope(v):
        leaf = v.clone().requires_grad_()
        values = torch.vmap(lambda row: torch.sin(row).prod() + row[INDEX[0]])(leaf)
        return torch.autograd.grad(values.sum(), leaf)[0]

    with pretended():
        found = slope(HERE.to(DEVICE))
    assert found.device == DEVICE and bits(found) == bits(slope(HERE))


def test_what_is_empty_holds_nothing_of_use():
    with pretended():
        assert torch.empty(3, device=DEVICE).isnan().all()
        with pytest.raises(IndexError):
            HERE.to(DEVICE)[torch.empty(1, dtype=torch.int64, device=DEVICE)]


# Each is right on a CPU, and an error on CUDA.
BUGS = {
    "zeros without a device": lambda theta: (theta + torch.zeros(2)).square().sum(-1),
    "a tensor of the CPU in where": lambda theta: torch.where(
        theta > 0, theta, torch.ones(2, dtype=theta.dtype)
    ).sum(-1),
    "a generator of the CPU": lambda theta: (
        theta * torch.rand(2, generator=torch.Generator(), device=theta.device)
    ).sum(-1),
    "numpy": lambda theta: theta.sum(-1) + float(np.sin(theta.detach().numpy()).sum()),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name):
    task = dss.landscape(BUGS[name], 2)
    thetas = task.init(3)
    assert task.losses(thetas).isfinite().all()
    with pretended(), pytest.raises((RuntimeError, TypeError)):
        task.to(DEVICE).losses(thetas)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x)[0][:, -1])


def samples(*shape: int, n: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(n) % 3


def from_module(module: nn.Module, *shape: int, **keywords) -> dss.Task:
    return dss.Task.from_module(
        module, "cross_entropy", samples(*shape), samples(*shape, n=9), **keywords
    )


NORMED = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
TASKS = {
    "quad": dss.quad,
    "quad of the authors": lambda: dss.quad(preset="authors", n_train=50, n_eval=50),
    "polynomial": lambda: dss.polynomial([0.1, 0.5], "tanh", "huber"),
    "mnist": dss.mnist,
    "mnist of the authors": lambda: dss.mnist(preset="authors", n_eval=4),
    "digits": lambda: dss.digits(n_eval=20),
    "digits, error": lambda: dss.digits("cnn", "error", n_eval=20),
    "cifar10": lambda: dss.cifar10("cnn", n_train=12, n_eval=12),
    "cifar10, resnet8": lambda: dss.cifar10("resnet8", n_train=12, n_eval=4),
    "landscape": lambda: dss.problems.PROBLEMS["valley"].task("valley"),
    "MLP": lambda: from_module(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), 4),
    "CNN": lambda: from_module(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)), 1, 6, 6,
        eval_chunk=4,
    ),
    "ResNet": lambda: from_module(dss.batch_statistics(resnet(1, 1)), 1, 8, 8),
    "BatchNorm beside a reference": lambda: from_module(
        dss.batch_statistics(nn.Sequential(*NORMED), samples(1, 6, 6)[0]), 1, 6, 6
    ),
    "adapter": lambda: from_module(
        nn.Sequential(nn.Linear(4, 5).requires_grad_(False), nn.ReLU(), nn.Linear(5, 3)), 4,
        trainable="requires_grad",
    ),
}  # fmt: skip


@pytest.fixture
def small_images(monkeypatch):
    """Loaders of images that read nothing."""
    kept = lambda n_train, n_eval: (samples(3, 32, 32), samples(3, 32, 32, n=n_eval))  # noqa: E731
    monkeypatch.setattr(
        tasks, "load_cifar10", lambda *n: (kept(*n), SimpleNamespace(kind="official"))
    )
    monkeypatch.setattr(tasks, "load_mnist", lambda: (samples(1, 28, 28), samples(1, 28, 28)))


@pytest.mark.parametrize("name", TASKS)
def test_tasks(name, on_both, small_images, seeded):
    built = TASKS[name]()

    def work(move):
        task = move(built)
        thetas = task.init(2, seeded())
        batch = torch.arange(4, device=task.device) if task.splits else slice(None)
        found = [thetas, task.losses(thetas), task.losses(thetas.cpu())]
        found += [task.gradients(thetas, batch, seeded())]
        found += [task.losses_between(thetas[:1], thetas[1:], torch.linspace(0, 1, 3))]
        found += [dss.train_to(task, thetas, 1e-9, max_steps=1, batch_size=4, optimizer="sgd")]
        if task.module is not None:
            network = task.network(thetas[0])
            found += [task.outputs(thetas, task.splits["test"][0].cpu()[:2])]
            found += [dss.flatten(network), task.network(thetas[0].double()).state_dict()]
            assert all(v.device.type == task.device.type for v in network.state_dict().values())
        return found

    on_both(work)


def test_recurrent_networks(seeded):
    """torch computes them on a CPU in a way of its own, so that the last bits are others."""
    task = from_module(Recurrent(), 4, 3).to(dtype=torch.float64)
    thetas = task.init(2, seeded())
    expected = task.losses(thetas), *task.gradients(thetas)
    with pretended():
        found = task.to(DEVICE).losses(thetas), *task.to(DEVICE).gradients(thetas.to(DEVICE))
    for there, here in zip(found, expected, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-12, atol=1e-14)


SEARCH = {"L0": 0.02, "lr": 0.01, "optimizer": "adam", "max_steps": 25, "check_every": 5}


@pytest.fixture(scope="module")
def ends():
    """QUAD in double precision, and two networks low enough."""
    task = dss.quad(n_train=16, n_eval=16).to(dtype=torch.float64)
    trained = dss.train_endpoints(task, 2, [SEARCH["L0"] / 2], lr=0.01, optimizer="adam")
    return task, trained.thetas[0]


OPTIONS = {
    "paper": {},
    "averaged": {"method": "averaged", "L0": 0.01},
    "coarse, apart": {"t_star": "coarse", "insert_first": True, "side_by_side": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_searches_and_what_follows_them(options, on_both, ends, tmp_path):
    def work(move):
        task = move(ends[0])
        string = dss.find_string(task, *ends[1], max_depth=2, n_t=9, **SEARCH | options)
        read = dss.String.load(string.save(tmp_path / "string"))
        assert read.connected
        proof = dss.certify(task, read, budget=4)
        told = checker.check_certificate(proof.save(tmp_path / "proof"))
        tight = dss.tighten(task, [string, read], max_rounds=1)
        table = dss.compare_paths(task, {"found": string.thetas, "read": read.thetas}, 5)
        network = string.module(1).state_dict()
        return string, read, proof, told, tight, table, network, string.summary()

    on_both(work)


def test_a_mask_from_a_file(on_both, tmp_path, seeded):
    def work(move):
        task = move(dss.quad(preset="authors", n_train=16, n_eval=16))
        thetas = dss.theta.points_along(task.init(3, seeded()), torch.linspace(0, 1, 4))
        L0 = 2 * dss.Gamma_tilde(task, thetas, 5)
        string = dss.find_string(task, thetas[0], thetas[-1], L0, n_t=5)
        bent = dataclasses.replace(string, thetas=thetas)
        read = dss.String.load(bent.save(tmp_path / "string"))
        assert read.connected and read.n_beads == 2
        return dss.tighten(task, [read, bent], max_rounds=2)

    on_both(work)


@pytest.mark.parametrize("method", ["paper", "averaged"])
def test_a_search_goes_on_where_it_was_killed(method, on_both, ring, tmp_path, monkeypatch):
    a, b = dss.problems.PROBLEMS["ring"].ends()
    whole = sampling._search_level

    def work(move):
        call = {"L0": 0.05, "method": method, "lr": 0.02, "max_steps": 40, "max_depth": 3}
        task, path = move(ring), tmp_path / f"search {move(ring).device}"
        levels = iter(range(1))

        def killed(*arguments):
            if next(levels, None) is None:
                raise KeyboardInterrupt
            return whole(*arguments)

        monkeypatch.setattr(sampling, "_search_level", killed)
        with pytest.raises(KeyboardInterrupt):
            dss.find_string(task, a, b, checkpoint=path, **call)
        monkeypatch.setattr(sampling, "_search_level", whole)
        resumed = dss.find_string(task, a, b, checkpoint=path, **call)
        again = dss.find_string(task, a, b, checkpoint=path, **call)
        assert bits(resumed) == bits(dss.find_string(task, a, b, **call)) == bits(again)
        return resumed

    on_both(work)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("name", ["bezier", "one_bend", "auto_neb", "layer_wise"])
def test_neighbours(name, averaged, on_both, ends):
    def work(move):
        task, thetas = move(ends[0]), ends[1]
        found = getattr(neighbours, name)(
            task, thetas[0], thetas[1], SEARCH["L0"] / 10**6 + float(task.losses(thetas).max()),
            averaged=averaged, max_steps=12, check_every=6,
        )  # fmt: skip
        if name == "bezier":
            return found, found.length, found.normalized_length, found.string(task, 4)
        return found

    on_both(work)


def test_studies(on_both, ring, tmp_path):
    options = {"lr": 0.05, "max_steps": 30, "max_depth": 2, "n_t": 5, "patience": 20}

    def work(move):
        task, folder = move(ring), tmp_path / str(move(ring).device)
        folder.mkdir()
        call = {"L0": [0.3, 0.1], "n_pairs": 2} | options
        first, again = (dss.study(task, checkpoint=folder / "s", **call) for _ in range(2))
        assert bits(first) == bits(again)
        return first, studies.descending_study(task, offer=True, **call)

    on_both(work)


def test_the_algorithm_one_network_at_a_time(on_both, ends):
    def work(move):
        task = move(ends[0])
        pair = ends[1].to(task.device)
        return recursion.find_string(task, *pair, 0.015, max_depth=1, n_t=5, max_steps=5)

    on_both(work)


def test_memory_of_any_device(monkeypatch):
    budget = memory.Budget(100, torch.device("meta"))
    assert 2**26 <= memory.free_memory(torch.device("mps")) < 2**50
    assert budget.chunk_elements(torch.float32) == memory.CHUNK_ELEMENTS["cuda"]
    told = SimpleNamespace(
        mem_get_info=lambda device: (2**30, 2**32),
        memory_reserved=lambda device: 2**28,
        memory_allocated=lambda device: 2**27,
    )
    monkeypatch.setattr(torch, "xpu", told)
    assert memory.free_memory(torch.device("xpu")) == 2**30 + 2**27
