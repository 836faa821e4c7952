"""Stacks of fully connected networks: outputs, and gradients without autograd.

Networks as small as the paper's cost less to compute than autograd takes to record.  Samples come
last, (N, features, B), so that the long axis is contiguous.

Importing this module makes glibc keep freed blocks below 32 MiB for the process to use again.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import wraps
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

aten = torch.ops.aten

# glibc returns large blocks to the system as soon as they are free, and every step would pay for
# its pages again; dask has its workers return smaller ones too.  M_MMAP_THRESHOLD and
# M_TRIM_THRESHOLD, from which on blocks are mapped, and free memory at the top is returned.
if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
    libc.mallopt(-3, 32 * 2**20)
    libc.mallopt(-1, 64 * 2**20)

# Of each activation: itself, in place; and the gradient before it from the gradient behind it and
# its result.
IN_PLACE = {
    nn.ReLU: (torch.relu_, lambda gradient, h: aten.threshold_backward(gradient, h, 0)),
    nn.Sigmoid: (torch.sigmoid_, aten.sigmoid_backward),
    nn.Tanh: (torch.tanh_, aten.tanh_backward),
}


class Dense(NamedTuple):
    """A linear layer, the sizes of its parameters, and what follows it."""

    n_out: int
    n_in: int
    bias: bool
    activation: type | None


def once_per_module(function: Callable) -> Callable:
    """Remember what a function says of a module, which must not change, for as long as it lives."""
    known: WeakKeyDictionary = WeakKeyDictionary()

    @wraps(function)
    def remembered(module: nn.Module, *arguments):
        answers = known.setdefault(module, {})
        if arguments not in answers:
            answers[arguments] = function(module, *arguments)
        return answers[arguments]

    return remembered


def plain_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a plain sequence; none for a module that may do more than call them in turn.

    A subclass, a hook, a layer or a weight used twice, and parameters beside the layers do; so may
    a layer whose parameters are not its weight and then its bias, as pruning leaves them, or one
    whose weight or bias is constant.
    """
    layers = list(module) if type(module) is nn.Sequential else []
    parameter_names = [[name for name, _ in layer.named_parameters()] for layer in layers]
    in_layers = [id(p) for layer in layers for p in layer.parameters()]
    is_plain = (
        not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
        and not any("forward" in vars(m) for m in module.modules())
        and all(names in ([], ["weight"], ["weight", "bias"]) for names in parameter_names)
        and not any({"weight", "bias"} & set(layer._buffers) for layer in layers)
        and len({id(layer) for layer in layers}) == len(layers)
        and in_layers == [id(p) for p in module.parameters()]
    )
    return layers if is_plain else []


@once_per_module
def dense_layers(module: nn.Module, dim: int) -> tuple[Dense, ...] | None:
    """The layers of a fully connected network, or None for any other.

    Args:
        module: the network.
        dim: dimensions of its inputs, the batch included.
    """
    layers = plain_layers(module)
    if not layers:
        return None
    if type(layers[0]) is nn.Flatten and (layers[0].start_dim, layers[0].end_dim) == (1, -1):
        layers = layers[1:]
    elif dim != 2:
        return None
    dense: list[Dense] = []
    for layer in layers:
        if type(layer) is nn.Linear:
            n_out, n_in = layer.weight.shape
            dense.append(Dense(n_out, n_in, layer.bias is not None, None))
        elif type(layer) in IN_PLACE and dense and dense[-1].activation is None:
            dense[-1] = dense[-1]._replace(activation=type(layer))
        else:
            return None
    return tuple(dense) or None


def parameters_of(layers: tuple[Dense, ...], thetas: Tensor) -> list[tuple]:
    """Of every layer the weights `(N, n_out, n_in)` and the biases `(N, n_out, 1)` or None."""
    sizes = [size for a in layers for size in (a.n_out * a.n_in, a.n_out)[: 1 + a.bias]]
    parts = iter(torch.split_with_sizes(thetas, sizes, dim=1))
    return [
        (next(parts).view(-1, a.n_out, a.n_in), next(parts)[..., None] if a.bias else None)
        for a in layers
    ]


def results(layers: tuple[Dense, ...], parameters: list[tuple], x: Tensor) -> list[Tensor]:
    """The result of every layer.

    Args:
        layers: as `dense_layers` gives them.
        parameters: as `parameters_of` gives them, of N networks.
        x: `(B, ...)`.

    Returns:
        x as `(features, B)`, then `(N, n_out, B)` for each layer.
    """
    # A transposed single column would have strides that send `baddbmm` down its slow path.
    h = x.reshape(1, -1) if layers[0].n_in == 1 else x.flatten(1).T
    per_layer = [h]
    for (weight, bias), layer in zip(parameters, layers, strict=True):
        if h.dim() == 2:  # shared by all networks: one matrix product
            h = (weight.reshape(-1, layer.n_in) @ h).view(-1, layer.n_out, h.shape[1])
            h = h if bias is None else h.add_(bias)
        else:
            h = weight @ h if bias is None else torch.baddbmm(bias, weight, h)
        if layer.activation is not None:
            h = IN_PLACE[layer.activation][0](h)
        per_layer.append(h)
    return per_layer


def gradients(
    layers: tuple[Dense, ...], parameters: list[tuple], per_layer: list[Tensor], slope: Tensor
) -> Tensor:
    """Gradients with respect to the parameters, by the chain rule from the last layer back.

    Args:
        layers, parameters: as in `results`.
        per_layer: what `results` returned.
        slope: `(N, n_out, B)`, derivative of each network's loss by its outputs.

    Returns:
        `(N, P)`.
    """
    parts: list[Tensor] = []
    for i in reversed(range(len(layers))):
        h, activation = per_layer[i], layers[i].activation
        if activation is not None:
            slope = IN_PLACE[activation][1](slope, per_layer[i + 1])
        if layers[i].bias:
            parts.append(slope.sum(dim=2))
        if h.dim() == 2:
            parts.append((slope.reshape(-1, h.shape[1]) @ h.T).view(len(slope), -1))
        else:
            parts.append((slope @ h.transpose(1, 2)).flatten(1))
        if i:
            slope = parameters[i][0].transpose(1, 2) @ slope
    return torch.cat(parts[::-1], dim=1)
