"""Bounds hold: exact arithmetic, hypothesis-made networks, and cases made to break them."""

from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

import dss
from dss.networks.losses import LOSSES
from dss.proofs.bounds import (
    BOUNDED_METRICS,
    FORMS,
    STEPS,
    Enclosure,
    Network,
    bounds,
    losses,
    metric_of,
    records_of_layers,
    sample_of,
)

torch.set_num_threads(1)


def bounded(module, metric, theta_1, theta_2, x, y, begin, end, form="affine"):
    """Upper bound and centre value on pieces of one segment."""
    net = Network(records_of_layers(module, x), theta_1[None], theta_2[None], x, form)
    begin, end = (torch.as_tensor(v, dtype=torch.float64) for v in (begin, end))
    pieces = torch.zeros(len(begin), dtype=torch.int64), (begin + end) / 2, (end - begin) / 2
    with torch.no_grad():
        return bounds(losses(metric, net.outputs(*pieces), sample_of(metric, y)), len(x))


def grid_losses(module, metric, theta_1, theta_2, x, y, t):
    """Float64, one network at a time, without anything of dss but its losses."""
    found = []
    for t_k in t:
        theta = theta_1 * (1 - t_k) + theta_2 * t_k
        nn.utils.vector_to_parameters(theta, module.parameters())
        with torch.no_grad():
            found.append(LOSSES[metric](module(x), y))
    return torch.stack(found)


def n_params(module):
    return sum(p.numel() for p in module.parameters())


NETWORKS = {
    "relu": lambda: nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    ),
    "leaky": lambda: nn.Sequential(
        nn.Linear(3, 5), nn.LeakyReLU(), nn.Linear(5, 4), nn.LeakyReLU(0.3), nn.Linear(4, 3)
    ),
    "sigmoid": lambda: nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 3)),
    "tanh": lambda: nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3), nn.Tanh()
    ),
    "linear": lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 3, bias=False)),
    "activation first": lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2, dilation=2),
        nn.Flatten(), nn.Linear(2, 3),
    ),
    "pooling": lambda: nn.Sequential(
        nn.Conv2d(2, 2, 3, bias=False), nn.MaxPool2d(2, stride=1), nn.Sigmoid(),
        nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(8, 3),
    ),
    "pooling first": lambda: nn.Sequential(
        nn.MaxPool2d(2), nn.AvgPool2d((2, 1)), nn.Flatten(), nn.Linear(4, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("metric", BOUNDED_METRICS)
@pytest.mark.parametrize("name", NETWORKS)
@hypothesis.settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-3, 0.3, 1.0, 5.0, 1e6]),
    k=st.integers(0, 9),
    form=st.sampled_from(FORMS),
)
def test_no_point_of_a_dense_grid_is_above_a_bound(name, metric, seed, scale, k, form):
    generator = torch.Generator().manual_seed(seed)
    module = NETWORKS[name]().double()
    shape = (2, 5, 5) if any(isinstance(m, nn.Conv2d | nn.MaxPool2d) for m in module) else (3,)
    x = torch.randn(7, *shape, generator=generator, dtype=torch.float64)
    y = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    y = torch.arange(7) % 3 if metric in ("cross_entropy", "error") else y
    thetas = scale * torch.randn(2, n_params(module), generator=generator, dtype=torch.float64)
    thetas[1] = thetas[0] + (thetas[1] - thetas[0]) * 2.0**-k  # from far apart to close
    pieces = torch.linspace(0, 1, 5, dtype=torch.float64)
    upper, _ = bounded(module, metric, *thetas, x, y, pieces[:-1], pieces[1:], form)
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    gamma = grid_losses(module, metric, *thetas, x, y, t)
    on = torch.stack([gamma[10 * i : 10 * i + 11].amax() for i in range(4)])
    assert (on <= upper * (1 + 1e-12)).all()
    points, value = bounded(module, metric, *thetas, x, y, t, t, form)
    assert (gamma <= points * (1 + 1e-12)).all() and (value <= gamma * (1 + 1e-12) + 1e-290).all()
    if metric != "error":
        assert (points - value <= 1e-6 * (1 + gamma) * max(1, scale) ** 3).all()
    if form == "affine" and k > 5 and scale < 10 and metric != "error":
        assert (upper - on <= 0.5 * (1 + on)).all(), "loose beyond what pieces so short can need"


STEP_BY_STEP = {
    "relu": torch.relu,
    "leaky_relu": lambda h: torch.nn.functional.leaky_relu(h, 0.3),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "avgpool2d": lambda h: h[:, WINDOWS].mean(dim=1),
    "maxpool2d": lambda h: h[:, WINDOWS].amax(dim=1),
}
WINDOWS = torch.tensor([[0, 2], [1, 3], [4, 4]])


