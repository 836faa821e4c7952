"""The tasks of the paper, and explicit landscapes whose answer is known."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from dss.checks import check_flag, check_number, check_whole, lookup, numbers_of, short
from dss.cifar import load_cifar10
from dss.data import load_digits, load_mnist, polynomial_samples
from dss.networks.architectures import (
    authors_cnn,
    authors_colour_cnn,
    authors_dropout,
    densenet,
    draw,
    draw_tutorial,
    image_mlp,
    mlp,
    resnet,
    small_cnn,
    uniform,
)
from dss.networks.batchnorm import batch_statistics, norms_of
from dss.networks.memory import Budget
from dss.networks.modes import in_usual_mode
from dss.networks.sequences import WordGPT, WordLSTM
from dss.task import Landscape, Task
from dss.theta import shapes_of
from dss.treebank import MOST_WORDS, load_ptb

POLYNOMIALS = {"quadratic": [0.1, 0.25, 0.5], "cubic": [0.0, 3.0, -10.0, 8.0]}

# Keyword arguments of `find_strings` by preset.  For polynomials Adam at .01 takes a half to a
# third of the gradient steps of RMSprop at .001 on held-out seeds, connects as many strings, and
# those are 2 % longer (`make bench`, settings).  For images, measuring 1,000 digits costs as much
# as three steps, and a gamma as much as eighty.  "authors": as in their published scripts.
POLYNOMIAL_SETTINGS = {
    None: {"optimizer": "adam", "lr": 1e-2},
    "authors": {
        "optimizer": "adam",
        "lr": 1e-3,
        "alpha": 0.95,
        "slack": 1.1,
        "n_t": 101,
        "t_star": "midpoint",
        "insert_first": True,
        "max_depth": 10,
        "max_steps": 200_000,
        "patience": 50_000,
    },
}
# What the scripts for images and words have beside their optimiser.
AUTHORS_SEARCH = {
    "alpha": 0.98,
    "n_t": 21,
    "insert_first": True,
    "max_depth": 10,
    "max_steps": 100_000,
    "patience": 20_000,
    "check_every": 100,
}
IMAGE_SETTINGS = {
    None: {
        "optimizer": "adam",
        "lr": 1e-3,
        "batch_size": 128,
        "patience": 3_000,
        "check_every": 30,
        "t_star": "coarse",
    },
    "authors": {"optimizer": "adam", "lr": 1e-4, "batch_size": 100, "slack": 1.02, "t_star": "grid"}
    | AUTHORS_SEARCH,
}
COLOUR_SETTINGS = {
    None: IMAGE_SETTINGS[None],
    "authors": {"optimizer": "sgd", "lr": 0.1, "batch_size": 128, "slack": 1.1, "t_star": "grid"}
    | AUTHORS_SEARCH,
}
WORD_SETTINGS = {
    None: IMAGE_SETTINGS[None] | {"lr": 1e-2, "batch_size": 20},
    "authors": {"optimizer": "sgd", "lr": 1.0, "batch_size": 20, "slack": 1.1, "t_star": "midpoint"}
    | AUTHORS_SEARCH
    | {"max_steps": 200_000, "patience": 40_000},
}

# The networks of the authors' polynomial scripts; that of the cubic serves all others.
AUTHORS_NETWORKS = {
    "quadratic": {"activation": "sigmoid", "hidden": (4, 4), "bias": False, "final": (nn.Sigmoid,)},
    "cubic": {"activation": "sigmoid", "hidden": (4, 4), "bias": True, "final": ()},
}

# Of samples or of a theta, and units of a layer, at most.
MOST_NUMBERS, MOST_WIDE = 10**8, 10**5

# Of images: networks by name, and the metric that each choice stands for.
NETWORKS = {"cnn": small_cnn, "mlp": image_mlp}
COLOUR_NETWORKS = {
    "cnn": lambda: small_cnn(32, 3),
    "resnet8": lambda: resnet(1),
    "resnet20": lambda: resnet(3),
    "densenet": lambda: densenet(3, 12),
}
IMAGE_METRICS = {"loss": "cross_entropy", "error": "error"}

# Of words: networks by name, and the metric that each choice stands for.
WORD_NETWORKS = {
    "lstm": lambda n_words, context: WordLSTM(n_words, 32, 1),
    "gpt": lambda n_words, context: WordGPT(n_words, context, 32, 2, 2),
    "authors": lambda n_words, context: WordLSTM(n_words, 200, 2),
}
WORD_METRICS = {"loss": "cross_entropy_of_words", "perplexity": "perplexity"}


def quad(
    activation: str = "relu",
    loss: str = "mse",
    preset: str | None = None,
    hidden: tuple[int, ...] = (4, 4),
    n_train: int | None = None,
    n_eval: int | None = None,
) -> Task:
    """QUAD: regress f(x) = .5 x^2 + .25 x + .1 on [0, 1] with a 1-4-4-1 network with biases.

    Args:
        activation: `"relu"` (the draft), `"sigmoid"` or `"tanh"`.
        loss: `"mse"`, `"mae"` or `"huber"` (delta 0.1); also the metric.
        preset: None for the draft, `"authors"` for the authors' published script, which sets
            network, loss, initial values and `settings`, whatever the other arguments say.
        hidden: widths of the hidden layers.
        n_train, n_eval: sizes of the two fixed samples, x uniform on [0, 1]; by default 128 and
            256, of the authors 10,000 each.

    Raises:
        TypeError: an argument that is no number.
        ValueError: an unknown name, or a number out of range.

    Paper: Sec. III.A.
    """
    return polynomial("quadratic", activation, loss, preset, hidden, n_train, n_eval)


@in_usual_mode
def polynomial(
    coefficients: list[float] | str,
    activation: str = "relu",
    loss: str = "mse",
    preset: str | None = None,
    hidden: tuple[int, ...] = (4, 4),
    n_train: int | None = None,
    n_eval: int | None = None,
    restrict: bool = True,
) -> Task:
    """Regress a polynomial on [0, 1] with a small fully connected network.

    Args:
        coefficients: ascending, `[c0, c1, ...]`, or `"quadratic"` (QUAD) or `"cubic"`
            (8x^3 - 10x^2 + 3x, of the authors' script, which leaves [0, 1] and is let through).
        activation, loss, preset, hidden, n_train, n_eval: as in `quad`.
        restrict: raise when f leaves [0, 1], as the draft demands.

    Raises:
        TypeError: an argument that is no number.
        ValueError: an unknown name, a number out of range, no coefficient, or f leaves [0, 1] on
            [0, 1].

    Paper: Sec. III.A.
    """
    label = coefficients if isinstance(coefficients, str) else "polynomial"
    settings = lookup(POLYNOMIAL_SETTINGS, preset, "preset")
    if isinstance(coefficients, str):
        coefficients = lookup(POLYNOMIALS, coefficients, "polynomial")
    else:
        coefficients = _check_coefficients(coefficients)
    if check_flag(restrict, "restrict") and label == "polynomial":
        _check_range(coefficients)
    hidden = tuple(
        check_whole(width, "a width of hidden", 1, MOST_WIDE) for width in _several(hidden)
    )
    network = {"activation": activation, "hidden": hidden, "bias": True, "final": ()}
    usual_sizes, initial = (128, 256), "torch"
    if preset == "authors":
        loss, usual_sizes, initial = "mae", (10_000, 10_000), "uniform"
        network = AUTHORS_NETWORKS.get(label, AUTHORS_NETWORKS["cubic"])
    lookup({name: name for name in ("mse", "mae", "huber")}, loss, "polynomial loss")
    widths = [1, *network["hidden"], 1]
    with torch.random.fork_rng(devices=[]):  # values of the template are never used
        module = mlp(widths, network["activation"], network["bias"])
        module.extend(layer() for layer in network["final"])
    sizes = [
        usual if n is None else check_whole(n, what, 1, MOST_NUMBERS)
        for what, n, usual in zip(
            ("n_train", "n_eval"), (n_train, n_eval), usual_sizes, strict=True
        )
    ]
    samples = [
        tuple(v.float() for v in polynomial_samples(coefficients, n, seed))
        for seed, n in enumerate(sizes, 1)
    ]
    task = Task.from_module(
        module,
        loss,
        *samples,
        init=partial(draw, module, initial),
        name=f"{label} {network['activation']} {loss}" + (f" ({preset})" if preset else ""),
        settings=settings,
    )
    if preset is None:
        return task
    # The authors measure the length of a polynomial string over weights only.
    mask = torch.cat(
        [torch.full((s.numel(),), "weight" in name) for name, s in shapes_of(module).items()]
    )
    return replace(task, length_mask=mask)


def mnist(
    network: str = "cnn",
    metric: str = "loss",
    n_eval: int | None = None,
    preset: str | None = None,
) -> Task:
    """Handwritten digits, read from `data/` (fetched and checked by `ensure_mnist`).

    Args:
        network: `"cnn"` (conv 5x5-8 and 5x5-8 with stride 2, 10; 5,746 parameters), `"mlp"`
            (784-32-32-10) or `"authors"` (conv 5x5-32, pool, conv 5x5-64, pool, 1024, dropout .5
            in training, 10; 3.27 million parameters).
        metric: `"loss"` (cross-entropy) or `"error"` (error rate); training descends
            cross-entropy either way.
        n_eval: the evaluation set is the first `n_eval` test digits; 1,000 by default.
        preset: `"authors"` for the authors' published script: their network, the error rate on
            10,000 digits, initial values and `settings`.

    Raises:
        ValueError: an unknown name, or n_eval outside [1, 10000].
        RuntimeError: the data cannot be had.

    Paper: Sec. III.B.
    """
    return _classification("mnist", load_mnist, network, metric, n_eval, preset)


def digits(
    network: str = "mlp", metric: str = "loss", n_eval: int | None = None, preset: None = None
) -> Task:
    """scikit-learn's bundled 8x8 digits (1,297 to train, 500 to evaluate): needs no download.

    Args:
        network: `"mlp"` (64-32-32-10) or `"cnn"` (as in `mnist`; 2,146 parameters).
        metric, n_eval: as in `mnist`; n_eval is 500 by default and at most.
        preset: None; the authors have no script for this data.

    Raises:
        ValueError: an unknown name, or n_eval outside [1, 500].
    """
    return _classification("digits", load_digits, network, metric, n_eval, preset)


@dataclass(frozen=True, eq=False)
class OfScript(Task):
    """A task whose descents are those of the authors' scripts; what is measured stays the same.

    Attributes:
        l2: `(P,)`, half the sum of `l2 * theta^2` is added to the training loss; None: nothing.
        clip: each network's gradient is shortened to this norm where it is longer.
        others: as in `Task`.
    """

    l2: Tensor | None = field(default=None, repr=False)
    clip: float = math.inf

    def _gradients(self, thetas, batch, generator, **lower) -> tuple[Tensor, Tensor]:
        losses, gradients = super()._gradients(thetas, batch, generator, **lower)
        if self.l2 is not None:
            pull = self.l2.to(thetas) * thetas
            losses, gradients = losses + (pull * thetas).sum(dim=1) / 2, gradients + pull
        if self.clip < math.inf:
            norms = gradients.norm(dim=1, keepdim=True)
            gradients = gradients * (self.clip / norms).clamp(max=1)
        return losses, gradients


@in_usual_mode
def cifar10(
    network: str = "cnn",
    metric: str = "loss",
    n_train: int | None = None,
    n_eval: int | None = None,
    n_reference: int | None = None,
    preset: str | None = None,
    l2: float = 0.0,
) -> Task:
    """Colour images of ten classes, fetched and checked by `dss.cifar.ensure_cifar10`.

    Args:
        network: `"cnn"` (conv 5x5-8 and 5x5-8 with stride 2, 10; 7,346 parameters), `"resnet8"` or
            `"resnet20"` (He et al. 2016; 75,290 and 269,722 parameters), `"densenet"` (Huang et al.
            2017; DenseNet-BC of depth 22 with growth 12, 71,686), or `"authors"` (conv 5x5-64,
            pool 3x3 with stride 2, the same again, 384, 192, 10; 1.07 million parameters, of
            images cropped to their middle 24x24 pixels).
        metric: as in `mnist`.
        n_train: training images; all 50,000 by default.
        n_eval: the evaluation set is the first `n_eval` test images; 1,000 by default.
        n_reference: BatchNorm takes its statistics, where losses are measured, from the first
            `n_reference` training images (`batch_statistics`), which every evaluation of a network
            passes once; by default from a tenth of `n_eval`, 100 at least.
        preset: `"authors"` for the authors' published script: their network, the error rate on
            10,000 images (or n_eval), initial values and `settings`.
        l2: with the preset, the weight of half the sum of w^2 over the two hidden linear layers in
            the loss that training descends.  The authors have it for endpoints and not for beads:
            train endpoints on the task with l2=0.004, which is the value of the tutorial that the
            script follows, and search on the task without.

    Returns:
        The task; its name ends with `(jpeg)` where the images are copies with loss.

    Raises:
        TypeError, ValueError: an unknown name, n_train, n_eval or n_reference out of range, or l2
            < 0 or without the preset.
        RuntimeError: the data cannot be had.

    Differs: the tutorial distorts its training images at random, and its learning rate falls after
        very many steps; neither is done here.
    """
    settings = lookup(COLOUR_SETTINGS, preset, "preset")
    network, metric = ("authors", "error") if preset else (network, metric)
    build = lookup(COLOUR_NETWORKS | {"authors": authors_colour_cnn}, network, "network")
    metric_name = lookup(IMAGE_METRICS, metric, "metric")
    l2 = check_number(l2, "l2", lambda v: v >= 0, ">= 0")
    if l2 and not preset:
        raise ValueError(f"l2 is {l2}; only the network of preset='authors' has it")
    usual_n = None if preset else 1_000
    splits, source = load_cifar10(n_train, usual_n if n_eval is None else n_eval)
    if network == "authors":  # channels last are faster on a CPU
        middle = (slice(None), slice(None), slice(4, 28), slice(4, 28))
        last = torch.channels_last
        splits = [(x[middle].contiguous(memory_format=last), y) for x, y in splits]
    with torch.random.fork_rng(devices=[]):  # values of the template are never used
        module = build()
    if norms_of(module):
        n_train, n_eval = (len(x) for x, _ in splits)
        n_reference = min(max(100, n_eval // 10), n_train) if n_reference is None else n_reference
        n_reference = check_whole(n_reference, "n_reference", 2, n_train)
        module = batch_statistics(module, splits[0][0][:n_reference])
    elif n_reference is not None:
        raise ValueError(f"n_reference is {n_reference}, but {network} has no BatchNorm")
    endings = [preset, f"l2 {l2:g}" if l2 else None, source.kind if source.kind == "jpeg" else None]
    task = Task.from_module(
        module,
        "cross_entropy",
        *splits,
        metric=metric_name,
        init=partial(draw_tutorial, module) if network == "authors" else None,
        batch_size=settings["batch_size"],
        eval_chunk=250 if network == "authors" else 500,
        name=" ".join([f"cifar10 {network} {metric_name}", *(f"({e})" for e in endings if e)]),
        settings=settings,
    )
    if not l2:
        return task
    hidden = {"7.weight", "9.weight"}
    parts = [torch.full((s.numel(),), l2 * (k in hidden)) for k, s in shapes_of(module).items()]
    return OfScript(**vars(task), l2=torch.cat(parts))


@in_usual_mode
def ptb(
    network: str = "lstm",
    metric: str = "loss",
    n_train: int | None = None,
    n_eval: int | None = None,
    context: int = 20,
    n_words: int | None = None,
    preset: str | None = None,
) -> Task:
    """Next words of the Penn Treebank, fetched and checked by `dss.treebank.ensure_ptb`.

    A sample is a row of words, and its targets are the words that follow each.

    Args:
        network: `"lstm"` (one layer of 32 units), `"gpt"` (two pre-norm blocks of width 32 with two
            heads, tied embeddings) or `"authors"` (an LSTM with two layers of 200 units).
        metric: `"loss"` (cross-entropy of a word, in nats) or `"perplexity"` (its exponential, of
            the mean over the whole evaluation set); training descends cross-entropy either way.
        n_train: rows of the training file; all by default.
        n_eval: the evaluation set is the first `n_eval` rows of the test file; 200 by default.
        context: T, words in a row.
        n_words: the most frequent words, which are kept; 1,000 by default, others are `<unk>`.
        preset: `"authors"` for the authors' published script: their network with 10,000 words, the
            perplexity on all rows of the test file (or n_eval), initial values and `settings`.  As
            in the tutorial of these sizes, the training loss is a sum over the words of a row, and
            gradients longer than 5 are shortened; without, the descent diverges.

    Raises:
        TypeError, ValueError: an unknown name, or a number out of range.
        RuntimeError: the data cannot be had.

    Differs: the state of an LSTM is zero before every row, so that rows are samples like any other;
        a script that reads the text in order carries the state on.
    """
    settings = lookup(WORD_SETTINGS, preset, "preset")
    if preset:
        network, metric, n_words = "authors", "perplexity", n_words or MOST_WORDS
    build = lookup(WORD_NETWORKS, network, "network")
    metric_name = lookup(WORD_METRICS, metric, "metric")
    n_words, usual_n = 1_000 if n_words is None else n_words, None if preset else 200
    splits = load_ptb(n_words, context, n_train, usual_n if n_eval is None else n_eval)
    make = partial(build, n_words, context)
    with torch.random.fork_rng(devices=[]):  # values of the template are never used
        module = make()
    of_kind = {"lstm": "torch", "authors": "narrow"}
    task = Task.from_module(
        make,
        "cross_entropy_of_rows" if preset else "cross_entropy_of_words",
        *splits,
        metric=metric_name,
        init=partial(draw, module, of_kind[network]) if network in of_kind else None,
        batch_size=settings["batch_size"],
        eval_chunk=100,
        name=f"ptb {network} {metric_name}" + (f" ({preset})" if preset else ""),
        settings=settings,
    )
    return OfScript(**vars(task), clip=5.0) if preset else task


@in_usual_mode
def landscape(function: Callable[[Tensor], Tensor], dim: int, name: str | None = None) -> Task:
    """A task whose loss is an explicit function of theta, for oracles and pictures.

    Args:
        function: maps `(..., dim)` to losses `(...)`, differentiable.
        dim: P.
        name: by default the function's own.

    Returns:
        A task without samples; `init` draws from N(0, 1), dtype float64.

    Raises:
        TypeError: no function, or dim is no number.
        ValueError: dim < 1, or the function does not return one loss per point, or only NaN.
    """
    if not callable(function):
        raise TypeError(f"function is {short(function)}; a function of theta is needed")
    dim = check_whole(dim, "dim", 1, MOST_NUMBERS)
    got = function(torch.zeros(2, dim, dtype=torch.float64))
    if not isinstance(got, Tensor) or got.shape != (2,):
        what = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise ValueError(f"function maps (2, {dim}) to {what}; losses of shape (2,) are needed")
    drawn = torch.special.ndtri(uniform(16, dim, torch.Generator().manual_seed(0)))
    if not bool(torch.cat([got, function(drawn)]).isfinite().any()):
        raise ValueError("function gives NaN or inf at 0 and at 16 draws from N(0, 1)")
    return Landscape(
        name=name or getattr(function, "__name__", "landscape"),
        n_params=dim,
        metric="loss",
        loss="loss",
        init_function=lambda n, generator: torch.special.ndtri(uniform(n, dim, generator)),
        budget=Budget(dim, torch.device("cpu")),
        function=function,
        dtype=torch.float64,
    )


@in_usual_mode
def _classification(data, load, network, metric, n_eval, preset) -> Task:
    """MNIST-like tasks; see `mnist` for the arguments."""
    by_authors = data == "mnist"  # they have no script for other images
    known_settings = IMAGE_SETTINGS if by_authors else {None: IMAGE_SETTINGS[None]}
    settings = lookup(known_settings, preset, "preset")
    if preset == "authors":
        network, metric = "authors", "error"
        n_eval = 10_000 if n_eval is None else n_eval
    metric_name = lookup(IMAGE_METRICS, metric, "metric")
    known_networks = NETWORKS | ({"authors": authors_cnn} if by_authors else {})
    build = lookup(known_networks, network, "network")
    train, (x_test, y_test) = load()
    n_eval = min(1_000, len(x_test)) if n_eval is None else n_eval
    n_eval = check_whole(n_eval, "n_eval", 1, len(x_test))
    with torch.random.fork_rng(devices=[]):  # values of the template are never used
        module = build(x_test.shape[-1])
    task = Task.from_module(
        module,
        "cross_entropy_of_softmax" if preset else "cross_entropy",
        train,
        (x_test[:n_eval], y_test[:n_eval]),
        metric=metric_name,
        init=partial(draw, module, "truncated" if preset else "torch"),
        batch_size=settings["batch_size"],
        eval_chunk=500,
        name=f"{data} {network} {metric_name}" + (f" ({preset})" if preset else ""),
        settings=settings,
    )
    if network != "authors":
        return task
    # Channels last and parts of 250 are faster on a CPU: see `layout` in tests/benchmarks.
    splits = {k: (x.to(memory_format=torch.channels_last), y) for k, (x, y) in task.splits.items()}
    return replace(task, noise=authors_dropout, splits=splits, eval_chunk=250)


def _check_coefficients(coefficients) -> list[float]:
    numbers = numbers_of(coefficients, "coefficients")
    if numbers.dim() != 1 or len(numbers) == 0 or not bool(numbers.isfinite().all()):
        raise ValueError(
            f"coefficients are {short(coefficients)}; finite numbers [c0, c1, ...] are needed"
        )
    return numbers.tolist()


def _several(hidden) -> list:
    if not isinstance(hidden, list | tuple):
        raise TypeError(f"hidden is {short(hidden)}; widths of layers are needed: (4, 4)")
    return list(hidden)


def _check_range(coefficients: list[float]) -> None:
    """Raise when the polynomial leaves [0, 1] on [0, 1]; its extremes are exact."""
    f = np.polynomial.Polynomial(coefficients)
    stationary = [r.real for r in f.deriv().roots() if abs(r.imag) < 1e-12 and 0 < r.real < 1]
    values = f(np.array([0.0, 1.0, *stationary]))
    if values.min() < -1e-12 or values.max() > 1 + 1e-12:
        raise ValueError(
            f"the polynomial with coefficients {list(coefficients)} takes values in "
            f"[{values.min():.4g}, {values.max():.4g}] on [0, 1]; the draft restricts f to [0, 1]. "
            "Pass restrict=False to use it all the same"
        )
