"""BatchNorm for interpolated models: statistics of a fixed batch instead of running ones."""

import copy

import torch
from torch import Tensor, nn

from dss.checks import check_finite, check_sizes
from dss.networks.modes import usual

FORWARDS = {nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward}


def batch_statistics(module: nn.Module, x: Tensor | None = None) -> nn.Module:
    """A copy of a network whose BatchNorm layers take their statistics from a fixed batch.

    Running statistics belong to the two trained networks; an interpolated model has others.  The
    copy has the same parameters in the same order, so that `flatten` of the trained networks fits.

    Args:
        module: a network, on any device; it stays as it is.
        x: `(B, ...)` inputs, say the training sample: means and variances are computed anew from
            them for every network, layer by layer, and samples do not influence each other.  None:
            they are those of the batch itself: of the whole evaluation set where losses are
            measured, and of the training batch where networks descend.

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
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise ValueError(f"{type(module).__name__} has no BatchNorm layer; it can be used as it is")
    if x is None:
        for layer in norms:
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        return module
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is {kind}; a floating-point tensor of samples is needed")
    if len(x) < 2:
        raise ValueError(f"x holds {len(x)} samples; statistics need at least two")
    check_finite(x, "x")
    unknown = [type(m).__name__ for m in norms if type(m).forward not in FORWARDS]
    if unknown:
        raise ValueError(
            f"{unknown[0]} has a forward of its own; only PyTorch's BatchNorm is known"
        )
    rows = {"reference": len(x), "all": len(x)}
    replaced = {layer: _NormOfReference(layer, rows) for layer in norms}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            setattr(parent, name, replaced.get(child, child))
    return _Beside(replaced.get(module, module), x, rows)


class _NormOfReference(nn.Module):
    """BatchNorm with the mean and variance of that part of a batch which `rows` says."""

    def __init__(self, layer: nn.Module, rows: dict[str, int]):
        super().__init__()
        self.weight, self.bias, self.eps, self.rows = layer.weight, layer.bias, layer.eps, rows

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        # A network may have folded another axis into the batch, a time say.
        n, rest = divmod(len(x) * self.rows["reference"], self.rows["all"])
        if rest:
            raise ValueError(
                f"a batch of {self.rows['all']} samples reaches BatchNorm as {len(x)} rows; a "
                "multiple is needed to tell which belong to the reference"
            )
        axes = [0, *range(2, x.dim())]
        mean = x[:n].mean(axes, keepdim=True)
        var = x[:n].var(axes, correction=0, keepdim=True)
        x = (x - mean) * torch.rsqrt(var + self.eps)
        shape = -1, *[1] * (x.dim() - 2)
        x = x if self.weight is None else x * self.weight.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)


class _Beside(nn.Module):
    """A network that sees a fixed batch before every batch, and answers for the latter."""

    def __init__(self, module: nn.Module, x: Tensor, rows: dict[str, int]):
        super().__init__()
        self.module, self.rows = module, rows
        self.register_buffer("x", usual(x))

    @property
    def without_reference(self) -> nn.Module:
        """The network itself, whose names are those of the one that was given."""
        return self.module

    def forward(self, x: Tensor) -> Tensor:
        self.rows["all"] = len(self.x) + len(x)
        return self.module(torch.cat([self.x.to(x.dtype), x]))[len(self.x) :]
