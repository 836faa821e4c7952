"""Bad input gets an error that carries the offending value and what is allowed."""

import math
import re

import pytest
import torch
from torch import nn

import dss

GOOD = {"theta_1": torch.tensor([1.0, 0.0]), "theta_2": torch.tensor([0.0, 1.0]), "L0": 0.1}


def needs(error, *parts):
    """The error is raised and its message carries all the parts, in order."""
    return pytest.raises(error, match=re.compile(".*".join(map(re.escape, parts)), re.DOTALL))


@pytest.mark.parametrize(
    "argument, value, error, parts",
    [
        ("L0", 0.0, ValueError, ["L0", "0.0", "> 0"]),
        ("L0", -0.25, ValueError, ["L0", "-0.25", "> 0"]),
        ("L0", math.nan, ValueError, ["L0", "nan", "finite"]),
        ("L0", math.inf, ValueError, ["L0", "inf", "finite"]),
        ("L0", "low", TypeError, ["L0", "'low'", "number"]),
        ("alpha", 0.0, ValueError, ["alpha", "0.0", "0 < alpha <= 1"]),
        ("alpha", 1.5, ValueError, ["alpha", "1.5", "0 < alpha <= 1"]),
        ("alpha", -0.5, ValueError, ["alpha", "-0.5", "0 < alpha <= 1"]),
        ("alpha", math.nan, ValueError, ["alpha", "nan", "0 < alpha <= 1"]),
        ("max_depth", -1, ValueError, ["max_depth", "-1", ">= 0"]),
        ("max_depth", 41, ValueError, ["max_depth", "41", "40"]),
        ("n_t", 2, ValueError, ["n_t", "2", "at least 3"]),
        ("n_t", 0, ValueError, ["n_t", "0", "at least 3"]),
        ("slack", 0.9, ValueError, ["slack", "0.9", ">= 1"]),
        ("slack", math.nan, ValueError, ["slack", "nan", ">= 1"]),
        (
            "t_star",
            "middle",
            ValueError,
            ["t_star", "'middle'", "'max', 'coarse', 'grid'"],
        ),
        ("optimizer", "lion", ValueError, ["optimizer", "'lion'", "rmsprop, adam, sgd"]),
        ("lr", -1.0, ValueError, ["lr", "-1.0", "> 0"]),
        ("theta_2", torch.zeros(3), ValueError, ["theta_2", "(3,)", "2"]),
        ("theta_1", torch.zeros(1, 2), ValueError, ["theta_1", "(1, 2)", "2"]),
        ("theta_1", torch.tensor([math.nan, 0.0]), ValueError, ["theta_1", "NaN or inf", "finite"]),
        ("theta_2", torch.tensor([0.0, math.inf]), ValueError, ["theta_2", "NaN or inf", "finite"]),
        ("theta_1", torch.tensor([1, 0]), TypeError, ["theta_1", "int64", "floating point"]),
        ("theta_2", [0.0, 1.0], TypeError, ["theta_2", "list", "tensor"]),
        ("theta_2", torch.zeros(2).double(), ValueError, ["float32", "float64", "the same"]),
        ("theta_1", torch.tensor([2.0, 0.0]), ValueError, ["theta_1", "loss 9", "L0 = 0.1"]),
        ("theta_2", torch.tensor([0.0, 2.0]), ValueError, ["theta_2", "loss 9", "L0 = 0.1"]),
    ],
)
def test_find_string(ring, argument, value, error, parts):
    with needs(error, *parts):
        dss.find_string(ring, **(GOOD | {argument: value}))


def test_find_strings_wants_pairs_of_one_shape(ring):
    theta = torch.zeros(3, 2)
    with needs(ValueError, "(3, 2)", "(2, 2)", "the same"):
        dss.find_strings(ring, theta, theta[:2], 1.0)
    with needs(ValueError, "theta_1", "(2,)", "(any, 2)"):
        dss.find_strings(ring, theta[0], theta[0], 1.0)
    with needs(ValueError, "0 rows", "at least 1"):
        dss.find_strings(ring, theta[:0], theta[:0], 1.0)
    with needs(ValueError, "L0", "(2,)", "(3,)"):
        dss.find_strings(ring, theta, theta, torch.ones(2))
    with needs(ValueError, "alpha", "(4,)", "(3,)"):
        dss.find_strings(ring, theta, theta, 1.0, alpha=torch.ones(4))


@pytest.mark.parametrize("function", [dss.interpolated_loss, dss.t_star])
def test_curves(ring, function):
    theta = torch.zeros(2)
    with needs(ValueError, "n_t", "2", "at least 3"):
        function(ring, theta, theta, n_t=2)
    with needs(ValueError, "theta_2", "(3,)", "2"):
        function(ring, theta, torch.zeros(3))
    with needs(ValueError, "(2, 2)", "(3, 2)", "the same"):
        function(ring, torch.zeros(2, 2), torch.zeros(3, 2))
    with needs(ValueError, "theta_1", "NaN or inf", "finite"):
        function(ring, theta / 0, theta)
    with needs(TypeError, "theta_1", "int64", "floating point"):
        function(ring, theta.long(), theta)
    with needs(TypeError, "theta_1", "list", "tensor"):
        function(ring, [0.0, 0.0], theta)


def test_t_star_rule(ring):
    with needs(ValueError, "'median'", "'max', 'coarse', 'grid', 'midpoint'"):
        dss.t_star(ring, torch.zeros(2), torch.zeros(2), rule="median")


