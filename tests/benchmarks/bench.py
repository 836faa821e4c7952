"""How fast, where the time goes, and how it grows: one table per section, and a CSV of them all.

    python tests/benchmarks/bench.py [--device cuda] [--out FILE] [SECTION ...]

Ratios within a run mean something; single seconds on a shared machine do not.  `hundred_thousand`
takes six minutes; it and `graphs`, which needs CUDA, run only when they are named.
"""

import argparse
import itertools
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import dss
import dss.networks.architectures
import dss.networks.memory
import dss.task
from dss import recursion, sampling
from dss.descent import TRAINING_SETTINGS
from dss.networks.modes import full_float32
from dss.networks.sequences import WordGPT, WordLSTM

PROJECT = Path(__file__).resolve().parents[2]


def seconds(function, *arguments, repeats: int = 1, **keywords) -> float:
    """Median wall time of a call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function(*arguments, **keywords)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def seeded(seed: int = 0) -> torch.Generator:
    """The benchmark's seeds are its own."""
    return torch.Generator().manual_seed(1_000 + seed)


def starts_of(task, n: int, L0: float, **training) -> torch.Tensor:
    """`n` initial networks that reach L0: many QUAD networks never get there."""
    found, generator = [], seeded()
    while sum(map(len, found)) < n:
        thetas = task.init(max(64, n), generator)
        trained = dss.train_to(task, thetas, L0, **training, generator=seeded())
        found.append(thetas[trained.reached])
    return torch.cat(found)[:n]


def search(task, starts, L0: float, **options):
    """Endpoints, then strings between them; returns the strings and all gradient steps."""
    training = {name: v for name, v in options.items() if name in TRAINING_SETTINGS}
    ends = sampling.train_to(task, starts, L0, generator=seeded(), **training)
    first, second = ends.thetas[0::2], ends.thetas[1::2]
    strings = sampling.find_strings(task, first, second, L0, generator=seeded(), **options)
    return strings, int(ends.steps.sum()) + sum(s.gradient_steps for s in strings)


@contextmanager
def steps_counted():
    """A list of the gradient steps of every descent of the plain loop."""
    steps, train_to = [], recursion.train_to

    def counted(*arguments, **keywords):
        trained = train_to(*arguments, **keywords)
        steps.append(trained[2])
        return trained

    with mock.patch.object(recursion, "train_to", counted):
        yield steps


def pairs(device: str) -> list[dict]:
    """1. QUAD, batched against one module, one bead after the other; the same strings."""
    task, L0, n_loop, rows = dss.quad(), 0.01, 16, []
    options = task.train_settings
    starts = starts_of(task.to(device), 2 * 4096, L0, **options)

    def one_by_one(n: int) -> list:  # on the CPU, where it is fastest
        beads = []
        for pair in starts[: 2 * n].cpu().split([2] * n):
            ends = [recursion.train_to(task, theta, L0, **options)[0] for theta in pair]
            between, connected = recursion.find_string(task, *ends, L0, **options)
            beads.append(between if connected else None)
        return beads

    def row(how, n, connected, steps, ms, speedup) -> dict:
        row = {"threads": torch.get_num_threads(), "how": how, "pairs": n, "connected": connected}
        return row | {"steps_per_pair": steps / n, "ms_per_pair": ms / n, "speedup": speedup}

    for threads in (1, 2) if task.to(device).device.type == "cpu" else (1,):
        torch.set_num_threads(threads)
        with steps_counted() as steps:
            beads = one_by_one(n_loop)  # to warm up, and to compare
        connected, ms = n_loop - beads.count(None), 1e3 * seconds(one_by_one, n_loop)
        rows.append(row("one by one", n_loop, connected, sum(steps), ms, 1.0))
        for n in (1, 8, 64, 128, 512, 1024, 4096):
            run = task.to(device), starts[: 2 * n], L0
            strings, steps = search(*run, t_star="grid", **options)
            if n == 64:
                here = [s.n_beads if s.connected else None for s in strings[:n_loop]]
                assert here == [b if b is None else len(b) for b in beads], "not the same strings"
            # The machine's speed drifts, so that loop and batch take turns.
            n_against, times = min(n, n_loop), []
            for _ in range({1: 5, 128: 3, 1024: 3}.get(n, 1)):
                alone = seconds(one_by_one, n_against) / n_against
                batched = seconds(search, *run, t_star="grid", **options)
                times.append((alone / batched * n, 1e3 * batched))
            speedup, ms = map(statistics.median, zip(*times, strict=True))
            connected = sum(s.connected for s in strings)
            rows.append(row("batched", n, connected, steps, ms, speedup))
    torch.set_num_threads(1)
    return rows


