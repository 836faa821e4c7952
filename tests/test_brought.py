"""What people bring: networks, state_dicts and files by name, adapters, factories, outputs."""

import copy
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import dss
from dss.geometry import neighbours
from dss.networks.batchnorm import batch_statistics
from dss.networks.losses import LOSSES

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))


def plain():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Tied(nn.Module):
    """An embedding of inputs by a matrix that also reads the outputs."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(6, 6, bias=False)
        self.outside = nn.Linear(6, 6, bias=False)
        self.outside.weight = self.inside.weight
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.relu(self.outside(torch.relu(self.inside(x)))))


class Features(nn.Module):
    """Random Fourier features, which no training changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(6, 10))
        self.last = nn.Linear(10, 3)

    def forward(self, x):
        return self.last(torch.cos(x @ self.frequencies))


class Adapted(nn.Module):
    """A frozen layer with an adapter of rank 2 (LoRA), and a head that is trained."""

    def __init__(self, base):
        super().__init__()
        self.base = copy.deepcopy(base).requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.base(x) + self.up(self.down(x))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)
        for p in self.lstm.parameters():
            p.requires_grad_(False)

    def forward(self, x):
        return self.last(self.lstm(x.view(-1, 3, 2))[0][:, -1])


def seeded_module(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def task_of(module, **options):
    return dss.Task.from_module(module, "cross_entropy", (X, Y), (X, Y), **options)


def plain_loss(network):
    with torch.no_grad():
        return float(F.cross_entropy(network(X), Y))


@pytest.mark.parametrize("make", [plain, Tied], ids=["plain", "tied"])
def test_a_network_is_found_by_name_whatever_its_order(make, tmp_path):
    network = seeded_module(make, 1)
    task = task_of(seeded_module(make, 2))
    weights = network.state_dict()
    backwards = dict(sorted(weights.items(), reverse=True))
    if make is plain:
        save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.pt")
    torch.save({"epoch": 3, "model": backwards}, tmp_path / "checkpoint.pt")
    wrapped = {f"module._orig_mod.{name}": v for name, v in weights.items()}
    compiled = {f"_orig_mod.{name}": v for name, v in weights.items()}
    parallel = {f"module.{name}": v for name, v in weights.items()}
    with pytest.raises(ValueError, match="lacks"):
        task.theta(wrapped)  # no wrapper that PyTorch makes in this order
    sources = [network, weights, backwards, compiled, parallel, *sorted(tmp_path.iterdir())]
    for source in sources:
        theta = task.theta(source)
        assert torch.equal(theta, dss.flatten(network))
        assert float(task.losses(theta[None])) == pytest.approx(plain_loss(network), rel=1e-6)


def test_other_networks_are_refused_by_name(tmp_path, ring):
    task, weights = task_of(plain()), plain().state_dict()
    wrong = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    for source, parts in (
        ({name: v for name, v in weights.items() if name != "2.bias"}, "lacks '2.bias' and 0 more"),
        (weights | {"3.weight": torch.zeros(1)}, "has '3.weight' and 0 more"),
        (weights | {"0.bias": torch.zeros(9)}, r"'0.bias' has shape \(9,\), \(8,\) is needed"),
        (wrong, r"layer '1' is Tanh\(\), that of the task is ReLU\(\)"),
    ):
        with pytest.raises(ValueError, match=parts):
            task.theta(source)
        with pytest.raises(ValueError, match=f"theta_2: .*{parts}"):
            dss.find_string(task, weights, source, L0=9.0)
    with pytest.raises(ValueError, match="ring has no module"):
        ring.theta(plain())
    with pytest.raises(TypeError, match="3 is no module"):
        task.theta(3)
    with pytest.raises(OSError):
        task.theta(tmp_path / "gone.pt")
    (tmp_path / "no.pt").write_text("hello")
    with pytest.raises(ValueError, match="holds no state_dict"):
        task.theta(tmp_path / "no.pt")


def test_ties_and_buffers_are_compared():
    task, other = task_of(Tied()), Tied().state_dict()
    other["outside.weight"] = other["outside.weight"] + 1
    with pytest.raises(ValueError, match="'outside.weight' is tied to 'inside.weight'"):
        task.theta(other)
    one, two = Features(), Features()
    task = task_of(one)
    with pytest.raises(ValueError, match="'frequencies' is constant in the task"):
        task.theta(two)
    two.frequencies.copy_(one.frequencies)
    assert float(task.losses(task.theta(two)[None])) == pytest.approx(plain_loss(two), rel=1e-6)


@pytest.mark.parametrize("kind", ["adapter", "probe", "recurrent"])
def test_frozen_parameters_are_constants(kind, seeded):
    base = nn.Linear(6, 8)
    makes = {"adapter": lambda: Adapted(base), "probe": plain, "recurrent": Recurrent}
    network, other = (seeded_module(makes[kind], seed) for seed in (1, 2))
    for module in (network, other):
        if kind == "probe":
            module[0].requires_grad_(False)
    frozen = {n: p for n, p in network.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        for name, p in frozen.items():
            other.get_parameter(name).copy_(p)
    with pytest.raises(ValueError, match="trainable='requires_grad'"):
        task_of(network)
    task = task_of(network, trainable="requires_grad", batch_size=20)
    n_trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert task.n_params == n_trained < dss.flatten(network).numel()
    for module in (network, other):
        theta = task.theta(module)
        assert float(task.losses(theta[None])) == pytest.approx(plain_loss(module), rel=1e-5)
    L0 = 1.01 * max(plain_loss(network), plain_loss(other))
    string = dss.find_string(task, network, other, L0, method="averaged", generator=seeded())
    assert string.connected
    for theta, loss in zip(string.thetas, task.losses(string.thetas), strict=True):
        bead = string.module(0) if torch.equal(theta, string.thetas[0]) else task.network(theta)
        assert plain_loss(bead) == pytest.approx(float(loss), rel=1e-5)
        for name, p in frozen.items():
            assert torch.equal(bead.state_dict()[name], p), "constants stay"
    with torch.no_grad():
        next(iter(frozen.values())).add_(1)
    with pytest.raises(ValueError, match="is constant in the task"):
        task.theta(network)


def test_a_bead_becomes_a_network_again(seeded, tmp_path):
    one, two = (seeded_module(Tied, seed) for seed in (1, 2))
    L0 = 1.02 * max(plain_loss(one), plain_loss(two))
    string = dss.find_string(task_of(one), one, two, L0, generator=seeded())
    for i, theta in enumerate(string.thetas):
        network = string.module(i)
        assert torch.equal(dss.flatten(network), theta) and not network.training
        assert network.outside.weight is network.inside.weight, "ties stay"
        assert plain_loss(network) <= L0 * 1.00001
    tight = dss.tighten(string.task, string)
    assert torch.equal(dss.flatten(tight.module(0)), string.thetas[0])
    with pytest.raises(ValueError, match="i is 99"):
        string.module(99)
    loaded = dss.String.load(string.save(tmp_path / "s.safetensors"))
    with pytest.raises(ValueError, match="does not know its task"):
        loaded.module(0)


def test_networks_stand_where_flat_vectors_stand(seeded, tmp_path):
    nets = [seeded_module(plain, seed) for seed in range(4)]
    task, file = task_of(nets[0], batch_size=20), tmp_path / "c.safetensors"
    save_file(nets[2].state_dict(), file)
    sides = [nets[0], nets[1].state_dict()], (file, nets[3])
    thetas = [torch.stack([task.theta(v) for v in side]) for side in sides]
    L0 = 1.02 * max(map(plain_loss, nets))
    runs = [dss.find_strings(task, *given, L0, generator=seeded()) for given in (sides, thetas)]
    assert all(torch.equal(a.thetas, b.thetas) for a, b in zip(*runs, strict=True))
    ends = [side[0] for side in sides]
    gammas = [dss.interpolated_loss(task, *given) for given in (ends, [t[0] for t in thetas])]
    assert torch.equal(*gammas)
    for method in (neighbours.bezier, neighbours.one_bend, neighbours.auto_neb):
        path = method(task, *ends, L0, max_steps=50, generator=seeded())
        same = method(task, *(t[0] for t in thetas), L0, max_steps=50, generator=seeded())
        assert path.Gamma_tilde == same.Gamma_tilde and path.status == same.status


def test_a_network_that_does_not_fit_is_named(seeded):
    net, other = plain(), Tied()
    task = task_of(net)
    with pytest.raises(ValueError, match=r"theta_2\[1\]: the network lacks"):
        dss.find_strings(task, [net, net], [net, other], 9)
    with pytest.raises(ValueError, match="theta_1: the network lacks"):
        neighbours.bezier(task, other, net, 9)
    with pytest.raises(ValueError, match=r"theta_1\[1\] has shape"):
        dss.find_strings(task, [net, torch.zeros(3)], [net, net], 9)
    with pytest.raises(TypeError, match="theta_1 is a list"):
        dss.find_strings(task, [], [net], 9)
    with pytest.raises(ValueError, match="one shape|alike|as many|shape"):
        dss.find_strings(task, [net, net], [net], 9)


def test_a_factory_draws_as_it_draws(seeded):
    def make():
        network = plain()
        nn.init.normal_(network[0].weight, std=0.02)
        return network

    task = task_of(make)
    thetas = task.init(50, seeded(3))
    assert float(thetas[:, :48].std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(task.init(50, seeded(3)), thetas)
    assert torch.equal(task.init(2, seeded(3)), thetas[:2]), "network i does not depend on n"
    assert not torch.equal(thetas[0], thetas[1])
    for wrong, parts in ((lambda: 3, "returns a int"), (nn.Linear, "without arguments")):
        with pytest.raises(TypeError, match=parts):
            task_of(wrong)


Answer = namedtuple("Answer", "hidden logits")
OUTPUTS = {
    "tuple": (lambda y: (y, 0), lambda o: o[0]),
    "dict": (lambda y: {"logits": y}, lambda o: o["logits"]),
    "fields": (lambda y: Answer(0, y), lambda o: o.logits),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_are_no_tensor(kind, seeded):
    wrap, unwrap = OUTPUTS[kind]

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain()

        def forward(self, x):
            return wrap(self.inner(x))

    with pytest.raises(TypeError, match="pass output="):
        task_of(Wrapped())
    one, two = (seeded_module(Wrapped, seed) for seed in (1, 2))
    task = task_of(one, output=unwrap)
    losses = [plain_loss(network.inner) for network in (one, two)]
    thetas = torch.stack([task.theta(one), task.theta(two)])
    assert task.losses(thetas).tolist() == pytest.approx(losses, rel=1e-5)
    string = dss.find_string(task, one, two, L0=1.05 * max(losses), generator=seeded())
    assert string.connected
    end = string.module(0)
    assert torch.equal(unwrap(end(X)), unwrap(one(X))), "it answers as its maker expects"
    with pytest.raises(TypeError, match="output is 3"):
        task_of(one, output=3)


def test_losses_that_are_modules_are_known_by_name():
    for loss, name in ((nn.CrossEntropyLoss(), "cross_entropy"), (nn.MSELoss(), "mse")):
        y = Y if name == "cross_entropy" else torch.zeros(40, 3)
        task = dss.Task.from_module(plain(), loss, (X, y), (X, y))
        assert task.loss == task.metric == name and task.loss_function is LOSSES[name]
    smooth = dss.Task.from_module(plain(), nn.CrossEntropyLoss(label_smoothing=0.1), (X, Y), (X, Y))
    assert smooth.loss != "cross_entropy"
    theta = dss.flatten(plain())[None]
    assert float(smooth.losses(theta)) != pytest.approx(
        float(task_of(plain()).losses(theta)), rel=1e-4
    )


def test_metrics_that_are_better_where_they_are_higher_are_refused():
    def accuracy(output, y):
        return (output.argmax(dim=1) == y).float().mean()

    class Score(nn.Module):
        higher_is_better = True

        def forward(self, output, y):
            return accuracy(output, y)

    for metric in (accuracy, Score()):
        with pytest.raises(ValueError, match="of which more is better"):
            task_of(plain(), metric=metric)
    assert task_of(plain(), metric=lambda o, y: 1 - accuracy(o, y)).metric == "<lambda>"

    def one_minus_accuracy(output, y):
        return 1 - accuracy(output, y)

    assert task_of(plain(), metric=one_minus_accuracy).metric == "one_minus_accuracy"


@pytest.mark.parametrize("reference", [None, X], ids=["batch", "reference"])
def test_a_network_with_batchnorm_comes_back(reference):
    make = lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))  # noqa: E731
    network = seeded_module(make, 1)
    task = task_of(batch_statistics(network, reference))
    theta = task.theta(network)
    assert torch.equal(theta, dss.flatten(network)), "running statistics are left out"
    assert torch.equal(task.theta(network.state_dict()), theta)
    loss = float(task.losses(theta[None]))
    assert plain_loss(task.network(theta)) == pytest.approx(loss, rel=1e-5)
    with pytest.raises(ValueError, match="theta has shape"):
        task.network(theta[:-1])


# Another function of the same parameters: how it is made, and what of it is named.
def variant(change):
    net = plain()
    change(net)
    return net


class Sine(nn.Module):
    def __init__(self, function=torch.sin):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class Features2(nn.Module):
    """Features that are a tensor, and no buffer."""

    def __init__(self, seed=0):
        super().__init__()
        self.B = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.sin(x @ self.B))


def normed(kind):
    return nn.Sequential(nn.Linear(6, 8), kind, nn.Tanh(), nn.Linear(8, 3))


def encoder(**options):
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0, **options)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), layer, nn.Flatten(), nn.Linear(6, 3))


