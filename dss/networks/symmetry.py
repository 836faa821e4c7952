"""Which numbers of a network belong to its hidden units: read off the graph of its forward.

Hidden units may change places, and where only functions like ReLU act on them, take a positive
factor, without a change of the outputs.  `symmetries_of` follows the units of every layer through a
traced forward: through activations, norms, pooling, sums, concatenations and flattening.  What it
does not know fixes the units that go into it, so that those that it leaves free are free.
"""

import copy
import math
import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dss.networks.brought import OutputTaken
from dss.networks.samples import Tree, arguments_of
from dss.networks.units import BATCH_NORMS, CONVOLUTIONS, ELEMENTWISE, KEEP_SCALE, POOLINGS

# Functions of one value each that let a positive factor through, and those that do not.
LET_THROUGH = {F.relu, torch.relu, F.leaky_relu, F.dropout, operator.neg, torch.neg, torch.abs}
LET_THROUGH |= {"relu", "relu_", "contiguous", "clone", "float", "double", "abs", "neg"}
ONE_BY_ONE = {torch.tanh, F.tanh, torch.sigmoid, F.sigmoid, F.gelu, F.silu, F.elu, F.softplus}
ONE_BY_ONE |= {F.selu, F.mish, F.hardswish, F.relu6, torch.exp, torch.sin, torch.cos}
ONE_BY_ONE |= {"tanh", "sigmoid", "exp", "sin", "cos"}
SUMS = {operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub"}
PRODUCTS = {operator.mul, torch.mul, "mul"}
QUOTIENTS = {operator.truediv, torch.div, "div"}
REDUCTIONS = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}
JOINED = {torch.cat, torch.concat}
FLATTENED = {torch.flatten, "flatten", "view", "reshape", torch.reshape}
# Keywords of functions that are read here, or change nothing.
READ = {"dim", "keepdim", "inplace", "negative_slope", "training", "p", "approximate", "dtype"}
READ |= {"start_dim", "end_dim", "mode", "value", "alpha", "kernel_size", "stride", "padding"}
POOLED = {F.max_pool1d, F.avg_pool1d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d}


class Axis(NamedTuple):
    """Whose values stand along a dimension; int64 `(width,)` both.

    Attributes:
        units: the number of the unit that each value belongs to; 0 where it has a place of its own.
        scales: the number of the factor that each takes; 0 for none.
    """

    units: Tensor
    scales: Tensor

    def at(self, index) -> "Axis":
        """Some of the values."""
        return Axis(self.units[index], self.scales[index])


class UnitAxis(NamedTuple):
    """A dimension of a parameter.

    Attributes:
        name: of the parameter.
        dim: the dimension.
        axis: whose values stand along it.
        power: values are multiplied by this power of their factor: 1, 0 or -1.
        rows: of each group of units that stand there, by its number, where: `(n, m)`.
    """

    name: str
    dim: int
    axis: Axis
    power: int
    rows: dict[int, Tensor] = {}


@dataclass(frozen=True, eq=False)
class Symmetries:
    """The hidden units of a network, and where they stand in its parameters.

    Attributes:
        groups: `(n,)` each, units that may change places with one another.
        scales: `(n,)`, factors that are free.
        places: in the parameters.
    """

    groups: list[Tensor]
    scales: Tensor
    places: list[UnitAxis]


class Classes:
    """Numbers that are found to be one; 0 absorbs what is joined to it."""

    def __init__(self):
        self.parent = [0]

    def new(self, n: int) -> Tensor:
        """Numbers of their own."""
        begin = len(self.parent)
        self.parent += range(begin, begin + n)
        return torch.arange(begin, begin + n)

    def root(self, i: int) -> int:
        """The number that stands for all that were joined to it."""
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def roots(self, numbers: Tensor) -> Tensor:
        """The same of many."""
        return torch.tensor([self.root(i) for i in numbers.tolist()], dtype=torch.int64)

    def join(self, numbers: Tensor, others: Tensor) -> None:
        """Make numbers one, pair by pair."""
        for i, j in zip(numbers.tolist(), others.expand(len(numbers)).tolist(), strict=True):
            low, high = sorted((self.root(i), self.root(j)))
            self.parent[high] = low


