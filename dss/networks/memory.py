"""A task: a network, its loss, and the fixed samples on which losses are measured."""

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from dss.networks import (
    LOSSES,
    can_be_stacked,
    check_module,
    check_sample,
    lookup,
    losses_between,
    reset_parameters_of,
    split_after_first,
    stacked_gradients,
    stacked_losses,
    stacked_outputs,
    with_layers_apart,
)
from dss.theta import check_theta, interpolate, shapes_of

# Activations that one chunk of networks may hold: a CPU's last-level cache, enough to fill a GPU.
# On CPUs a wide vmap makes large convolutional networks slower than one by one; this size runs
# thousands of QUAD networks side by side, six small CNNs and one of the authors' CNNs
# (`make bench` measures it).
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}


TRAINING_SETTINGS = ("optimizer", "lr", "batch_size", "max_steps", "patience", "check_every")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Task:
    """A learning problem as the algorithm sees it: flat vectors in, losses out.

    Build one with `quad`, `polynomial`, `mnist`, `digits`, `landscape` or `Task.from_module`.

    Attributes:
        name: what the task is called in tables and messages.
        n_params: P, the length of a flat vector `theta`.
        metric: name of the metric; L0, gamma and Gamma_tilde are in its unit.
        loss: name of the loss that training descends.
        settings: keyword arguments for `find_strings` that suit the task or its preset.
        splits: `train` and `test`, each a pair `(x, y)` on the task's device; empty for a
            landscape.  `test` is chi, the fixed evaluation set of Sec. II.A.
        length_mask: `(P,)` bool, the parameters that count in the normalized length; None: all.
        memory: MiB for what work on this task holds at a time, beside its strings: activations,
            the state of training, interpolated networks.  None: a quarter of what is free, and
            activations that fill a cache or a GPU.
    """

    name: str
    n_params: int
    metric: str
    loss: str
    init_function: Callable[[int, torch.Generator], Tensor] = field(repr=False)
    module: nn.Module | None = field(default=None, repr=False)
    function: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    loss_function: Callable | None = field(default=None, repr=False)
    metric_function: Callable | None = field(default=None, repr=False)
    splits: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    settings: Mapping = field(default_factory=dict)
    batch_size: int | None = None
    eval_chunk: int | None = None
    noise: Callable | None = field(default=None, repr=False)
    n_activations: int = field(default=1, repr=False)
    n_fixed: int = field(default=0, repr=False)
    stacks: bool = field(default=True, repr=False)
    length_mask: Tensor | None = field(default=None, repr=False)
    memory: float | None = None
    _learned: dict = field(default_factory=dict, repr=False)
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    @property
    def train_settings(self) -> dict:
        """The part of `settings` that `train_to` takes, to train endpoints in the same way."""
        return {name: v for name, v in self.settings.items() if name in TRAINING_SETTINGS}

    def init(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` networks from the initial distribution.

        Args:
            n: how many.
            generator: CPU generator; a new one with seed 0 by default.  Network i does not depend
                on `n`.

        Returns:
            `(n, P)` in the task's dtype, on its device.

        Raises:
            ValueError: n < 1.
        """
        if n < 1:
            raise ValueError(f"n is {n}; at least one network is needed")
        generator = generator or torch.Generator().manual_seed(0)
        return self.init_function(n, generator).to(self.device, self.dtype)

    def losses(self, thetas: Tensor, split: str = "test") -> Tensor:
        """The metric of each network on a whole fixed sample, without gradient.

        Args:
            thetas: `(N, P)`, floating point, on any device.
            split: `"test"` (the evaluation set) or `"train"`.

        Returns:
            `(N,)` in the dtype of `thetas`, on the task's device.  A network with NaN gives NaN.

        Raises:
            TypeError: thetas is not floating point.
            ValueError: another shape, or an unknown split.

        Paper: E(L(X, theta), chi), Sec. II.A.
        """
        if split not in ("test", "train"):
            raise ValueError(f"split is {split!r}; 'test' and 'train' are known")
        thetas = check_theta(thetas, "thetas", (None, self.n_params)).to(self.device)
        if len(thetas) == 0:
            return thetas.new_empty(0)
        if self.function is not None:
            with torch.no_grad():
                return self.function(thetas).to(thetas.dtype)

        def values(rows: slice, x: Tensor, y: Tensor) -> Tensor:
            outputs = stacked_outputs(self.module, thetas[rows], x)
            return stacked_losses(self.metric_function, outputs, y)

        return self._measure(values, len(thetas), split, thetas.dtype)

    def losses_between(self, theta_1: Tensor, theta_2: Tensor, t: Tensor) -> Tensor:
        """The metric of the interpolated models of S segments at every t of a grid.

        Args:
            theta_1, theta_2: `(S, P)`.
            t: `(n_t,)`, or `(S, n_t)` with a grid for each segment, in [0, 1].

        Returns:
            `(S, n_t)`, as `losses` of the interpolated models up to rounding.

        Paper: Eq. (2), Sec. II.A.
        """
        theta_1, theta_2 = theta_1.to(self.device), theta_2.to(self.device)
        t = t.to(theta_1).expand(len(theta_1), t.shape[-1])
        if len(t) == 0:
            return theta_1.new_empty(t.shape)
        if self.stacks and self.module is not None and split_after_first(self.module):

            def values(rows: slice, x: Tensor, y: Tensor) -> Tensor:
                ends = theta_1[rows], theta_2[rows]
                return losses_between(self.module, self.metric_function, *ends, t[rows], x, y)

            return self._measure(values, len(theta_1), "test", theta_1.dtype)
        # All points of all segments at a time fit neither caches nor, for large networks, memory.
        limit = self.chunk_elements(theta_1.dtype) / self.n_params
        size = max(1, int(min(self.rows_that_fit(3, theta_1.dtype), limit)))
        segment = torch.arange(len(theta_1), device=self.device).repeat_interleave(t.shape[1])
        parts = [
            self.losses(interpolate(theta_1[s], theta_2[s], t_s))
            for s, t_s in zip(segment.split(size), t.reshape(-1).split(size), strict=True)
        ]
        return torch.cat(parts).view(t.shape)

    def outputs(self, thetas: Tensor, x: Tensor) -> Tensor:
        """What each network answers to some inputs, without gradient.

        Args:
            thetas: `(N, P)`.
            x: `(B, ...)`.

        Returns:
            `(N, B, ...)` on the task's device.

        Raises:
            ValueError: the task is an explicit landscape, which has no outputs.
        """
        if self.module is None:
            raise ValueError(f"{self.name} is an explicit function of theta; it has no outputs")
        thetas, x = thetas.to(self.device), x.to(self.device)
        x = x.to(thetas.dtype) if x.is_floating_point() else x

        def answer(rows: slice) -> Tensor:
            return stacked_outputs(self.module, thetas[rows], x)

        with torch.no_grad():
            return torch.cat(self.by_rows(answer, len(thetas), len(x), thetas.dtype))

    def gradients(
        self,
        thetas: Tensor,
        batch: Tensor | slice = slice(None),
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Training loss of each network on one batch, and its gradient.

        Args:
            thetas: `(N, P)` on the task's device.
            batch: indices into the training sample; all of it by default.
            generator: CPU generator for training noise (dropout), where the task has any.

        Returns:
            losses `(N,)` and gradients `(N, P)`.

        Raises:
            ValueError: thetas has another shape.
        """
        if thetas.shape[1:] != (self.n_params,):  # at every step: what is right must cost nothing
            check_theta(thetas, "thetas", (None, self.n_params))
        if self.function is not None:
            leaf = thetas.detach().requires_grad_()
            values = self.function(leaf)
            return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]
        x, y = self._sample(batch, thetas.dtype, "train")
        noise = () if self.noise is None else self.noise(len(x), generator, self.device)

        def descend(rows: slice) -> tuple[Tensor, Tensor]:
            arguments = self.module, self.loss_function, thetas[rows].detach(), x, y, *noise
            return stacked_gradients(*arguments)

        found = self.by_rows(descend, len(thetas), len(x), thetas.dtype)
        if len(found) == 1:
            return found[0]
        losses, gradients = zip(*found, strict=True)
        return torch.cat(losses), torch.cat(gradients)

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        memory: float | None = None,
    ) -> "Task":
        """The same task on another device, in another precision, or with another memory budget.

        Args:
            device: a torch device; `"auto"` takes CUDA where there is one; None keeps it.
            dtype: floating-point dtype that `init` returns; None keeps it.
            memory: MiB that work on the task may hold at a time; None keeps it.  Networks are
                then trained and measured in groups that fit, one network at the least.

        Returns:
            A new `Task`; this one stays as it is.

        Raises:
            TypeError: dtype is not floating point.
            ValueError: memory is not > 0.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        device, dtype = torch.device(device or self.device), dtype or self.dtype
        if not dtype.is_floating_point:
            raise TypeError(f"dtype is {dtype}; a floating-point dtype is needed")

        if memory is not None and not memory > 0:
            raise ValueError(f"memory is {memory} MiB; it must be > 0")

        def move(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        return replace(
            self,
            module=self.module and copy.deepcopy(self.module).to(device, dtype),
            splits={name: (move(x), move(y)) for name, (x, y) in self.splits.items()},
            length_mask=None if self.length_mask is None else self.length_mask.to(device),
            memory=self.memory if memory is None else memory,
            _learned={},
            device=device,
            dtype=dtype,
        )

    def rows_that_fit(self, copies: int, dtype: torch.dtype) -> int:
        """How many networks fit the memory budget when each takes `copies` flat vectors."""
        budget = free_memory(self.device) / 4 if self.memory is None else self.memory * 2**20
        return max(1, int(budget / (copies * self.n_params * dtype.itemsize)))

    def _measure(self, values: Callable, n: int, split: str, dtype: torch.dtype) -> Tensor:
        """Mean over a sample of `values(rows, x, y)`, one or several for each of `n` rows."""
        x, y = self._sample(slice(None), dtype, split)
        step = min(self.eval_chunk or len(x), len(x))
        parts = list(zip(x.split(step), y.split(step), strict=True))

        def mean_over_parts(rows: slice) -> Tensor:
            if len(parts) == 1:
                return values(rows, x, y).to(dtype)
            return sum(len(b) / len(y) * values(rows, a, b).to(dtype) for a, b in parts)

        with torch.no_grad():
            return torch.cat(self.by_rows(mean_over_parts, n, step, dtype))

    def chunk_elements(self, dtype: torch.dtype) -> float:
        """Numbers that networks side by side may hold, activations and parameters."""
        limit = CHUNK_ELEMENTS.get(self.device.type, CHUNK_ELEMENTS["cuda"])
        if self.memory is not None:  # each held three times: results, gradients, temporaries
            limit = min(limit, self.memory * 2**20 / (3 * dtype.itemsize))
        return min(limit, self._learned.get("elements", limit))

    def _sample(self, part: Tensor | slice, dtype: torch.dtype, split: str) -> tuple:
        x, y = self.splits[split]
        if not isinstance(part, slice):
            x, y = x[part], y[part]
        if x.dtype == y.dtype == dtype:
            return x, y
        return tuple(v.to(dtype) if v.is_floating_point() else v for v in (x, y))

    def by_rows(
        self, work: Callable[[slice], T], n: int, n_samples: int, dtype: torch.dtype
    ) -> list[T]:
        """`work` on groups of rows that run side by side; out of CUDA memory, on halves of them."""
        per_network = n_samples * self.n_activations + self.n_fixed + self.n_params
        size = max(1, int(self.chunk_elements(dtype) / per_network)) if self.stacks else 1
        size = math.ceil(n / max(1, math.ceil(n / size)))  # of even sizes
        start, found = 0, []
        while start < n:
            try:
                found.append(work(slice(start, min(start + size, n))))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = math.ceil(size / 2)
                self._learned["elements"] = size * per_network
            else:
                start += size
        return found

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        loss: str | Callable,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        metric: str | Callable | None = None,
        init: Callable[[int, torch.Generator], Tensor] | None = None,
        batch_size: int | None = None,
        eval_chunk: int | None = None,
        name: str | None = None,
        settings: Mapping | None = None,
    ) -> "Task":
        """A task from any network.

        Args:
            module: takes x `(B, ...)` and returns outputs `(B, ...)`.  It is copied.  Its buffers
                serve all networks of the task.
            loss: what training descends: a name from `LOSSES`, or a function of (output, y) that
                returns the mean over the batch as a scalar.
            train, test: pairs (x, y) of tensors with the same number of samples.
            metric: what L0 is measured in, given like `loss`; the loss by default.
            init: draws `(n, P)` from (n, generator); by default every layer's own
                `reset_parameters`.
            batch_size: samples per gradient step; None: the whole training sample.
            eval_chunk: samples per forward pass when losses are measured, to bound memory; needs
                a metric that is a mean over samples.  None: all at once.
            name: by default the class of the module.
            settings: keyword arguments for `find_strings` to keep with the task.

        Raises:
            TypeError: a sample is no pair of tensors, or is of integers where floats are needed.
            ValueError: BatchNorm running statistics, or those of a batch with an eval_chunk;
                active dropout, spectral_norm, layers in plain lists or in a circle, parameters of
                which some are frozen, a network in DataParallel or TorchScript, an unknown loss,
                samples that do not fit the network or each other, or no parameters.
        """
        module = getattr(module, "_orig_mod", module)  # what torch.compile was given
        check_module(module, eval_chunk)
        module = with_layers_apart(module)
        shapes = shapes_of(module)
        n_params = sum(shape.numel() for shape in shapes.values())
        if n_params == 0:
            raise ValueError(f"{type(module).__name__} has no parameter to train")
        metric = loss if metric is None else metric
        functions = [lookup(LOSSES, f, "loss") if isinstance(f, str) else f for f in (loss, metric)]
        first, splits = next(module.parameters()), {}
        dtype = first.dtype
        for split, sample in (("train", train), ("test", test)):
            is_list = isinstance(sample, tuple | list)
            held = [type(v).__name__ for v in sample] if is_list else [type(sample).__name__]
            if len(held) != 2 or not all(isinstance(v, Tensor) for v in sample):
                raise TypeError(
                    f"{split} is {', '.join(held)}; a pair (x, y) of tensors is needed (of arrays "
                    "torch.as_tensor makes them, a TensorDataset holds them as .tensors)"
                )
            x, y = sample
            if len(x) != len(y) or len(x) == 0:
                raise ValueError(
                    f"{split}: {len(x)} inputs and {len(y)} targets; need as many, > 0"
                )
            x, y = (v.to(dtype) if v.is_floating_point() else v for v in (x, y))
            splits[split] = (x, y)
            for function, descends in zip(functions, (True, False), strict=True):
                n_activations, n_fixed = check_sample(module, function, x, y, split, descends)
        return cls(
            name=name or type(module).__name__,
            n_params=n_params,
            metric=_name_of(metric),
            loss=_name_of(loss),
            init_function=init or partial(reset_parameters_of, module),
            module=module,
            loss_function=functions[0],
            metric_function=functions[1],
            splits=splits,
            settings=dict(settings or {}),
            batch_size=batch_size,
            eval_chunk=eval_chunk,
            n_activations=n_activations,
            n_fixed=n_fixed,
            stacks=can_be_stacked(module, splits["train"][0]),
            dtype=dtype,
        ).to(first.device)


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take on a device, 64 MiB at the least."""
    if device.type == "cuda":
        own_cache = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(2**26, torch.cuda.mem_get_info(device)[0] + own_cache)
    info, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not info.exists():  # not Linux: say 4 GiB
        return 2**32
    free = 1024 * int(re.search(r"MemAvailable: +(\d+)", info.read_text())[1])
    limit = group / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        # Files that were read count as used, but make way.
        files = re.search(r"(?m)^file (\d+)", (group / "memory.stat").read_text())[1]
        used = int((group / "memory.current").read_text()) - int(files)
        free = min(free, int(text) - used)
    return max(2**26, free)


def _name_of(function: str | Callable) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", "loss")
