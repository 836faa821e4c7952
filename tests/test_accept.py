"""What is refused, or taken as it is meant: forwards that write, odd losses, misleading inputs."""

import hashlib
import logging
import os
import re
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import dss
from dss.checkpoint import _as_text

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 9, (40, 4), generator=torch.Generator().manual_seed(2))


class Acting(nn.Module):
    """Two layers, between which a function does something with the network."""

    def __init__(self, act, **buffers):
        super().__init__()
        self.first, self.last, self.act = nn.Linear(6, 8), nn.Linear(8, 3), act
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        self.act(self)
        return self.last(torch.relu(self.first(x)))


class Words(nn.Module):
    """The mean of some words, read by a linear layer."""

    def __init__(self, **options):
        super().__init__()
        self.words, self.last = nn.Embedding(9, 5, **options), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.words(x).mean(dim=1))


def task_of(module, x=X, y=Y, loss="cross_entropy", **options):
    return dss.Task.from_module(module, loss, (x, y), (x, y), **options)


def clamp_without_gradient(network):
    with torch.no_grad():
        network.first.weight.clamp_(-9, 9)  # leaves all values as they are


def replace_by_a_copy(network):
    network.first.weight.data = network.first.weight.data.clamp(-9, 9)


def count(network):
    network.calls += 1


def count_anew(network):
    network.calls = network.calls + 1


def make_a_mask(network):
    if not hasattr(network, "mask"):
        network.register_buffer("mask", torch.ones(3))


@pytest.mark.parametrize(
    "act, named",
    [
        (clamp_without_gradient, "writes to its parameter 'first.weight'"),
        (lambda network: network.first.weight.clamp_(-9, 9), "parameter 'first.weight'.*not w.cl"),
        (lambda network: network.first.bias.data.mul_(1), "writes to its parameter 'first.bias'"),
        (replace_by_a_copy, "writes to its parameter 'first.weight'"),
        (count, r"writes to its buffer 'calls'.*call module.eval\(\) first"),
        (count_anew, "writes to its buffer 'calls'"),
        (make_a_mask, r"makes the buffer 'mask'; run one batch .* module\(x\[:1\]\)"),
    ],
)
def test_a_forward_that_writes_is_refused(act, named):
    module = Acting(act, calls=torch.zeros(1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        task_of(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_embedding_with_max_norm_is_refused():
    with pytest.raises(ValueError, match="'words.weight'.* leave max_norm of an Embedding out"):
        task_of(Words(max_norm=1e9), TOKENS)
    task_of(Words(), TOKENS)


def test_what_was_made_in_forward_before_is_taken():
    module = Acting(make_a_mask)
    module(X[:1])
    task = task_of(module)
    theta = dss.flatten(module)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(module(X), Y)
    torch.testing.assert_close(task.losses(theta.expand(2, -1)), expected.expand(2))


def error_in_numpy(output, y):
    return float(np.mean(output.numpy().argmax(1) != y.numpy()))


def error_by_item(output, y):
    return torch.tensor((output.argmax(1) != y).float().mean().item())


def f1_score_loss(output, y):
    return 1 - f1_score(y, output.argmax(1), average="macro", zero_division=0)


def entropy_where_unsure(output, y):
    unsure = output.softmax(1).amax(1) < 0.6  # as many as there are
    return F.cross_entropy(output[unsure], y[unsure])


def entropy_by_branches(output, y):
    value = F.cross_entropy(output, y)
    return 2 * value if value > 1.1 else value


@pytest.mark.parametrize("metric", [error_in_numpy, error_by_item, f1_score_loss])
def test_a_metric_that_vmap_cannot_run_runs_one_by_one(metric):
    task, reference = (task_of(plain(), metric=m, eval_chunk=None) for m in (metric, "error"))
    thetas = 3 * task.init(3)
    expected = [float(metric(plain_output(theta), Y)) for theta in thetas]
    assert task.losses(thetas).tolist() == pytest.approx(expected, rel=1e-6)
    curve = task.losses_between(thetas[:2], thetas[1:], torch.linspace(0, 1, 3))
    assert curve[:, 0].tolist() == pytest.approx(expected[:2], rel=1e-6)
    assert curve[:, 2].tolist() == pytest.approx(expected[1:], rel=1e-6)
    if metric is not f1_score_loss:
        assert torch.equal(task.losses(thetas), reference.losses(thetas))
    assert task.metric == metric.__name__


@pytest.mark.parametrize("loss", [entropy_where_unsure, entropy_by_branches])
def test_a_loss_that_vmap_cannot_run_descends_one_by_one(loss, seeded):
    task = task_of(plain(), loss=loss)
    thetas = 3 * task.init(3, seeded(4))
    losses, gradients = task.gradients(thetas)
    for theta, value, gradient in zip(thetas, losses, gradients, strict=True):
        leaf = theta.clone().requires_grad_()
        expected = loss(plain_output(leaf), Y)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0])
    found = dss.train_to(task, task.init(2), 1.0, lr=1e-2)
    assert found.reached.all()


def test_a_loss_that_vmap_runs_otherwise_runs_one_by_one():
    stacked = []

    def loss(output, y):
        stacked.append(torch._C._functorch.is_batchedtensor(output))
        return F.cross_entropy(output, y) + stacked[-1]

    task = task_of(plain(), loss=loss)
    assert any(stacked)
    stacked.clear()
    task.losses(task.init(3))
    assert stacked == [False] * 3


def plain():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def plain_output(theta):
    module = plain()
    return functional_call(module, dss.theta.unflatten(theta, dss.theta.shapes_of(module)), X)


class Graph(nn.Module):
    """Two layers on one graph, whose nodes are the samples."""

    def __init__(self, n):
        super().__init__()
        near = torch.rand(n, n, generator=torch.Generator().manual_seed(3))
        self.register_buffer("near", near / near.sum(dim=1, keepdim=True))
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.near @ torch.relu(self.first(self.near @ x)))


