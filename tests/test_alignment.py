"""Alignment: units are read off the graph, and a copy with its units moved is recovered."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dss
import dss.task as task_module
from dss.geometry import align, alignment, shuffled
from dss.geometry.alignment import balancing, permuted, rescaled
from dss.networks.architectures import densenet, resnet
from dss.networks.sequences import WordGPT, WordLSTM
from dss.networks.symmetry import symmetries_of
from dss.theta import shapes_of, unflatten


def seed(k=0):
    return torch.Generator().manual_seed(k)


class Branches(nn.Module):
    """Two ways that are put side by side, a sum with a norm of its own, a mean over places."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.last = nn.GroupNorm(1, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([torch.relu(self.left(x)), F.leaky_relu(self.right(x))], dim=1)
        return self.last(F.relu(x + self.norm(self.deep(x))).mean(dim=(2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation, and a shared layer."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(5, 6), nn.Linear(6, 6)
        self.gate, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        h = torch.relu(self.again(torch.relu(self.again(h)))) + h
        return self.last(h * torch.sigmoid(self.gate(h)))


def mlp(act=nn.ReLU):
    return nn.Sequential(nn.Linear(5, 8), act(), nn.Linear(8, 7), act(), nn.Linear(7, 3))


def images(n=12, size=8, channels=3):
    return torch.randn(n, channels, size, size, generator=seed(1))


# A network, its inputs, the sizes of its groups of units, and how many factors are free.
NETWORKS = {
    "ReLU": (mlp, torch.randn(12, 5, generator=seed(1)), [7, 8], 15),
    "tanh": (lambda: mlp(nn.Tanh), torch.randn(12, 5, generator=seed(1)), [7, 8], 0),
    "PReLU": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.PReLU(6), nn.Linear(6, 3)),
        torch.randn(12, 5, generator=seed(1)), [6], 6,
    ),
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 6),
            nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3),
        ),
        images(), [5, 6], 11,
    ),
    # Of the shortcut, whose images are half as large, the new channels are padded with zeros.
    "ResNet": (
        lambda: dss.batch_statistics(resnet(1), images(16)), images(),
        [16, 16, 16, 32, 32, 64], None,
    ),
    "branches": (Branches, images(), [4, 4], None),
    "gated": (Gated, torch.randn(12, 5, generator=seed(1)), [6], 0),
    "transformer": (
        lambda: WordGPT(9, 5, 8, 2, 2), torch.randint(9, (12, 5), generator=seed(1)),
        [8, 32, 32], None,
    ),
}  # fmt: skip


def task_of(kind):
    make, x, _, _ = NETWORKS[kind]
    torch.manual_seed(0)
    words = kind == "transformer"
    y = x if words else torch.arange(len(x)) % 3
    output = (lambda o: o.movedim(-1, 1)) if words else None
    sample = (x, y)
    return dss.Task.from_module(make(), "cross_entropy", sample, sample, output=output)


def moved(task, theta, generator):
    """The same network with its units in random orders, with random factors."""
    return shuffled(task.to(dtype=torch.float64), theta.double(), generator, spread=1.0)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_units_of_a_network_are_found(kind):
    _, x, sizes, n_factors = NETWORKS[kind]
    task = task_of(kind).to(dtype=torch.float64)
    found = symmetries_of(task.module, task.splits["test"][0][:2])
    assert sorted(map(len, found.groups)) == sizes
    assert n_factors is None or len(found.scales) == n_factors
    theta = task.init(1, seed(2))[0] + 0.1 * torch.randn(task.n_params, generator=seed(3))
    for k in range(5):
        other = moved(task, theta, seed(k))
        one, two = task.outputs(
            torch.stack([theta, other]), x.double() if x.is_floating_point() else x
        )
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-10)
        assert (theta - other).norm() > 0.1 * theta.norm(), "it is another point"


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_moved_copy_is_recovered(kind, method):
    task = task_of(kind).to(dtype=torch.float64)
    for k in range(10):
        theta = task.init(1, seed(k))[0]
        theta = theta + 0.05 * torch.randn(task.n_params, generator=seed(k), dtype=torch.float64)
        other = moved(task, theta, seed(100 + k))
        found = align(task, theta, other, method)
        assert torch.allclose(found, theta, rtol=1e-6, atol=1e-8), "there is no barrier left"


