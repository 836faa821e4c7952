"""`precision="bfloat16"`: gradients as under plain autocast; networks and losses in float32."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import dss
from dss.geometry.neighbours import auto_neb
from dss.networks import losses, stacks


class Attention(nn.Module):
    """A block of a transformer before a linear head: norm, attention over 4 tokens, MLP."""

    def __init__(self):
        super().__init__()
        self.embed, self.norms = nn.Linear(4, 16), nn.ModuleList(nn.LayerNorm(16) for _ in "ab")
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        h = self.embed(x.reshape(-1, 4, 4))
        q, k, v = self.qkv(self.norms[0](h)).unflatten(-1, (3, 2, 8)).movedim(-3, 0).transpose(2, 3)
        mixed = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        h = h + self.mlp(self.norms[1](h))
        return self.head(h.mean(1))


def cnn():
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2, bias=False), nn.Tanh()
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), *layers, nn.Flatten(), nn.Linear(8, 3))


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)),
    "sigmoids": lambda: nn.Sequential(
        nn.Linear(16, 32), nn.Sigmoid(), nn.Linear(32, 32, bias=False), nn.Tanh(), nn.Linear(32, 3)
    ),
    "cnn": cnn,
    "transformer": Attention,
}
LOSSES = {"mse": losses.LOSSES["mse"], "cross_entropy": losses.LOSSES["cross_entropy"]}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def sample(loss, n=64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 16, generator=generator)
    y = torch.stack([x[:, :4].sum(1), x[:, 4:8].sum(1), x[:, 8] * x[:, 9]], dim=1)
    return x, y.argmax(1) if loss == "cross_entropy" else y


def plain_autocast(network, theta, loss, x, y):
    """Loss and gradient of a plain module under autocast."""
    network = copy.deepcopy(network)
    vector_to_parameters(theta, network.parameters())
    network.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(network(x), y)
    value.backward()
    return value.detach(), parameters_to_vector([p.grad for p in network.parameters()])


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [1, 3])
def test_gradients_are_those_of_plain_autocast(network, loss, n):
    x, y = sample(loss)
    task = dss.Task.from_module(network, loss, (x, y), (x, y))
    thetas = task.init(n, torch.Generator().manual_seed(2))
    values, gradients = task.gradients(thetas, precision="bfloat16")
    exact = task.gradients(thetas)[1]
    assert values.dtype == gradients.dtype == torch.float32
    for i in range(n):
        value, expected = plain_autocast(network, thetas[i], LOSSES[loss], x, y)
        assert float(values[i]) == pytest.approx(float(value), rel=0.01)
        assert torch.cosine_similarity(gradients[i], expected, dim=0) > 0.999
        assert relative(gradients[i], expected) < 0.03
        # No further from float32 than autocast is, but not float32: side by side, biases are added
        # to convolutions in float32.
        limit = 3 * relative(expected, exact[i]) + 1e-3
        assert 1e-4 < relative(gradients[i], exact[i]) < limit


def test_none_is_what_it_was(network):
    x, y = sample("mse")
    task = dss.Task.from_module(network, "mse", (x, y), (x, y))
    thetas = task.init(2)
    for a, b in zip(task.gradients(thetas), task.gradients(thetas, precision=None), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["paper", "averaged"])
def test_a_search_connects_and_its_losses_are_of_float32(network, method, plain_loss, seen):
    loss = "cross_entropy"
    x, y = sample(loss, 128)
    task = dss.Task.from_module(network, loss, (x, y), (x, y), batch_size=64)
    training = {"optimizer": "adam", "lr": 3e-3, "max_steps": 1_500, "precision": "bfloat16"}
    ends = dss.train_endpoints(task, 2, [0.7], **training).thetas[0]
    string = dss.find_string(task, *ends, 0.7, method=method, n_t=9, **training)
    assert string.connected and set(seen) == {torch.bfloat16}
    assert string.thetas.dtype == torch.float32
    t = torch.linspace(0, 1, 9)
    gamma = [
        float(plain_loss(task, dss.interpolate(a, b, s)))
        for a, b in zip(string.thetas, string.thetas[1:], strict=False)
        for s in t
    ]
    assert max(gamma) <= 0.7 * (1 + 1e-5)
    assert string.Gamma_tilde == pytest.approx(max(gamma), rel=1e-5)


@pytest.fixture
def seen(monkeypatch):
    """In what the gradients were computed."""
    kinds = []

    def spy(*arguments, lower=None):
        kinds.append(lower)
        return stacks.stacked_gradients(*arguments, lower=lower)

    monkeypatch.setattr("dss.task.stacked_gradients", spy)
    return kinds


def test_a_caller_who_is_in_autocast_changes_nothing():
    x, y = sample("mse")
    task = dss.Task.from_module(cnn(), "mse", (x, y), (x, y))
    thetas = task.init(2)
    training = {"max_steps": 5, "precision": "bfloat16"}
    plain = dss.train_to(task, thetas, 1e-9, **training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dss.train_to(task, thetas, 1e-9, **training)
    assert torch.equal(plain.thetas, found.thetas) and torch.equal(plain.losses, found.losses)
    other = dss.train_to(task, thetas, 1e-9, max_steps=5)
    assert not torch.equal(plain.thetas, other.thetas)
    assert torch.equal(task.losses(plain.thetas).double(), plain.losses)


CALLS = {
    "find_strings": lambda task, ends, **o: dss.find_strings(task, *ends[:, None], 9.0, **o),
    "study": lambda task, ends, **o: dss.study(task, [9.0], 1, **o),
    "train_to": lambda task, ends, **o: dss.train_to(task, ends, 9.0, **o),
    "train_endpoints": lambda task, ends, **o: dss.train_endpoints(task, 1, [9.0], **o),
    "gradients": lambda task, ends, **o: task.gradients(ends, **o),
    "estimate": lambda task, ends, **o: task.estimate(**o),
    "auto_neb": lambda task, ends, **o: auto_neb(task, *ends, 9.0, **o),
}


@pytest.mark.parametrize("call", CALLS)
def test_it_is_refused_where_it_means_nothing(call, quad64, ring):
    with pytest.raises(ValueError, match="networks are torch.float64; float32 is needed"):
        CALLS[call](quad64, quad64.init(2), precision="bfloat16")
    with pytest.raises(ValueError, match="is an explicit function of theta"):
        CALLS[call](ring, ring.init(2), precision="bfloat16")
    for other in ("float16", "half", 16, True, torch.bfloat16):
        with pytest.raises(ValueError, match="unknown precision .*; known: None, 'bfloat16'"):
            CALLS[call](dss.quad(), dss.quad().init(2), precision=other)


def test_a_checkpoint_of_another_precision_is_refused(tmp_path):
    task, path = dss.quad(), tmp_path / "c"
    ends = task.init(2)[:, None]
    dss.find_strings(task, *ends, 9.0, checkpoint=path, precision="bfloat16")
    dss.find_strings(task, *ends, 9.0, checkpoint=path, precision="bfloat16", progress=True)
    with pytest.raises(ValueError, match="precision is 'bfloat16' there, None here"):
        dss.find_strings(task, *ends, 9.0, checkpoint=path)