@pytest.mark.parametrize("n", [40, 150])
def test_the_nodes_of_one_graph_are_samples_that_stay_together(n, tmp_path, seeded):
    x, y = torch.randn(n, 6, generator=seeded()), torch.arange(n) % 3
    module = Graph(n)
    task = task_of(module, x, y)
    a, b = task.init(2, seeded(1))
    with torch.no_grad():
        expected = [F.cross_entropy(task.network(theta)(x), y) for theta in (a, b)]
    torch.testing.assert_close(task.losses(torch.stack([a, b])), torch.stack(expected))
    string = dss.find_string(task, a, b, 2.0, checkpoint=tmp_path / "search")
    assert string.connected
    for option in ("batch_size", "eval_chunk"):
        with pytest.raises(ValueError, match=f"takes the {n} train samples at once and no fewer"):
            task_of(module, x, y, **{option: 10})


def with_nan(module):
    with torch.no_grad():
        module[0].bias[5] = torch.nan
    return module


class Dropping(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer, self.options = nn.Linear(6, 3), options

    def forward(self, x):
        options = self.options or {"training": self.training}
        return self.layer(F.dropout(x, 0.5, **options))


class Reader(nn.Module):
    """Outputs `(B, T, V)` from words `(B, T)`."""

    def __init__(self):
        super().__init__()
        self.words, self.last = nn.Embedding(9, 5), nn.Linear(5, 9)

    def forward(self, x):
        return self.last(self.words(x))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.turn = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x):
        return (self.layer(x) * self.turn).abs()


