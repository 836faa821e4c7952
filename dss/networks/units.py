"""Which numbers of a network belong to the units of a hidden layer, and where their axis lies."""

from typing import NamedTuple

from torch import nn

from dss.networks.dense import plain_layers

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLINGS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)

# What comes through them rescaled, by a positive factor, leaves them so.
KEEP_SCALE = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Flatten, *POOLINGS)
ELEMENTWISE = (
    *(nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU, nn.SELU),
    *(nn.CELU, nn.SiLU, nn.Mish, nn.ReLU6, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
)


class Place(NamedTuple):
    """Where the units are in one parameter.

    Attributes:
        axis: holds the units, or for each of them a block of values.
        power: 1 where a rescaled unit is multiplied, -1 where it is divided, else 0.
    """

    axis: int
    power: int


def places_of_units(module: nn.Module, layer: int) -> tuple[int, dict[str, Place], str]:
    """The units of one hidden layer of a sequence.

    Args:
        module: linear (inputs `(B, features)`) and convolutional layers in a plain
            `nn.Sequential`, with activations, norms, pooling and flattening between them.
        layer: which hidden layer, from 0.

    Returns:
        How many units there are; the places of those parameters that belong to them, by name; and
        the first layer, as text, through which a positive factor does not go; empty where all let
        it through.

    Raises:
        ValueError: a network or a layer for which this is not known; it is named.
    """
    layers = plain_layers(module)
    if not layers:
        raise ValueError(
            f"the units of {type(module).__name__} are not known: a plain nn.Sequential is needed, "
            "without hooks, shared parameters or parametrisations, and not nested (nn.Sequential"
            "(*layers) has the same parameters)"
        )
    affine = [i for i, m in enumerate(layers) if type(m) in (nn.Linear, *CONVOLUTIONS)]
    if not 0 <= layer < len(affine) - 1:
        known = f"hidden layers 0 to {len(affine) - 2}" if len(affine) > 1 else "no hidden layer"
        raise ValueError(f"layer is {layer}; the network has {known}")
    first, last = affine[layer : layer + 2]
    h, stops, flat = len(layers[first].weight), "", type(layers[first]) is nn.Linear
    names = [name for name, _ in module.named_children()]
    places = {f"{names[first]}.{name}": Place(0, 1) for name, _ in layers[first].named_parameters()}
    for name, between in zip(names[first + 1 : last], layers[first + 1 : last], strict=True):
        if _has_values_per_unit(between, h, flat, layers[first]):
            places |= {f"{name}.{n}": Place(0, 0) for n, _ in between.named_parameters()}
        flat = flat or type(between) is nn.Flatten
        if not (isinstance(between, KEEP_SCALE) or _is_off(between)):
            stops = stops or str(between)
    _check_behind(layers[first], layers[last], h, flat)
    return h, places | {f"{names[last]}.weight": Place(1, -1)}, stops


def _is_off(layer: nn.Module) -> bool:
    """Whether a layer is dropout that does not act."""
    return isinstance(layer, nn.modules.dropout._DropoutNd) and not (layer.training and layer.p)


def _has_values_per_unit(layer: nn.Module, h: int, flat: bool, first: nn.Module) -> bool:
    """Whether a layer between two others holds values for each of `h` units.

    Args:
        layer: between the layer `first`, which has the units, and the next one.
        flat: whether its inputs are `(B, units)`, or `(B, units * positions)`.

    Raises:
        ValueError: it mixes units, or it is not known whether it does.
    """
    kind, n_axes = type(layer), 1 if flat else first.weight.dim() - 1
    known = kind in ELEMENTWISE or _is_off(layer) or (kind in POOLINGS and not flat)
    known |= kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
    if kind in BATCH_NORMS:
        if layer.running_mean is not None:
            raise ValueError(
                f"{layer} keeps running statistics, which are no parameters and stay where they "
                "are; pass dss.batch_statistics(module), which has the same parameters"
            )
        known = layer.num_features % h == 0
    elif kind is nn.GroupNorm:
        known = layer.num_channels % h == 0 and layer.num_groups in (1, h)
    elif kind is nn.LayerNorm:
        shape = layer.normalized_shape
        known = len(shape) < n_axes or (len(shape) == n_axes and shape[0] % h == 0)
        if len(shape) < n_axes:  # of positions alone, for every channel the same
            return False
    elif kind is nn.PReLU:
        known = layer.num_parameters == 1 or layer.num_parameters % h == 0
    if not known:
        raise ValueError(
            f"the units behind {first} are not known: between them and the next layer is {layer}"
        )
    return kind in NORMS or (kind is nn.PReLU and layer.num_parameters > 1)


def _check_behind(first: nn.Module, behind: nn.Module, h: int, flat: bool) -> None:
    """Raise ValueError unless the next layer reads the units, each in all its places."""
    if type(behind) is nn.Linear:
        fits = flat and behind.in_features % h == 0
        fits &= type(first) is not nn.Linear or behind.in_features == h
    else:
        fits = not flat and type(behind) is type(first) and behind.in_channels == h
    if not fits or any(getattr(layer, "groups", 1) != 1 for layer in (first, behind)):
        raise ValueError(f"the units behind {first} are not known: the next layer is {behind}")