class Shares:
    """Wall time by what it was spent on, while `measuring`; innermost names get the time."""

    def __init__(self):
        self.spent, self.stack = defaultdict(float), []

    def wrap(self, function, name):
        def timed(*arguments, **keywords):
            here = name(self.stack) if callable(name) else name
            started = time.perf_counter()
            self.stack.append([here, 0.0])
            try:
                result = function(*arguments, **keywords)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                return result
            finally:
                took, inner = time.perf_counter() - started, self.stack.pop()[1]
                self.spent[here] += took - inner
                if self.stack:
                    self.stack[-1][1] += took

        return timed

    @contextmanager
    def measuring(self):
        """Patches `dss`, and restores it."""

        def inside(name, other):
            return lambda stack: name if any(s[0] == name for s in stack) else other

        gamma = inside("interpolated losses", "threshold checks")
        descend = inside("endpoints", "beads")
        places = [
            (dss.task.Task, "gradients", descend),
            (dss.task.Task, "losses", gamma),
            (dss.task.Task, "losses_between", "interpolated losses"),
            (sampling, "segment_maxima", "interpolated losses"),
            (sampling, "train_to", lambda stack: "beads" if stack else "endpoints"),
            (sampling, "find_strings", "bookkeeping"),
        ]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
        for owner, name, what in places:
            setattr(owner, name, self.wrap(getattr(owner, name), what))
        try:
            yield self
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)


def shares(device: str) -> list[dict]:
    """2 and 3. Seconds and gradient evaluations to connected strings, and where the time goes."""
    images = {"n_t": 21}  # as in 03_mnist and the authors' script
    cases = [
        (dss.quad(), 64, (0.01, 0.001), {}),
        (dss.mnist("mlp"), 1, (0.3, 0.2), images),
        (dss.mnist("mlp"), 8, (0.3, 0.2), images),
        (dss.mnist("cnn"), 1, (0.3, 0.15), images),
        (dss.mnist("cnn"), 8, (0.3, 0.15), images),
    ]
    rows = []
    for task, n, thresholds, options in cases:
        task, options = task.to(device), task.settings | options
        for L0 in thresholds:
            starts = task.init(2 * n, seeded())
            if task.batch_size is None:
                starts = starts_of(task, 2 * n, L0, **task.train_settings)
            meter, started = Shares(), time.perf_counter()
            with meter.measuring():
                strings, steps = search(task, starts, L0, **options)
            took = time.perf_counter() - started
            row = {
                "task": task.name,
                "L0": L0,
                "pairs": n,
                "connected": sum(s.connected for s in strings),
            }
            row |= {"s_per_pair": took / n, "steps_per_pair": steps / n}
            names = ("endpoints", "beads", "interpolated losses", "threshold checks", "bookkeeping")
            rows.append(row | {f"{name} %": 100 * meter.spent[name] / took for name in names})
    return rows


