"""Networks as points: flat parameter vectors, the interpolated model, lengths."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dss.checks import check_alike, check_number, check_sizes, check_theta
from dss.networks.units import places_of_units


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of the parameters of a network, in the order in which `flatten` lays them.

    Args:
        module: the network.

    Returns:
        Shape by name; `{}` without parameters.

    Raises:
        ValueError: a lazy layer has no size yet.
    """
    check_sizes(module)
    return {name: p.shape for name, p in module.named_parameters()}


def flatten(source: torch.nn.Module | Mapping[str, Tensor]) -> Tensor:
    """One flat vector that holds every parameter of a network.

    Args:
        source: a module, or a mapping from parameter names to the tensors of one network (not of
            a stack).

    Returns:
        theta `(P,)`, a copy, on the device of the parameters.

    Raises:
        TypeError: neither a module nor tensors by name.
        ValueError: there is no parameter, or a lazy layer has no size yet.
    """
    if isinstance(source, torch.nn.Module):
        check_sizes(source)
    elif not isinstance(source, Mapping) or not all(isinstance(v, Tensor) for v in source.values()):
        raise TypeError(f"source is a {type(source).__name__}; a module or its tensors by name")
    tensors = (
        [p.detach() for _, p in source.named_parameters()]
        if isinstance(source, torch.nn.Module)
        else list(source.values())
    )
    if not tensors:
        raise ValueError(f"{type(source).__name__} has no parameter; a network needs at least one")
    return torch.cat([p.reshape(-1) for p in tensors])


