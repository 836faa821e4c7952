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
    assert "pass y.long()" in str(error.value)


@pytest.mark.parametrize(("needed", "method"), [(torch.int64, "long"), (torch.float32, "float")])
def test_the_dtype_that_a_loss_needs_is_tried_and_not_read_off_its_words(needed, method):
    def loss(output, y):
        if y.dtype != needed:
            raise RuntimeError("no")
        return (output[:, 0] - y.float()).square().mean()

    labels = torch.zeros(10, dtype=torch.int32)
    with pytest.raises(TypeError, match=rf"train y has dtype torch.int32 .* pass y.{method}\(\)"):
        dss.Task.from_module(nn.Linear(4, 3), loss, (X, labels), (X, labels))


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
        (lambda: dss.mnist(n_eval=0), ["n_eval", "0", "1 to 10,000"]),
        (lambda: dss.mnist(n_eval=0, preset="authors"), ["n_eval", "0", "1 to 10,000"]),
        (lambda: dss.mnist(n_eval=10_001), ["n_eval", "10001", "1 to 10,000"]),
        (lambda: dss.digits(n_eval=501), ["n_eval", "501", "1 to 500"]),
        (lambda: dss.landscape(lambda theta: theta.sum(-1), 0), ["dim", "0", "from 1 to"]),
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


# What is no number at all, and what is none that counts something.
NO_NUMBER = ["0.5", True, None, [], [0.5, "x"], {}, 1j, torch.tensor([True]), object()]
NO_CHOICE = [value for value in NO_NUMBER if value is not None]  # where None leaves it to us
NO_COUNT = [0, -1, 1.5, math.nan, math.inf, -(10**26)]
TOO_MANY = [10**12, 10**26, 1e300]
SIGNED = [0.0, -1.0, math.nan, math.inf, -math.inf, 10**400]
NO_TENSOR = [None, "x", 1.0, [[0.0]], torch.zeros(0), torch.zeros(2, 2).long(), torch.zeros(2, 5)]
NO_GENERATOR = [0, 5, 10**26, "seed", [], torch.zeros(1)]
NO_TASK = [None, "quad", nn.Linear(1, 1), 3]
PAIR = torch.zeros(2, 2)

# Of public functions: arguments that are right, and bad values by argument.
TRAINING = {
    **{name: NO_COUNT for name in ("patience", "check_every", "batch_size")},
    "lr": SIGNED + NO_NUMBER,
    "max_steps": [-1, 1.5, math.nan, *NO_NUMBER],
    "optimizer": ["lion", 3, None, []],
    "generator": NO_GENERATOR,
    "task": NO_TASK,
}
SEARCHED = TRAINING | {
    "L0": SIGNED + NO_NUMBER + [torch.ones(3)],
    "alpha": [0.0, -1.0, 1.5, math.nan, 10**400, *NO_CHOICE, torch.ones(7)],
    "max_depth": [-1, 1.5, 41, math.nan, 10**26, *NO_CHOICE],
    "n_t": NO_COUNT + TOO_MANY + NO_NUMBER,
    "t_star": ["middle", 1, []],
    "method": ["mean", 1, None, []],
    "side_by_side": [*NO_COUNT, *NO_CHOICE],
    "client": ["tcp", 1, []],
    "slack": [0.9, math.nan, math.inf, *NO_NUMBER],
    "insert_first": [1, "yes", None],
    "first_bead": [bead for bead in NO_TENSOR if bead is not None],
}
DRAWN = SEARCHED | {
    "L0": [[], [[0.1]], [0.1, -1.0], [0.1, math.nan], "low", None, [True], {}],
    "n_pairs": NO_COUNT + TOO_MANY + NO_NUMBER,
}
CURVE = {"task": NO_TASK, "n_t": NO_COUNT + TOO_MANY + NO_NUMBER}
SEGMENT = CURVE | {"theta_1": NO_TENSOR, "theta_2": NO_TENSOR}
STRING = CURVE | {"thetas": [*NO_TENSOR, torch.zeros(1, 2)]}
SAMPLES = {"n_train": NO_COUNT + TOO_MANY, "n_eval": NO_COUNT + TOO_MANY}
SAMPLES |= {"hidden": [3, "4", None, (0,), (1.5,), (True,), (10**12,)]}
SAMPLES |= {"activation": ["gelu", 3, None, []], "loss": ["l3", 3, []], "preset": ["paper", 3, []]}
IMAGES = {"n_eval": NO_COUNT + [10_001, 10**26, "x", True, []]}
IMAGES |= {"network": ["vgg", 3, []], "metric": ["f1", 3, []], "preset": ["paper", 3, []]}
FOUND = dss.String(torch.zeros(2, 33), "connected", 9.0, 0.9, 1.0, 33, math.nan)
PROOF = {"task": NO_TASK, "limit": SIGNED + ["x", True, []], "budget": NO_COUNT + NO_NUMBER}
PROOF |= {"tolerance": [0, -1, math.nan, "x", True], "form": ["exact", 3, None, []]}
X2 = torch.zeros(4, 2)
NET = {"module": nn.Linear(2, 2), "loss": "mse", "train": (X2, X2), "test": (X2, X2)}
BAD_NET = {"module": [None, "net", nn.Linear], "loss": ["l3", 3, None, []], "metric": ["l3", 3, []]}
BAD_NET |= {"train": [None, X2, (X2,)], "test": [None, X2, (X2,)], "init": [3, "x"]}
BAD_NET |= {name: NO_COUNT + ["x", True, []] for name in ("batch_size", "eval_chunk")}
QUAD = dss.quad(n_train=4, n_eval=4)
POLYNOMIAL = {"coefficients": [[], [math.nan], [True], "quintic", None, 3, [[0.1]], [2.0]]}