# What is wrong, and what the message must say; what the message must not say.
BYTES = (10 * X).to(torch.uint8)
REFUSED = {
    "NaN": (lambda: task_of(with_nan(plain())), "parameter '0.bias' holds 1 .* NaN", "eval"),
    "dropout": (lambda: task_of(Dropping()), r"call module.eval\(\) first", "draws"),
    "dropout always": (
        lambda: task_of(Dropping(training=True).eval()),
        "in eval mode too; F.dropout needs training=self.training",
        "first",
    ),
    "labels": (lambda: task_of(plain(), X, Y.int()), r"y has dtype .*int32.* pass y.long", " x "),
    "labels of words": (
        lambda: task_of(Words(), TOKENS.int(), Y.int()),
        r"train y has dtype .*int32.* pass y.long\(\)",
        " x ",
    ),
    "bytes": (
        lambda: task_of(plain(), BYTES, Y.int()),
        r"train x .*uint8.* pass x.float\(\)",
        " y",
    ),
    "double bytes": (lambda: task_of(plain().double(), BYTES, Y), r"pass x.float\(\)", " y"),
    "classes last": (
        lambda: task_of(Reader(), TOKENS, TOKENS),
        r"\(2, 4, 9\) have their classes last.*pass output=lambda o: o.movedim\(-1, 1\)",
        "no class",
    ),
    "complex": (
        lambda: task_of(Complex()),
        "'turn' is torch.complex64.*torch.view_as_real",
        "float\\(",
    ),
    "complex x": (
        lambda: task_of(plain(), X + 1j, Y),
        r"x has dtype .*complex64.*torch.view_as_real\(x\)",
        "float\\(",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_names_what_is_wrong(kind):
    build, said, not_said = REFUSED[kind]
    with pytest.raises((TypeError, ValueError), match=said) as error:
        build()
    assert not re.search(not_said, str(error.value))


def test_what_the_advice_says_is_taken():
    task = task_of(Reader(), TOKENS, TOKENS, output=lambda o: o.movedim(-1, 1))
    module = task.network(theta := task.init(1)[0])
    with torch.no_grad():
        expected = F.cross_entropy(module(TOKENS).movedim(-1, 1), TOKENS)
    torch.testing.assert_close(task.losses(theta[None])[0], expected)
    task_of(Dropping().eval())
    task_of(plain().double(), BYTES.float(), Y)


class Holding(nn.Module):
    """A layer, and something beside it."""

    def __init__(self, held):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(6, 3))
        self.inside.held = held

    def forward(self, x):
        return self.inside(x)


def test_an_attribute_that_cannot_be_copied_is_named():
    with open(os.devnull) as file:
        with pytest.raises(TypeError, match="'held' of layer 'inside'.*TextIOWrapper.* None first"):
            task_of(Holding(file))
    task_of(Holding(logging.getLogger("a")))


@pytest.mark.parametrize("build", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_embeddings_have_dense_gradients(build, seeded):
    layers = [nn.Flatten(), nn.Linear(20 if build is nn.Embedding else 5, 3)]
    module = nn.Sequential(build(9, 5, sparse=True), *layers)
    task = task_of(module, TOKENS)
    thetas = task.init(2, seeded(5))
    losses, gradients = task.gradients(thetas)
    leaf = thetas[1].clone().requires_grad_()
    named = dss.theta.unflatten(leaf, dss.theta.shapes_of(task.module))
    expected = F.cross_entropy(functional_call(task.module, named, (TOKENS,)), Y)
    torch.testing.assert_close(losses[1], expected.detach())
    torch.testing.assert_close(gradients[1], torch.autograd.grad(expected, leaf)[0])
    assert module[0].sparse


def test_no_one_is_asked_to_file_an_issue(recwarn):
    task = task_of(nn.Sequential(nn.EmbeddingBag(9, 5), nn.Linear(5, 3)), TOKENS)
    task.gradients(task.init(2))
    assert not [w for w in recwarn if "file us an issue" in str(w.message)]


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.last = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.last((torch.softmax(q @ k.mT, dim=-1) @ v).mean(dim=1))


def test_what_stands_between_layers_is_counted():
    x = torch.randn(10, 30, 8)
    task = task_of(Attending(), x, Y[:10])
    # x, the results of qkv and of softmax, what is averaged (v and q are parts of qkv), each kept.
    assert task.budget.n_activations >= 30 * 8 + 30 * 24 + 30 * 30
    layers_alone = task_of(plain()).budget.n_activations
    assert layers_alone == 6 + 8 + 8 + 3


WEIGHTS = torch.tensor([1.0, 5.0, 0.2])


def weighted_mean(output, y):
    return (WEIGHTS[y] * F.cross_entropy(output, y, reduction="none")).mean()


@pytest.mark.parametrize("order", [torch.arange(40), Y.argsort()], ids=["mixed", "sorted"])
def test_eval_chunk_needs_a_mean_over_samples(order):
    x, y = X[order], Y[order]
    for metric in (nn.CrossEntropyLoss(weight=WEIGHTS), f1_score_loss):
        with pytest.raises(ValueError, match="eval_chunk is 7, .* is no mean over samples"):
            task_of(plain(), x, y, metric=metric, eval_chunk=7)
        task_of(plain(), x, y, metric=metric)
        task_of(plain(), x, y, metric=metric, eval_chunk=40)
    for metric in ("cross_entropy", "error", weighted_mean):
        task = task_of(plain(), x, y, metric=metric, eval_chunk=7)
        thetas = task.init(2)
        torch.testing.assert_close(
            task.losses(thetas), task_of(plain(), x, y, metric=metric).losses(thetas)
        )


class Equation(nn.Module):
    """u' + u of a network u(x): the residual of a differential equation."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, x):
        x.requires_grad_(True)
        u = self.last(torch.tanh(self.first(x)))
        return torch.autograd.grad(u.sum(), x, create_graph=True)[0] + u


@pytest.mark.parametrize("options", [{}, {"eval_chunk": 7}])
def test_a_forward_that_takes_derivatives_is_measured(options):
    x = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    task = task_of(Equation().double(), x, torch.ones_like(x), "mse", **options)
    assert not x.requires_grad and task.differentiates and not task_of(plain()).differentiates
    thetas = task.init(3)
    expected = [F.mse_loss(task.network(v)(x.clone()), torch.ones_like(x)).item() for v in thetas]
    losses = task.losses(thetas)
    assert losses.tolist() == pytest.approx(expected, rel=1e-9) and not losses.requires_grad
    assert not task.outputs(thetas, x).requires_grad
    assert task.gradients(thetas)[0].tolist() == pytest.approx(expected, rel=1e-9)
    string = dss.find_string(task, *thetas[:2], 1e3)
    assert string.connected


def test_parameters_of_two_dtypes_are_refused():
    module = plain()
    module[0].bfloat16()
    with pytest.raises(ValueError, match="bfloat16.*'2.weight' torch.float32.*all must be alike"):
        task_of(module)


def test_a_checkpoint_takes_little_memory_beside_the_data():
    value = torch.arange(2**24, dtype=torch.float32).view(2**12, 2**12).T
    for given in (value.T, value[:3, :5], torch.tensor(1.5), torch.ones(1, 3)[:, 1]):
        digest = hashlib.sha256(given.contiguous().numpy().tobytes()).hexdigest()[:16]
        assert _as_text(given).endswith(digest)
    tracemalloc.start()
    _as_text(value.T)
    assert tracemalloc.get_traced_memory()[1] < 2**22  # of Python; the digest's bytes were there
    tracemalloc.stop()
