"""Networks of one's own: stacked outputs equal the module's, and refusals say what to do."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import dss
from dss.networks.stacks import stacked_outputs


class Residual(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x):
        return x + super().forward(x)


class Doubled(nn.Linear):
    """A Linear with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def reused_activation():
    relu = nn.ReLU()
    return nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2))


def reused_layer():
    layer = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(3, 4), layer, nn.Tanh(), layer, nn.Linear(4, 2))


MODULES = {
    "linear": lambda: nn.Linear(3, 2),
    "mlp": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
    "no biases": lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 2)),
    "activation last": lambda: nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2)),
    "layer norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
    "reused activation": reused_activation,
    "reused layer": reused_layer,
    "own forward": lambda: Residual(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)),
    "own layer": lambda: nn.Sequential(Doubled(3, 4), nn.ReLU(), nn.Linear(4, 2)),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)
    ),
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_stacked_outputs_equal_the_module_one_by_one(kind, n, seeded):
    module = MODULES[kind]().double()
    theta = dss.flatten(module)
    noise = torch.randn(n, len(theta), dtype=torch.float64, generator=seeded(1))
    thetas = theta + 0.3 * noise
    x = torch.randn(6, 3, dtype=torch.float64, generator=seeded(2))
    outputs = stacked_outputs(module, thetas, x)
    shapes = dss.theta.shapes_of(module)
    expected = [functional_call(module, dss.theta.unflatten(row, shapes), (x,)) for row in thetas]
    torch.testing.assert_close(outputs, torch.stack(expected), rtol=1e-12, atol=1e-12)


class Unrolled(nn.Module):
    """One block, with a layer inside, that stands in three places, and a tied weight."""

    def __init__(self):
        super().__init__()
        block = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.first, self.second, self.last = block, nn.Sequential(block, block[0]), nn.Linear(3, 3)
        self.last.weight = block[0].weight

    def forward(self, x):
        return self.last(self.second(self.first(x)))


def test_a_task_of_a_network_with_shared_layers(seeded):
    module, x = Unrolled().double(), torch.randn(20, 3, dtype=torch.float64, generator=seeded())
    task = dss.Task.from_module(module, "mse", (x, x), (x, x))
    assert task.n_params == 9 + 3 + 3
    thetas = task.init(3, seeded(1))
    for n in (3, 1, 3):
        expected = []
        for theta in thetas[:n]:
            nn.utils.vector_to_parameters(theta, module.parameters())
            expected.append(nn.functional.mse_loss(module(x), x).item())
        assert task.losses(thetas[:n]).tolist() == pytest.approx(expected, rel=1e-12)
        losses, gradients = task.gradients(thetas[:n])
        assert losses.tolist() == pytest.approx(expected, rel=1e-12)
        direct = torch.autograd.grad(nn.functional.mse_loss(module(x), x), module.parameters())
        torch.testing.assert_close(gradients[-1], dss.flatten(dict(enumerate(direct))))
    assert task.to(dtype=torch.float32).n_params == task.n_params


def test_a_task_of_a_network_with_a_shared_parametrised_layer(seeded):
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    module, x = nn.Sequential(layer, nn.Tanh(), layer).double(), torch.ones(5, 3).double()
    with torch.no_grad():
        expected = nn.functional.mse_loss(module(x), x)
    task = dss.Task.from_module(module, "mse", (x, x), (x, x))
    theta = dss.flatten(module)
    for n in (1, 2):
        torch.testing.assert_close(task.losses(theta.expand(n, -1))[-1], expected)


def test_linear_layers_act_on_the_last_axis_of_longer_inputs(seeded):
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(6, 5, 3, generator=seeded())
    theta = dss.flatten(module)
    outputs = stacked_outputs(module, torch.stack([theta, theta]), x)
    torch.testing.assert_close(outputs[1], module(x), rtol=1e-5, atol=1e-6)


@pytest.fixture
def sample(seeded):
    x = torch.rand(10, 3, generator=seeded())
    return x, x.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    "module, loss, message",
    [
        (nn.Linear(3, 1), "msee", "unknown loss 'msee'; known: 'mse', 'mae'"),
        (nn.Linear(2, 1), "mse", "train samples do not fit the network"),
        (nn.Linear(3, 2), "mse", "train samples do not fit the network"),
        (nn.Linear(3, 1), lambda output, y: (output - y) ** 2, r"is \(2, 1\); a scalar"),
        (nn.Linear(3, 1), lambda output, y: 1.0, "is float; a scalar"),
        (nn.ReLU(), "mse", "ReLU has no parameter"),
    ],
)
def test_from_module_refuses(sample, module, loss, message):
    with pytest.raises(ValueError, match=message):
        dss.Task.from_module(module, loss, sample, sample)