@pytest.mark.parametrize(
    "thetas, error, parts",
    [
        (torch.zeros(1, 3), ValueError, ["thetas", "(1, 3)", "2"]),
        (torch.zeros(1, 2).int(), TypeError, ["thetas", "int32", "floating point"]),
        (torch.tensor([[0.0, 0.0], [0.0, math.nan]]), ValueError, ["thetas", "(1, 1)", "finite"]),
    ],
)
def test_train_to(ring, thetas, error, parts):
    with needs(error, *parts):
        dss.train_to(ring, thetas, 0.1)


X, Y = torch.rand(10, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(10, 4)
INTEGERS = torch.ones(10, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    "layer, parts",
    [
        (nn.BatchNorm1d(4), ["'1'", "BatchNorm1d", "running statistics", "batch_statistics"]),
        (
            nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
            ["InstanceNorm1d", "running statistics", "track_running_stats=False"],
        ),
        (nn.Dropout(0.25), ["'1'", "Dropout", "p=0.25", "module.eval()"]),
        (nn.AlphaDropout(0.5), ["AlphaDropout", "p=0.5", "module.eval()"]),
        (
            nn.TransformerEncoderLayer(4, 1, 4, dropout=0.1),
            ["dropout", "p=0.1", "module.eval()"],
        ),
    ],
)
def test_modules_whose_output_is_no_function_of_theta(layer, parts):
    module = nn.Sequential(nn.Linear(4, 4), layer)
    with needs(ValueError, *parts):
        dss.Task.from_module(module, "mse", (X, Y), (X, Y))


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout(0.0), nn.Dropout(0.5).eval()]
)
def test_the_way_out_that_the_message_names_works(layer, seeded):
    task = dss.Task.from_module(nn.Sequential(nn.Linear(4, 4), layer), "mse", (X, Y), (X, Y))
    thetas = task.init(2, seeded())
    assert torch.equal(task.losses(thetas), task.losses(thetas))


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_integer_inputs(loss):
    with needs(TypeError, "train x", "int64", "floating point", "x.float()"):
        dss.Task.from_module(nn.Linear(4, 4), loss, (INTEGERS, Y), (X, Y))
    with needs(TypeError, "test x", "int64", "floating point"):
        dss.Task.from_module(nn.Linear(4, 4), loss, (X, Y), (INTEGERS, Y))


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_integer_targets_train_as_floats_or_are_refused(loss, seeded):
    try:
        task = dss.Task.from_module(nn.Linear(4, 4), loss, (X, INTEGERS), (X, INTEGERS))
    except TypeError as error:
        assert "y" in str(error) and "int64" in str(error)
        return
    floats = dss.Task.from_module(nn.Linear(4, 4), loss, (X, INTEGERS.float()), (X, Y))
    thetas = task.init(2, seeded())
    torch.testing.assert_close(task.gradients(thetas), floats.gradients(thetas))


def test_labels_of_the_wrong_integer_type_are_not_told_to_be_floats():
    labels = torch.zeros(10, dtype=torch.int32)
    with pytest.raises((TypeError, ValueError), match="int32|Int") as error:
        dss.Task.from_module(nn.Linear(4, 3), "cross_entropy", (X, labels), (X, labels))
    assert "y.float()" not in str(error.value)


@pytest.mark.parametrize(
    "make, parts",
    [
        (lambda: dss.quad("gelu"), ["activation", "'gelu'", "'relu', 'sigmoid', 'tanh'"]),
        (lambda: dss.quad(loss="l3"), ["loss", "'l3'", "'mse', 'mae', 'huber'"]),
        (lambda: dss.quad(preset="author"), ["preset", "'author'", "'authors'"]),
        (lambda: dss.polynomial("quintic"), ["polynomial", "'quintic'", "'quadratic', 'cubic'"]),
        (lambda: dss.mnist(network="vgg"), ["network", "'vgg'", "'cnn'", "'mlp'", "'authors'"]),
        (lambda: dss.mnist(metric="f1"), ["metric", "'f1'", "'loss', 'error'"]),
        (lambda: dss.mnist(preset="paper"), ["preset", "'paper'", "'authors'"]),
        (lambda: dss.digits(preset="authors"), ["preset", "'authors'", "None"]),
        (lambda: dss.digits(network="authors"), ["network", "'authors'", "'cnn', 'mlp'"]),
        (lambda: dss.mnist(n_eval=0), ["n_eval", "0", "1 to 10000"]),
        (lambda: dss.mnist(n_eval=0, preset="authors"), ["n_eval", "0", "1 to 10000"]),
        (lambda: dss.mnist(n_eval=10_001), ["n_eval", "10001", "1 to 10000"]),
        (lambda: dss.digits(n_eval=501), ["n_eval", "501", "1 to 500"]),
        (lambda: dss.landscape(lambda theta: theta.sum(-1), 0), ["dim", "0", "at least 1"]),
        (lambda: dss.landscape(lambda theta: theta, 2), ["(2, 2)", "(2,)"]),
        (lambda: dss.landscape(lambda theta: 0.0, 2), ["float", "(2,)"]),
    ],
)
def test_unknown_tasks_and_presets(make, parts):
    with needs(ValueError, *parts):
        make()


def test_a_damaged_string_file(tmp_path):
    path = tmp_path / "string.safetensors"
    path.write_bytes(b"\x00" * 100)
    with needs(ValueError, str(path), "not a readable string file"):
        dss.String.load(path)


@pytest.mark.parametrize("shape", [(2,), (3, 1), (1, 3, 2)])
@pytest.mark.parametrize("call", ["losses", "gradients"])
def test_networks_that_are_no_stack(ring, call, shape):
    with needs(ValueError, "thetas", str(shape), "(any, 2)"):
        getattr(ring, call)(torch.ones(shape))
