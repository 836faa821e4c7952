"""What a caller has set in torch changes no result, silently or otherwise."""

import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import dss
from dss.networks import modes


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def coarse_products():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


MODES = {
    "coarse products": coarse_products,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "another device": lambda: torch.device("meta"),
    "another dtype": default_dtype,
}


@pytest.fixture(scope="module", params=["mlp", "layer norm", "landscape"])
def task(request):
    if request.param == "landscape":
        return dss.landscape(lambda theta: (theta**2).sum(-1), 3)
    x = torch.linspace(-1, 1, 16)[:, None]
    norm = [nn.LayerNorm(6)] if request.param == "layer norm" else []
    module = nn.Sequential(nn.Linear(1, 6), *norm, nn.Tanh(), nn.Linear(6, 1))
    return dss.Task.from_module(module, "mse", (x, x**2), (x, x**2))


def results(task, thetas):
    """What the public functions find, as tensors and numbers."""
    found = [task.losses(thetas), *task.gradients(thetas), task.init(2)]
    found += [task.losses_between(thetas[:1], thetas[1:2], torch.linspace(0, 1, 3, device="cpu"))]
    found += [dss.interpolated_loss(task, *thetas[:2]), dss.t_star(task, *thetas[:2])]
    found += [*dss.losses_along(task, thetas), dss.Gamma_tilde(task, thetas)]
    trained = dss.train_to(task, thetas, 0.05, lr=1e-2, max_steps=60)
    found += [trained.thetas, trained.losses]
    found += [s.thetas for s in dss.find_strings(task, thetas[:1], thetas[1:2], 50.0)]
    strings, table = dss.study(task, [0.2], 1, lr=1e-2, n_t=5, max_depth=2)
    found += [strings[0].thetas, strings[0].Gamma_tilde, table.gradient_steps.tolist()]
    if task.module is not None:
        found += [task.outputs(thetas, task.splits["test"][0])]
    if task.module is not None and len(task.module) == 3:
        found += [c.upper for c in dss.certify_strings(task, strings, budget=8)]
    return found


@pytest.mark.parametrize("mode", MODES)
def test_no_mode_changes_a_result(task, mode):
    thetas = task.init(3, torch.Generator().manual_seed(4))
    expected = results(task, thetas)
    with MODES[mode]():
        own = thetas * 1 if mode == "inference" else thetas
        found = results(task, own)
    for a, b in zip(expected, found, strict=True):
        same = torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        assert same, (mode, a, b)


@pytest.mark.parametrize("mode", MODES)
def test_tasks_are_the_same_whatever_was_set(mode):
    x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 3

    def build():
        module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
        return dss.Task.from_module(module, "cross_entropy", (x, y), (x, y))

    def same(make):
        with MODES[mode]():
            task = make()
        if mode == "another dtype":  # networks are built in it
            task = task.to(dtype=torch.float32)
        thetas = make().init(2)
        torch.testing.assert_close(task.losses(thetas), make().losses(thetas))
        torch.testing.assert_close(task.gradients(thetas), make().gradients(thetas))
        assert torch.equal(task.init(2).float(), thetas.float())

    same(lambda: dss.quad(n_train=8, n_eval=8))
    same(lambda: dss.digits(n_eval=10))
    same(lambda: dss.landscape(lambda theta: (theta**2).sum(-1), 3))
    if mode in ("autocast", "no grad"):
        same(build)


def test_networks_of_inference_mode_are_refused():
    x = torch.rand(8, 2)
    with torch.inference_mode():
        module, own = nn.Linear(2, 2), torch.rand(8, 2)
        with pytest.raises(ValueError, match="'weight' was made in torch.inference_mode"):
            dss.Task.from_module(module, "mse", (x, x), (x, x))
    task = dss.Task.from_module(nn.Linear(2, 2), "mse", (own, own), (own, own))
    assert task.gradients(task.init(2))[1].shape == (2, 6)
    net = dss.batch_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), own)
    task = dss.Task.from_module(net, "mse", (own, own), (x, x))
    assert task.gradients(task.init(2))[1].shape == (2, 10)


class Scaled(nn.Module):
    """Outputs times exp of a number, as CLIP scales its logits."""

    def __init__(self):
        super().__init__()
        self.logit_scale, self.body = nn.Parameter(torch.tensor(0.5)), nn.Linear(2, 3)

    def reset_parameters(self):
        nn.init.constant_(self.logit_scale, 0.5)

    def forward(self, x):
        return self.logit_scale.exp() * self.body(x)