def test_the_line_between_networks_trained_apart_is_lower(seeded):
    task = dss.quad()
    ends = dss.train_endpoints(task, 10, [0.02], seeded(1), **task.train_settings).thetas[0]
    before = after = 0.0
    for one, two in zip(ends[::2], ends[1::2], strict=True):
        aligned = align(task, one, two)
        assert torch.allclose(task.losses(aligned[None]), task.losses(two[None]), rtol=1e-4)
        assert aligned.dtype == two.dtype and aligned.shape == two.shape
        before += float(dss.interpolated_loss(task, one, two).max())
        after += float(dss.interpolated_loss(task, one, aligned).max())
    assert after < before


class Deep(nn.Module):
    """Its units stand on both sides of every matrix between the first and the last."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.between = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

    def forward(self, x):
        h = self.first(x)
        for layer in self.between:
            h = h + torch.tanh(layer(h))
        return self.last(h)


def test_no_step_lowers_the_agreement(monkeypatch):
    x = torch.randn(20, 5, generator=seed(1))
    sample = x, torch.arange(20) % 3
    task = dss.Task.from_module(Deep(), "cross_entropy", sample, sample)
    steps, gains = [], alignment._gains

    def noting(found, group, first, second, orders):
        steps.append(alignment._agreement(found, first, second, orders))
        return gains(found, group, first, second, orders)

    monkeypatch.setattr(alignment, "_gains", noting)
    for k in range(5):
        steps.clear()
        align(task, *task.init(2, seed(k)), n_starts=1)
        assert steps == sorted(steps) and 1 < len(steps) < 200


def test_factors_do_not_depend_on_order_or_on_factors():
    task = task_of("ReLU").to(dtype=torch.float64)
    found, shapes = symmetries_of(task.module, task.splits["test"][0][:2]), shapes_of(task.module)
    theta = task.init(1, seed(4))[0]
    weights = unflatten(theta, shapes)
    balanced = rescaled(found, weights, balancing(found, weights))
    factors = torch.randn(len(found.scales), generator=seed(5), dtype=torch.float64).exp()
    other = rescaled(found, weights, factors)
    other = rescaled(found, other, balancing(found, other))
    for name, value in balanced.items():
        assert torch.allclose(value, other[name], rtol=1e-9)
    dead = {name: v.clone() for name, v in weights.items()}
    dead["0.weight"][2], dead["0.bias"][2] = 0, 0
    assert all(v.isfinite().all() for v in rescaled(found, dead, balancing(found, dead)).values())


def test_concatenated_features_are_followed():
    net = dss.batch_statistics(densenet(2, 4), images(8, 16))
    found = symmetries_of(net.module, images(2, 16))
    assert len(found.groups) > 3
    y = torch.arange(8) % 10
    task = dss.Task.from_module(net, "cross_entropy", (images(8, 16), y), (images(8, 16), y))
    theta = task.init(1, seed(1))[0].double()
    other, task = moved(task, theta, seed(2)), task.to(dtype=torch.float64)
    assert torch.allclose(align(task, theta, other, "activations"), theta, rtol=1e-5, atol=1e-7)


class Unknown(nn.Module):
    """Its units are sorted, which fixes none of their places but is not known to do so."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.relu(self.first(x)).cumsum(dim=1)
        return self.last(torch.relu(self.second(h)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        return self.last(x if float(x.sum()) > 0 else -x)


class Odd(nn.Module):
    """A linear layer of six units, and what a function makes of them."""

    def __init__(self, function, n=6):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(5, 6), nn.Linear(n, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class Tied(nn.Module):
    """A layer that is known and one that is not share their weights."""

    def __init__(self):
        super().__init__()
        self.into, self.back = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 3, 3)
        self.back.weight = self.into.weight

    def forward(self, x):
        return self.back(torch.relu(self.into(x)))


ROWS = torch.randn(4, 5, generator=seed(1), dtype=torch.float64)
PLACES = torch.randn(4, 3, 8, generator=seed(1), dtype=torch.float64)
# Networks of which some or all units are fixed by what is done to them.
TRICKY = {
    "convolution over units": (
        nn.Sequential(
            nn.Linear(8, 10), nn.ReLU(), nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(32, 2),
        ), PLACES,
    ),
    "pooling over units": (
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.AvgPool1d(3, 1, 1), nn.Linear(8, 2)), ROWS,
    ),
    "a slice": (
        Odd(lambda h: torch.cat([torch.tanh(h[:, :2]), h[:, 2:]], dim=1)), ROWS,
    ),
    "a part is added": (Odd(lambda h: h.relu() + h.relu()[:, :2].sum(1, keepdim=True)), ROWS),
    "chunks": (Odd(lambda h: torch.cat(h.chunk(2, 1), 1)), ROWS),
    "tensors by name": (Odd(lambda h: torch.cat(tensors=[h, h.tanh()], dim=1), 12), ROWS),
    "axis": (Odd(lambda h: torch.cat([h, h.tanh()], axis=1), 12), ROWS),
    "dims by name": (
        Odd(lambda h: h[:, :, None].permute(dims=(0, 2, 1)).transpose(dim0=1, dim1=2)[:, :, 0]),
        ROWS,
    ),
    "a size over units": (Odd(lambda h: h.size(1) / F.leaky_relu(h)), ROWS),
    "rounded": (Odd(lambda h: torch.div(h.relu(), 0.1, rounding_mode="floor")), ROWS),
    "tied": (Tied(), images(4).double()),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRICKY)
def test_what_is_free_is_free_whatever_the_forward_does(kind):
    module, x = TRICKY[kind]
    module = module.double()
    try:
        found = symmetries_of(module, x[:2])
    except ValueError as error:
        assert "no hidden unit" in str(error)
        return
    weights = {name: p.detach() for name, p in module.named_parameters()}
    for k in range(5):
        orders = [torch.randperm(len(group), generator=seed(k)) for group in found.groups]
        factors = torch.randn(len(found.scales), generator=seed(k), dtype=torch.float64).exp()
        moved = rescaled(found, permuted(found, weights, orders), factors)
        other = torch.func.functional_call(module, moved, (x,))
        assert torch.allclose(other, module(x), rtol=1e-9, atol=1e-12)


def test_a_layer_of_one_unit_has_a_factor():
    x = torch.randn(20, 5, generator=seed(1))
    net = nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 2))
    sample = x, torch.arange(20) % 2
    task = dss.Task.from_module(net, "cross_entropy", sample, sample).to(dtype=torch.float64)
    theta = task.init(1, seed(1))[0]
    assert torch.allclose(align(task, theta, moved(task, theta, seed(2))), theta)


