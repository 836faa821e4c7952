"""BatchNorm for interpolated models: statistics of a fixed batch instead of running ones."""

import copy

import torch
from torch import Tensor, nn


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
        ValueError: no layer is a BatchNorm, or x holds fewer than two samples.

    Differs: not in the paper, whose networks have no BatchNorm.
    """
    module = copy.deepcopy(module)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise ValueError(f"{type(module).__name__} has no BatchNorm layer; it can be used as it is")
    if x is None:
        for layer in norms:
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        return module
    if len(x) < 2:
        raise ValueError(f"x holds {len(x)} samples; statistics need at least two")
    replaced = {layer: _NormOfFirst(layer, len(x)) for layer in norms}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            setattr(parent, name, replaced.get(child, child))
    return _Beside(replaced.get(module, module), x)


class _NormOfFirst(nn.Module):
    """BatchNorm with the mean and variance of the first `n` samples of a batch."""

    def __init__(self, layer: nn.Module, n: int):
        super().__init__()
        self.weight, self.bias, self.eps, self.n = layer.weight, layer.bias, layer.eps, n

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        mean = x[: self.n].mean(axes, keepdim=True)
        var = x[: self.n].var(axes, correction=0, keepdim=True)
        x = (x - mean) * torch.rsqrt(var + self.eps)
        if self.weight is None:
            return x
        shape = -1, *[1] * (x.dim() - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


class _Beside(nn.Module):
    """A network that sees a fixed batch before every batch, and answers for the latter."""

    def __init__(self, module: nn.Module, x: Tensor):
        super().__init__()
        self.module = module
        self.register_buffer("x", x)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(torch.cat([self.x, x]))[len(self.x) :]