OTHERS = {
    "forward": (Sine, lambda: Sine(torch.tanh), "its forward, a setting, or a tensor"),
    "constant": (Features2, lambda: Features2(1), "its forward, a setting, or a tensor"),
    "groups": (
        lambda: normed(nn.GroupNorm(2, 8)), lambda: normed(nn.GroupNorm(4, 8)), "GroupNorm\\(4",
    ),
    "eps": (
        lambda: normed(nn.LayerNorm(8)), lambda: normed(nn.LayerNorm(8, eps=0.1)), "eps=0.1",
    ),
    "layer behind": (plain, lambda: nn.Sequential(*plain(), nn.Sigmoid()), "its forward"),
    "norm first": (encoder, lambda: encoder(norm_first=True), "its forward, a setting"),
    "activation": (encoder, lambda: encoder(activation="gelu"), "its forward, a setting"),
    "wrapped": (
        plain, lambda: nn.DataParallel(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))),
        "layer '1' is Tanh",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_another_function_of_the_same_parameters_is_refused(kind):
    make, other, said = OTHERS[kind]
    net = make().eval()
    task = task_of(net)
    assert torch.equal(task.theta(net), dss.flatten(net))
    with pytest.raises(ValueError, match=said):
        task.theta(other().eval())


def test_what_makes_no_difference_is_taken():
    def dropping(p, inplace):
        layers = nn.Linear(6, 8), nn.ReLU(inplace=inplace), nn.Dropout(p), nn.Linear(8, 3)
        return nn.Sequential(*layers).eval()

    task, other = task_of(dropping(0.5, False)), dropping(0.2, True)
    assert torch.equal(task.theta(other), dss.flatten(other))
    running = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    task = task_of(batch_statistics(running, X))
    assert torch.equal(task.theta(running), dss.flatten(running)), "its statistics do not count"
    assert torch.equal(task.theta(batch_statistics(running, X[:9])), dss.flatten(running))
    state = batch_statistics(running, X).state_dict()
    assert torch.equal(task.theta(state), dss.flatten(running))