def test_from_module_refuses_samples_that_do_not_belong_together(sample):
    x, y = sample
    with pytest.raises(ValueError, match="test: 10 inputs and 4 targets"):
        dss.Task.from_module(nn.Linear(3, 1), "mse", sample, (x, y[:4]))
    with pytest.raises(ValueError, match="train: 0 inputs and 0 targets"):
        dss.Task.from_module(nn.Linear(3, 1), "mse", (x[:0], y[:0]), sample)
    with pytest.raises(ValueError, match="test samples do not fit"):
        dss.Task.from_module(nn.Linear(3, 1), "mse", sample, (x, y[:, 0]))
    with pytest.raises(ValueError, match="unknown metric 'accuracy'"):
        dss.Task.from_module(nn.Linear(3, 1), "mse", sample, sample, metric="accuracy")


def test_from_module_copies_the_module(sample):
    module = nn.Linear(3, 1)
    before = dss.flatten(module)
    task = dss.Task.from_module(module, "mse", sample, sample)
    dss.train_to(task, before, 1e-9, max_steps=5)
    assert torch.equal(dss.flatten(module), before)
    with torch.no_grad():
        module.weight += 1
    assert not torch.equal(dss.flatten(task.module), dss.flatten(module))


def test_from_module_takes_functions_and_a_metric_of_its_own(sample):
    def largest_error(output, y):
        return (output - y).abs().max()

    task = dss.Task.from_module(nn.Linear(3, 1), nn.MSELoss(), sample, sample, largest_error)
    theta = torch.tensor([[1.0, 1.0, 1.0, 0.25]])
    assert float(task.losses(theta)) == pytest.approx(0.25)
    assert float(task.gradients(theta)[0]) == pytest.approx(0.0625)
    assert task.metric == "largest_error"


def test_a_layer_without_reset_parameters_needs_init(sample, seeded):
    module = nn.Sequential(nn.Linear(3, 1), nn.PReLU())
    module.register_parameter("scale", nn.Parameter(torch.ones(1)))
    task = dss.Task.from_module(module, "mse", sample, sample)
    with pytest.raises(
        ValueError, match="Sequential has parameters and no reset_parameters.*init="
    ):
        task.init(1, seeded())


def test_a_search_on_a_network_of_ones_own(sample, seeded):
    task = dss.Task.from_module(MODULES["layer norm"](), "mse", *_two_targets(sample))
    found = dss.train_endpoints(task, 2, [0.05], lr=1e-2, max_steps=800)
    string = dss.find_string(task, *found.thetas[0], 0.05, lr=1e-2, max_depth=3, max_steps=800)
    assert string.thetas.shape[1] == task.n_params
    assert string.connected == (string.Gamma_tilde <= 0.05 * (1 + 1e-5))


def _two_targets(sample):
    x, y = sample
    return (x, torch.cat([y, -y], dim=1)), (x, torch.cat([y, -y], dim=1))


def test_a_network_with_nan_has_no_error_rate():
    x, y = torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)
    data = {"train": (x, y), "test": (x, y)}
    task = dss.Task.from_module(nn.Linear(1, 2), "cross_entropy", metric="error", **data)
    assert task.losses(torch.full((2, 4), torch.nan)).isnan().all()
    diverged = dss.train_to(task, task.init(1), 1e-9, optimizer="sgd", lr=1e38, max_steps=50)
    assert not diverged.reached.any() or diverged.thetas.isfinite().all()


def test_hooks_act_in_a_stack_too():
    module = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    module[0].register_forward_hook(lambda _module, _input, output: 0 * output)
    x = torch.linspace(0, 1, 8)[:, None]
    task = dss.Task.from_module(module, "mse", train=(x, x), test=(x, x))
    thetas = task.init(3)
    alone = torch.cat([task.losses(theta[None]) for theta in thetas])
    torch.testing.assert_close(task.losses(thetas), alone)


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def test_a_recurrent_network_runs_one_by_one():
    x = torch.rand(6, 5, 1)
    task = dss.Task.from_module(Last(), "mse", train=(x, x[:, 0]), test=(x, x[:, 0]))
    thetas = task.init(3)
    alone = torch.cat([task.losses(theta[None]) for theta in thetas])
    torch.testing.assert_close(task.losses(thetas), alone)
    losses, gradients = task.gradients(thetas)
    assert losses.shape == (3,) and gradients.shape == thetas.shape


class Hiding(nn.Module):
    """Keeps something where PyTorch does not look."""

    def __init__(self, kept):
        super().__init__()
        self.first, self.kept = nn.Linear(3, 1), kept

    def forward(self, x):
        return self.first(x)


def circular():
    module = nn.Sequential(nn.Linear(3, 1), nn.Identity())
    module[1].parent = module
    return module