@pytest.mark.parametrize("name", STEP_BY_STEP)
@pytest.mark.parametrize("scale", [1e-9, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_each_step_encloses_all_that_enters_it(name, scale, share, seeded):
    """At s from -1 to 1, with errors at their extremes and between; half of e, or of b, is 0."""
    a, b, e = scale * torch.randn(3, 400, 5, 1, generator=seeded(2), dtype=torch.float64)
    b, e = b * (1 - share), e.abs() * share
    settings = {"slope": 0.3} if name == "leaky_relu" else {}
    found = STEPS[name]({"index": WINDOWS + 1} | settings, Enclosure(a, b, e))
    reached = torch.zeros_like(found.e, dtype=torch.bool)
    for s in torch.linspace(-1, 1, 41, dtype=torch.float64):
        for d in (-1.0, -0.3, 0.0, 1.0):
            off = STEP_BY_STEP[name](a + b * s + d * e) - found.a - found.b * s
            assert (off.abs() <= found.e).all()
            reached |= off.abs() > 0.6 * found.e
    if name in ("relu", "leaky_relu", "sigmoid", "tanh") and share < 1:
        assert reached[found.e > 1e-6 * scale].float().mean() > 0.6 or scale < 0.1, "loose"


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_a_single_layer_is_enclosed_in_exact_arithmetic(scale, seeded):
    module, generator = nn.Sequential(nn.Linear(40, 2)), seeded(3)
    for _ in range(5):
        theta_1, noise = torch.randn(2, 82, generator=generator, dtype=torch.float64)
        theta_1, theta_2 = scale * theta_1, -scale * theta_1 * (1 + 1e-7 * noise)
        x = torch.randn(3, 40, generator=generator, dtype=torch.float64)
        net = Network(records_of_layers(module, x), theta_1[None], theta_2[None], x)
        for t in (0.0, 0.3, 0.7109375, 1.0):
            pieces = torch.tensor([0]), torch.tensor([t]).double(), torch.tensor([0.0]).double()
            a, b, e = (v[0] for v in net.outputs(*pieces))
            assert (b == 0).all()
            t = Fraction(float(pieces[1]))
            theta = [
                Fraction(v) * (1 - t) + Fraction(w) * t
                for v, w in zip(theta_1.tolist(), theta_2.tolist(), strict=True)
            ]
            for i in range(2):
                for k in range(3):
                    row = zip(
                        theta[40 * i : 40 * i + 40], map(Fraction, x[k].tolist()), strict=True
                    )
                    exact = sum(w * Fraction(v) for w, v in row) + theta[80 + i]
                    assert abs(exact - Fraction(float(a[i, k]))) <= Fraction(float(e[i, k]))


def exact_relu_mse(widths, theta_1, theta_2, x, y, t):
    """The same network in rational numbers."""
    t = Fraction(t)
    theta = [
        Fraction(a) * (1 - t) + Fraction(b) * t
        for a, b in zip(theta_1.tolist(), theta_2.tolist(), strict=True)
    ]
    total = Fraction(0)
    for x_k, y_k in zip(x.tolist(), y.tolist(), strict=True):
        h, rest = [Fraction(v) for v in x_k], iter(theta)
        for i, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False)):
            weight = [[next(rest) for _ in range(n_in)] for _ in range(n_out)]
            h = [sum(w * v for w, v in zip(row, h, strict=True)) + next(rest) for row in weight]
            h = [max(v, Fraction(0)) for v in h] if i < len(widths) - 2 else h
        total += sum((a - Fraction(b)) ** 2 for a, b in zip(h, y_k, strict=True)) / len(h)
    return total / len(x)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_are_enclosed_in_exact_arithmetic(scale, dtype, seeded):
    """Cancellation at its worst: theta_2 is all but -theta_1, and targets are the outputs."""
    widths, generator = [2, 6, 5, 2], seeded(1)
    module = dss.networks.architectures.mlp(widths)
    for _ in range(4):
        theta_1 = scale * torch.randn(n_params(module), generator=generator, dtype=dtype)
        theta_2 = -theta_1 * (
            1 + 1e-7 * torch.randn(len(theta_1), generator=generator, dtype=dtype)
        )
        x = torch.randn(3, 2, generator=generator, dtype=dtype)
        y = torch.randn(3, 2, generator=generator, dtype=dtype)
        for t in (0.0, 0.25, 0.5, 0.7109375, 1.0):
            exact = exact_relu_mse(widths, theta_1, theta_2, x, y, t)
            upper, value = bounded(module, "mse", theta_1, theta_2, x, y, [t], [t])[:, 0].tolist()
            assert Fraction(value) <= exact <= Fraction(upper)
            wide = bounded(
                module, "mse", theta_1, theta_2, x, y, [max(0, t - 1e-3)], [min(1, t + 1e-3)]
            )
            assert exact <= Fraction(float(wide[0]))


