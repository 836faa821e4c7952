"""BatchNorm for interpolated models: statistics of a fixed sample instead of running ones."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dss.checks import check_finite, check_sizes
from dss.networks.modes import usual

FORWARDS = {nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward}
PART = 128  # samples of a reference that are normalised together, at most


def batch_statistics(module: nn.Module, x: Tensor | None = None) -> nn.Module:
    """A copy of a network whose BatchNorm layers take their statistics from a fixed sample.

    Running statistics belong to the two trained networks; an interpolated model has others.  The
    copy has the same parameters in the same order.

    With x, losses are measured as PyTorch measures them after `torch.optim.swa_utils.update_bn`:
    one forward pass over x gives the means and the unbiased variances of every network anew, and
    with these it is evaluated, in chunks of any size.  In that pass x comes in even parts,
    `x.tensor_split(ceil(B / 128))`.  Each part is normalised by itself, and what the parts give is
    averaged.  So an evaluation of a network costs a forward pass of B samples more.  A gradient
    costs no more than without: networks descend with the statistics of their training batch.

    Args:
        module: a network, on any device; it stays as it is.
        x: `(B, ...)` inputs, a part of the training sample; a tenth of the evaluation set, and
            some hundred images at least, serve well.  None: the statistics are those of the batch
            itself, also where losses are measured.  The whole evaluation set is one batch then.

    Returns:
        A network for `Task.from_module`.

    Raises:
        TypeError: no module, or x is not a floating-point tensor.
        ValueError: no layer is a BatchNorm, one has a forward of its own or no size yet, or x holds
            fewer than two samples, NaN or inf.

    Differs: not in the paper, whose networks have no BatchNorm.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}; a torch.nn.Module is needed")
    check_sizes(module)
    module = copy.deepcopy(module)
    norms = norms_of(module)
    if not norms:
        raise ValueError(f"{type(module).__name__} has no BatchNorm layer; it can be used as it is")
    if x is not None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x is {kind}; a floating-point tensor of samples is needed")
        if len(x) < 2:
            raise ValueError(f"x holds {len(x)} samples; statistics need at least two")
        check_finite(x, "x")
        unknown = [type(m).__name__ for m in norms.values() if type(m).forward not in FORWARDS]
        if unknown:
            raise ValueError(
                f"{unknown[0]} has a forward of its own; only PyTorch's BatchNorm is known"
            )
    for name, layer in norms.items():
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        layer.first_name = name  # a layer that stands in several places has one set of statistics
    return module if x is None else WithReference(module, usual(x))


class WithReference(nn.Module):
    """A network, and the sample of which its BatchNorm layers take their statistics."""

    def __init__(self, module: nn.Module, x: Tensor):
        super().__init__()
        self.module = module
        self.register_buffer("x", x)
        self.train(module.training)

    def train(self, mode: bool = True) -> nn.Module:
        """As always, but for BatchNorm, which takes the statistics that it is given."""
        super().train(mode)
        for layer in norms_of(self.module).values():
            layer.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.module, statistics(self.module, {}, self.x.to(x.dtype)), (x,))


def norms_of(module: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorm layers of a network, by name."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kind)}


def n_parts(n: int) -> int:
    """Into how many parts a reference of n samples is split."""
    return math.ceil(n / PART)


@torch.no_grad()
def statistics(module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Mean and unbiased variance of every BatchNorm layer, from one pass over a reference.

    Args:
        module: as `batch_statistics` leaves it, without running statistics.
        parameters: tensors by name, in place of its own.
        x: `(B, ...)`.

    Returns:
        What the buffers `running_mean` and `running_var` are to hold, by name; no gradient runs
        through them.
    """
    sums, n_calls = {}, defaultdict(int)
    for part in x.tensor_split(n_parts(len(x))):
        with _moments_noted(module) as moments:
            functional_call(module, dict(parameters), (part,))
        for name, pair in moments:
            sums[name] = [a + b for a, b in zip(sums.get(name, (0, 0)), pair, strict=True)]
            n_calls[name] += 1
    result = {}
    for name, layer in norms_of(module).items():
        first = layer.first_name
        if first in sums:  # else the network does not use it
            mean, var = (total / n_calls[first] for total in sums[first])
            result |= {_within(name, "running_mean"): mean, _within(name, "running_var"): var}
    return result


def _within(layer: str, buffer: str) -> str:
    return f"{layer}.{buffer}" if layer else buffer  # the network may be the layer


@contextmanager
def _moments_noted(module: nn.Module) -> Iterator[list]:
    """A list of every call of a BatchNorm layer: its first name, and (mean, variance)."""
    moments = []

    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, [0, *range(2, x.dim())])
        moments.append((layer.first_name, (mean, var)))
        return type(layer).forward(layer, x)

    layers = norms_of(module).values()
    for layer in layers:
        layer.forward = partial(forward, layer)  # a hook would miss `layer.forward(x)`
    try:
        yield moments
    finally:
        for layer in layers:
            del layer.forward


def with_statistics(module: nn.Module, found: Mapping[str, Tensor]) -> nn.Module:
    """The network itself, its BatchNorm layers as PyTorch makes them, with running statistics.

    Args:
        module: as `batch_statistics` leaves it; it is changed.
        found: as `statistics` gives it.
    """
    for name, layer in norms_of(module).items():
        like = nn.BatchNorm1d(layer.num_features).to(next(module.parameters()))
        layer.track_running_stats = True
        for buffer, value in like.named_buffers():
            setattr(layer, buffer, found.get(_within(name, buffer), value).detach().clone())
        del layer.first_name
    return module
