"""Alignment: another network's hidden units in the order, and at the scale, of the first one's."""

from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from dss.checks import check_generator, check_number, check_theta, check_whole, lookup
from dss.networks.modes import in_usual_mode
from dss.networks.samples import arguments_of, part_of, rows_of
from dss.networks.symmetry import (
    Follower,
    Symmetries,
    UnitAxis,
    rows_of_groups,
    symmetries_of,
    traced,
)
from dss.task import Landscape, Network, Task, check_task, thetas_of
from dss.theta import shapes_of, unflatten

LOOKED_AT = 500  # samples whose activations are compared
MOST_VALUES = 2**25  # that are held of each network for it
MOST_SWEEPS = 200  # over all groups of units; each one raises the agreement
MOST_STEPS = 2_000  # until factors stand still


@in_usual_mode
def align(
    task: Task,
    theta_1: Tensor | Network,
    theta_2: Tensor | Network,
    method: str = "weights",
    *,
    n_starts: int = 3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A copy of `theta_2` with the same outputs, whose hidden units are matched to `theta_1`'s.

    Units of a layer change places, and where only functions like ReLU act on them, they also take
    the positive factors that `theta_1` has.  Which numbers belong to a unit is read off the traced
    forward (`dss.networks.symmetry`).

    Args:
        task: of both networks.
        theta_1, theta_2: `(P,)`, or what `task.theta` takes.
        method: `"weights"`: units match whose weights agree, layer after layer and again, until no
            change raises the inner product of the two networks.  `"activations"`: units match whose
            values on the evaluation set correlate.
        n_starts: of `"weights"`: the units as they are, matched by the sizes of their weights
            alone, then at random; the best end counts.
        generator: CPU generator of the order in which layers come; a new one with seed 0 by
            default.

    Returns:
        theta `(P,)` in the dtype of `theta_2`, on the task's device.

    Raises:
        TypeError: no networks of the task.
        ValueError: another shape, an unknown method, a landscape, a forward that cannot be traced,
            or no unit that is free.
        RuntimeError: the outputs would change; nothing is returned then.
        ImportError: scipy is not installed; it comes with the extra `notebooks`.

    Source: Ainsworth et al., Git Re-Basin (2023), for the matching.
    """
    check_task(task)
    theta_1, theta_2 = thetas_of(task, theta_1=theta_1, theta_2=theta_2)
    for name, theta in (("theta_1", theta_1), ("theta_2", theta_2)):
        check_theta(theta, name, (task.n_params,), finite=True)
    method = lookup({"weights": _by_weights, "activations": _by_activations}, method, "method")
    n_starts, generator = check_whole(n_starts, "n_starts", 1), check_generator(generator)
    double, found, x = _symmetries(task)
    first, second = (_weights(double, theta) for theta in (theta_1, theta_2))
    factors = balancing(found, first)
    balanced = rescaled(found, first, factors), rescaled(found, second, balancing(found, second))
    orders = method(double, found, *balanced, x, n_starts, generator)
    moved = rescaled(found, permuted(found, balanced[1], orders), 1 / factors)
    return _checked(task, double, theta_2, moved, x)


@in_usual_mode
def shuffled(
    task: Task,
    theta: Tensor | Network,
    generator: torch.Generator | None = None,
    spread: float = 0.0,
) -> Tensor:
    """A copy of a network with the same outputs, whose hidden units stand in a random order.

    Args:
        task: of the network.
        theta: `(P,)`, or what `task.theta` takes.
        generator: CPU generator of the order; a new one with seed 0 by default.
        spread: where only functions like ReLU act on a unit, it also takes a factor, whose
            logarithm has this standard deviation.

    Returns:
        theta `(P,)` in its dtype, on the task's device.

    Raises:
        TypeError, ValueError, RuntimeError: as in `align`; ValueError for a spread < 0.
    """
    check_task(task)
    (theta,) = thetas_of(task, theta=theta)
    check_theta(theta, "theta", (task.n_params,), finite=True)
    generator = check_generator(generator)
    spread = check_number(spread, "spread", lambda v: 0 <= v < 10, "in [0, 10)")
    double, found, x = _symmetries(task)
    orders = [torch.randperm(len(group), generator=generator) for group in found.groups]
    logs = torch.randn(len(found.scales), generator=generator, dtype=torch.float64)
    moved = permuted(found, _weights(double, theta), orders)
    return _checked(task, double, theta, rescaled(found, moved, (spread * logs).exp()), x)


def _symmetries(task: Task) -> tuple[Task, Symmetries, Tensor]:
    """The task in float64 on the CPU, what may move in it, and a few samples."""
    if isinstance(task, Landscape):
        raise ValueError(f"{task.name} is an explicit function of theta; it has no hidden units")
    few = part_of(task.splits["test"], slice(0, LOOKED_AT), task.dtype)
    double = replace(task, splits=dict.fromkeys(task.splits, few)).to("cpu", torch.float64)
    x, _ = double.splits["test"]
    return double, symmetries_of(double.module, rows_of(x, slice(0, 2))), x


def _weights(double: Task, theta: Tensor) -> "Weights":
    return dict(unflatten(theta.detach().cpu().double(), shapes_of(double.module)))


def _checked(task: Task, double: Task, before: Tensor, weights: "Weights", x) -> Tensor:
    """Weights as theta `(P,)`; RuntimeError where the outputs are not those of the one before."""
    theta = torch.cat([weights[name].reshape(-1) for name in shapes_of(double.module)])
    _check_same(double, before.detach().cpu().double(), theta, x)
    return theta.to(task.device, before.dtype)


Weights = dict[str, Tensor]  # the parameters of a network, by name
Orders = list[Tensor]  # of each group: its unit i is the other network's unit `order[i]`


def rescaled(found: Symmetries, weights: Weights, factors: Tensor) -> Weights:
    """The network whose units take factors, those of `found.scales`, `(n,)`."""
    weights = {name: value.clone() for name, value in weights.items()}
    for place in found.places:
        if place.power:
            factor = _at_scales(found, place, factors) ** place.power
            weights[place.name].movedim(place.dim, -1).mul_(factor)
    return weights


def _at_scales(found: Symmetries, place: UnitAxis, factors: Tensor) -> Tensor:
    """The factor of each value along a dimension; 1 where it takes none."""
    every = factors.new_ones(1 + int(found.scales.max()) if len(factors) else 1)
    every[found.scales] = factors
    return every[place.axis.scales]


def balancing(found: Symmetries, weights: Weights) -> Tensor:
    """Factors after which every unit has as much weight in front of it as behind it, `(n,)`.

    They do not depend on the order of the units, nor on factors that were there before.
    """
    scales = found.scales
    total = torch.ones(len(scales), dtype=torch.float64)
    for _ in range(MOST_STEPS if len(scales) else 0):
        sides = torch.zeros(2, 1 + int(scales.max()), dtype=torch.float64)
        for place in found.places:
            if place.power:
                squares = _flat(weights[place.name], place.dim).pow(2).sum(dim=1)
                sides[int(place.power < 0)].index_add_(0, place.axis.scales, squares)
        ratio = (sides[1] / sides[0])[scales]
        factors = torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0) ** 0.125
        weights, total = rescaled(found, weights, factors), total * factors
        if float(factors.log().abs().max()) < 1e-12:
            break
    return total


def _flat(values: Tensor, dim: int) -> Tensor:
    """A parameter `(width, others)`, by what stands along a dimension."""
    return values.movedim(dim, 0).reshape(values.shape[dim], -1)


def permuted(
    found: Symmetries, weights: Weights, orders: Orders, name: str | None = None, but: int = -1
) -> Weights:
    """The network with its units in other orders; of one parameter alone, and not in dim `but`."""
    weights = dict(weights) if name is None else {name: weights[name]}
    for place in found.places:
        if place.name in weights and place.dim != but and place.rows:
            index = torch.arange(len(place.axis.units))
            for group, rows in place.rows.items():
                index[rows] = rows[orders[group]]
            weights[place.name] = weights[place.name].index_select(place.dim, index)
    return weights


def _by_weights(task, found: Symmetries, first: Weights, second: Weights, x, n_starts, generator):
    """Orders that raise the inner product of both networks, the best of several ends."""
    ends = []
    for k in range(n_starts):
        orders = [torch.arange(len(group)) for group in found.groups]
        if k == 1:
            orders = [_by_sizes(found, group, first, second) for group in range(len(orders))]
        elif k > 1:
            orders = [torch.randperm(len(order), generator=generator) for order in orders]
        orders = _swept(found, first, second, orders, generator)
        ends.append((_agreement(found, first, second, orders), orders))
    return max(ends, key=lambda end: end[0])[1]


def _agreement(found: Symmetries, first: Weights, second: Weights, orders: Orders) -> float:
    """The inner product of a network and another one in other orders."""
    moved = permuted(found, second, orders)
    return sum(float((first[name] * moved[name]).sum()) for name in first)


def _swept(found: Symmetries, first: Weights, second: Weights, orders: Orders, generator) -> Orders:
    """Match one group after the other, the others held, until none raises the inner product.

    A matching is the best one where units stand on one side of each matrix; where they stand on
    both, the gains hold one side at its old order, and a matching that lowers the product is left.
    """
    agreement = _agreement(found, first, second, orders)
    for _ in range(MOST_SWEEPS):
        changed = False
        for group in torch.randperm(len(orders), generator=generator).tolist():
            best = matched(_gains(found, group, first, second, orders))
            tried = [*orders[:group], best, *orders[group + 1 :]]
            raised = _agreement(found, first, second, tried)
            if raised > agreement + 1e-12 * abs(agreement):
                orders, agreement, changed = tried, raised, True
        if not changed:
            break
    return orders


def _gains(
    found: Symmetries, group: int, first: Weights, second: Weights, orders: Orders
) -> Tensor:
    """What the inner product gains where a unit takes the place of another, `(n, n)`."""
    n = len(found.groups[group])
    gains = torch.zeros(n, n, dtype=torch.float64)
    for place in found.places:
        if group in place.rows:
            rows = place.rows[group]
            other = permuted(found, second, orders, place.name, place.dim)[place.name]
            one, other = (_flat(v, place.dim)[rows] for v in (first[place.name], other))
            gains += one.flatten(1) @ other.flatten(1).T
    return gains


def matched(gains: Tensor) -> Tensor:
    """Which of the other units goes with each unit, `(n,)`, so that the gains `(n, n)` are most."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])


def _by_sizes(found: Symmetries, group: int, first: Weights, second: Weights) -> Tensor:
    """Units matched by the sizes of their weights, sorted: no order of any layer matters."""
    sides = []
    for weights in (first, second):
        values = [
            _flat(weights[place.name], place.dim)[place.rows[group]].flatten(1).abs()
            for place in found.places
            if group in place.rows
        ]
        sides.append(torch.cat([v.sort(dim=1).values for v in values], dim=1))
    return matched(-torch.cdist(*sides))


def _by_activations(task, found: Symmetries, first, second, x, n_starts, generator) -> Orders:
    """Units matched by the correlation of their values, wherever they are seen in the graph."""
    n_samples = max(2, MOST_VALUES // task.budget.n_activations)
    x = rows_of(x, slice(0, n_samples))
    sides = [values_of_units(task, found, weights, x) for weights in (first, second)]
    orders = []
    for group, members in enumerate(found.groups):
        gains = torch.zeros(len(members), len(members), dtype=torch.float64)
        for one, other in zip(*(side[group] for side in sides), strict=True):
            gains += one @ other.T / one.shape[1]
        orders.append(matched(gains))
    return orders


def values_of_units(task: Task, found: Symmetries, weights: Weights, x) -> dict[int, list[Tensor]]:
    """What the units of each group give at every node, `(n, values)`, mean 0 and deviation 1."""
    graph, names = traced(task.module)
    follower = Follower(graph, names)
    follower.values = {}
    with torch.no_grad():
        for p in graph.parameters():
            p.copy_(weights[names[id(p)]])
        follower.run(*arguments_of(x)[0])
    values = defaultdict(list)
    for node, value in follower.values.items():
        for dim, axis in enumerate(follower.axes[node]):
            for group, rows in rows_of_groups(follower.settled(axis), found.groups).items():
                v = _flat(value.detach().double(), dim)[rows].flatten(1)
                v = v - v.mean(dim=1, keepdim=True)
                values[group].append(v / v.pow(2).mean(dim=1, keepdim=True).sqrt().clamp(min=1e-12))
    return values


def _check_same(task: Task, before: Tensor, after: Tensor, x) -> None:
    """Raise RuntimeError where two networks give other outputs."""
    one, other = task.outputs(torch.stack([before, after]), rows_of(x, slice(0, 50)))
    off = float((one - other).abs().max())
    if not off <= 1e-6 * float(one.abs().max()):
        raise RuntimeError(
            f"the outputs of {type(task.module).__name__} would change by {off:.3g}: its forward "
            "does something that was not understood"
        )
