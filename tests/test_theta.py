"""Properties of flat parameter vectors: interpolation, flattening, lengths."""

import math
from collections import OrderedDict
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dss
from dss.networks.architectures import mlp
from dss.networks.stacks import stacked_outputs
from dss.theta import normalized_length, permute_units, segment_lengths, shapes_of

NUMBERS = st.floats(-1e100, 1e100, allow_subnormal=False)
MODERATE = st.floats(-100, 100, allow_subnormal=False)
T = st.floats(0, 1)


def vectors(elements, count):
    """`count` float64 vectors of one size, stacked."""
    rows = st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(elements, min_size=n, max_size=n), min_size=count, max_size=count
        )
    )
    return rows.map(lambda values: torch.tensor(values, dtype=torch.float64))


@given(vectors(NUMBERS, 2), st.sampled_from([torch.float32, torch.float64]))
def test_interpolate_is_exact_at_both_ends(pair, dtype):
    theta_1, theta_2 = pair.to(dtype).clamp(-1e37, 1e37)
    assert torch.equal(dss.interpolate(theta_1, theta_2, 0.0), theta_1)
    assert torch.equal(dss.interpolate(theta_1, theta_2, 1.0), theta_2)
    both = dss.interpolate(theta_1, theta_2, torch.tensor([0.0, 1.0]))
    assert torch.equal(both, torch.stack([theta_1, theta_2]))


@given(vectors(NUMBERS, 2), T)
def test_interpolate_lies_between(pair, t):
    theta = dss.interpolate(*pair, t)
    assert (theta >= pair.amin(dim=0)).all()
    assert (theta <= pair.amax(dim=0)).all()


@given(vectors(MODERATE, 2), T)
def test_interpolate_is_equation_1(pair, t):
    theta_1, theta_2 = pair
    expected = theta_1 * (1 - t) + theta_2 * t
    torch.testing.assert_close(dss.interpolate(*pair, t), expected, rtol=0, atol=1e-12)


@given(vectors(MODERATE, 2), T)
def test_interpolate_is_symmetric(pair, t):
    theta_1, theta_2 = pair
    back = dss.interpolate(theta_2, theta_1, 1 - t)
    torch.testing.assert_close(dss.interpolate(theta_1, theta_2, t), back, rtol=0, atol=1e-12)


def test_interpolate_of_many_pairs_with_a_t_each():
    theta_1, theta_2 = torch.zeros(3, 2), torch.ones(3, 2)
    t = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(dss.interpolate(theta_1, theta_2, t), t[:, None].expand(3, 2))
    assert dss.interpolate(theta_1[0], theta_2[0], t).shape == (3, 2)


@pytest.mark.parametrize(
    "theta_1, theta_2, error, message",
    [
        (torch.zeros(3), torch.zeros(4), ValueError, r"\(3,\) and theta_2 .* \(4,\)"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3), TypeError, "theta_1.*torch.int64"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bool), TypeError, "theta_2.*torch.bool"),
        (torch.zeros(3), [0.0, 0.0, 0.0], TypeError, "theta_2 is a list"),
    ],
)
def test_interpolate_refuses(theta_1, theta_2, error, message):
    with pytest.raises(error, match=message):
        dss.interpolate(theta_1, theta_2, 0.5)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.booleans())
def test_flatten_and_unflatten_are_inverse(widths, bias):
    pairs = zip(widths, widths[1:], strict=False)
    module = torch.nn.Sequential(*[torch.nn.Linear(a, b, bias) for a, b in pairs])
    theta = dss.flatten(module)
    assert theta.shape == (sum(p.numel() for p in module.parameters()),)
    named = dss.theta.unflatten(theta, shapes_of(module))
    assert list(named) == [name for name, _ in module.named_parameters()]
    for name, parameter in module.named_parameters():
        assert torch.equal(named[name], parameter)
    assert torch.equal(dss.flatten(named), theta)


def test_flatten_copies_and_unflatten_takes_stacks():
    module = torch.nn.Linear(2, 3)
    theta = dss.flatten(module)
    theta += 1
    assert not torch.equal(dss.flatten(module), theta)
    stack = torch.arange(18.0).reshape(2, 9)
    named = dss.theta.unflatten(stack, shapes_of(module))
    assert named["weight"].shape == (2, 3, 2)
    assert torch.equal(named["bias"][1], stack[1, 6:])


def test_flatten_and_unflatten_refuse():
    with pytest.raises(ValueError, match="ReLU has no parameter"):
        dss.flatten(torch.nn.ReLU())
    with pytest.raises(ValueError, match="theta has 8 values; these shapes hold 9"):
        dss.theta.unflatten(torch.zeros(8), shapes_of(torch.nn.Linear(2, 3)))