def unflatten(theta: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The named parameters that a flat vector stands for; the inverse of `flatten`.

    Args:
        theta: `(..., P)`.
        shapes: name and shape of each parameter, as `shapes_of(module)` gives them.

    Returns:
        Views of `theta` by name, each `(..., *shape)`.

    Raises:
        ValueError: P is not the number of values that `shapes` hold.
    """
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    if theta.shape[-1] != sum(sizes):
        raise ValueError(f"theta has {theta.shape[-1]} values; these shapes hold {sum(sizes)}")
    parts = theta.split(sizes, dim=-1)
    return {
        name: part.reshape((*theta.shape[:-1], *shape))
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def permute_units(
    module: torch.nn.Module,
    theta: Tensor,
    order: Sequence[int],
    layer: int = 0,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """The same networks with the units of one hidden layer in another order, and rescaled.

    Their outputs stay the same, up to rounding.

    Args:
        module: linear layers, on inputs `(B, features)`, and convolutions in a plain
            `nn.Sequential`, with activations, BatchNorm, LayerNorm, pooling and flattening
            between them.
        theta: `(..., P)`.
        order: `(h,)`, a permutation: unit (channel) i becomes the one that was `order[i]`.
        layer: which hidden layer, from 0; layers without weights and norms do not count.
        scale: > 0, a number, `(h,)` or `(..., h)`: weights and bias of each unit are multiplied by
            it, the weights behind it divided.  Other than 1 only where nothing but ReLU, pooling
            or flattening is between the two layers.

    Returns:
        `(..., P)`.

    Raises:
        TypeError: theta is not floating point.
        ValueError: a network whose units are not known (residual, tied, attention, a forward of
            one's own), no such hidden layer, `order` is no permutation of its units, or a scale
            that would change the outputs.
    """
    h, places, stops = places_of_units(module, layer)
    order = order.tolist() if isinstance(order, Tensor) else list(order)
    if len(order) != h or set(order) != set(range(h)):
        raise ValueError(f"order is {order}; a permutation of the {h} units is needed")
    parts = unflatten(check_theta(theta, "theta"), shapes_of(module))
    lead, index = theta.shape[:-1], torch.tensor(order, device=theta.device)
    scale = torch.as_tensor(scale).to(theta).expand(*lead, h)
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise ValueError(f"scale is {scale.tolist()}; > 0 and finite is needed")
    if stops and bool((scale != 1).any()):
        raise ValueError(f"scale is not 1, but rescaled units do not come through {stops}")
    for name, (axis, power) in places.items():
        of_each = parts[name].shape[len(lead) :]
        before, n_after = of_each[:axis], of_each[axis:].numel() // h  # -1 fails on no network
        part = parts[name].reshape(*lead, *before, h, n_after)  # of each unit a row
        part = part.index_select(len(lead) + axis, index)
        factor = scale.view(*lead, *[1] * axis, h, 1)
        parts[name] = part * factor if power > 0 else part / factor if power < 0 else part
    return torch.cat([part.flatten(len(lead)) for part in parts.values()], dim=-1)


def interpolate(theta_1: Tensor, theta_2: Tensor, t: Tensor | float) -> Tensor:
    """The interpolated model Theta(theta_1, theta_2, t) = theta_1 (1 - t) + theta_2 t.

    t=0 gives `theta_1` and t=1 gives `theta_2`, exactly.

    Args:
        theta_1, theta_2: `(..., P)`, floating point, of one shape.
        t: a number, or a tensor that broadcasts with the leading dimensions: `(n_t,)` for one pair
            of `(P,)` vectors, `(M,)` for M pairs with a t each.

    Returns:
        `(..., P)` in the dtype and on the device of `theta_1`.

    Raises:
        TypeError: theta is not floating point, or t no number.
        ValueError: the two shapes differ, or t is not finite.

    Paper: Eq. (1), Sec. II.A.
    """
    check_theta(theta_1, "theta_1")
    check_theta(theta_2, "theta_2")
    check_alike(theta_1, theta_2)
    if not isinstance(t, Tensor):
        t = check_number(t, "t", math.isfinite, "a finite number")
    t = torch.as_tensor(t, dtype=theta_1.dtype, device=theta_1.device)[..., None]
    return torch.lerp(theta_1, theta_2, t)


def segment_lengths(thetas: Tensor, mask: Tensor | None = None) -> Tensor:
    """Euclidean distances between neighbours of a string.

    Args:
        thetas: `(K, P)`, ordered.
        mask: `(P,)` bool, the parameters that count; all by default.

    Returns:
        `(K - 1,)` float64.
    """
    steps = thetas.double().diff(dim=0)
    return (steps if mask is None else steps[:, mask]).norm(dim=1)


def points_along(thetas: Tensor, position: Tensor) -> Tensor:
    """Networks on a string at given fractions of its arc length.

    Args:
        thetas: `(K, P)`, ordered.
        position: `(m,)` in [0, 1]; 0 and 1 give the ends.

    Returns:
        `(m, P)` in the dtype of `thetas`.

    Raises:
        ValueError: a position outside [0, 1].
    """
    position = torch.as_tensor(position, dtype=torch.float64, device=thetas.device)
    if not bool(((position >= 0) & (position <= 1)).all()):
        raise ValueError(f"position runs from {position.min():g} to {position.max():g}; [0, 1]")
    length = segment_lengths(thetas)
    ends = length.cumsum(0)
    place = position * ends[-1]
    k = torch.searchsorted(ends, place).clamp(max=len(length) - 1)
    t = ((place - ends[k] + length[k]) / length[k].clamp(min=1e-300)).clamp(0, 1)
    return interpolate(thetas[k], thetas[k + 1], t)


def normalized_length(thetas: Tensor, mask: Tensor | None = None) -> float:
    """Length of the string through `thetas` over the distance of its ends; 1 for a straight line.

    Args:
        thetas: `(K, P)`, ordered.
        mask: `(P,)` bool, the parameters that count; all by default.

    Returns:
        A number >= 1 up to rounding; `inf` when a string with length returns to where it began.
    """
    length = float(segment_lengths(thetas, mask).sum())
    straight = float(segment_lengths(thetas[[0, -1]], mask).sum())
    if straight == 0:
        return 1.0 if length == 0 else float("inf")
    return length / straight