def settings(device: str) -> list[dict]:
    """Gradient steps per QUAD pair under other settings, failed pairs included; same endpoints.

    The benchmark's seeds are not those on which the settings were chosen (100 and 101).
    """
    task, thresholds, n, rows = dss.quad().to(device), (0.01, 0.003, 0.001), 128, []
    ends = dss.train_endpoints(task, 2 * n, list(thresholds), seeded()).thetas
    first, second = (ends[:, k::2].reshape(-1, task.n_params) for k in (0, 1))
    L0 = torch.tensor(thresholds, dtype=torch.float64).repeat_interleave(n)
    plain = {"optimizer": "rmsprop", "lr": 1e-3}
    cases = {
        "rmsprop 1e-3, as first written": plain,
        "rmsprop 3e-3": plain | {"lr": 3e-3},
        "adam 1e-2, the task's": task.settings,
        "rmsprop 1e-3, t* = 1/2": plain | {"t_star": "midpoint"},
        "rmsprop 1e-3, batches of 64": plain | {"batch_size": 64, "check_every": 1},
    }
    for name, options in cases.items():
        strings = dss.find_strings(task, first, second, L0, generator=seeded(), **options)
        for k, threshold in enumerate(thresholds):
            here = strings[k * n : (k + 1) * n]
            good = [s for s in here if s.connected]
            row = {"settings": name, "L0": threshold, "connected": len(good), "pairs": n}
            row["steps_per_pair"] = statistics.fmean(s.gradient_steps for s in here)
            row["beads"] = statistics.fmean(s.n_beads for s in good)
            row["length"] = statistics.fmean(s.normalized_length for s in good)
            rows.append(row)
    return rows


def growth(device: str) -> list[dict]:
    """4. How cost grows with the depth, 1/L0 and the evaluation set, for 64 QUAD pairs."""
    rows, n = [], 64

    def add(what, value, task, L0, **options):
        starts, started = starts_of(task, 2 * n, L0, **task.train_settings), time.perf_counter()
        strings, steps = search(task, starts, L0, **task.settings, **options)
        took = time.perf_counter() - started
        row = {"grows": what, "to": value, "connected": sum(s.connected for s in strings)}
        rows.append(row | {"ms_per_pair": 1e3 * took / n, "steps_per_pair": steps / n})

    quad = dss.quad().to(device)
    for depth in (0, 1, 2, 4, 8):
        add("depth, L0=.003", depth, quad, 0.003, max_depth=depth)
    for L0 in (0.1, 0.03, 0.01, 0.003, 0.001):
        add("1/L0", round(1 / L0), quad, L0)
    for n_eval in (64, 256, 1024, 4096):
        add("evaluation set", n_eval, dss.quad(n_eval=n_eval).to(device), 0.01)
    return rows


def parameters(device: str) -> list[dict]:
    """4. How the cost of a step grows with the parameters: 16 networks side by side."""

    def images(*widths):
        base = dss.mnist("mlp")
        module = nn.Sequential(nn.Flatten(), *dss.networks.architectures.mlp([784, *widths, 10]))
        return dss.Task.from_module(
            module, "cross_entropy", *(base.splits[s] for s in ("train", "test")), eval_chunk=500
        )

    small = [dss.quad(hidden=(w, w)) for w in (4, 16, 64)]
    cases = [(f"1-{w}-{w}-1", t) for w, t in zip((4, 16, 64), small, strict=True)]
    cases += [(f"784-{w}-{w}-10", images(w, w)) for w in (32, 256)]
    cases += [("small CNN", dss.mnist("cnn"))]
    rows = []
    for name, task in cases:
        task = task.to(device)
        batch = torch.arange(128, device=task.device)
        thetas = task.init(16, seeded())
        calls = {
            "gradient_ms": (task.gradients, (thetas, batch), 16),
            "losses_ms": (task.losses, (thetas,), 16),
            "gamma_ms": (dss.interpolated_loss, (task, thetas[:2], thetas[2:4]), 2),
        }
        row = {"network": name, "parameters": task.n_params}
        row["evaluated_on"] = len(task.splits["test"][0])
        for column, (call, arguments, n) in calls.items():
            call(*arguments)
            row[column] = 1e3 * seconds(call, *arguments, repeats=3) / n
        rows.append(row)
    return rows