@given(vectors(MODERATE, 5), MODERATE, st.floats(1e-3, 1e3))
def test_lengths_move_and_scale_with_the_string(thetas, shift, scale):
    length = segment_lengths(thetas)
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(segment_lengths(thetas + shift), length, **tolerance)
    torch.testing.assert_close(segment_lengths(thetas * scale), length * scale, **tolerance)
    if float((thetas[-1] - thetas[0]).norm()) > 1e-3:
        normalized = normalized_length(thetas)
        assert normalized >= 1 - 1e-12
        assert normalized_length(thetas + shift) == pytest.approx(normalized, rel=1e-6)
        assert normalized_length(thetas * scale) == pytest.approx(normalized, rel=1e-9)


@given(vectors(MODERATE, 2), st.lists(T, max_size=8))
def test_refining_a_straight_line_does_not_lengthen_it(pair, ts):
    t = torch.tensor([0.0, *sorted(ts), 1.0], dtype=torch.float64)
    thetas = dss.interpolate(*pair, t)
    straight = float((pair[1] - pair[0]).norm())
    assert float(segment_lengths(thetas).sum()) == pytest.approx(straight, rel=1e-9, abs=1e-12)
    if straight > 1e-3:
        assert normalized_length(thetas) == pytest.approx(1, rel=1e-9)


def test_lengths_by_hand():
    thetas = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
    assert segment_lengths(thetas).tolist() == [5.0, 4.0]
    assert normalized_length(thetas) == 3.0
    assert normalized_length(thetas, torch.tensor([False, True])) == math.inf
    assert normalized_length(thetas, torch.tensor([True, False])) == 1.0
    assert normalized_length(thetas[[0, 0]]) == 1.0
    assert normalized_length(thetas[:2]) == 1.0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", [0, 1])
def test_permuted_and_rescaled_units_compute_the_same(layer, bias, seeded):
    module = dss.networks.architectures.mlp([2, 4, 3, 2], bias=bias)
    generator, h = seeded(4), (4, 3)[layer]
    task = dss.Task.from_module(module, "mse", *[(torch.randn(9, 2), torch.randn(9, 2))] * 2)
    thetas = torch.randn(5, task.n_params, dtype=torch.float64, generator=generator)
    order = torch.randperm(h, generator=generator)
    scale = torch.rand(5, h, generator=generator) + 0.5
    x = torch.randn(7, 2, dtype=torch.float64)
    other = permute_units(module, thetas, order.tolist(), layer, scale)
    assert (other != thetas).any(dim=1).all()
    torch.testing.assert_close(task.outputs(other, x), task.outputs(thetas, x))
    back = permute_units(
        module, other, order.argsort().tolist(), layer, 1 / scale[:, order.argsort()]
    )
    torch.testing.assert_close(back, thetas)
    none = permute_units(module, thetas[:0], order.tolist(), layer)
    assert none.shape == thetas[:0].shape, "a stack of no networks stays one"
    alone = permute_units(module, thetas[0], order.tolist(), layer, scale[0])
    assert torch.equal(alone, other[0])


@pytest.mark.parametrize(
    "order, layer, message",
    [([0, 0, 1, 2], 0, "permutation"), ([0, 1], 0, "permutation"), ([0, 1], 1, "layers 0 to 0")],
)
def test_bad_permutations_are_refused(order, layer, message):
    module = dss.networks.architectures.mlp([1, 4, 1])
    with pytest.raises(ValueError, match=message):
        permute_units(module, dss.flatten(module), order, layer)


def conv(a, b):
    return nn.Conv2d(a, b, 3, padding=1)


def batch_norm(layer):
    return dss.batch_statistics(layer)


def normed_mlp(norm, activation):
    layers = nn.Linear(3, 6), norm(6), activation(), nn.Linear(6, 4), nn.Linear(4, 2)
    return nn.Sequential(*layers)


UNITS = {
    "batch norm": lambda: batch_norm(normed_mlp(nn.BatchNorm1d, nn.ReLU)),
    "layer norm": lambda: normed_mlp(nn.LayerNorm, nn.GELU),
    "group norm": lambda: normed_mlp(partial(nn.GroupNorm, 1), nn.SiLU),
    "a slope for each unit": lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)),
    "no bias": lambda: mlp([3, 5, 4, 2], "tanh", bias=False),
    "flat": lambda: nn.Sequential(nn.Flatten(), *mlp([3, 4, 2])),
    "dropout that is off": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)
    ).eval(),
    "names": lambda: nn.Sequential(
        OrderedDict(first=nn.Linear(3, 4), act=nn.ReLU(), last=nn.Linear(4, 2))
    ),
    "convolutions": lambda: nn.Sequential(
        *(conv(2, 4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 3), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)),
    ),
    "normed convolutions": lambda: batch_norm(
        nn.Sequential(
            *(conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 6), nn.GroupNorm(6, 6), nn.ELU()),
            *(nn.Flatten(), nn.BatchNorm1d(384), nn.Linear(384, 4), nn.LayerNorm(4)),
            *(nn.PReLU(), nn.Linear(4, 2)),
        )
    ),
    "layer norm of images": lambda: nn.Sequential(
        *(conv(2, 4), nn.LayerNorm([4, 8, 8]), nn.ReLU(), conv(4, 3), nn.LayerNorm([8, 8])),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)),
    ),
    "one dimension": lambda: nn.Sequential(
        *(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 3), nn.MaxPool1d(2), nn.Flatten()),
        *(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 1)),
    ),
}


