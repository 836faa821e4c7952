"""Stacks of networks of one architecture: outputs, losses and gradients of all side by side."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.utils._pytree import tree_leaves, tree_map

from dss.networks import batchnorm, dense
from dss.networks.losses import LOSSES, RESIDUAL_LOSSES, OneByOne
from dss.networks.samples import Tree, arguments_of, moved, rows_of
from dss.theta import interpolate, shapes_of, unflatten


def stacked_outputs(
    module: nn.Module,
    thetas: Tensor,
    x: Tree,
    *noise: Tensor,
    buffers: Mapping[str, Tensor] | None = None,
) -> Tree:
    """Outputs of N networks of one architecture on the same inputs.

    Args:
        module: the architecture; its own parameters are not used.
        thetas: `(N, P)`.
        x: `(B, ...)`, or several inputs (`dss.networks.samples`).
        noise: further arguments of the module.
        buffers: `(N, ...)` by name, a row for each network, in place of the module's own.

    Returns:
        `(N, B, ...)`, or a tree of such tensors, differentiable.
    """
    layers = _dense_layers(module, x)
    if layers is not None:
        parameters = dense.parameters_of(layers, thetas)
        return dense.results(layers, parameters, x)[-1].transpose(1, 2)
    shapes, (arguments, keywords) = shapes_of(module), arguments_of(x)

    def output(theta: Tensor, own: dict[str, Tensor]) -> Tree:
        tensors = unflatten(theta, shapes) | own
        return functional_call(module, tensors, (*arguments, *noise), keywords)

    buffers = dict(buffers or {})
    if len(thetas) > 1:
        return torch.vmap(output)(thetas, buffers)
    return tree_map(lambda v: v[None], output(thetas[0], {k: v[0] for k, v in buffers.items()}))


def _dense_layers(module: nn.Module, x: Tree) -> tuple[dense.Dense, ...] | None:
    return dense.dense_layers(module, x.dim()) if isinstance(x, Tensor) else None


def stacked_statistics(module: nn.Module, thetas: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """The buffers of N networks' BatchNorm layers, `(N, C)` by name; see `batch_statistics`."""
    shapes = shapes_of(module)

    def of_one(theta: Tensor) -> dict[str, Tensor]:
        return batchnorm.statistics(module, unflatten(theta, shapes), reference)

    if len(thetas) > 1:
        return torch.vmap(of_one)(thetas)
    return {name: value[None] for name, value in of_one(thetas[0]).items()}


