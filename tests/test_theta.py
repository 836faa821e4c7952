"""Properties of flat parameter vectors: interpolation, flattening, lengths."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dss
from dss.theta import normalized_length, segment_lengths, shapes_of

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
    other = dss.theta.permute_units(module, thetas, order.tolist(), layer, scale)
    assert (other != thetas).any(dim=1).all()
    torch.testing.assert_close(task.outputs(other, x), task.outputs(thetas, x))
    back = dss.theta.permute_units(
        module, other, order.argsort().tolist(), layer, 1 / scale[:, order.argsort()]
    )
    torch.testing.assert_close(back, thetas)
    alone = dss.theta.permute_units(module, thetas[0], order.tolist(), layer, scale[0])
    assert torch.equal(alone, other[0])


@pytest.mark.parametrize(
    "order, layer, message",
    [([0, 0, 1, 2], 0, "permutation"), ([0, 1], 0, "permutation"), ([0, 1], 1, "layers 0 to 0")],
)
def test_bad_permutations_are_refused(order, layer, message):
    module = dss.networks.architectures.mlp([1, 4, 1])
    with pytest.raises(ValueError, match=message):
        dss.theta.permute_units(module, dss.flatten(module), order, layer)