def test_a_probe_on_frozen_norms_is_measured_as_it_is():
    def probe(seed):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        body(X)  # running statistics of pretraining
        torch.manual_seed(seed)
        return nn.Sequential(*body.requires_grad_(False), nn.Linear(8, 3)).eval()

    one, two = probe(1), probe(2)
    with pytest.raises(ValueError, match="keeps running statistics"):
        task_of(probe(1).train(), trainable="requires_grad")
    task = task_of(one, trainable="requires_grad")
    assert task.n_params == 27
    for net in (one, two):
        assert float(task.losses(task.theta(net)[None])) == pytest.approx(plain_loss(net), rel=1e-6)
    bead = task.network(task.theta(two))
    assert plain_loss(bead) == pytest.approx(plain_loss(two), rel=1e-6)
    two[1].running_mean += 1
    with pytest.raises(ValueError, match="running_mean' is constant in the task"):
        task.theta(two)


class Drawn(nn.Module):
    """Its numbers come from NumPy."""

    def __init__(self, seed=None):
        super().__init__()
        drawn = np.random.randn(6, 3) if seed is None else np.ones((6, 3))
        self.w = nn.Parameter(torch.as_tensor(drawn, dtype=torch.float32))

    def forward(self, x):
        return x @ self.w


def test_a_factory_draws_from_the_generator_whatever_it_draws_with(tmp_path):
    state = np.random.get_state()[1].copy()
    task = dss.Task.from_module(Drawn, "cross_entropy", (X, Y), (X, Y))
    draws = [task.init(2, torch.Generator().manual_seed(k)) for k in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert (np.random.get_state()[1] == state).all()
    options = {"max_depth": 1, "max_steps": 5, "checkpoint": tmp_path / "s.safetensors"}
    one, two = (dss.find_string(task, *draws[0], L0=9, **options) for _ in range(2))
    assert torch.equal(one.thetas, two.thetas)
    same = dss.Task.from_module(lambda: Drawn(1), "cross_entropy", (X, Y), (X, Y))
    with pytest.raises(ValueError, match="makes the same network again and again"):
        same.init(2)


def test_a_network_without_an_init_is_searched_with_a_checkpoint(tmp_path):
    nets = [seeded_module(lambda: encoder(), seed).eval() for seed in (1, 2)]
    task = task_of(nets[0])
    with pytest.raises(ValueError, match="init"):
        task.init(1)
    file = tmp_path / "s.safetensors"
    strings = [dss.find_string(task, *nets, L0=9, max_steps=5, checkpoint=file) for _ in range(2)]
    assert torch.equal(strings[0].thetas, strings[1].thetas) and file.exists()
    assert task.estimate().n_params == task.n_params


def test_files_may_keep_a_state_dict_under_the_usual_keys(tmp_path):
    net = plain()
    task = task_of(net)
    for key in ("state_dict", "model", "model_state_dict"):
        torch.save({key: net.state_dict(), "epoch": 3}, tmp_path / "a.pt")
        assert torch.equal(task.theta(tmp_path / "a.pt"), dss.flatten(net))
    with pytest.raises(TypeError, match="they may lie under 'state_dict'"):
        task.theta({"weights": net.state_dict()})