def memory(device: str) -> list[dict]:
    """4. Peak memory of whole runs, each in a process of its own."""
    rows = []
    for n, budget in ((1, 4096), (512, 4096), (4096, 4096), (4096, 64)):
        command = [sys.executable, __file__, "--device", device, "--peak", str(n), str(budget)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(dict(zip(PEAK, map(float, done.stdout.split()), strict=True)))
    return rows


PEAK = ("pairs", "budget_MiB", "before_MiB", "peak_MiB", "seconds", "connected")


def peak(device: str, n: int, budget: int) -> list[float]:
    """One QUAD run at L0 = .01 under a memory budget; see `PEAK`."""
    task = dss.quad().to(device, memory=budget)
    used = partial(peak_MiB, task.device.type)
    before, started = used(), time.perf_counter()
    ends = dss.train_endpoints(task, 2 * n, [0.01], seeded(), **task.train_settings).thetas[0]
    strings = dss.find_strings(task, ends[::2], ends[1::2], 0.01, **task.settings)
    took = time.perf_counter() - started
    return [n, budget, before, used(), took, sum(s.connected for s in strings)]


def peak_MiB(device: str = "cpu") -> float:
    """The most that this process has held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # `ru_maxrss` would count what the parent held before this process began.
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024


def hundred_thousand(device: str) -> list[dict]:
    """100,000 QUAD pairs on a budget of 4 GiB."""
    return [dict(zip(PEAK, peak(device, 100_000, 4096), strict=True))]


def roofline(device: str) -> list[dict]:
    """What stops it: operations and bytes of a QUAD gradient against what the machine can do."""
    task = dss.quad().to(device)
    a = torch.randn(1024, 1024, device=task.device)
    block = torch.randn(2**24, device=task.device)
    into = torch.empty_like(block)
    near = torch.randn(2**17, device=task.device)
    near_into = torch.empty_like(near)
    torch.mm(a, a)
    flops = 2 * 1024**3 / seconds(torch.mm, a, a, repeats=9)
    far_rate = 2 * block.nbytes / seconds(into.copy_, block, repeats=9)
    near_rate = 2 * near.nbytes / seconds(near_into.copy_, near, repeats=99)
    # Per network and sample: 2 operations per weight forward and 4 back (2 in the first layer).
    # Floats moved: each of 3 layers reads its input and writes its output, the activation reads and
    # writes once more; going back twice as much.
    units = [1, 4, 4, 1]
    weights = [i * o for i, o in zip(units, units[1:], strict=False)]
    operations = 128 * (6 * sum(weights) - 2 * weights[0])
    floats = 3 * sum(i + 3 * o for i, o in zip(units, units[1:], strict=False))
    moved = 4 * 128 * floats
    rows = []
    for n in (1, 16, 256, 1024, 4096):
        thetas = task.init(n, seeded())
        task.gradients(thetas)
        took = seconds(task.gradients, thetas, repeats=9) / n
        row = {"networks": n, "us_per_gradient": 1e6 * took, "Gflop/s": operations / took / 1e9}
        row |= {"GB/s": moved / took / 1e9, "matmul_Gflop/s": flops / 1e9}
        rows.append(row | {"copy_GB/s": far_rate / 1e9, "cache_copy_GB/s": near_rate / 1e9})
    return rows


def chunks(device: str) -> list[dict]:
    """How many networks should run side by side: ms per network against the size of a chunk."""
    cases = [
        (dss.quad(), slice(None), (64, 512, 1024, 4096), (1024, 4096, 16384, 65536)),
        (dss.mnist("mlp"), 128, (1, 4, 16), (1, 16, 128, 512)),
        (dss.mnist("cnn"), 128, (1, 2, 4, 8), (1, 8, 32, 128, 256)),
    ]
    rows = []
    for task, batch, *sizes_of in cases:
        task = task.to(device)
        sizes = sizes_of[task.device.type != "cpu"]
        thetas = task.init(max(sizes), seeded())
        n = len(task.splits["train"][0]) if isinstance(batch, slice) else batch
        batch = batch if isinstance(batch, slice) else torch.arange(batch, device=task.device)
        default = dict(dss.networks.memory.CHUNK_ELEMENTS)
        for size in (*sizes, None):
            if size is not None:
                per_network = n * task.budget.n_activations + task.n_params
                dss.networks.memory.CHUNK_ELEMENTS[task.device.type] = size * per_network
            task.gradients(thetas, batch)
            took = seconds(task.gradients, thetas, batch, repeats=3)
            dss.networks.memory.CHUNK_ELEMENTS.update(default)
            row = {"task": task.name, "networks": len(thetas), "chunk": size or "default"}
            rows.append(row | {"gradient_ms": 1e3 * took / len(thetas)})
    return rows


def layout(device: str) -> list[dict]:
    """A grid of the authors' MNIST network on 1,000 digits, by the layout of its images."""
    authors, rows = dss.mnist(preset="authors", n_eval=1_000).to(device), []
    x, y = authors.splits["test"]
    thetas = authors.init(2, seeded())
    formats = {"first": torch.contiguous_format, "last": torch.channels_last}
    for channels, chunk in itertools.product(formats, (500, 250)):
        images = x.to(memory_format=formats[channels])
        task = replace(authors, splits={"test": (images, y)}, eval_chunk=chunk)
        took = seconds(dss.Gamma_tilde, task, thetas, 11, repeats=3)
        rows.append({"channels": channels, "eval_chunk": chunk, "s": took})
    return [row | {"ratio": rows[0]["s"] / row["s"]} for row in rows]


def neighbours(device: str) -> list[dict]:
    """10. Other methods between the same networks: ratios to DSS with running means, by pair."""
    from dss.geometry.neighbours import auto_neb, bezier

    task, L0, n_pairs = dss.digits(network="mlp").to(device), 0.2, 8
    methods = {
        "DSS, averaged": (dss.find_string, {"method": "averaged"}),
        "DSS, paper": (dss.find_string, dict(task.settings)),
        "Bezier": (bezier, {"lr": 0.2}),
        "Bezier, averaged": (bezier, {"lr": 0.2, "averaged": True}),
        "AutoNEB": (auto_neb, {"lr": 0.05}),
    }
    ends = dss.train_endpoints(task, 2 * n_pairs, [L0], seeded(), **task.train_settings).thetas[0]
    rows = []
    for pair in range(n_pairs):  # the machine's speed drifts, so that methods take turns
        for method, (find, options) in methods.items():
            begun = time.perf_counter()
            path = find(task, *ends[2 * pair : 2 * pair + 2], L0, generator=seeded(), **options)
            spent = {"gradients": path.gradient_steps, "passes": path.forward_passes}
            spent["seconds"] = time.perf_counter() - begun
            rows.append({"pair": pair, "method": method, "connected": path.connected} | spent)
    table = pd.DataFrame(rows).set_index("pair")
    ours = table[table.method == "DSS, averaged"]
    result = []
    for method, of_method in table.groupby("method", sort=False):
        row = {"method": method, "connected": int(of_method.connected.sum())}
        for name in ("gradients", "passes", "seconds"):
            row[f"{name}_ratio"] = float((of_method[name] / ours[name]).median())
        result.append(row)
    return result


def gpt(width: int = 128, context: int = 64, n_layers: int = 4) -> nn.Module:
    return WordGPT(65, context, width, n_layers, n_heads=4)


def lstm(width: int = 128) -> nn.Module:
    return WordLSTM(65, width, n_layers=2)


def classes_second(output: torch.Tensor) -> torch.Tensor:
    """What cross-entropy wants of logits `(B, T, V)`; those of images `(B, C)` stay."""
    return output.movedim(-1, 1)


# Networks that people bring, by name: how they are made, the shape of their inputs, the batch.
BROUGHT = {
    "ResNet-20": (lambda: dss.networks.architectures.resnet(3), (3, 32, 32), 128),
    "GPT, 4 layers": (gpt, (64,), 32),
    "LSTM, 2 layers": (lstm, (64,), 32),
}
# Some that are small enough to run side by side.
SMALL = {
    "small CNN": (lambda: dss.networks.architectures.small_cnn(28), (1, 28, 28), 32),
    "ResNet-8, 8x8": (lambda: dss.networks.architectures.resnet(1), (3, 8, 8), 8),
    "ResNet-8, 16x16": (lambda: dss.networks.architectures.resnet(1), (3, 16, 16), 32),
    "GPT, 2 layers, 16 wide": (lambda: gpt(16, 16, 2), (16,), 8),
    "GPT, 2 layers, 32 wide": (lambda: gpt(32, 32, 2), (32,), 16),
}


def made(make, shape: tuple, n: int) -> tuple:
    """A network and random samples `(x, y)`; inputs with one axis are tokens."""
    torch.manual_seed(0)
    is_text = len(shape) == 1
    x = torch.randint(65, (n, *shape)) if is_text else torch.randn(n, *shape)
    return make(), x, x.roll(-1, dims=1) if is_text else torch.randint(10, (n,))


def task_of(net: nn.Module, train: tuple, test: tuple, n_reference: int = 2, **options):
    """A task of a network; BatchNorm's reference is the first training samples."""
    if any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()):
        net = dss.batch_statistics(net, train[0][:n_reference])
    options |= {"output": classes_second}
    return dss.Task.from_module(net, "cross_entropy", train, test, **options)


