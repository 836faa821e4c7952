"""A task: a network, its loss, and the fixed samples on which losses are measured."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from dss.checks import (
    check_finite,
    check_generator,
    check_number,
    check_pairs,
    check_theta,
    short,
)
from dss.descent import PRECISIONS, TRAINING_SETTINGS, takes_training, training_of
from dss.estimate import Estimate, estimate
from dss.networks.accept import (
    check_is_mean,
    check_samples,
)
from dss.networks.batchnorm import PART, statistics, with_statistics
from dss.networks.brought import (
    OutputTaken,
    check_same_function,
    plain,
    theta_by_name,
    weights_of,
)
from dss.networks.fields import fields_of
from dss.networks.losses import OF_MEAN
from dss.networks.memory import Budget
from dss.networks.modes import in_usual_mode, usual
from dss.networks.samples import (
    READ,
    Sample,
    Streamed,
    Tree,
    call,
    check_augment,
    moved,
    part_of,
    sample_on,
    seeded,
    size_of,
)
from dss.networks.stacks import (
    losses_on_segments,
    split_after_first,
    stacked_gradients,
    stacked_losses,
    stacked_outputs,
    stacked_statistics,
)
from dss.theta import interpolate, shapes_of, unflatten

COMPARED = 16  # samples on which a network that someone hands in is compared with the task's
Network = nn.Module | Mapping | str | Path  # what `Task.theta` takes


@dataclass(frozen=True, eq=False)
class Task:
    """A learning problem as the algorithm sees it: flat vectors in, losses out.

    Build one with `quad`, `polynomial`, `mnist`, `digits`, `landscape` or `Task.from_module`.

    Attributes:
        name: what the task is called in tables and messages.
        n_params: P, the length of a flat vector `theta`.
        metric: name of the metric; L0, gamma and Gamma_tilde are in its unit.
        loss: name of the loss that training descends.
        init_function: draws `(n, P)` from (n, generator).
        budget: what fits memory, and how many networks run side by side.
        module: the architecture; its own parameters are not used.  None for a landscape.
        loss_function, metric_function: map (output, y) to the mean over a batch.
        splits: `train` and `test`, each a pair `(x, y)` on the task's device, or a dataset that is
            read batch by batch; empty for a landscape.  `test` is chi, the fixed evaluation set of
            Sec. II.A.
        reference: `(B, ...)` inputs of which BatchNorm takes its statistics where losses are
            measured (`batch_statistics`); None: they are those of the batch.
        noise: further arguments of the module in training, from (n, generator, device): dropout.
        augment: changes the inputs of a training batch; None: they stay as they are.
        batch_size: samples per gradient step; None: the whole training sample.
        eval_chunk: samples per forward pass when losses are measured; None: all at once.
        differentiates: whether the forward itself takes derivatives (of its outputs by its
            inputs), and so needs autograd where losses are only measured.
        settings: keyword arguments for `find_strings` that suit the task or its preset.
        length_mask: `(P,)` bool, the parameters that count in the normalized length; None: all.
        device: where it computes.
        dtype: of the networks that `init` draws.
    """

    name: str
    n_params: int
    metric: str
    loss: str
    init_function: Callable[[int, torch.Generator], Tensor] = field(repr=False)
    budget: Budget = field(repr=False)
    module: nn.Module | None = field(default=None, repr=False)
    loss_function: Callable | None = field(default=None, repr=False)
    metric_function: Callable | None = field(default=None, repr=False)
    splits: Mapping[str, Sample] = field(default_factory=dict, repr=False)
    reference: Tensor | None = field(default=None, repr=False)
    noise: Callable | None = field(default=None, repr=False)
    augment: Callable | None = field(default=None, repr=False)
    batch_size: int | None = None
    eval_chunk: int | None = None
    differentiates: bool = False
    settings: Mapping = field(default_factory=dict)
    length_mask: Tensor | None = field(default=None, repr=False)
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    @property
    def memory(self) -> float | None:
        """MiB that work on the task may hold at a time; None: a quarter of what is free."""
        return self.budget.memory

    @property
    def train_settings(self) -> dict:
        """The part of `settings` that `train_to` takes, to train endpoints in the same way."""
        return {name: v for name, v in self.settings.items() if name in TRAINING_SETTINGS}

    @in_usual_mode
    def init(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` networks from the initial distribution.

        Args:
            n: how many.
            generator: CPU generator; a new one with seed 0 by default.  Network i does not depend
                on `n`.

        Returns:
            `(n, P)` in the task's dtype, on its device.

        Raises:
            TypeError: n is no number, or generator no generator.
            ValueError: n < 1, or more than memory holds.
        """
        n = self.budget.check_room(n, "n", self.dtype)
        generator = check_generator(generator)
        return self.init_function(n, generator).to(self.device, self.dtype)

    def probes(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` networks to time and to compare with, `(n, P)`: from `init`, where there is one.

        A network with parameters that no `reset_parameters` draws gives itself, a little disturbed.
        """
        self.budget.check_room(n, "n", self.dtype)
        try:
            return self.init(n, generator)
        except ValueError:
            generator = check_generator(generator)
            noise = torch.randn(n, self.n_params, generator=generator, dtype=torch.float64)
            own = torch.cat([p.detach().reshape(-1) for p in self.module.parameters()])
            return (own + 0.01 * noise.to(own)).to(self.device, self.dtype)

    def theta(self, source: nn.Module | Mapping[str, Tensor] | str | Path) -> Tensor:
        """The flat vector of a network, whose tensors are found by name.

        Args:
            source: a network like that of the task, its state_dict, or a file that holds one
                (`.safetensors`, or written by `torch.save`).

        Returns:
            theta `(P,)` in the task's dtype, on its device.

        Raises:
            TypeError: none of these.
            ValueError: the task is a landscape; a tensor is missing, unknown or of another shape;
                what is constant in the task has other values; a network answers otherwise than that
                of the task; or a file is none of these.
            OSError: there is no such file.
        """
        if self.module is None:
            raise ValueError(f"{self.name} has no module; its flat vectors are its own")
        source = plain(source) if isinstance(source, nn.Module) else source
        weights = weights_of(source)
        theta = theta_by_name(self.module, weights).to(self.device, self.dtype)
        if isinstance(source, nn.Module):
            check_same_function(self.module, theta, source, self._few_inputs())
        return theta

    def _few_inputs(self) -> Tree:
        """Inputs on which networks are compared; all, where the network takes no fewer."""
        x, _ = part_of(self.splits["test"], slice(0, COMPARED), self.dtype)
        with torch.no_grad():
            try:
                call(self.module, x)
            except Exception:
                x, _ = part_of(self.splits["test"], slice(None), self.dtype)
        return x

    def network(self, theta: Tensor) -> nn.Module:
        """A network of one's own, with the parameters of a flat vector: a bead, to be used.

        Args:
            theta: `(P,)`.

        Returns:
            A copy of the task's module in evaluation mode, its parameters trainable, that returns
            what the module returned before `output`.  BatchNorm has running statistics of the
            reference, where `batch_statistics` was given one; without it takes those of its batch,
            as in the task.

        Raises:
            TypeError, ValueError: theta is no such vector, or the task is a landscape.
        """
        if self.module is None:
            raise ValueError(f"{self.name} has no module")
        theta = check_theta(theta, "theta", (self.n_params,)).to(self.device)
        network = OutputTaken.leave(copy.deepcopy(self.module).to(theta.dtype))
        with torch.no_grad():
            for name, value in unflatten(theta, shapes_of(network)).items():
                network.get_parameter(name).copy_(value)
        if self.reference is not None:
            found = statistics(network, {}, self.reference.to(theta.dtype))
            with_statistics(network, found)
        return network.eval()

    @in_usual_mode
    def losses(self, thetas: Tensor, split: str = "test") -> Tensor:
        """The metric of each network on a whole fixed sample, without gradient.

        Args:
            thetas: `(N, P)`, floating point, on any device.
            split: `"test"` (the evaluation set) or `"train"`.

        Returns:
            `(N,)` in the dtype of `thetas`, on the task's device.  A network with NaN gives NaN.

        Raises:
            TypeError: thetas is not floating point.
            ValueError: another shape, an unknown split, or a training dataset whose parts would
                give the metric another value.

        Paper: E(L(X, theta), chi), Sec. II.A.
        """
        if split not in ("test", "train"):
            raise ValueError(f"split is {split!r}; 'test' and 'train' are known")
        thetas = check_theta(thetas, "thetas", (None, self.n_params)).to(self.device)
        if len(thetas) == 0:
            return thetas.new_empty(0)
        if split in self.splits:
            self._check_parts(split, thetas[0])
        return self._losses(thetas, split)

    def _losses(self, thetas: Tensor, split: str) -> Tensor:
        found = self._statistics(thetas)

        def values(rows: slice, x: Tree, y: Tree) -> Tensor:
            return stacked_losses(self.metric_function, self._answers(thetas, found, rows, x), y)

        return self._mean_over(values, len(thetas), split, thetas.dtype)

    @in_usual_mode
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
        is_module = self.module is not None and self.reference is None
        if self.budget.stacks and is_module and split_after_first(self.module):

            def values(rows: slice, x: Tensor, y: Tensor) -> Tensor:
                segments = theta_1[rows], theta_2[rows], t[rows]
                return losses_on_segments(self.module, self.metric_function, *segments, x, y)

            return self._mean_over(values, len(theta_1), "test", theta_1.dtype)
        # All points of all segments at a time fit neither caches nor, for large networks, memory.
        limit = self.budget.chunk_elements(theta_1.dtype) / self.n_params
        size = max(1, int(min(self.budget.rows_that_fit(3, theta_1.dtype), limit)))
        segment = torch.arange(len(theta_1), device=self.device).repeat_interleave(t.shape[1])
        parts = [
            self.losses(interpolate(theta_1[s], theta_2[s], t_s))
            for s, t_s in zip(segment.split(size), t.reshape(-1).split(size), strict=True)
        ]
        return torch.cat(parts).view(t.shape)

    @in_usual_mode
    def outputs(self, thetas: Tensor, x: Tree) -> Tree:
        """What each network answers to some inputs, without gradient.

        Args:
            thetas: `(N, P)`.
            x: `(B, ...)`, or a tuple or dict of such tensors.

        Returns:
            `(N, B, ...)` on the task's device, or a tree of such tensors.

        Raises:
            TypeError: thetas or x are no such tensors.
            ValueError: another shape; or the task is an explicit landscape, which has no outputs.
        """
        thetas = check_theta(thetas, "thetas", (None, self.n_params)).to(self.device)
        n, x = check_inputs(x), moved(x, self.device, thetas.dtype)

        with torch.set_grad_enabled(self.differentiates):
            found = self._statistics(thetas)

            def answers(rows: slice) -> Tree:
                return tree_map(torch.Tensor.detach, self._answers(thetas, found, rows, x))

            groups = self.budget.by_rows(answers, len(thetas), n, thetas.dtype)
            return tree_map(lambda *parts: torch.cat(parts), *groups)

    def _answers(self, thetas: Tensor, found: dict[str, Tensor], rows: slice, x: Tree) -> Tree:
        """Outputs of some of the networks, BatchNorm with the statistics found for them."""
        buffers = {name: value[rows] for name, value in found.items()}
        return stacked_outputs(self.module, thetas[rows], x, buffers=buffers)

    def _statistics(self, thetas: Tensor) -> dict[str, Tensor]:
        """What the reference gives for every network's BatchNorm layers, `(N, C)` by name."""
        if self.reference is None:
            return {}
        x = self.reference.to(thetas.dtype)

        def of_rows(rows: slice) -> dict[str, Tensor]:
            return stacked_statistics(self.module, thetas[rows], x)

        groups = self.budget.by_rows(of_rows, len(thetas), min(PART, len(x)), thetas.dtype)
        return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}

    @in_usual_mode
    def gradients(
        self,
        thetas: Tensor,
        batch: Tensor | slice = slice(None),
        generator: torch.Generator | None = None,
        precision: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Training loss of each network on one batch, and its gradient.

        Args:
            thetas: `(N, P)` on the task's device.
            batch: indices into the training sample; all of it by default.
            generator: CPU generator for training noise (dropout), where the task has any.
            precision: as in `dss.descent.Training`.

        Returns:
            losses `(N,)` and gradients `(N, P)`.

        Raises:
            ValueError: thetas has another shape, or a precision that is unknown, or is not for
                these networks.
        """
        if precision is not None:
            training_of({"precision": precision}).check_dtype(self, thetas.dtype)
        if thetas.shape[1:] != (self.n_params,):  # at every step: what is right must cost nothing
            check_theta(thetas, "thetas", (None, self.n_params))
        lower = {} if precision is None else {"lower": PRECISIONS[precision]}
        return self._gradients(usual(thetas), batch, generator, **lower)

    def _gradients(self, thetas, batch, generator, **lower) -> tuple[Tensor, Tensor]:
        x, y = self._training_batch(batch, thetas.dtype, generator)
        n = size_of((x, y))
        noise = () if self.noise is None else self.noise(n, generator, self.device)

        def descend(rows: slice) -> tuple[Tensor, Tensor]:
            arguments = self.module, self.loss_function, thetas[rows].detach(), x, y, *noise
            return stacked_gradients(*arguments, **lower)

        groups = self.budget.by_rows(descend, len(thetas), n, thetas.dtype)
        if len(groups) == 1:
            return groups[0]
        losses, gradients = zip(*groups, strict=True)
        return torch.cat(losses), torch.cat(gradients)

    @in_usual_mode
    @takes_training
    def estimate(
        self,
        n_pairs: int = 1,
        theta_1: Tensor | None = None,
        theta_2: Tensor | None = None,
        L0: float | Tensor | None = None,
        n_t: int = 33,
        *,
        method: str = "paper",
        **training,
    ) -> Estimate:
        """Memory and seconds that a search takes, from a few gradients and evaluations.

        Args:
            n_pairs: M, how many pairs; those of theta_1 and theta_2 where these are given.
            theta_1, theta_2, L0: as in `find_strings`, all three or none.  With them the straight
                lines are measured, which tells how many beads the first level trains.
            n_t, method: as in `find_strings`.
            training: the fields of `dss.descent.Training`; the size of batches and max_steps count.

        Returns:
            The numbers; as text they are four lines.

        Raises:
            TypeError: an unknown argument, or one that is no number.
            ValueError: an argument out of range, thetas without L0 or the other way round, or one
                bead that memory cannot hold while it descends.
        """
        training = training_of(training)
        given = {"theta_1": theta_1, "theta_2": theta_2, "L0": L0}
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == 3:
            return estimate(self, n_pairs, n_t, method, training)
        if missing:
            raise ValueError(f"{missing[0]} is None; theta_1, theta_2, L0 go together")
        check_pairs(theta_1, theta_2, self.n_params)
        ends = tuple(usual(theta.detach().to(self.device)) for theta in (theta_1, theta_2))
        return estimate(self, len(theta_1), n_t, method, training, ends, L0)

    @in_usual_mode
    def to(
        self,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        memory: float | None = None,
    ) -> "Task":
        """The same task on another device, in another precision, or with another memory budget.

        Args:
            device: a torch device; None keeps it.  `"auto"` takes CUDA where there is one and the
                networks are so large that one alone gains by it: 2**18 numbers in a gradient
                (`dss.networks.memory.LEAST_FOR_GPU`), as a small CNN of MNIST has and an MLP has
                not.  Many MLPs side by side gain as well, for which say `"cuda"`.
            dtype: floating-point dtype that `init` returns; None keeps it.
            memory: MiB that work on the task may hold at a time; None keeps it.  Networks are
                then trained and measured in groups that fit, one network at the least.

        Returns:
            A new `Task`; this one stays as it is.

        Raises:
            TypeError: dtype is not floating point.
            ValueError: no device, memory is not > 0, or a sample holds a number that dtype cannot.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if device == "auto":
            n = size_of(self.splits["train"]) if self.splits else 1
            gains = self.budget.gains_on_gpu(min(n, self.batch_size or n))
            device = "cuda" if gains and torch.cuda.is_available() else "cpu"
        dtype = self.dtype if dtype is None else dtype
        try:
            device = torch.device(self.device if device is None else device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device is {short(device)}; a torch device is needed") from error
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype is {short(dtype)}; a floating-point dtype is needed")
        if memory is not None:
            memory = check_number(memory, "memory", lambda v: v > 0, "MiB, > 0")

        memory = self.memory if memory is None else memory
        splits = {name: sample_on(v, device, dtype) for name, v in self.splits.items()}
        for name, sample in splits.items() if dtype != self.dtype else ():
            if not isinstance(sample, Streamed):
                check_samples(name, *sample)
        reference = None if self.reference is None else moved(self.reference, device, dtype)
        if reference is not None and dtype != self.dtype:
            check_finite(reference, f"the reference (in {dtype})")
        return replace(
            self,
            module=self.module and copy.deepcopy(self.module).to(device, dtype),
            splits=splits,
            reference=reference,
            length_mask=None if self.length_mask is None else self.length_mask.to(device),
            budget=replace(self.budget, device=device, memory=memory, most=math.inf),
            device=device,
            dtype=dtype,
        )

    def _check_parts(self, split: str, theta: Tensor) -> None:
        """Raise ValueError where a dataset is read in parts that change the metric."""
        sample, parts = self.splits[split], self.eval_chunk or READ
        if split == "train" and isinstance(sample, Streamed) and parts < size_of(sample):

            def answer(x: Tree) -> Tree:
                return tree_map(lambda v: v[0], self.outputs(theta[None], x))

            check_is_mean(self.metric_function, answer, sample, theta.dtype, parts)

    def _mean_over(self, values: Callable, n: int, split: str, dtype: torch.dtype) -> Tensor:
        """Mean over a sample of `values(rows, x, y)`, one or several for each of `n` rows."""
        sample = self.splits[split]
        n_samples = size_of(sample)
        most = READ if isinstance(sample, Streamed) else n_samples
        step = min(self.eval_chunk or most, n_samples)

        def mean_of(k: int) -> Tensor:
            part = slice(None) if step == n_samples else slice(k, k + step)
            x, y = part_of(sample, part, dtype, seed=k)

            def mean_of_rows(rows: slice) -> Tensor:
                return values(rows, x, y).to(dtype).detach()

            means = torch.cat(self.budget.by_rows(mean_of_rows, n, step, dtype))
            return means if step == n_samples else size_of((x, y)) / n_samples * means

        with torch.set_grad_enabled(self.differentiates):
            first, *others = map(mean_of, range(0, n_samples, step))
            means = sum(others, first)
            return OF_MEAN[self.metric](means) if self.metric in OF_MEAN else means

    def _training_batch(self, batch: Tensor | slice, dtype: torch.dtype, generator) -> tuple:
        """Inputs and targets of a batch; what their transforms draw follows from the generator."""
        sample = self.splits["train"]
        if self.augment is None and not isinstance(sample, Streamed):
            return part_of(sample, batch, dtype)
        seed = 0
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator))
        x, y = part_of(sample, batch, dtype, seed)
        if self.augment is not None:
            x = tree_map(torch.clone, x)  # it may write to it, and the sample is to stay
            with seeded(seed, self.device):
                x = moved(self.augment(x), self.device, dtype)
        return x, y

    @classmethod
    @in_usual_mode
    def from_module(
        cls,
        module: nn.Module | Callable[[], nn.Module],
        loss: str | Callable,
        train: tuple[Tree, Tree] | Dataset | DataLoader,
        test: tuple[Tree, Tree] | Dataset | DataLoader,
        metric: str | Callable | None = None,
        init: Callable[[int, torch.Generator], Tensor] | None = None,
        batch_size: int | None = None,
        eval_chunk: int | None = None,
        name: str | None = None,
        settings: Mapping | None = None,
        trainable: str = "all",
        output: Callable | None = None,
        augment: Callable | None = None,
    ) -> "Task":
        """A task from any network.

        Args:
            module: takes x `(B, ...)` and returns outputs `(B, ...)`.  It is copied.  Its buffers
                serve all networks of the task.  Or a function without arguments that returns such
                a network: `init` then draws what it draws.
            loss: what training descends: a name from `LOSSES`, or a function of (output, y) that
                returns the mean over the batch as a scalar.  `nn.CrossEntropyLoss()`,
                `nn.MSELoss()` and `nn.L1Loss()` count as their names.
            train, test: pairs (x, y) of tensors with the same number of samples.  Several inputs or
                targets are a tuple or a dict of tensors: `module(*x)`, `module(**x)`.  Or a dataset
                with a length, or a DataLoader of one, which gives such pairs, or dicts with
                `labels`.  Of training data batches are then read as they are needed, in an order
                that the generator of the search draws, not the loader.  An evaluation set is read
                once and held where it fits a quarter of free memory; else it is read in chunks
                whenever losses are measured.
            metric: what L0 is measured in, given like `loss`; the loss by default.  Losses and
                metrics that `torch.vmap` cannot run (NumPy, `.item()`, boolean masks) are computed
                for one network after the other; a metric may return a number.
            init: draws `(n, P)` from (n, generator); by default every layer's own
                `reset_parameters`.
            batch_size: samples per gradient step; None: that of the loader, or the whole training
                sample.
            eval_chunk: samples per forward pass when losses are measured, to bound memory; needs
                a metric that is a mean over samples, which is tried.  None: all at once, or 256 of
                a dataset that is not held.
            name: by default the class of the module.
            settings: keyword arguments for `find_strings` to keep with the task.
            trainable: `"all"`, or `"requires_grad"`: theta holds those parameters that require a
                gradient, and all others are constants of the task (adapters, probes).  Flat vectors
                of a network come from `task.theta`, which compares the constants; `dss.flatten`
                would take them along.
            output: takes the tensor `(B, ...)` out of what the network returns, a tuple say.
            augment: changes the inputs of training batches, on the task's device; evaluation sees
                none of it.  What it draws from the global generators of torch, NumPy or Python
                follows from the generator of the search, as does what a dataset draws.

        Raises:
            TypeError: no module, or one with an attribute that cannot be copied; a sample is no
                pair of tensors and no dataset of such pairs, or is of integers where floats are
                needed; an argument that is no number or no function.
            ValueError: BatchNorm running statistics, or those of a batch with an eval_chunk;
                active dropout, spectral_norm, layers in plain lists or in a circle, parameters of
                which some are frozen, in another dtype or without a size yet, a network in
                DataParallel or TorchScript, a forward that writes to its own parameters or buffers
                (`max_norm`, `clamp_`, a counter), an unknown loss, samples that do not fit the
                network or each other or hold NaN, inf or a label that is no class, no parameters, a
                batch_size below 1, or none for a dataset, or an eval_chunk that would give the
                metric another value.
        """
        for what, function in {"init": init, "augment": augment}.items():
            if function is not None and not callable(function):
                needed = "(n, generator)" if what == "init" else "the inputs of a batch"
                raise TypeError(f"{what} is {short(function)}; a function of {needed} is needed")
        fields = fields_of(
            module, loss, train, test, metric, batch_size, eval_chunk, trainable, output
        )
        if augment is not None:
            check_augment(augment, fields["splits"]["train"], fields["device"], fields["dtype"])
        fields |= {} if init is None else {"init_function": init}
        fields |= {} if name is None else {"name": name}
        return cls(**fields, augment=augment, settings=dict(settings or {})).to(fields["device"])


@dataclass(frozen=True, eq=False)
class Landscape(Task):
    """A task whose loss is an explicit function of theta; `dss.landscape` builds it.

    Attributes:
        function: maps `(..., P)` to losses `(...)`, differentiable.
        others: as in `Task`; there is no module, and there are no samples.
    """

    function: Callable[[Tensor], Tensor] = field(default=None, repr=False)

    def _losses(self, thetas: Tensor, split: str) -> Tensor:
        with torch.no_grad():
            return self.function(thetas).to(thetas.dtype)

    def _gradients(self, thetas, batch, generator) -> tuple[Tensor, Tensor]:
        leaf = thetas.detach().requires_grad_()
        values = self.function(leaf)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]

    def outputs(self, thetas: Tensor, x: Tensor) -> Tensor:
        """Refused: an explicit function of theta has no outputs."""
        raise ValueError(f"{self.name} is an explicit function of theta; it has no outputs")


def check_inputs(x) -> int:
    """How many inputs there are; TypeError for what is no tensor `(B, ...)` and no tree of them."""
    sizes = [len(v) if isinstance(v, Tensor) and v.dim() else 0 for v in tree_leaves(x)]
    if not sizes or 0 in sizes or len(set(sizes)) > 1:
        raise TypeError(f"x is {short(x)}; a tensor of inputs (B, ...) is needed, or several")
    return sizes[0]


def check_task(task) -> None:
    """Raise TypeError for what is no task, a network say."""
    if not isinstance(task, Task):
        raise TypeError(
            f"task is a {type(task).__name__}; a dss.Task is needed, which Task.from_module makes "
            "of a network"
        )


def thetas_of(task: Task, **named) -> list:
    """The flat vectors of networks, each by the name of its argument; lists of them are stacked.

    Raises:
        TypeError, ValueError: as in `Task.theta`, the argument named.  What is no network stays as
            it is, for `check_theta` to refuse.
        OSError: there is no such file.
    """

    def theta_of(given: Tensor | Network, name: str) -> Tensor:
        if not isinstance(given, Network):
            return given
        try:
            return task.theta(given)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error

    def rows_of(given: Tensor | Network | list, name: str) -> Tensor:
        if not isinstance(given, list | tuple) or not any(isinstance(v, Network) for v in given):
            return theta_of(given, name)
        thetas = [theta_of(v, f"{name}[{i}]") for i, v in enumerate(given)]
        for i, theta in enumerate(thetas):
            check_theta(theta, f"{name}[{i}]", (task.n_params,))
        return torch.stack([theta.to(task.device) for theta in thetas])

    return [rows_of(given, name) for name, given in named.items()]
