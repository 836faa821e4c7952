"""BatchNorm with statistics of a fixed sample: PyTorch's own numbers, and networks that fit."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import dss
from dss import checkpoint, recursion
from dss.networks import batchnorm, stacks
from dss.runs import workers

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


def kinds_of(module):
    return {name: type(m) for name, m in module.named_modules(remove_duplicate=False)}


def in_training_mode(module, x):
    """What PyTorch answers with the statistics of the batch."""
    return module.train()(x)


def test_the_statistics_of_the_batch_itself(case):
    module, x = case
    own = dss.batch_statistics(module.eval())
    torch.testing.assert_close(own(x), in_training_mode(module, x), rtol=1e-10, atol=1e-12)


def updated(module, parts):
    """A copy of the plain network after PyTorch's own update, ready to evaluate."""
    module = copy.deepcopy(module)
    update_bn(parts, module)
    return module.eval()


@pytest.fixture(params=[1, 3])
def parts(request, monkeypatch):
    """How a reference of 30 is split: whole, or in three parts."""
    n = request.param
    monkeypatch.setattr(batchnorm, "PART", -(-30 // n))
    return lambda x: x.tensor_split(n)


def test_the_statistics_of_a_reference(case, parts):
    module, x = case
    over, expected = dss.batch_statistics(module, x[:30]), updated(module, parts(x[:30]))(x)
    torch.testing.assert_close(over(x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(over(x[3:5]), expected[3:5], rtol=1e-10, atol=1e-12)
    alone = torch.cat([over(row[None]) for row in x])
    torch.testing.assert_close(over(x), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stacks", [True, False])
def test_a_task_measures_as_pytorch_does_after_its_update(case, parts, stacks, seeded):
    """Losses and outputs of stacks and of single networks, whatever the size of chunks."""
    module, x = case
    samples, own = ((x[:20], Y[:20]), (x[17:], Y[17:])), dss.batch_statistics(module, x[:30])
    for eval_chunk in (None, 4):
        task = dss.Task.from_module(own, "mse", *samples, eval_chunk=eval_chunk)
        task.budget.stacks = stacks
        thetas = torch.stack([task.theta(module), *(task.init(2, seeded()) + 0.1)])
        outputs, losses = task.outputs(thetas, x), task.losses(thetas)
        for theta, output, loss in zip(thetas, outputs, losses, strict=True):
            plain = copy.deepcopy(module)
            nn.utils.vector_to_parameters(theta, plain.parameters())
            plain = updated(plain, parts(x[:30]))
            torch.testing.assert_close(output, plain(x).detach(), rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(loss, nn.functional.mse_loss(plain(x[17:]), Y[17:]).detach())
            deployed = task.network(theta)
            torch.testing.assert_close(deployed(x), plain(x), rtol=1e-9, atol=1e-10)
            assert kinds_of(deployed) == kinds_of(plain)
            assert set(deployed.state_dict()) == set(plain.state_dict())
        t = torch.tensor([0.0, 0.5])
        between = task.losses_between(thetas[:1], thetas[1:2], t)[0]
        middle = torch.lerp(thetas[0], thetas[1], 0.5)
        torch.testing.assert_close(between, task.losses(torch.stack([thetas[0], middle])))


def test_a_gradient_takes_the_statistics_of_its_batch(case, seeded):
    """The reference costs it nothing: its numbers are those without one."""
    module, x = case
    samples = (x[:20], Y[:20]), (x[20:], Y[20:])
    one, other = (
        dss.Task.from_module(dss.batch_statistics(module, reference), "mse", *samples)
        for reference in (None, x[:30])
    )
    thetas, batch = one.init(2, seeded()), torch.arange(3, 15)
    for a, b in zip(one.gradients(thetas, batch), other.gradients(thetas, batch), strict=True):
        assert torch.equal(a, b)
    plain = copy.deepcopy(module).train()
    nn.utils.vector_to_parameters(thetas[1], plain.parameters())
    loss = nn.functional.mse_loss(plain(x[batch]), Y[batch])
    expected = torch.autograd.grad(loss, list(plain.parameters()))
    gradient = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(other.gradients(thetas, batch)[1][1], gradient)


def test_an_evaluation_sees_the_reference_once(monkeypatch):
    """Samples that pass through the first layer: the evaluation set, and the reference once."""
    task = task_with_reference(eval_chunk=5)
    seen, thetas = [], task.init(4)
    task.module[0].register_forward_hook(lambda layer, inputs, output: seen.append(len(inputs[0])))
    task.losses(thetas)
    assert sum(seen) == 30 + 20, "side by side a layer is called once for all four"
    seen.clear()
    task.gradients(thetas, torch.arange(10))
    assert seen == [10]


def task_with_reference(**settings):
    own = dss.batch_statistics(dense().double(), X[:30])
    return dss.Task.from_module(own, "mse", (X[:20], Y[:20]), (X[20:], Y[20:]), **settings)


def test_the_reference_belongs_to_the_task(seeded):
    task, other = task_with_reference(), dss.batch_statistics(dense().double(), X[5:35])
    other = dss.Task.from_module(other, "mse", (X[:20], Y[:20]), (X[20:], Y[20:]))
    theta = task.init(1, seeded())
    assert not torch.equal(task.losses(theta), other.losses(theta))
    here, there = (checkpoint.fingerprint(t, {})["reference"] for t in (task, other))
    assert here != there
    own = dss.batch_statistics(dense().double(), X)
    assert torch.equal(task.theta(own), dss.flatten(own)), "its own reference is not looked at"
    again = pickle.loads(workers.packed(task))
    assert torch.equal(again.losses(theta), task.losses(theta))
    assert task.to(dtype=torch.float32).reference.dtype == torch.float32
    with pytest.raises(ValueError, match="the reference .in torch.float16. holds .* NaN or inf"):
        big = dss.batch_statistics(dense().double(), 1e6 * X[:30])
        big = dss.Task.from_module(big, "mse", (X[:20], Y[:20]), (X[20:], Y[20:]))
        big.to(dtype=torch.float16)


class Direct(nn.Module):
    """Calls `forward` of its layer by hand, and has one that it never uses."""

    def __init__(self):
        super().__init__()
        self.norm, self.unused, self.last = nn.BatchNorm1d(3), nn.BatchNorm1d(9), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.norm.forward(x))


def test_a_layer_whose_forward_is_called_by_hand():
    module = Direct().double()
    expected = updated(module, [X])(X)
    torch.testing.assert_close(dss.batch_statistics(module, X)(X), expected)
    task = dss.Task.from_module(dss.batch_statistics(module, X), "mse", (X, Y), (X, Y))
    network = task.network(task.theta(module))
    torch.testing.assert_close(network(X), expected)
    assert torch.equal(network.unused.running_var, torch.ones(9))


def test_the_plain_recursion_refuses_a_reference():
    task = task_with_reference()
    with pytest.raises(ValueError, match="has statistics of a reference; use dss.find_string"):
        recursion.find_string(task, *task.init(2), 1.0)


def test_no_tensor_stays_on_a_layer():
    task = task_with_reference()
    before = {name: set(vars(layer)) for name, layer in task.module.named_modules()}
    task.losses(task.init(3))
    stacks.stacked_statistics(task.module, task.init(1), X)
    assert {name: set(vars(layer)) for name, layer in task.module.named_modules()} == before
    assert all(layer.running_mean is None for layer in batchnorm.norms_of(task.module).values())


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
        nn.utils.vector_to_parameters(theta, plain.parameters())
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
    over, expected = dss.batch_statistics(module, X[:30]), updated(module, [X[:30]])(X)
    torch.testing.assert_close(over(X), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(over(X[4:6]), expected[4:6], rtol=1e-10, atol=1e-12)


def test_the_size_of_chunks_changes_nothing():
    """With a reference; without one chunks would have statistics of their own, and are refused."""
    samples = (X[:20], Y[:20]), (X[20:], Y[20:])
    over = dss.batch_statistics(dense().double(), X[:20])
    whole = dss.Task.from_module(over, "mse", *samples)
    parts = dss.Task.from_module(over, "mse", *samples, eval_chunk=3)
    thetas = whole.init(3)
    torch.testing.assert_close(parts.losses(thetas), whole.losses(thetas))
    assert (whole.budget.n_activations, whole.budget.n_fixed) == (3 + 3 * 6 + 3 * 4 + 1, 0)
    own = dss.batch_statistics(dense().double())
    with pytest.raises(ValueError, match="layer '1' .BatchNorm1d. .* eval_chunk=3 would change"):
        dss.Task.from_module(own, "mse", *samples, eval_chunk=3)


@pytest.mark.parametrize("without", [["weight", "bias"], ["bias"]])
def test_layers_without_weight_or_bias(without):
    module = nn.BatchNorm1d(3).double()
    for name in without:  # `affine=False` does it, and from torch 2.12 on `bias=False`
        setattr(module, name, None)
    expected = updated(module, [X])(X)
    torch.testing.assert_close(dss.batch_statistics(module, X)(X), expected)


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
    torch.testing.assert_close(dss.batch_statistics(layer, X)(X), updated(layer, [X])(X))