def gradient_of(name: str, way: str, device: str, precision: str | None = None):
    """A call that computes one gradient, in a plain loop or through a task."""
    net, x, y = made(*BROUGHT[name])
    if way == "task":
        task = task_of(net, (x, y), (x, y)).to(device)
        theta = task.theta(net)[None].to(task.device)
        batch = torch.arange(len(x), device=task.device)
        return lambda: task.gradients(theta, batch, precision=precision)
    place = dss.quad().to(device).device
    net, x, y = net.to(place), x.to(place), y.to(place)

    def plain() -> None:
        net.zero_grad()
        with full_float32:  # as the task computes
            nn.functional.cross_entropy(classes_second(net(x)), y).backward()

    return plain


def own_networks(device: str) -> list[dict]:
    """11. Networks that people bring: a gradient beside a plain PyTorch loop."""
    rows = []
    for name in BROUGHT:
        calls = {way: gradient_of(name, way, device) for way in ("plain", "task")}
        MiB = {way: MiB_of_tensors(call) for way, call in calls.items()}
        row = {"network": name, "what": "gradient, task over plain loop"}
        row["seconds_ratio"] = ratio_of_seconds(calls["task"], calls["plain"])
        row |= {"MiB_ratio": MiB["task"] / MiB["plain"], "plain_MiB": MiB["plain"]}
        net, x, y = made(*BROUGHT[name])
        if not torch.cuda.is_initialized():  # a task is made on the CPU
            row["MiB_to_make"] = MiB_of_tensors(partial(task_of, net, (x, y), (x, y)))
        rows.append(row)
        lower = gradient_of(name, "task", device, "bfloat16")
        row = {"network": name, "what": "gradient, float32 over bfloat16"}
        rows.append(row | {"seconds_ratio": ratio_of_seconds(calls["task"], lower)})
    for name in SMALL:
        rows += side_by_side(name, device)
    return rows + [passes_of_gamma(device)]