def test_a_linear_unit_is_bounded_exactly(point):
    """(1 - 2t)^2 = w a: the loss ((1-2t)^2 - 1)^2 is 1 at t = 1/2, and .5625 at 1/4."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    one = torch.ones(1, 1)
    ends = point(1, 1), point(-1, -1)
    upper, value = bounded(module, "mse", *ends, one, one, [0.5, 0.25], [0.5, 0.25])
    assert upper.tolist() == pytest.approx([1, 0.5625], rel=1e-12)
    assert value.tolist() == pytest.approx([1, 0.5625], rel=1e-12)
    (upper, _) = bounded(module, "mse", *ends, one, one, [0.0], [1.0])[:, 0]
    # a w = s^2 is enclosed by 1/2 +- 1/2, whose loss is at most 1: exact.
    assert float(upper) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("form, order", [("affine", 2), ("interval", 1)])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "linear"])
def test_the_excess_falls_with_the_order_of_the_form(name, form, order, seeded):
    generator, module = seeded(5), NETWORKS[name]().double()
    x, y = (torch.randn(9, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    thetas = torch.randn(2, n_params(module), generator=generator, dtype=torch.float64)
    excess = []
    for width in (2.0**-6, 2.0**-9):
        upper = bounded(module, "mse", *thetas, x, y, [0.5], [0.5 + width], form)[0]
        t = torch.linspace(0.5, 0.5 + width, 21, dtype=torch.float64)
        excess.append(float(upper - grid_losses(module, "mse", *thetas, x, y, t).amax()))
    assert 0.7 * 8**order < excess[0] / excess[1] < 1.4 * 8**order


def test_elementary_functions_are_as_good_as_is_assumed():
    import mpmath

    v = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    cases = {
        torch.exp: mpmath.exp,
        torch.tanh: mpmath.tanh,
        torch.sigmoid: lambda a: 1 / (1 + mpmath.exp(-a)),
        lambda a: torch.log(a.abs() + 0.01): lambda a: mpmath.log(mpmath.mpf(float(abs(a) + 0.01))),
    }
    with mpmath.workdps(40):
        for function, exact in cases.items():
            for a, found in zip(v.tolist(), function(v).tolist(), strict=True):
                right = (
                    exact(mpmath.mpf(a))
                    if function in (torch.exp, torch.tanh, torch.sigmoid)
                    else exact(a)
                )
                assert abs(found - right) <= 16 * 2.0**-53 * abs(right)


@pytest.mark.parametrize(
    "module, shape, message",
    [
        (nn.Sequential(nn.Linear(3, 3), nn.GELU()), (3,), "GELU"),
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), (3,), "LayerNorm"),
        (nn.Sequential(nn.Linear(3, 3), nn.GELU()), (3,), "layer GELU.*known are chains"),
        (nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(2.0)), (3,), r"negative_slope in \[0, 1\]"),
        (nn.Bilinear(3, 3, 3), (3,), "Bilinear"),
        (nn.Sequential(nn.Linear(3, 3)), (2, 3), "flatten"),
        (nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), (2, 5, 5), "groups=1 is needed"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding="same")), (2, 5, 5), "padding in numbers is"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), (2, 5, 5), "=zeros"),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, padding=1)), (2, 5, 5), "padding=0 is"),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, ceil_mode=True)), (2, 5, 5), "=False"),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(2)), (2, 5, 5), "start_dim=1"),
    ],
)  # fmt: skip
def test_what_has_no_bounds_is_refused_by_name(module, shape, message):
    with pytest.raises(ValueError, match=message):
        records_of_layers(module, torch.zeros(1, *shape))


def test_metrics_without_bounds_are_refused_by_name():
    with pytest.raises(ValueError, match="cross_entropy_of_softmax.*known: mse"):
        metric_of(LOSSES["cross_entropy_of_softmax"])
    with pytest.raises(ValueError, match="lambda.*known: mse"):
        metric_of(lambda output, y: output.mean())


def test_shared_layers_and_hooks_are_refused():
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="share"):
        records_of_layers(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 3))
    hooked = nn.Sequential(nn.Linear(3, 3))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hook"):
        records_of_layers(hooked, torch.zeros(1, 3))
