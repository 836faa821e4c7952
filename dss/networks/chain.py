"""Networks that call one layer after the other, in whatever way they are written."""

import operator

import torch
from torch import nn
from torch.nn import functional as F

# What is called in forward, and the layer that does the same; methods by name.
ACTIVATIONS = {
    nn.ReLU: (F.relu, torch.relu, "relu"),
    nn.Sigmoid: (torch.sigmoid, F.sigmoid, "sigmoid"),
    nn.Tanh: (torch.tanh, F.tanh, "tanh"),
}
FLATTEN = (torch.flatten, "flatten")
ROWS = ("view", "reshape", torch.reshape)
WITH_SETTINGS = {
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.leaky_relu: nn.LeakyReLU,
}


def chained_layers(module: nn.Module) -> list[nn.Module]:
    """The layers that a network calls, in the order of their use.

    Functions as `F.relu` and `torch.flatten` are made into layers.  A `view` as rows counts as
    flattening, which holds where the outputs have as many rows as the inputs.

    Raises:
        ValueError: it does something else, and what is named.
    """
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        raise ValueError("the network has hooks")
    if any("forward" in vars(m) for m in module.modules()):
        raise ValueError("a forward was replaced")
    if next(module.children(), None) is None:
        return [module]
    from torch.fx import Tracer

    try:
        graph = Tracer().trace(module)
    except Exception as error:  # whatever forward does with what has no values
        raise ValueError(f"its forward cannot be traced ({error})") from error
    layers: list[nn.Module] = []
    last, sizes = None, set()
    for node in graph.nodes:
        if node.op == "placeholder" and last is None:
            last = node
        elif node.op == "output" and node.args == (last,):
            return layers
        elif _is_size(node, last):
            sizes.add(node)
        elif [n for n in node.all_input_nodes if n not in sizes] == [last] and node.op != "output":
            layers.append(_layer_of(module, node, sizes))
            last = node
        else:
            raise ValueError(f"{node.format_node()} is no chain of layers")
    raise ValueError("it has no output")


def _is_size(node, last) -> bool:
    """Whether a node is the number of samples, or a step on the way to it."""
    if node.target is operator.getitem:
        shape, index = node.args
        return index == 0 and shape.target is getattr and shape.args[1:] == ("shape",)
    return (node.target, node.args) in ((getattr, (last, "shape")), ("size", (last, 0)))


def _layer_of(module: nn.Module, node, sizes: set) -> nn.Module:
    """The layer that does what a node of the graph does.

    Raises:
        ValueError: none that is known.
    """
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        return module.get_submodule(node.target)
    options = {name: v for name, v in node.kwargs.items() if name != "inplace"}
    for layer, functions in ACTIVATIONS.items():
        if node.target in functions and len(node.args) == 1 and not options:
            return layer()
    if node.target in FLATTEN and (*node.args[1:], *options.values()) in ((1,), (1, -1)):
        return nn.Flatten()
    if node.target in ROWS and not options:
        shape = node.args[1:] if len(node.args) == 3 else tuple(node.args[1])
        if len(shape) == 2 and -1 in shape and (shape[0] == -1 or shape[0] in sizes):
            return nn.Flatten()
    if node.target in WITH_SETTINGS:
        given = {name: v for name, v in node.kwargs.items() if v is not None}
        return WITH_SETTINGS[node.target](*node.args[1:], **given)
    if node.target is F.dropout and False in (*node.args[2:3], node.kwargs.get("training")):
        return nn.Identity()
    raise ValueError(f"{node.format_node()} has no layer that does the same")


def places_of_parameters(module: nn.Module, layers: list[nn.Module]) -> list[int]:
    """Where in theta the parameters of each layer begin, its weight and then its bias.

    Raises:
        ValueError: parameters that are shared, belong to no layer, or are not weight and then bias.
    """
    begins, start = {}, 0
    for p in module.parameters():
        begins[id(p)], start = start, start + p.numel()
    used = [id(p) for layer in layers for p in layer.parameters()]
    if sorted(used) != sorted(begins):
        raise ValueError("it has layers that share parameters, or parameters beside its layers")
    places = []
    for layer in layers:
        names = [name for name, _ in layer.named_parameters()]
        if names not in ([], ["weight"], ["weight", "bias"]) or {"weight", "bias"} & set(
            layer._buffers
        ):
            raise ValueError(
                f"{layer} has a constant weight or bias, other parameters, or its bias before its "
                "weight (pruning leaves it so)"
            )
        places.append(begins[id(layer.weight)] if names else 0)
    return places