def symmetries_of(module: nn.Module, x: Tree) -> Symmetries:
    """The symmetries of a network under which its outputs stay.

    Args:
        module: a network whose forward `torch.fx` can trace.
        x: a few inputs.

    Raises:
        ValueError: it cannot be traced, or no hidden unit is free.
    """
    follower = Follower(*traced(module))
    arguments, keywords = arguments_of(x)
    if keywords:
        raise ValueError(f"inputs by name ({', '.join(keywords)}) cannot be traced; give a tuple")
    with torch.no_grad():
        follower.run(*arguments)
    found = follower.symmetries()
    if not found.groups and not len(found.scales):
        raise ValueError(f"no hidden unit of {type(module).__name__} is known to be free")
    return found


def traced(module: nn.Module) -> tuple[fx.GraphModule, dict[int, str]]:
    """The graph of a network's forward, with a copy of its layers, and parameters' names by id.

    Raises:
        ValueError: `torch.fx` cannot trace it.
    """
    module = OutputTaken.leave(copy.deepcopy(module))
    try:
        graph = fx.Tracer().trace(module)
    except Exception as error:  # whatever forward does with what has no values
        raise ValueError(
            f"the forward of {type(module).__name__} cannot be traced by torch.fx: {error}"
        ) from error
    return fx.GraphModule(module, graph), {id(p): name for name, p in module.named_parameters()}