def ring_of(function, /, **arguments):
    """The function with the ring as its task."""
    return lambda ring, **changed: function(**({"task": ring} | arguments | changed))


def alone(function, /, **arguments):
    return lambda ring, **changed: function(**(arguments | changed))


TABLE = {
    "find_string": (
        ring_of(dss.find_string, **GOOD),
        SEARCHED | {"theta_1": NO_TENSOR, "theta_2": NO_TENSOR},
    ),
    "find_strings": (
        ring_of(dss.find_strings, theta_1=PAIR, theta_2=PAIR, L0=2.0),
        SEARCHED | {"theta_1": NO_TENSOR, "theta_2": NO_TENSOR},
    ),
    "study": (ring_of(dss.study, L0=[0.1], n_pairs=1), DRAWN),
    "descending_study": (
        ring_of(dss.studies.descending_study, L0=[0.1], n_pairs=1),
        DRAWN | {"offer": [1, "yes", None]},
    ),
    "train_endpoints": (
        ring_of(dss.train_endpoints, n=1, L0=[0.1]),
        TRAINING | {"n": DRAWN["n_pairs"], "L0": DRAWN["L0"]},
    ),
    "train_to": (
        ring_of(dss.train_to, thetas=PAIR, target=0.1),
        TRAINING
        | {"thetas": NO_TENSOR, "target": [0.0, -1.0, math.nan, *NO_NUMBER, torch.ones(3)]},
    ),
    "interpolated_loss": (ring_of(dss.interpolated_loss, theta_1=PAIR, theta_2=PAIR), SEGMENT),
    "t_star": (
        ring_of(dss.t_star, theta_1=PAIR, theta_2=PAIR),
        SEGMENT | {"rule": ["middle", 1, None, []]},
    ),
    "Gamma_tilde": (ring_of(dss.Gamma_tilde, thetas=PAIR), STRING),
    "losses_along": (ring_of(dss.losses_along, thetas=PAIR), STRING),
    "compare_paths": (
        ring_of(dss.compare_paths, paths={"a": PAIR}),
        CURVE | {"paths": [None, [], {}, {"a": None}, {"a": PAIR[:1]}, {"a": torch.zeros(2, 5)}]},
    ),
    "interpolate": (
        alone(dss.interpolate, theta_1=PAIR, theta_2=PAIR, t=0.5),
        {"theta_1": NO_TENSOR[:4], "theta_2": NO_TENSOR}
        | {"t": [math.nan, math.inf, "x", True, None, [], 1j]},
    ),
    "flatten": (alone(dss.flatten), {"source": [None, "x", 3, {}, {"a": 1.0}, nn.ReLU()]}),
    "batch_statistics": (
        alone(dss.batch_statistics, module=nn.BatchNorm1d(2)),
        {"module": [None, "x", nn.Linear(2, 2)], "x": ["x", 3, X2.long(), X2[:1], X2 / 0]},
    ),
    "tighten": (
        alone(dss.tighten, task=QUAD, string=FOUND),
        {"task": NO_TASK, "string": ["s", PAIR, [FOUND, None]], "halvings": [-1, 7, *NO_NUMBER]}
        | {"max_rounds": [-1, 1.5, *NO_NUMBER], "tolerance": [-1, 1, math.nan, *NO_NUMBER]},
    ),
    "certify": (alone(dss.certify, task=QUAD, string=FOUND), PROOF | {"string": [None, "s", PAIR]}),
    "certify_strings": (
        alone(dss.certify_strings, task=QUAD, strings=[FOUND]),
        PROOF | {"strings": [None, "s", FOUND, [PAIR]]},
    ),
    "quad": (alone(dss.quad), SAMPLES),
    "polynomial": (
        alone(dss.polynomial, coefficients="quadratic"),
        SAMPLES | POLYNOMIAL | {"restrict": ["no", 1, None]},
    ),
    "mnist": (alone(dss.mnist), IMAGES | {"n_eval": [math.nan, 10**26, "x", True]}),
    "digits": (alone(dss.digits), IMAGES),
    "cifar10": (
        alone(dss.cifar10),
        IMAGES | {"n_train": [*NO_COUNT, 50_001, "x", True, []], "l2": [-1, 0.1, *NO_NUMBER]},
    ),
    "ptb": (
        alone(dss.ptb),
        {"network": ["cnn", 3, None, []], "metric": ["error", 3, None, []]}
        | {"preset": ["draft", 3, []], "n_words": [1, 10_001, 1.5, "x", True, []]}
        | {"context": [*NO_COUNT, 1_001, "x", True, None]}
        | {"n_train": [*NO_COUNT, 10**6, "x", True, []], "n_eval": [*NO_COUNT, 10**6, "x", True]},
    ),
    "landscape": (
        alone(dss.landscape, function=lambda theta: theta.sum(-1), dim=2),
        {"dim": NO_COUNT + TOO_MANY + NO_NUMBER}
        | {"function": [None, 3, lambda theta: theta, lambda theta: theta.sum(-1) * math.nan]},
    ),
    "Task.from_module": (alone(dss.Task.from_module, **NET), BAD_NET),
    "Task.init": (lambda ring, **changed: ring.init(**({"n": 2} | changed)),
                  {"n": DRAWN["n_pairs"], "generator": NO_GENERATOR}),
    "Task.losses": (lambda ring, **changed: ring.losses(**({"thetas": PAIR} | changed)),
                    {"thetas": NO_TENSOR, "split": ["all", 3, None, []]}),
    "Task.outputs": (alone(QUAD.outputs, thetas=torch.zeros(2, 33), x=X2[:, :1]),
                     {"thetas": NO_TENSOR, "x": [None, 1.0, torch.tensor(1.0)]}),
    "Task.to": (lambda ring, **changed: ring.to(**changed),
                {"memory": [0, -1, math.nan, "x", True, []], "device": ["gpu", 3.5, []],
                 "dtype": ["float", torch.int64, float]}),
    "polynomial_samples": (alone(dss.data.polynomial_samples, coefficients=[1.0], n=2, seed=0),
                           {"seed": [-1, 1.5, 10**26, "x", True, None]}),
}  # fmt: skip
CASES = [(name, argument) for name, (_, bad) in TABLE.items() for argument in bad]


@pytest.mark.parametrize("name, argument", CASES)
def test_a_bad_argument_is_named_before_anything_is_computed(ring, monkeypatch, name, argument):
    def nothing(*arguments, **keywords):
        raise AssertionError("something was computed")

    for place in ("train._train_groups", "sampling.measure_segments", "proofs.certify._certify"):
        monkeypatch.setattr(f"dss.{place}", nothing)
    call, bad = TABLE[name]
    for value in bad[argument]:
        with pytest.raises((TypeError, ValueError)) as error:
            call(ring, **{argument: value})
        message = str(error.value)
        assert f"{SAID.get(argument, argument)}" in message, (value, message)
        assert len(message) < 400, message


# Where a message names the thing otherwise.
SAID = {"rule": "t_star", "paths": "path", "source": "", "module": "", "function": "function"}
SAID |= {"coefficients": ""}


def test_every_public_function_is_in_the_table():
    others = {"Certificate", "String", "Task", "Results", "sweep"}
    assert set(dss.__all__) - others <= set(TABLE)