@dense.once_per_module
def split_after_first(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """A plain sequence as its first layer and the rest, where splitting it saves work.

    None where the first layer is no Linear or Conv2d with at least 8 inputs to a unit.
    """
    layers = dense.plain_layers(module)
    n = 2 if layers and type(layers[0]) is nn.Flatten else 1
    first, rest = layers[:n], nn.Sequential(*layers[n:])
    if (
        not any(True for _ in rest.parameters())
        or type(first[-1]) not in (nn.Linear, nn.Conv2d)
        or first[-1].weight[0].numel() < 8
    ):
        return None
    return nn.Sequential(*first), rest


def losses_on_segments(
    module: nn.Module,
    loss: Callable,
    theta_1: Tensor,
    theta_2: Tensor,
    t: Tensor,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """`loss` of the interpolated models of S segments at every t of their grids.

    The first layer's result is linear in t, so that it is computed at the two ends only; with
    images as inputs it holds a good part of the work.

    Args:
        module: a network that `split_after_first` can split.
        loss: as in `stacked_losses`.
        theta_1, theta_2: `(S, P)`.
        t: `(S, n_t)`.
        x, y: `(B, ...)`.

    Returns:
        `(S, n_t)`.
    """
    first, rest = split_after_first(module)
    n = sum(p.numel() for p in first.parameters())
    shapes = shapes_of(rest)

    def output(theta: Tensor, h: Tensor) -> Tensor:
        return functional_call(rest, unflatten(theta, shapes), (h,))

    ends = [stacked_outputs(first, theta[:, :n], x) for theta in (theta_1, theta_2)]
    per_t = []
    for t_k in t.T:
        h = torch.lerp(*ends, t_k.view(-1, *[1] * (ends[0].dim() - 1)))
        theta = interpolate(theta_1[:, n:], theta_2[:, n:], t_k)
        alone = len(h) == 1  # vmap makes one convolution slower
        outputs = output(theta[0], h[0])[None] if alone else torch.vmap(output)(theta, h)
        per_t.append(stacked_losses(loss, outputs, y))
    return torch.stack(per_t, dim=1)


def stacked_losses(loss: Callable, outputs: Tree, y: Tree) -> Tensor:
    """`loss` of each of N networks: outputs `(N, B, ...)` and targets `(B, ...)` to `(N,)`."""
    known = _of_residual(loss)
    if known is not None:
        return known[0](outputs - y.to(outputs.dtype)).flatten(1).mean(dim=1)
    n = len(tree_leaves(outputs)[0])
    if n == 1 or isinstance(loss, OneByOne):
        return torch.stack([loss(rows_of(outputs, i), y) for i in range(n)])
    return torch.vmap(loss, in_dims=(0, None))(outputs, y)


def _of_residual(loss: Callable) -> tuple[Callable, Callable] | None:
    return next((known for f, known in RESIDUAL_LOSSES if f is loss), None)


def stacked_gradients(
    module: nn.Module,
    loss: Callable,
    thetas: Tensor,
    x: Tree,
    y: Tree,
    *noise: Tensor,
    lower: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`loss` of each of N networks, `(N,)`, and its gradient, `(N, P)`; see `stacked_outputs`.

    With `lower` the networks compute in it as under `torch.autocast`, and the loss in the dtype of
    `thetas`.
    """
    layers = _dense_layers(module, x)
    if layers is None:
        leaf = thetas.detach().requires_grad_()
        with nullcontext() if lower is None else torch.autocast(thetas.device.type, lower):
            outputs = stacked_outputs(module, leaf, x, *noise)
        outputs = outputs if lower is None else moved(outputs, None, thetas.dtype)
        values = stacked_losses(loss, outputs, y)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]
    low = lower or thetas.dtype
    parameters = dense.parameters_of(layers, thetas.to(low))
    per_layer = dense.results(layers, parameters, x if lower is None else x.to(lower))
    outputs = per_layer[-1].transpose(1, 2).to(thetas.dtype)
    known = _of_residual(loss)
    if known is not None:
        value, derivative = known
        residual = outputs - y.to(outputs.dtype)
        values = value(residual).flatten(1).mean(dim=1)
        slope = derivative(residual).div_(math.prod(residual.shape[1:]))
    else:
        outputs = outputs.requires_grad_()
        values = stacked_losses(loss, outputs.clone(), y)  # a loss may work in place
        slope = torch.autograd.grad(values.sum(), outputs)[0]
    gradient = dense.gradients(layers, parameters, per_layer, slope.transpose(1, 2).to(low))
    return values.detach(), gradient.to(thetas.dtype)


def own_batch_gradients(
    module: nn.Module, loss: Callable, thetas: Tensor, x: Tree, y: Tree
) -> tuple[Tensor, Tensor]:
    """`loss` of each of N networks on a batch of its own, `(N,)`, and its gradient, `(N, P)`.

    Args:
        module, loss, thetas: as in `stacked_gradients`.
        x, y: `(N, B, ...)`, or trees of such tensors.
    """
    shapes = shapes_of(module)

    def of_one(theta: Tensor, x: Tree, y: Tree) -> Tensor:
        arguments, keywords = arguments_of(x)
        return loss(functional_call(module, unflatten(theta, shapes), arguments, keywords), y)

    derive = grad_and_value(of_one)
    if len(thetas) > 1 and not isinstance(loss, OneByOne):
        gradients, values = torch.vmap(derive)(thetas, x, y)
        return values, gradients
    alone = [derive(theta, rows_of(x, i), rows_of(y, i)) for i, theta in enumerate(thetas)]
    gradients, values = map(torch.stack, zip(*alone, strict=True))
    return values, gradients


def is_plain(module: nn.Module) -> bool:
    """Whether a network is a sequence of linear layers, convolutions and what has no weights."""
    layers = dense.plain_layers(module)
    return bool(layers) and all(
        type(layer) in (nn.Linear, nn.Conv2d) or not any(True for _ in layer.parameters())
        for layer in layers
    )


def can_be_stacked(module: nn.Module, x: Tree) -> bool:
    """Whether torch can run two such networks under vmap; recurrent layers it cannot.

    Args:
        module: the architecture.
        x: few samples.
    """
    thetas = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).repeat(2, 1)
    try:
        outputs = stacked_outputs(module, thetas.requires_grad_(), x)
        sum(v.sum() for v in tree_leaves(outputs) if v.is_floating_point()).backward()
    except RuntimeError:
        return False
    return True


def one_by_one_if_needed(loss: Callable, output: Tree, y: Tree, descends: bool) -> Callable:
    """The loss; or, where vmap does not run it or gives other values, the loss one by one.

    Args:
        loss: as in `stacked_losses`.
        output: `(B, ...)` of one network, or a tree of such tensors, without a gradient.
        y: `(B, ...)`.
        descends: whether its gradient is needed.
    """
    if any(loss is known for known in LOSSES.values()) or isinstance(loss, OneByOne):
        return loss
    alone, outputs = OneByOne(loss), tree_map(lambda v: torch.stack([v, v.flip(0)]), output)
    expected = stacked_losses(alone, tree_map(torch.clone, outputs), y)  # it may work in place
    leaves = [v.requires_grad_(descends) for v in tree_leaves(outputs) if v.is_floating_point()]
    try:
        values = stacked_losses(loss, tree_map(torch.clone, outputs), y)
        if values.requires_grad:
            torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    except Exception:
        return alone
    rounding = 100 * torch.finfo(expected.dtype).eps
    is_same = torch.allclose(values.detach(), expected.to(values), rtol=rounding, equal_nan=True)
    return loss if is_same else alone