def side_by_side(name: str, device: str) -> list[dict]:
    """Eight small networks one by one, over as many side by side as the task does, and over all."""
    net, x, y = made(*SMALL[name])
    task, rows = task_of(net, (x, y), (x, y)).to(device), []
    thetas, budget = task.init(8, seeded()), dss.networks.memory.Budget

    def run(call: str, most: int | None = None) -> None:
        limit = budget.side_by_side if most is None else lambda *_: most
        with mock.patch.object(budget, "side_by_side", limit):
            getattr(task, call)(thetas)

    for call in ("gradients", "losses"):
        row = {"network": name, "what": f"{call}, one by one over side by side"}
        row["side_by_side"] = min(8, task.budget.side_by_side(len(x), torch.float32))
        row["seconds_ratio"] = ratio_of_seconds(partial(run, call, 1), partial(run, call))
        row["ratio_of_all_8"] = ratio_of_seconds(partial(run, call, 1), partial(run, call, 8))
        rows.append(row)
    return rows


def spent() -> float:
    """Seconds of this thread, which other jobs delay but do not use; with CUDA, until it is done
    with what it was given, by the clock."""
    if not torch.cuda.is_initialized():
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def ratio_of_seconds(one, other, repeats: int = 5) -> float:
    """Median ratio of what two calls take, one after the other."""
    ratios = []
    for call in (one, other):
        call()
    for _ in range(repeats):
        marks = [spent()]
        for call in (one, other):
            call()
            marks.append(spent())
        ratios.append((marks[1] - marks[0]) / (marks[2] - marks[1]))
    return statistics.median(ratios)


