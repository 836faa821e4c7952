"""A task: a network, its loss, and the fixed samples on which losses are measured."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from dss.networks import (
    LOSSES,
    can_be_stacked,
    check_module,
    check_sample,
    lookup,
    reset_parameters_of,
    stacked_outputs,
)
from dss.theta import check_theta, shapes_of

# Activations that one chunk of networks may hold: a CPU's last-level cache, enough to fill a GPU.
# On CPUs a wide vmap makes large convolutional networks slower than one by one; this size runs
# thousands of QUAD networks side by side, six small CNNs and one of the authors' CNNs
# (`make bench` measures it).
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}


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
    stacks: bool = field(default=True, repr=False)
    length_mask: Tensor | None = field(default=None, repr=False)
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    @property
    def train_settings(self) -> dict:
        """The part of `settings` that `train_to` takes, to train endpoints in the same way."""
        names = ("optimizer", "lr", "batch_size", "max_steps", "patience", "check_every")
        return {name: self.settings[name] for name in names if name in self.settings}

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
        x, y = self.splits.get(split, (None, None))
        n_samples = 1 if x is None else len(x)
        step = min(self.eval_chunk or n_samples, n_samples)
        values = torch.zeros(len(thetas), dtype=thetas.dtype, device=self.device)
        with torch.no_grad():
            for rows in self._chunks(len(thetas), step):
                for start in range(0, n_samples, step):
                    part = slice(start, min(start + step, n_samples))
                    share = (part.stop - start) / n_samples
                    value = self._values(thetas[rows], self.metric_function, x, y, part)
                    values[rows] += value if share == 1 else share * value
        return values

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
        with torch.no_grad():
            rows = self._chunks(len(thetas), len(x))
            return torch.cat([stacked_outputs(self.module, thetas[r], x) for r in rows])

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
        """
        x, y = self.splits.get("train", (None, None))
        if isinstance(batch, Tensor):
            x, y, batch = x[batch], y[batch], slice(None)
        n_samples = 1 if x is None else len(x)
        noise = () if self.noise is None else self.noise(n_samples, generator, self.device)
        losses, gradients = [], []
        for rows in self._chunks(len(thetas), n_samples):
            leaf = thetas[rows].detach().requires_grad_()
            values = self._values(leaf, self.loss_function, x, y, batch, *noise)
            gradients += torch.autograd.grad(values.sum(), leaf)
            losses.append(values.detach())
        return torch.cat(losses), torch.cat(gradients)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None):
        """The same task with its samples on another device or in another precision.

        Args:
            device: a torch device; `"auto"` takes CUDA where there is one; None keeps it.
            dtype: floating-point dtype that `init` returns; None keeps it.

        Returns:
            A new `Task`; this one stays as it is.

        Raises:
            TypeError: dtype is not floating point.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        device, dtype = torch.device(device or self.device), dtype or self.dtype
        if not dtype.is_floating_point:
            raise TypeError(f"dtype is {dtype}; a floating-point dtype is needed")

        def move(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        return replace(
            self,
            module=self.module and copy.deepcopy(self.module).to(device, dtype),
            splits={name: (move(x), move(y)) for name, (x, y) in self.splits.items()},
            length_mask=None if self.length_mask is None else self.length_mask.to(device),
            device=device,
            dtype=dtype,
        )

    def _values(self, thetas, loss, x, y, part, *noise) -> Tensor:
        """`loss` of each row of `thetas` on the samples `part`: `(N,)`, differentiable."""
        if self.function is not None:
            return self.function(thetas)
        x, y = (v.to(thetas.dtype) if v.is_floating_point() else v for v in (x[part], y[part]))
        outputs = stacked_outputs(self.module, thetas, x, *noise)
        if len(thetas) == 1:
            return loss(outputs[0], y)[None]
        return torch.vmap(loss, in_dims=(0, None))(outputs, y)

    def _chunks(self, n: int, n_samples: int) -> list[slice]:
        """Cut `n` networks into groups that run side by side."""
        size = n if self.stacks else 1
        if self.module is not None and self.stacks:
            limit = CHUNK_ELEMENTS.get(self.device.type, CHUNK_ELEMENTS["cuda"])
            size = max(1, limit // (n_samples * self.n_activations))
        size = math.ceil(n / max(1, math.ceil(n / max(1, size))))  # of even sizes
        return [slice(start, start + size) for start in range(0, n, max(1, size))]

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
            module: takes x `(B, ...)` and returns outputs `(B, ...)`.  It is copied.
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
            TypeError: x or y has an integer dtype where floats are needed.
            ValueError: BatchNorm running statistics, active dropout, an unknown loss, samples
                that do not fit the network or each other, or no parameters.
        """
        module = copy.deepcopy(module)
        check_module(module)
        shapes = shapes_of(module)
        n_params = sum(shape.numel() for shape in shapes.values())
        if n_params == 0:
            raise ValueError(f"{type(module).__name__} has no parameter to train")
        metric = loss if metric is None else metric
        functions = [lookup(LOSSES, f, "loss") if isinstance(f, str) else f for f in (loss, metric)]
        first, splits = next(module.parameters()), {}
        dtype = first.dtype
        for split, (x, y) in (("train", train), ("test", test)):
            if len(x) != len(y) or len(x) == 0:
                raise ValueError(
                    f"{split}: {len(x)} inputs and {len(y)} targets; need as many, > 0"
                )
            x, y = (v.to(dtype) if v.is_floating_point() else v for v in (x, y))
            splits[split] = (x, y)
            for function, descends in zip(functions, (True, False), strict=True):
                n_activations = check_sample(module, function, x, y, split, descends)
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
            stacks=can_be_stacked(module, splits["train"][0]),
            dtype=dtype,
        ).to(first.device)


def _name_of(function: str | Callable) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", "loss")
