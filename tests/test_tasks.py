"""Tasks: what they compute, how they start, and what they refuse."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import dss
from dss.networks import memory


@pytest.fixture(scope="module")
def authors():
    """The three presets of AUTHORS_SCRIPTS that the companion has."""
    return {
        "quadratic": dss.quad(preset="authors"),
        "cubic": dss.polynomial("cubic", preset="authors"),
        "mnist": dss.mnist(preset="authors"),
    }


def data(n=12, features=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, features, generator=generator)
    return x, x.sum(dim=1, keepdim=True) ** 2


@pytest.mark.parametrize("split, n", [("train", 128), ("test", 256)])
def test_quad_samples_its_polynomial_on_the_unit_interval(split, n):
    x, y = dss.quad().splits[split]
    assert x.shape == y.shape == (n, 1)
    assert 0 <= x.min() < 0.05 and 0.95 < x.max() <= 1
    torch.testing.assert_close(y, 0.5 * x**2 + 0.25 * x + 0.1)


def test_quad_is_the_drafts_network():
    task = dss.quad()
    layers = [type(layer) for layer in task.module]
    assert layers == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert (task.n_params, task.metric, task.loss) == (33, "mse", "mse")
    x_train, x_test = (task.splits[split][0] for split in ("train", "test"))
    assert not set(x_train.flatten().tolist()) & set(x_test.flatten().tolist())


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_the_losses_of_quad(loss, plain_loss, seeded):
    task = dss.quad(loss=loss)
    theta = task.init(1, seeded())
    x, y = task.splits["test"]
    outputs = task.outputs(theta, x)[0]
    residual = (outputs - y).abs()
    by_hand = {
        "mse": residual**2,
        "mae": residual,
        "huber": torch.where(residual < 0.1, residual**2 / 2, 0.1 * (residual - 0.05)),
    }[loss].mean()
    assert float(task.losses(theta)) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(plain_loss(task, theta[0])) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize(
    "coefficients, text",
    [([0.0, 2.0], r"\[0, 2\]"), ([0.5, -4.0, 4.0], r"\[-0.5, 0.5\]"), ([-1e-3], "-0.001")],
)
def test_polynomial_outside_the_unit_interval_is_refused(coefficients, text):
    with pytest.raises(ValueError, match=text):
        dss.polynomial(coefficients)
    assert dss.polynomial(coefficients, restrict=False).n_params == 33


@pytest.mark.parametrize("coefficients", [[], [math.nan], [0.1, math.inf]])
def test_polynomial_needs_finite_coefficients(coefficients):
    with pytest.raises(ValueError, match="coefficients"):
        dss.polynomial(coefficients)


def test_cubic_is_named_and_dips_below_zero():
    x, y = dss.polynomial("cubic", n_eval=100_000).splits["test"]
    torch.testing.assert_close(y, 8 * x**3 - 10 * x**2 + 3 * x, atol=1e-6, rtol=1e-5)
    assert float(y.min()) == pytest.approx(-0.079, abs=1e-3)
    assert float((y - y.median()).abs().mean()) == pytest.approx(0.158, abs=2e-3)


AUTHORS = {
    "quadratic": (24, 10_000, "mae", "mae"),
    "cubic": (33, 10_000, "mae", "mae"),
    "mnist": (3_274_634, 10_000, "cross_entropy_of_softmax", "error"),
}
POLYNOMIAL = {"lr": 1e-3, "alpha": 0.95, "slack": 1.1, "n_t": 101, "t_star": "midpoint"}
MNIST = {"lr": 1e-4, "alpha": 0.98, "slack": 1.02, "n_t": 21, "t_star": "grid", "batch_size": 100}
COMMON = {"optimizer": "adam", "insert_first": True, "max_depth": 10}


@pytest.mark.parametrize("name", AUTHORS)
def test_authors_presets(authors, name):
    task = authors[name]
    n_params, n_eval, loss, metric = AUTHORS[name]
    assert (task.n_params, task.loss, task.metric) == (n_params, loss, metric)
    assert len(task.splits["test"][0]) == n_eval
    assert COMMON.items() <= task.settings.items()
    assert (MNIST if name == "mnist" else POLYNOMIAL).items() <= task.settings.items()


def test_images_of_the_authors_network_are_laid_out_channels_last(authors):
    for task in (authors["mnist"], authors["mnist"].to(dtype=torch.float64)):
        assert all(x.stride() == (784, 1, 28, 1) for x, _ in task.splits.values())
    x, y = authors["mnist"].splits["test"]
    few = {"test": (x[:250].to(memory_format=torch.contiguous_format), y[:250])}
    last = {"test": (x[:250].to(memory_format=torch.channels_last), y[:250])}
    thetas = authors["mnist"].init(1, torch.Generator().manual_seed(3))
    losses = [dataclasses.replace(authors["mnist"], splits=s).losses(thetas) for s in (few, last)]
    torch.testing.assert_close(*losses, rtol=0, atol=1 / 250)  # one digit may change sides


def test_authors_polynomials(authors):
    kinds = {n: [type(layer) for layer in authors[n].module] for n in ("quadratic", "cubic")}
    two = [nn.Linear, nn.Sigmoid] * 2 + [nn.Linear]
    assert kinds == {"quadratic": [*two, nn.Sigmoid], "cubic": two}
    for name, n_weights in (("quadratic", 24), ("cubic", 24)):
        task = authors[name]
        assert len(task.splits["train"][0]) == 10_000
        assert task.batch_size is None
        assert int(task.length_mask.sum()) == n_weights


def test_authors_initial_values(authors, seeded):
    weights = authors["quadratic"].init(2_000, seeded(1))
    assert weights.abs().max() <= 1
    assert float(weights.mean()) == pytest.approx(0, abs=0.01)
    assert float(weights.std()) == pytest.approx(3**-0.5, abs=0.01)
    cubic, is_weight = authors["cubic"].init(2_000, seeded(1)), authors["cubic"].length_mask
    assert cubic[:, is_weight].abs().max() <= 1
    biases = cubic[:, ~is_weight]
    assert float(biases.mean()) == pytest.approx(0, abs=0.03)
    assert float(biases.std()) == pytest.approx(1, abs=0.03)
    assert biases.abs().max() > 3
    theta = authors["mnist"].init(1, seeded(1))
    named = dss.theta.unflatten(theta[0], dss.theta.shapes_of(authors["mnist"].module))
    for name, values in named.items():
        if name.endswith("bias"):
            assert (values == 0.1).all()
        else:
            assert values.abs().max() <= 0.2
    large = named["7.weight"]
    # A normal cut at two standard deviations has .8796 of its standard deviation.
    assert float(large.std()) == pytest.approx(0.08796, rel=0.01)
    assert float(large.mean()) == pytest.approx(0, abs=1e-3)


def test_dropout_of_the_authors_network_is_on_in_training_only(authors, seeded):
    one = {name: (x[:1], y[:1]) for name, (x, y) in authors["mnist"].splits.items()}
    task = dataclasses.replace(authors["mnist"], splits=one)
    theta = task.init(1, seeded())
    loss, gradient = task.gradients(theta, generator=seeded(1))
    same, gradient_again = task.gradients(theta, generator=seeded(1))
    other, _ = task.gradients(theta, generator=seeded(2))
    assert torch.equal(gradient, gradient_again) and loss == same != other
    _, without = dataclasses.replace(task, noise=None).gradients(theta)
    shapes = dss.theta.shapes_of(task.module)
    alive = [
        int((dss.theta.unflatten(g[0], shapes)["7.bias"] != 0).sum()) for g in (gradient, without)
    ]
    assert alive[0] / alive[1] == pytest.approx(0.5, abs=0.1)
    x, _ = one["test"]
    assert torch.equal(task.outputs(theta, x), task.outputs(theta, x))


@pytest.mark.parametrize("make", [dss.quad, dss.digits, lambda: dss.digits(network="cnn")])
def test_rows_of_init_do_not_depend_on_how_many(make, seeded):
    task = make()
    assert torch.equal(task.init(7, seeded(3))[:2], task.init(2, seeded(3)))
    assert torch.equal(task.init(2), task.init(2))
    assert not torch.equal(task.init(1, seeded(3)), task.init(1, seeded(4)))
    with pytest.raises(ValueError, match="n is 0"):
        task.init(0)


def test_rows_of_init_of_any_module(seeded):
    module = nn.Sequential(nn.Linear(1, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    task = dss.Task.from_module(module, "mse", data(), data())
    thetas = task.init(5, seeded(3))
    assert torch.equal(thetas[:2], task.init(2, seeded(3)))
    assert len(thetas.unique(dim=0)) == 5


@pytest.mark.parametrize("chunk", [1, 5_000, 2**30])
@pytest.mark.parametrize("eval_chunk", [None, 1, 7, 1_000])
def test_chunks_do_not_change_losses(monkeypatch, seeded, digits64, chunk, eval_chunk):
    task = dataclasses.replace(digits64, eval_chunk=None)
    thetas = task.init(9, seeded())
    expected = torch.stack([task.losses(theta[None])[0] for theta in thetas])
    monkeypatch.setitem(memory.CHUNK_ELEMENTS, "cpu", chunk)
    task = dataclasses.replace(task, eval_chunk=eval_chunk)
    torch.testing.assert_close(task.losses(thetas), expected, rtol=1e-12, atol=0)


def test_gradients_are_those_of_the_training_loss(quad64, plain_loss, seeded, monkeypatch):
    monkeypatch.setitem(memory.CHUNK_ELEMENTS, "cpu", 5_000)
    thetas = quad64.init(4, seeded())
    losses, gradients = quad64.gradients(thetas)
    for i in range(4):
        assert float(losses[i]) == pytest.approx(float(plain_loss(quad64, thetas[i], "train")))
        for p in (0, 13, 32):
            step = torch.zeros(33, dtype=torch.float64)
            step[p] = 1e-6
            up, down = (plain_loss(quad64, thetas[i] + s, "train") for s in (step, -step))
            assert float(gradients[i, p]) == pytest.approx(float(up - down) / 2e-6, abs=1e-6)


def test_error_rate_is_a_fraction_of_the_evaluation_set(seeded):
    task = dss.digits(metric="error", n_eval=40)
    thetas = task.init(3, seeded())
    x, y = task.splits["test"]
    wrong = (task.outputs(thetas, x).argmax(dim=2) != y).sum(dim=1)
    assert task.losses(thetas).tolist() == pytest.approx((wrong / 40).tolist())
    assert task.loss == "cross_entropy"


def test_digits_evaluates_a_fixed_part_of_the_test_set():
    small, whole = dss.digits(n_eval=30), dss.digits()
    assert [len(whole.splits[s][0]) for s in ("train", "test")] == [1297, 500]
    assert torch.equal(small.splits["test"][0], whole.splits["test"][0][:30])


def test_to_makes_a_new_task(seeded):
    task = dss.quad()
    double = task.to(torch.float64)
    assert double.init(1).dtype == double.splits["test"][0].dtype == torch.float64
    assert next(double.module.parameters()).dtype == torch.float64
    assert task.dtype == task.splits["test"][0].dtype == torch.float32
    assert task.to("cpu").device == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert dss.mnist("cnn").to("auto").init(1, seeded()).device.type == expected
    assert dss.digits().to(dtype=torch.float64).splits["train"][1].dtype == torch.int64
    with pytest.raises(TypeError, match="torch.int64"):
        task.to(dtype=torch.int64)


def test_small_networks_stay_on_the_cpu_unless_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for small in (dss.quad(), dss.landscape(lambda theta: theta.square().sum(-1), 2)):
        assert small.to("auto").device.type == "cpu"
    if not torch.cuda.device_count():
        with pytest.raises((AssertionError, RuntimeError), match="CUDA|NVIDIA"):
            dss.mnist("cnn").to("auto")


def test_losses_check_their_arguments(quad64):
    with pytest.raises(ValueError, match="'valid'.*'test' and 'train'"):
        quad64.losses(torch.zeros(1, 33), split="valid")
    with pytest.raises(ValueError, match=r"\(33,\)"):
        quad64.losses(torch.zeros(33))
    assert torch.isnan(quad64.losses(torch.full((1, 33), torch.nan)))


@pytest.mark.parametrize("build", [dss.quad, dss.digits, lambda: dss.quad(preset="authors")])
def test_torchs_global_generator_is_neither_used_nor_moved(build):
    torch.manual_seed(7)
    before, task = torch.get_rng_state(), build()
    first = task.init(2)
    dss.train_to(task, first, 1e-9, max_steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(build().init(2), first)