def test_a_parameter_without_a_dimension(seeded, plain_loss):
    x, y = torch.rand(8, 2, generator=seeded()), torch.arange(8) % 3
    task = dss.Task.from_module(Scaled(), "cross_entropy", (x, y), (x, y))
    assert task.n_params == 10
    theta = dss.flatten(Scaled())
    assert theta[0] == 0.5 and dss.theta.unflatten(theta, {"a": (), "b": (9,)})["a"].shape == ()
    thetas = task.init(3, seeded(1))
    plain = [plain_loss(task, v, name="cross_entropy") for v in thetas]
    torch.testing.assert_close(task.losses(thetas), torch.stack(plain))
    assert (task.gradients(thetas)[1][:, 0] != 0).all()
    string = dss.find_string(task, *thetas[:2], 5.0)
    assert string.connected


def lazy():
    return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.Linear(3, 2))


def test_layers_without_a_size_are_refused_and_the_way_out_works():
    x = torch.rand(8, 4)
    for call in (
        dss.flatten,
        dss.theta.shapes_of,
        dss.batch_statistics,
        lambda module: dss.Task.from_module(module, "mse", (x, x[:, :2]), (x, x[:, :2])),
    ):
        with pytest.raises(ValueError, match=r"weight of layer '0' \(LazyLinear\) has no size yet"):
            call(lazy())
    module = lazy()
    module(x)
    module = dss.batch_statistics(module)
    task = dss.Task.from_module(module, "mse", (x, x[:, :2]), (x, x[:, :2]))
    assert task.losses(dss.flatten(module)[None]).isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m[1].double(), "'0.weight' is torch.float32.*'1.weight' torch.float64"),
        (lambda m: m[1].to("meta"), "'0.weight' is .* on cpu and '1.weight' .* on meta"),
        (lambda m: m.to(torch.complex64), "'0.weight' is torch.complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_unlike_parameters_are_refused(change, message):
    x, module = torch.rand(8, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    change(module)
    with pytest.raises(ValueError, match=message):
        dss.Task.from_module(module, "mse", (x, x), (x, x))


ATTRIBUTES = ("allow_tf32", "benchmark", "deterministic")


def told_by_torch() -> list:
    """Its switches of precision, in both of its languages; None where one cannot tell."""
    backends, told = torch.backends, [torch.get_float32_matmul_precision]
    told += [lambda name=name: getattr(backends.cudnn, name) for name in ATTRIBUTES]
    if hasattr(backends, "fp32_precision"):
        places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        places += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
        told += [lambda place=place: place.fp32_precision for place in places]
    return [modes._told(read) for read in told]


def set_by_name(name, value):
    return lambda: setattr(torch.backends.cudnn, name, value)


SET = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32": set_by_name("allow_tf32", False),
    "benchmark": set_by_name("benchmark", True),
    "one operation": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("name", SET)
def test_float32_is_whole_within_and_as_it_was_after(name, monkeypatch):
    if name == "one operation" and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has no switch of one operation")
    within = ["highest", False, False, True] + ["ieee"] * (len(told_by_torch()) - 4)
    call = modes.in_usual_mode(told_by_torch)
    try:
        SET[name]()
        before = told_by_torch()
        assert call() == within and told_by_torch() == before
        with pytest.raises(ZeroDivisionError):
            modes.in_usual_mode(lambda: 1 / 0)()
        assert told_by_torch() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False
    assert told_by_torch()[:4] == ["highest", True, False, False]


def test_float32_is_whole_until_the_last_thread_has_left():
    within, before = modes.in_usual_mode(told_by_torch)(), told_by_torch()
    first, second = threading.Event(), threading.Event()

    @modes.in_usual_mode
    def leaves_first():
        first.set()
        second.wait(60)

    thread = threading.Thread(target=leaves_first)

    @modes.in_usual_mode
    def leaves_last():
        second.set()
        thread.join(60)
        return told_by_torch()

    thread.start()
    first.wait(60)
    assert leaves_last() == within and told_by_torch() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
def test_what_is_inherited_stays_inherited():
    operations = torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
    before = [operation.fp32_precision for operation in operations]
    try:
        torch.backends.fp32_precision = "tf32"
        modes.in_usual_mode(lambda: None)()
        torch.backends.fp32_precision = "ieee"
        found = [operation.fp32_precision for operation in operations]
        assert found[1] == "ieee" and found[0] in ("ieee", before[0])
    finally:
        torch.backends.fp32_precision = "none"
        for operation, value in zip(operations, before, strict=True):
            operation.fp32_precision = value


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_switch_that_cannot_be_set_leaves_all_as_they_were(error, monkeypatch):
    def refuses(value):
        raise error("no")

    first, *others = modes.SWITCHES
    monkeypatch.setattr(modes, "SWITCHES", (first, (lambda: None, refuses, "y"), *others))
    torch.set_float32_matmul_precision("high")
    try:
        for _ in range(2):  # the second call is refused as the first
            with pytest.raises(error, match="no"):
                modes.in_usual_mode(lambda: None)()
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