def test_what_is_not_known_fixes_its_units():
    found = symmetries_of(Unknown(), torch.randn(2, 3))
    assert [len(group) for group in found.groups] == [5] and len(found.scales) == 5


def test_a_forward_that_deceives_is_found_out(monkeypatch):
    from dss.networks import symmetry

    monkeypatch.setattr(symmetry, "ONE_BY_ONE", symmetry.ONE_BY_ONE | {"cumsum"})
    x = torch.randn(20, 3, generator=seed(1))
    y = torch.arange(20) % 2
    task = dss.Task.from_module(Unknown(), "cross_entropy", (x, y), (x, y))
    one, two = task.init(2, seed(2))
    with pytest.raises(RuntimeError, match="outputs of Unknown would change by"):
        align(task, one, two)


def refused(kind):
    x = torch.randn(8, 3, generator=seed(1))
    y = torch.arange(8) % 2
    if kind == "recurrent":
        words = torch.randint(9, (8, 5), generator=seed(1))
        task = dss.Task.from_module(
            WordLSTM(9, 4, 1), "cross_entropy", (words, words), (words, words),
            output=lambda o: o.movedim(-1, 1),
        )  # fmt: skip
    elif kind == "branching":
        task = dss.Task.from_module(Branching(), "cross_entropy", (x, y), (x, y))
    elif kind == "landscape":
        task = dss.landscape(lambda v: (v**2).sum(-1), 3)
    else:
        net = nn.Linear(3, 2) if kind == "no hidden unit" else Unknown()
        task = dss.Task.from_module(net, "cross_entropy", (x, y), (x, y))
    return task


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("branching", "forward of Branching cannot be traced"),
        ("no hidden unit", "no hidden unit of Linear is known to be free"),
        ("landscape", "explicit function of theta; it has no hidden units"),
    ],
)
def test_what_cannot_be_aligned_is_refused_by_name(kind, said):
    task = refused(kind)
    with pytest.raises(ValueError, match=said):
        align(task, *task.init(2, seed()))


