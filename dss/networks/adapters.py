"""Low-rank adapters: a network that stays as it is, and small matrices beside its layers."""

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from dss.checks import check_whole


class LowRank(nn.Module):
    """A linear layer that stays as it is, plus a trained matrix of low rank, zero to begin with.

    Attributes:
        layer: frozen.
        down: `(rank, n_in)`, drawn as a linear layer's weights.
        up: `(n_out, rank)`, zero.
    """

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.up = nn.Parameter(layer.weight.new_empty(layer.out_features, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        nn.init.zeros_(self.up)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + F.linear(F.linear(x, self.down), self.up)


def with_adapters(module: nn.Module, rank: int) -> nn.Module:
    """A frozen copy of a network, each of its linear layers with a trained adapter beside it.

    Args:
        module: stays as it is.
        rank: of the adapters, >= 1.

    Returns:
        A network for `Task.from_module(..., trainable="requires_grad")`.  Two of one module differ
        in their adapters alone.

    Raises:
        TypeError, ValueError: rank is no whole number >= 1, or the network has no linear layer.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021).
    """
    rank, module = check_whole(rank, "rank", 1), copy.deepcopy(module).requires_grad_(False)
    linear = [name for name, layer in module.named_modules() if type(layer) is nn.Linear]
    if not linear:
        raise ValueError(f"{type(module).__name__} has no linear layer to stand beside")
    if linear == [""]:
        return LowRank(module, rank)
    for name in linear:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, LowRank(module.get_submodule(name), rank))
    return module
