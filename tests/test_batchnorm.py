"""BatchNorm with statistics of a fixed batch: PyTorch's own numbers, and networks that fit."""

import pytest
import torch
from torch import nn

import dss

X = torch.rand(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IMAGES = X.repeat(1, 12).view(40, 1, 6, 6)
Y = X.sum(dim=1, keepdim=True).sin()


def dense():
    layers = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)
    return nn.Sequential(*layers, nn.BatchNorm1d(4, affine=False), nn.Tanh(), nn.Linear(4, 1))


def convolutional():
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)
    return nn.Sequential(*layers)


def nested():
    norm = nn.BatchNorm1d(3)
    inside = nn.Sequential(norm, nn.Linear(3, 3))
    return nn.Sequential(inside, nn.ReLU(), norm, nn.Linear(3, 1))


NETWORKS = {"dense": (dense, X), "convolutional": (convolutional, IMAGES), "nested": (nested, X)}


@pytest.fixture(params=NETWORKS)
def case(request):
    """A network with affine parameters away from 1 and 0, running statistics of its own, and x."""
    build, x = NETWORKS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = build().double()
        for p in module.parameters():
            p.data += 0.3 * torch.randn_like(p)
        module(x)
    return module, x


def in_training_mode(module, x):
    """What PyTorch answers with the statistics of the batch."""
    return module.train()(x)


def test_the_statistics_of_the_batch_itself(case):
    module, x = case
    own = dss.batch_statistics(module.eval())
    torch.testing.assert_close(own(x), in_training_mode(module, x), rtol=1e-10, atol=1e-12)


def test_the_statistics_of_a_reference(case):
    module, x = case
    over = dss.batch_statistics(module, x[:30])
    expected = in_training_mode(module, x[:30])
    torch.testing.assert_close(over(x[:30]), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(over(x[3:5]), expected[3:5], rtol=1e-10, atol=1e-12)
    alone = torch.cat([over(row[None]) for row in x])
    torch.testing.assert_close(over(x), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reference", [False, True])
def test_parameters_keep_their_order_and_the_network_stays_as_it_is(case, reference):
    module, x = case
    before = {k: v.clone() for k, v in module.state_dict().items()}
    other = dss.batch_statistics(module, x if reference else None)
    assert torch.equal(dss.flatten(other), dss.flatten(module))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    other(x)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("reference", [False, True])
def test_a_task_measures_descends_and_draws_them(case, reference, seeded):
    module, x = case
    own = dss.batch_statistics(module, x[:20] if reference else None)
    task = dss.Task.from_module(own, "mse", (x[:20], Y[:20]), (x[20:], Y[20:]))
    thetas = torch.stack([dss.flatten(module), *task.init(2, seeded())])
    for theta, loss in zip(thetas, task.losses(thetas), strict=True):
        plain = dss.batch_statistics(module, x[:20] if reference else None)
        torch.nn.utils.vector_to_parameters(theta, plain.parameters())
        torch.testing.assert_close(loss, nn.functional.mse_loss(plain(x[20:]), Y[20:]).detach())
    target = 0.9 * task.losses(thetas[:1])
    assert dss.train_to(task, thetas[0], target, lr=1e-2, max_steps=500).reached.all()


class Folding(nn.Module):
    """Takes the inputs of a sample one by one: three rows of BatchNorm for each."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(1), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.norm(x.reshape(-1, 1)).reshape(-1, 3))


def test_an_axis_that_is_folded_into_the_batch():
    module = Folding().double()
    over = dss.batch_statistics(module, X[:30])
    expected = in_training_mode(module, X[:30])
    torch.testing.assert_close(over(X[:30]), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(over(X[4:6]), expected[4:6], rtol=1e-10, atol=1e-12)


def test_the_size_of_chunks_changes_nothing():
    """With a reference; without one chunks would have statistics of their own, and are refused."""
    samples = (X[:20], Y[:20]), (X[20:], Y[20:])
    over = dss.batch_statistics(dense().double(), X[:20])
    whole = dss.Task.from_module(over, "mse", *samples)
    parts = dss.Task.from_module(over, "mse", *samples, eval_chunk=3)
    thetas = whole.init(3)
    torch.testing.assert_close(parts.losses(thetas), whole.losses(thetas))
    assert (whole.budget.n_activations, whole.budget.n_fixed) == (
        3 + 3 * 6 + 3 * 4 + 1,
        20 * (3 * 6 + 3 * 4 + 1),
    )
    own = dss.batch_statistics(dense().double())
    with pytest.raises(ValueError, match="layer '1' .BatchNorm1d. .* eval_chunk=3 would change"):
        dss.Task.from_module(own, "mse", *samples, eval_chunk=3)


@pytest.mark.parametrize("without", [["weight", "bias"], ["bias"]])
def test_layers_without_weight_or_bias(without):
    module = nn.BatchNorm1d(3).double()
    for name in without:  # `affine=False` does it, and from torch 2.12 on `bias=False`
        setattr(module, name, None)
    torch.testing.assert_close(dss.batch_statistics(module, X)(X), in_training_mode(module, X))


def test_another_precision_than_the_reference():
    task = dss.Task.from_module(dss.batch_statistics(dense(), X.float()), "mse", (X, Y), (X, Y))
    thetas = task.init(2)
    wide = task.to(dtype=torch.float64).losses(thetas.double())
    torch.testing.assert_close(wide.float(), task.losses(thetas), rtol=1e-4, atol=1e-6)


class Own(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_bad_input():
    with pytest.raises(ValueError, match="Linear has no BatchNorm layer"):
        dss.batch_statistics(nn.Linear(3, 1))
    with pytest.raises(ValueError, match="x holds 1 samples; statistics need at least two"):
        dss.batch_statistics(dense(), X[:1])
    with pytest.raises(TypeError, match="x is list; a floating-point tensor"):
        dss.batch_statistics(dense(), [[1.0, 2.0, 3.0]])
    with pytest.raises(TypeError, match="x is torch.int64"):
        dss.batch_statistics(dense(), X.long())
    with pytest.raises(ValueError, match="Own has a forward of its own"):
        dss.batch_statistics(nn.Sequential(nn.Linear(3, 3), Own(3)), X)


def test_a_batchnorm_alone():
    layer = nn.BatchNorm1d(3).double()
    torch.testing.assert_close(dss.batch_statistics(layer, X)(X), in_training_mode(layer, X))