def half_frozen():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    module[0].bias.requires_grad_(False)
    return module


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Hiding([nn.BatchNorm1d(3)]), "plain list, 'kept'.*use nn.ModuleList"),
        (lambda: nn.Sequential(Hiding({"a": nn.Linear(3, 3)})), "layer '0' .*plain dict, 'kept'"),
        (circular, "'parent' of Identity is a module that holds it"),
        (half_frozen, "parameter '0.bias' is frozen and others are not"),
        (lambda: nn.DataParallel(nn.Linear(3, 1)), "pass module.module"),
        (lambda: torch.jit.script(nn.Linear(3, 1)), "pass the nn.Module"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 1)).eval(), "spectral_norm"),
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 1)).eval(), "spectral_norm"),
    ],
)
def test_networks_that_are_not_what_they_seem_are_refused(sample, build, message):
    with pytest.raises(ValueError, match=message):
        dss.Task.from_module(build(), "mse", sample, sample)


def frozen():
    return nn.Linear(3, 1).requires_grad_(False)


def holding_its_parent_in_a_tuple():
    module = Hiding([nn.ReLU()])
    module.first.parent = (module,)
    return module


@pytest.mark.parametrize(
    "build",
    [frozen, holding_its_parent_in_a_tuple, lambda: torch.compile(nn.Linear(3, 1))],
    ids=["frozen", "tuple", "compiled"],
)
def test_a_network_stays_as_it_is(sample, build):
    module = build()
    before = {name: p.clone() for name, p in module.named_parameters()}
    modes = [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]
    task = dss.Task.from_module(module, "mse", sample, sample)
    theta = dss.flatten(module)
    dss.find_string(task, theta, theta + 0.1, 10.0)
    assert modes[0] == [m.training for m in module.modules()]
    assert modes[1] == [p.requires_grad for p in module.parameters()]
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert [p.grad for p in module.parameters()] == [None] * len(before)


@pytest.mark.parametrize(
    "build, held",
    [
        (lambda x, y: (x.numpy(), y.numpy()), "ndarray, ndarray"),
        (lambda x, y: (x, y, y), "Tensor, Tensor, Tensor"),
        (lambda x, y: x, "Tensor"),
    ],
    ids=["arrays", "three", "inputs alone"],
)
def test_a_sample_that_is_no_pair_of_tensors_is_refused(sample, build, held):
    with pytest.raises(TypeError, match=f"test is {held}; a pair"):
        dss.Task.from_module(nn.Linear(3, 1), "mse", sample, build(*sample))


CLASSES = torch.arange(10) % 3


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("part", ["x", "y"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_samples_that_are_not_finite_are_named_as_that(sample, split, part, value):
    x, y = (v.double().clone() for v in sample)
    {"x": x, "y": y}[part][4] = value
    data = {"train": sample, "test": sample} | {split: (x, y)}
    n = x.shape[1] if part == "x" else 1
    named = rf"{split} {part} \(in torch.float32\) holds {n} values that are NaN or inf.*\(4, 0\)"
    for loss in ("mse", lambda output, y: (output - y).square().mean()):
        with pytest.raises(ValueError, match=named):
            dss.Task.from_module(nn.Linear(3, 1), loss, **data)


def test_samples_that_another_precision_cannot_hold_are_refused(sample):
    x, y = sample
    task = dss.Task.from_module(nn.Linear(3, 1), "mse", sample, (1e6 * x, y))
    assert task.to(dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ValueError, match=r"test x \(in torch.float16\) holds .* NaN or inf"):
        task.to(dtype=torch.float16)


def test_a_reference_batch_that_is_not_finite_is_refused(sample):
    x = sample[0].clone()
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"x holds 1 values .* \(3, 1\)"):
        dss.batch_statistics(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), x)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("label", [3, -1, -100])
@pytest.mark.parametrize("loss, metric", [("cross_entropy", None), ("cross_entropy", "error"),
                                          (nn.CrossEntropyLoss(), None)])  # fmt: skip
def test_a_label_that_is_no_class_is_named(sample, split, label, loss, metric):
    x, y = sample[0], CLASSES.clone()
    y[7] = label
    data = {"train": (x, CLASSES), "test": (x, CLASSES)} | {split: (x, y)}
    if label == -100 and not isinstance(loss, str):  # what torch ignores
        dss.Task.from_module(nn.Linear(3, 3), loss, metric=metric, **data)
        return
    named = (
        rf"{split} y holds 1 labels that are no class, the first {label} at index \(7,\); 0 to 2"
    )
    with pytest.raises(ValueError, match=named):
        dss.Task.from_module(nn.Linear(3, 3), loss, metric=metric, **data)


def test_labels_of_an_image_and_probabilities_are_taken(sample):
    x = torch.rand(4, 1, 5, 5)
    y = torch.arange(100).reshape(4, 5, 5) % 3
    dss.Task.from_module(nn.Conv2d(1, 3, 1), "cross_entropy", (x, y), (x, y))
    shares = torch.full((10, 3), 1 / 3)
    one = sample[0], shares
    dss.Task.from_module(nn.Linear(3, 3), "cross_entropy", one, one)
    with pytest.raises(TypeError, match=r"y is torch.float32 of shape \(10, 3\); an error rate"):
        dss.Task.from_module(nn.Linear(3, 3), "cross_entropy", one, one, metric="error")