def inputs_of(module, generator, n=9):
    kinds = {nn.Linear: (3,), nn.Conv2d: (2, 8, 8), nn.Conv1d: (2, 16)}
    shape = next(kinds[type(m)] for m in module.modules() if type(m) in kinds)
    return torch.randn(n, *shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", UNITS)
def test_units_in_another_order_compute_the_same(kind, seeded):
    module = UNITS[kind]().double()
    x, n_hidden = inputs_of(module, seeded(1)), 0
    module(x)  # a lazy layer learns its size
    theta, generator = dss.flatten(module), seeded(2)
    thetas = theta + torch.randn(2, len(theta), dtype=torch.float64, generator=generator)
    affine = [m for m in module if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    for n_hidden, layer in enumerate(affine[:-1]):
        order = torch.arange(len(layer.weight)).roll(1).tolist()
        other = permute_units(module, thetas, order, n_hidden)
        assert (other != thetas).any(dim=1).all()
        expected = stacked_outputs(module, thetas, x)
        torch.testing.assert_close(stacked_outputs(module, other, x), expected)
    with pytest.raises(ValueError, match=f"layer is {n_hidden + 1}; .* 0 to {n_hidden}"):
        permute_units(module, thetas, [0], n_hidden + 1)


RESCALED = ["flat", "a slope for each unit", "dropout that is off", "convolutions"]


@pytest.mark.parametrize("kind", UNITS)
def test_rescaled_units_compute_the_same_or_are_refused(kind, seeded):
    module = UNITS[kind]().double()
    x = inputs_of(module, seeded(1))
    module(x)
    theta, h = dss.flatten(module)[None], len(next(module.parameters()))
    try:
        other = permute_units(module, theta, range(h), scale=torch.linspace(0.5, 2, h))
    except ValueError as error:
        assert "do not come through" in str(error) and kind not in RESCALED
    else:
        expected = stacked_outputs(module, theta, x)
        torch.testing.assert_close(stacked_outputs(module, other, x), expected)
    with pytest.raises(ValueError, match="scale is .* > 0 and finite"):
        permute_units(module, theta, range(h), scale=-1.0)


def test_a_network_with_a_reference_batch_has_the_same_parameters(seeded):
    plain = normed_mlp(nn.BatchNorm1d, nn.ReLU).double()
    x = inputs_of(plain, seeded(1))
    module, theta = dss.batch_statistics(plain, x), dss.flatten(plain)[None] + 0.1
    other = permute_units(dss.batch_statistics(plain), theta, [5, 0, 1, 2, 3, 4])
    torch.testing.assert_close(stacked_outputs(module, other, x), stacked_outputs(module, theta, x))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def tied():
    module = mlp([3, 3, 3])
    module[2].weight = module[0].weight
    return module


def hooked():
    module = mlp([3, 4, 2])
    module[0].register_forward_hook(lambda *_: None)
    return module


def between(*layers, behind=None):
    return nn.Sequential(nn.Linear(3, 4), *layers, behind or nn.Linear(4, 2))


@pytest.mark.parametrize(
    "module, named",
    [
        (Residual(*mlp([3, 4, 3])), "Residual"),
        (nn.Sequential(mlp([3, 4, 4]), mlp([4, 4, 2])), "not nested"),
        (tied(), "shared parameters"),
        (hooked(), "without hooks"),
        (between(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "parametrisations"),
        (nn.TransformerEncoderLayer(4, 1, 4), "TransformerEncoderLayer"),
        (nn.Linear(3, 2), "Linear"),
        (dss.batch_statistics(between(nn.BatchNorm1d(4)), torch.rand(4, 3)), "plain nn.Sequential"),
        (between(nn.BatchNorm1d(4)), "running statistics.*dss.batch_statistics"),
        (between(nn.Dropout(0.5)), "Dropout"),
        (between(nn.Softmax(dim=1)), "Softmax"),
        (between(nn.GLU(), behind=nn.Linear(2, 2)), "GLU"),
        (between(nn.MaxPool1d(2), behind=nn.Linear(2, 2)), "MaxPool1d"),
        (between(nn.GroupNorm(2, 4)), "GroupNorm"),
        (between(nn.Unflatten(1, (4, 1)), behind=nn.Conv1d(4, 2, 1)), "Unflatten"),
        (nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), "groups=2"),
        (nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2)), "groups=2"),
        (nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Linear(4, 2)), "the next layer is Linear"),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 1), conv(4, 4)), "no hidden layer"),
    ],
)
def test_networks_whose_units_are_not_known_are_refused(module, named):
    with pytest.raises(ValueError, match=named):
        permute_units(module, dss.flatten(module), [1, 0, 2, 3])