def MiB_of_tensors(call) -> float:
    """The most that tensors hold at a time during a call, beside those that were there before."""
    call()  # what is made once, the gradients of a plain loop, is there already
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(n_bytes for _, n_bytes in changes)) / 2**20


def passes_of_gamma(device: str) -> dict:
    """Images that pass a ResNet in an evaluation of gamma, over those of the evaluation set."""
    n_t, n_eval, name = 5, 2_000, "ResNet-8, 8x8"
    net, x, y = made(*SMALL[name][:2], n_eval)
    sample, n_reference = (x, y), n_eval // 10
    task = task_of(net, sample, sample, n_reference=n_reference, eval_chunk=250).to(device)
    task.budget.stacks, seen = False, []  # side by side a layer is called once for all
    task.module[0].register_forward_hook(lambda layer, given, found: seen.append(len(given[0])))
    dss.interpolated_loss(task, *task.init(2, seeded()), n_t)
    ratio = sum(seen) / (n_t * n_eval)
    return {"network": name, "what": "images passed in gamma", "passes_ratio": ratio}


def recorded(call) -> torch.cuda.CUDAGraph:
    """A call as a CUDA graph; torch asks for some calls before, on a stream of their own."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        graph.result = call()
    return graph


def graphs(device: str) -> list[dict]:
    """12. CUDA only: a gradient that is called over one that was recorded and is replayed."""
    images, words = torch.arange(128), torch.arange(20)
    cases = [
        (dss.quad(), slice(None), (1, 64, 4096)),
        (dss.digits(), slice(None), (1, 16, 256)),
        (dss.mnist("mlp"), images, (1, 16, 128)),
        (dss.mnist("cnn"), images, (1, 16, 128)),
        (dss.cifar10("resnet8", n_train=256, n_eval=64), images, (1, 8)),
        (dss.ptb("lstm", n_train=64, n_eval=64), words, (1,)),
        (dss.ptb("gpt", n_train=64, n_eval=64), words, (1, 8)),
    ]
    rows = []
    for task, batch, sizes in cases:
        task = task.to(device)
        batch = batch if isinstance(batch, slice) else batch.to(task.device)
        for n in sizes:
            thetas = task.init(n, seeded())
            call = partial(task.gradients, thetas, batch)
            graph = recorded(call)
            graph.replay()
            again = torch.equal(call()[1], call()[1])
            row = {"task": task.name, "networks": n, "equal_twice": again}
            row["replay_is_equal"] = torch.equal(graph.result[1], call()[1])
            row["called_ms"] = 1e3 * seconds(call, repeats=15)
            row["replayed_ms"] = 1e3 * seconds(graph.replay, repeats=15)
            rows.append(row | {"ratio": row["called_ms"] / row["replayed_ms"]})
    return rows


SECTIONS = (pairs, shares, settings, growth, parameters, memory, roofline, chunks, layout)
SECTIONS += (neighbours, own_networks)


def main() -> None:
    """Run the sections, print their tables, write them all to one CSV."""
    known = {f.__name__: f for f in (*SECTIONS, graphs, hundred_thousand)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*known, []], metavar="SECTION")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, default=PROJECT / "build" / "bench" / "bench.csv")
    parser.add_argument("--peak", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        print(*peak(given.device, *given.peak))
        return
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(given.device)
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    else:
        print(f"CPU, one thread unless said otherwise, torch {torch.__version__}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    tidy, begun = [], time.perf_counter()
    if "graphs" in given.sections and device.type != "cuda":
        parser.error("graphs needs CUDA, and the device is the CPU")
    for name in given.sections or [f.__name__ for f in SECTIONS]:
        table = pd.DataFrame(known[name](given.device))
        title, took = known[name].__doc__.splitlines()[0], time.perf_counter() - begun
        print(f"\n{title}  [{name}, {took:.0f} s]")
        print(table.to_string(index=False, float_format=lambda v: f"{v:.4g}"), flush=True)
        tidy.append(table.assign(row=range(len(table))).melt("row").assign(section=name))
        pd.concat(tidy).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