class Follower(fx.Interpreter):
    """Runs a graph, and follows the units of each axis of each value."""

    def __init__(self, graph: fx.GraphModule, names: dict[int, str]):
        super().__init__(graph)
        self.names = names
        self.units, self.scales = Classes(), Classes()
        self.places: dict[tuple[str, int], UnitAxis] = {}
        self.axes: dict[fx.Node, list[Axis] | None] = {}
        self.values: dict[fx.Node, Tensor] | None = None  # a dict keeps them

    def run_node(self, node: fx.Node):
        """As an interpreter does; and note the axes of what the node gives."""
        value = super().run_node(node)
        self.axes[node] = self._follow(node, value) if isinstance(value, Tensor) else None
        if node.op == "output" or self.axes[node] is None:
            self._fix_unless_read(node)
        elif self.values is not None and node.op != "get_attr":
            self.values[node] = value
        return value

    def symmetries(self) -> Symmetries:
        """What was found, when the graph has run: units with the same places may change them."""
        places = [place._replace(axis=self.settled(place.axis)) for place in self.places.values()]
        seen, factors = defaultdict(list), set()
        for k, place in enumerate(places):
            units, counts = place.axis.units.unique(return_counts=True)
            for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
                seen[unit].append((k, count))
            factors |= set(place.axis.scales.tolist()) if place.power else set()
        groups = defaultdict(list)
        for unit, where in sorted(seen.items()):
            groups[tuple(where)].append(unit)
        free = [torch.tensor(g) for g in groups.values() if len(g) > 1 and 0 not in g]
        places = [place._replace(rows=rows_of_groups(place.axis, free)) for place in places]
        return Symmetries(free, torch.tensor(sorted(factors - {0}), dtype=torch.int64), places)

    def settled(self, axis: Axis) -> Axis:
        """An axis by the numbers that stand for all that are one."""
        return Axis(self.units.roots(axis.units), self.scales.roots(axis.scales))

    # Axes.

    def _fresh(self, n: int) -> Axis:
        return Axis(self.units.new(n), self.scales.new(n))

    def _fix(self, axes: Sequence[Axis]) -> None:
        self._fix_scale(axes)
        for axis in axes:
            self.units.join(axis.units, torch.zeros(1, dtype=torch.int64))

    def _fix_scale(self, axes: Sequence[Axis]) -> None:
        for axis in axes:
            self.scales.join(axis.scales, torch.zeros(1, dtype=torch.int64))

    def _join(self, one: Axis, other: Axis) -> Axis:
        """Two axes that are one."""
        self.units.join(one.units, other.units)
        self.scales.join(one.scales, other.scales)
        return one

    def _place(self, p: nn.Parameter | None, dim: int, axis: Axis, power: int) -> None:
        """A dimension of a parameter is an axis; known before, both are one."""
        if p is None:
            return
        name = self.names[id(p)]
        if (name, dim) in self.places:
            before = self.places[name, dim]
            self._join(before.axis, axis)
            if before.power != power:
                self._fix_scale([axis])
        else:
            self.places[name, dim] = UnitAxis(name, dim, axis, power)

    def _fix_unless_read(self, node: fx.Node) -> None:
        """Fix what goes into the output, or into what gives no tensor, but for sizes."""
        target = node.target
        reads = target in ("size", "dim") or (target is getattr and node.args[1:] == ("shape",))
        if not reads:
            for source in node.all_input_nodes:
                self._fix(self.axes.get(source) or [])

    # Nodes.

    def _follow(self, node: fx.Node, value: Tensor) -> list[Axis]:
        if node.op == "placeholder":
            return fixed(value.shape)
        if node.op == "get_attr":
            return self._parameter(value)
        given = [a for a in node.args if isinstance(a, fx.Node)]
        axes = [self.axes[source] for source in given if self.axes[source] is not None]
        found = None
        if node.op == "call_module" and len(node.args) == 1 and not node.kwargs and axes:
            found = self._layer(self.module.get_submodule(node.target), axes[0], value)
        elif node.op != "call_module":
            found = self._function(node, axes, value)
        if found is None and node.op == "call_module":
            for p in self.module.get_submodule(node.target).parameters():
                for dim, axis in enumerate(fixed(p.shape)):
                    self._place(p, dim, axis, 0)
        if found is None or [len(axis.units) for axis in found] != list(value.shape):
            for source in node.all_input_nodes:
                self._fix(self.axes[source] or [])
            self._fix(found or [])
            return fixed(value.shape)
        return found

    def _parameter(self, value: Tensor) -> list[Axis]:
        if id(value) not in self.names:
            return fixed(value.shape)
        name = self.names[id(value)]
        for dim, n in enumerate(value.shape):
            if (name, dim) not in self.places:
                self.places[name, dim] = UnitAxis(name, dim, self._fresh(n), 1)
        axes = [self.places[name, dim].axis for dim in range(value.dim())]
        if any(self.places[name, dim].power != 1 for dim in range(value.dim())):
            self._fix_scale(axes)
        return axes

    def _layer(self, layer: nn.Module, x: list[Axis], value: Tensor) -> list[Axis] | None:
        kind = type(layer)
        if kind is nn.Linear:
            self._fix(x[:-1])
            return [*x[:-1], self._affine(layer, x[-1])]
        if kind in CONVOLUTIONS and layer.groups == 1:
            self._fix(x[2:])
            return [x[0], self._affine(layer, x[1]), *fixed(value.shape[2:])]
        if kind in CONVOLUTIONS and layer.groups == layer.in_channels == layer.out_channels:
            self._fix(x[2:])
            self._place(layer.weight, 0, x[1], 0)
            self._place(layer.bias, 0, x[1], 1)
            return [x[0], x[1], *fixed(value.shape[2:])]
        if kind is nn.Embedding and layer.max_norm is None:
            axis = self._fresh(layer.embedding_dim)
            self._place(layer.weight, 1, axis, 1)
            return [*x, axis]
        if kind in BATCH_NORMS:
            return self._norm(layer, x, 1)
        if kind is nn.GroupNorm and layer.num_groups in (1, layer.num_channels):
            return self._norm(layer, x, 1)
        if kind is nn.LayerNorm and len(layer.normalized_shape) == 1:
            return self._norm(layer, x, len(x) - 1)
        if kind is nn.Flatten:
            return self._flattened(x, layer.start_dim, layer.end_dim)
        if kind in POOLINGS:
            return self._pooled(x, value, kind.__name__)
        if kind is nn.PReLU and layer.num_parameters > 1:
            self._place(layer.weight, 0, x[1], 0)
        is_off = isinstance(layer, nn.modules.dropout._DropoutNd) and not (
            layer.training and layer.p
        )
        if kind in ELEMENTWISE or is_off:
            if not (kind in KEEP_SCALE or is_off):
                self._fix_scale(x)
            return x
        return None

    def _affine(self, layer: nn.Module, x: Axis) -> Axis:
        """The units of a linear layer or a convolution, whose inputs have the axis `x`."""
        axis = self._fresh(len(layer.weight))
        self._place(layer.weight, 1, x, -1)
        self._place(layer.weight, 0, axis, 1)
        self._place(layer.bias, 0, axis, 1)
        return self.places[self.names[id(layer.weight)], 0].axis

    def _norm(self, layer: nn.Module, x: list[Axis], dim: int) -> list[Axis]:
        """What a norm gives: the same units, whose factors begin anew with its own weights."""
        self._fix_scale(x)
        if getattr(layer, "weight", None) is None:
            return x
        axis = x[dim]._replace(scales=self.scales.new(len(x[dim].units)))
        self._place(layer.weight, 0, axis, 1)
        self._place(layer.bias, 0, axis, 1)
        return [*x[:dim], self.places[self.names[id(layer.weight)], 0].axis, *x[dim + 1 :]]

    def _pooled(self, x: list[Axis], value: Tensor, name: str) -> list[Axis]:
        """What pooling gives over the last one, two or three dimensions, as its name says."""
        n_dims = next(n for n in (1, 2, 3) if f"{n}d" in name.lower())
        self._fix(x[-n_dims:])
        return [*x[:-n_dims], *fixed(value.shape[-n_dims:])]

    def _flattened(self, x: list[Axis], begin: int, end: int) -> list[Axis]:
        begin, end = begin % len(x), end % len(x)
        self._fix(x[begin + 1 : end + 1])
        block = math.prod(len(axis.units) for axis in x[begin + 1 : end + 1])
        merged = Axis(*(v.repeat_interleave(block) for v in x[begin]))
        return [*x[:begin], merged, *x[end + 1 :]]

    def _function(self, node: fx.Node, axes: list, value: Tensor) -> list[Axis] | None:
        target, x = node.target, axes[0] if axes else None
        if any(isinstance(v, fx.Node) for v in node.kwargs.values()) or set(node.kwargs) - READ:
            return None
        if target in JOINED:
            return self._concatenated(node)
        if x is None or len(node.args) == 0:
            return None
        if target in LET_THROUGH and not (target is F.dropout and _acts(node)):
            return x
        if target in ONE_BY_ONE:
            self._fix_scale(x)
            return x
        if target in SUMS | PRODUCTS | QUOTIENTS:
            return self._of_two(node, axes, value)
        if target in REDUCTIONS:
            return self._reduced(node, x, value)
        if target in FLATTENED:
            return self._reshaped(node, x, value)
        if target in POOLED:
            return self._pooled(x, value, target.__name__)
        if target in (torch.permute, "permute", torch.transpose, "transpose") and node.args[1:]:
            return self._permuted(node, x)
        if target is F.pad:
            return self._padded(node, x)
        if target is operator.getitem:
            return self._sliced(node, x, value)
        if target is F.linear and len(axes) == 2 and len(axes[1]) == 2 and len(node.args) == 2:
            self._fix_scale([x[-1], *axes[1]])
            self._fix(x[:-1])
            self._join(axes[1][1], x[-1])
            return [*x[:-1], axes[1][0]]
        return None

    def _of_two(self, node: fx.Node, axes: list, value: Tensor) -> list[Axis]:
        """Sums and products of two values, or of one and a number."""
        if len(axes) == 1:
            first = node.args[0]
            is_number = not isinstance(first, fx.Node) or self.axes[first] is None
            if node.target in SUMS or (is_number and node.target in QUOTIENTS):
                self._fix_scale(axes[0])
            return axes[0]
        if node.target not in SUMS:
            self._fix_scale([*axes[0], *axes[1]])
        found: list[Axis] = []
        for k in range(1, value.dim() + 1):
            both = [a[-k] for a in axes if len(a) >= k and len(a[-k].units) == value.shape[-k]]
            if len(both) == 1:  # the other is the same for all units
                if node.target in SUMS:
                    self._fix_scale(both)
                found.insert(0, both[0])
            else:
                found.insert(0, self._join(*both))
        return found

    def _concatenated(self, node: fx.Node) -> list[Axis] | None:
        sources = node.args[0] if node.args else None
        if not isinstance(sources, tuple | list) or not all(
            isinstance(source, fx.Node) and self.axes[source] for source in sources
        ):
            return None
        parts = [self.axes[source] for source in sources]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        dim %= len(parts[0])
        found = list(parts[0])
        for other in parts[1:]:
            for k in range(len(found)):
                if k == dim:
                    found[k] = Axis(*map(torch.cat, zip(found[k], other[k], strict=True)))
                else:
                    self._join(found[k], other[k])
        return found

    def _reduced(self, node: fx.Node, x: list[Axis], value: Tensor) -> list[Axis] | None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if dims is None:
            return None
        dims = {d % len(x) for d in ((dims,) if isinstance(dims, int) else dims)}
        self._fix_scale([x[d] for d in dims])
        keeps = value.dim() == len(x)
        one = fixed([1]) if keeps else []
        return [axis for d, a in enumerate(x) for axis in (one if d in dims else [a])]

    def _reshaped(self, node: fx.Node, x: list[Axis], value: Tensor) -> list[Axis] | None:
        if node.target in (torch.flatten, "flatten"):
            names = {"start_dim": 0, "end_dim": -1}
            given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
            return self._flattened(x, *(names | given).values())
        shape = [len(axis.units) for axis in x]
        if list(value.shape) == shape:
            return x
        is_flat = value.dim() == 2 and value.shape[0] == shape[0]
        return self._flattened(x, 1, -1) if is_flat else None

    def _permuted(self, node: fx.Node, x: list[Axis]) -> list[Axis]:
        given = node.args[1:]
        order = list(range(len(x)))
        if node.target in (torch.transpose, "transpose"):
            a, b = given
            order[a], order[b] = order[b], order[a]
        else:
            order = list(given[0] if isinstance(given[0], tuple | list) else given)
        return [x[d] for d in order]

    def _sliced(self, node: fx.Node, x: list[Axis], value: Tensor) -> list[Axis] | None:
        index = fx.node.map_arg(node.args[1], lambda n: self.env[n])
        index = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(i, slice | int) for i in index):
            return None
        index += (slice(None),) * (len(x) - len(index))
        for axis, i in zip(x, index, strict=True):
            if i != slice(None):
                self._fix([axis])  # those that are left out are not like the others
        return [a.at(i) for a, i in zip(x, index, strict=True) if isinstance(i, slice)]

    def _padded(self, node: fx.Node, x: list[Axis]) -> list[Axis] | None:
        """Zeros before and after; they are units that nothing is known of."""
        how = dict(zip(("mode", "value"), node.args[2:], strict=False)) | node.kwargs
        sizes = list(node.args[1])
        if how.get("mode", "constant") != "constant" or how.get("value") or min(sizes) < 0:
            return None
        found = list(x)
        for k, (before, after) in enumerate(zip(sizes[::2], sizes[1::2], strict=True), start=1):
            if before or after:
                ends = [self._fresh(n) for n in (before, after)]
                parts = ends[0], x[-k], ends[1]
                found[-k] = Axis(*map(torch.cat, zip(*parts, strict=True)))
        return found


def fixed(shape: Sequence[int]) -> list[Axis]:
    """Axes whose values have places of their own."""
    return [Axis(*torch.zeros(2, n, dtype=torch.int64)) for n in shape]


def rows_of_groups(axis: Axis, groups: list[Tensor]) -> dict[int, Tensor]:
    """Where the units of each group stand along an axis, `(n, m)`, by the number of the group."""
    found = {}
    for k, group in enumerate(groups):
        is_at = axis.units == group[:, None]  # (n, width)
        counts = is_at.sum(dim=1)
        if counts[0] and (counts == counts[0]).all():  # else a slice shows a part of them
            found[k] = is_at.nonzero()[:, 1].view(len(group), -1)
    return found


def _acts(node: fx.Node) -> bool:
    """Whether a dropout of a forward drops anything."""
    return (*node.args[2:3], node.kwargs.get("training", True))[0] is not False