def test_the_embedding_of_a_recurrent_network_is_fixed_with_it():
    task = refused("recurrent")
    with pytest.raises(ValueError, match="no hidden unit of WordLSTM"):
        align(task, *task.init(2, seed()))


def test_bad_arguments_are_refused_by_name():
    task = refused("plain")
    one, two = task.init(2, seed())
    for given, error, said in (
        ({"method": "values"}, ValueError, "unknown method 'values'"),
        ({"n_starts": 0}, ValueError, "n_starts is 0"),
        ({"theta_2": two[:-1]}, ValueError, "theta_2 has shape"),
        ({"theta_1": one * torch.nan}, ValueError, "theta_1"),
        ({"theta_1": 3}, TypeError, "theta_1 is a int"),
        ({"generator": 3}, TypeError, "generator"),
    ):
        given = {"theta_1": one, "theta_2": two} | given
        with pytest.raises(error, match=said):
            align(task, given.pop("theta_1"), given.pop("theta_2"), **given)


def test_a_shuffled_copy_has_the_same_outputs_and_the_same_numbers(seeded):
    task = dss.digits("mlp", n_eval=50)
    theta = task.init(1, seeded(3))[0]
    copy = shuffled(task, theta, seeded(4))
    assert not torch.equal(copy, theta) and copy.dtype == theta.dtype
    assert torch.equal(copy.sort().values, theta.sort().values), "an order, no factors"
    outputs = task.outputs(torch.stack([theta, copy]), task.splits["test"][0])
    assert torch.allclose(*outputs, atol=1e-5)
    scaled = shuffled(task, theta, seeded(4), spread=0.5)
    assert not torch.allclose(scaled.sort().values, theta.sort().values)
    assert torch.equal(copy, shuffled(task, theta, seeded(4))), "the generator decides"
    for spread, error in ((-1, ValueError), ("wide", TypeError)):
        with pytest.raises(error, match="spread"):
            shuffled(task, theta, spread=spread)
    with pytest.raises(ValueError, match="no hidden units"):
        shuffled(dss.landscape(lambda v: (v**2).sum(-1), 2), torch.zeros(2, dtype=torch.float64))


def test_only_the_samples_that_are_looked_at_are_copied(monkeypatch, seeded):
    task, sizes = dss.digits("mlp"), []
    thetas = task.init(2, seeded(1))
    real = task_module.sample_on

    def noting(sample, *arguments):
        sizes.append(len(sample[1]))
        return real(sample, *arguments)

    monkeypatch.setattr(task_module, "sample_on", noting)
    align(task, *thetas)
    shuffled(task, thetas[0])
    assert sizes and max(sizes) <= alignment.LOOKED_AT < len(task.splits["train"][1])
