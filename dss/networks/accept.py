"""Which networks and samples a task takes, and why others are refused."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from dss.checks import check_finite, check_sizes, short
from dss.networks.losses import LOSSES
from dss.networks.observed import place_of
from dss.networks.samples import (
    Sample,
    Streamed,
    Tree,
    call,
    moved,
    named_leaves,
    part_of,
    rows_of,
    size_of,
)

# Samples that are run before a search begins.
MANY, FEW = 64, 2
NO_TENSOR = "which the loss cannot take"


def with_layers_apart(module: nn.Module) -> nn.Module:
    """A copy in which a layer that stands in several places has a shell in each.

    The shells hold the same parameters.  `functional_call` leaves its own tensors in a layer that
    it meets twice.

    Raises:
        TypeError: an attribute cannot be copied, an open file say; it is named.
        ValueError: a layer holds itself, through a child that holds its parent.
    """
    module, seen = copied(module), set()

    def visit(parent: nn.Module, above: tuple[nn.Module, ...] = ()) -> None:
        above += (parent,)
        for name, child in parent._modules.items():
            if child in above:
                raise ValueError(
                    f"attribute {name!r} of {type(parent).__name__} is a module that holds it; "
                    f"keep the module in a tuple (self.{name} = (module,)), so that PyTorch does "
                    "not take it for a layer"
                )
            if child in seen:
                shell = child.__class__.__new__(child.__class__)  # copy.copy refuses some layers
                shell.__dict__ = child.__dict__.copy()
                child = shell
                for members in ("_parameters", "_buffers", "_modules"):
                    child.__dict__[members] = child.__dict__[members].copy()
                parent._modules[name] = child
            if child is not None:
                seen.add(child)
                visit(child, above)

    visit(module)
    return module


def copied(module: nn.Module) -> nn.Module:
    """A copy, whose embeddings have dense gradients: of flat vectors there are no others."""
    try:
        copied = copy.deepcopy(module)
    except Exception as error:
        for name, layer in module.named_modules():
            for attribute, value in vars(layer).items():
                if attribute != "_modules" and not _runs(copy.deepcopy, value):
                    where = f"layer {name!r} ({type(layer).__name__})"
                    raise TypeError(
                        f"attribute {attribute!r} of {where} is {short(value)} and cannot be "
                        f"copied, as a task copies the network ({error}); set it to None first"
                    ) from error
        raise
    for layer in copied.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = False
    return copied


def check_module(
    module: nn.Module, eval_chunk: int | None = None, may_be_frozen: bool = False
) -> None:
    """Refuse layers whose output is not a function of the interpolated parameters alone."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"{type(module).__name__} runs copies of a network; pass module.module")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"{type(module).__name__}: pass the nn.Module that it was made from")
    check_sizes(module)
    _check_tensors(module)
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    if not may_be_frozen and 0 < len(frozen) < len(list(module.parameters())):
        raise ValueError(
            f"parameter {frozen[0]!r} is frozen and others are not, but beads descend in all of "
            "them; give trainable='requires_grad', or call module.requires_grad_(True)"
        )
    layers = set(module.modules())
    for name, layer in module.named_modules():
        where = f"layer {name!r} ({type(layer).__name__})"
        for attribute, value in vars(layer).items():
            members = value.values() if isinstance(value, dict) else value
            if isinstance(value, list | tuple | dict) and any(
                isinstance(m, nn.Module) and m not in layers and m.state_dict() for m in members
            ):
                raise ValueError(
                    f"{where} keeps layers in a plain {type(value).__name__}, {attribute!r}, where "
                    "PyTorch does not see them; use nn.ModuleList or nn.ModuleDict"
                )
        if hasattr(layer, "_u") or hasattr(layer, "weight_u"):
            raise ValueError(
                f"{where} keeps vectors of spectral_norm, which do not belong to an interpolated "
                "model; remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        is_norm = isinstance(layer, nn.modules.batchnorm._NormBase)
        keeps = is_norm and layer.running_mean is not None
        # In a part that is frozen they are constants, as its weights are.
        is_constant = may_be_frozen and not layer.training
        is_constant = is_constant and not any(p.requires_grad for p in layer.parameters())
        if keeps and not is_constant:
            raise ValueError(
                f"{where} keeps running statistics, which do not belong to an interpolated model; "
                "use dss.batch_statistics (BatchNorm), GroupNorm or LayerNorm, or set "
                "track_running_stats=False; in a frozen part (trainable='requires_grad') call "
                "eval() first, and they are constants"
            )
        mixes_samples = isinstance(layer, nn.modules.batchnorm._BatchNorm) and not keeps
        if eval_chunk is not None and mixes_samples:
            raise ValueError(
                f"{where} takes its statistics from the batch, which eval_chunk={eval_chunk} would "
                "change; leave eval_chunk out, or use dss.batch_statistics(module, x)"
            )
        p = getattr(layer, "p", None) if isinstance(layer, nn.modules.dropout._DropoutNd) else 0.0
        if isinstance(layer, nn.RNNBase | nn.MultiheadAttention):
            p = layer.dropout
        if p and layer.training:
            raise ValueError(
                f"{where} has active dropout with p={p}, which makes gamma noisy; call "
                "module.eval() first, or set p=0"
            )


def _check_tensors(module: nn.Module) -> None:
    """Refuse parameters of unlike kinds, which one flat vector cannot hold, and those of
    `inference_mode`, which take no gradient."""
    tensors = dict(module.named_parameters())
    first = next(iter(tensors), None)
    for name, p in tensors.items():
        if p.is_complex():
            raise ValueError(
                f"parameter {name!r} is {p.dtype} and theta holds real numbers; keep "
                "torch.view_as_real of it as the parameter, and take torch.view_as_complex of that "
                "in forward"
            )
        if not p.is_floating_point():
            raise ValueError(f"parameter {name!r} is {p.dtype}; floating point is needed")
        kinds = [(v.dtype, v.device) for v in (tensors[first], p)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"parameter {first!r} is {kinds[0][0]} on {kinds[0][1]} and {name!r} "
                f"{kinds[1][0]} on {kinds[1][1]}; all must be alike: module.to(device, dtype)"
            )
    for name, v in [*tensors.items(), *module.named_buffers()]:
        if v.is_inference():
            raise ValueError(
                f"{name!r} was made in torch.inference_mode() and takes no gradient; build the "
                "network outside"
            )
    for name, p in tensors.items():
        check_finite(p, f"parameter {name!r}")


def check_split(split: str, sample: Sample, dtype: torch.dtype) -> Sample:
    """A sample as `opened` gives it, floating-point values in the dtype of the network.

    Raises:
        ValueError: unlike numbers of inputs and targets, or none; NaN or inf.
    """
    if isinstance(sample, Streamed):
        return replace(sample, dtype=dtype)
    trees = zip("xy", sample, strict=True)
    sizes = [{n: len(v) for n, v in named_leaves(name, t).items()} for name, t in trees]
    n_x, n_y = (next(iter(of_tree.values())) for of_tree in sizes)
    every = {*sizes[0].values(), *sizes[1].values()}
    if len(every) != 1 or 0 in every:
        several = len(sizes[0]) + len(sizes[1]) > 2
        raise ValueError(
            f"{split}: {n_x} inputs and {n_y} targets; need as many, > 0"
            + (f" (samples of each tensor: {sizes[0] | sizes[1]})" if several else "")
        )
    # Detached: a forward may ask for gradients by its input, and the caller's stays as it is.
    pair = tuple(_copied_tree(moved(tree, None, dtype), tree) for tree in sample)
    check_samples(split, *pair)
    return pair


def _copied_tree(tree: Tree, given: Tree) -> Tree:
    """Tensors that nobody else holds, without a graph."""

    def own(v: Tensor, before: Tensor) -> Tensor:
        return v.detach().clone() if place_of(v) == place_of(before) else v.detach()

    return tree_map(own, tree, given)


def check_samples(split: str, x: Tree, y: Tree) -> None:
    """Raise ValueError for NaN and inf; also for what a number became in the network's dtype."""
    for tree_name, tree in (("x", x), ("y", y)):
        for name, v in named_leaves(tree_name, tree).items():
            check_finite(v, f"{split} {name} (in {v.dtype})")


def check_labels(split: str, loss: Callable, output: Tensor, y: Tensor) -> None:
    """Raise for labels that are no class of the outputs `(B, C)`, where the loss is known.

    Raises:
        TypeError: an error rate of what are no labels.
        ValueError: a label outside 0 to C - 1, but for one that the loss ignores.
    """
    if not isinstance(output, Tensor) or not isinstance(y, Tensor):
        return
    is_error = loss is LOSSES["error"]
    if is_error and (y.is_floating_point() or y.dim() != 1):
        raise TypeError(
            f"{split} y is {y.dtype} of shape {tuple(y.shape)}; an error rate needs whole numbers "
            "(B,)"
        )
    takes_labels = is_error or loss in (F.cross_entropy, F.nll_loss)
    takes_labels |= loss is LOSSES["cross_entropy_of_softmax"]
    takes_labels |= isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    if not takes_labels or y.is_floating_point() or y.dtype == torch.bool:
        return
    if output.dim() > 2 and y.shape[1:] == output.shape[1:-1] != output.shape[2:]:
        raise ValueError(
            f"{split}: the outputs {tuple(output.shape)} have their classes last, and the loss "
            "wants them second; pass output=lambda o: o.movedim(-1, 1)"
        )
    n_classes = output.shape[1] if output.dim() > 1 else 0
    wrong = (y < 0) | (y >= n_classes)
    if hasattr(loss, "ignore_index"):
        wrong &= y != loss.ignore_index
    if bool(wrong.any()):
        index = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{split} y holds {int(wrong.sum())} labels that are no class, the first "
            f"{int(y[index])} at index {index}; 0 to {n_classes - 1} is needed"
            + ("; nn.CrossEntropyLoss() itself leaves -100 out" if int(y[index]) == -100 else "")
        )


class Run(NamedTuple):
    """What a few samples show.

    Attributes:
        output: of the first samples, `(n, ...)`.
        n_activations: values that one sample's activations hold in one network, input included.
        n_fixed: those that a network holds whatever the sample (the reference of
            `batch_statistics`).
        n_least: samples that the network runs on: `FEW`, or all where fewer do not fit (a graph).
    """

    output: Tree
    n_activations: int
    n_fixed: int
    n_least: int


def run_samples(
    module: nn.Module, loss: Callable, x: Tree, y: Tree, split: str, descends: bool
) -> Run:
    """Run a few samples, for errors while the cause is in sight.

    Args:
        module, loss, x, y: of a task.
        split: what messages call the samples.
        descends: whether the loss must have a gradient; what has none, a metric, may return a
            number, and is given 64 samples.

    Raises:
        TypeError, ValueError: as `Task.from_module` says.
    """
    module.requires_grad_(True)
    with torch.enable_grad(), warnings.catch_warnings():
        _refuse_unlike_shapes()
        (many, output, n_many), (few, of_few, n_few) = _run_network(module, x, split)
        parameters = list(module.parameters()) if descends else []
        # A loss may work in place, and the output of many is looked at once more.
        answer, n = (of_few, few) if descends else (tree_map(torch.clone, output), many)
        value = _run_loss(loss, answer, y, n, split, parameters)
        check_labels(split, loss, output, y)
        _check_answer(module, rows_of(x, slice(many)), output)
    if not _is(value) or value.dim() != 0:
        shape = tuple(value.shape) if _is(value) else type(value).__name__
        what = f"loss of {few}" if descends else f"metric of {many}"
        raise ValueError(f"the {what} {split} samples is {shape}; a scalar is needed")
    per_sample = (n_many - n_few) // (many - few) if many > few else n_many // many
    n_inputs = sum(v[0].numel() for v in tree_leaves(x))
    n_fixed = max(0, n_few - few * per_sample)
    return Run(output, per_sample + n_inputs, n_fixed, few)


def _run_network(module: nn.Module, x: Tree, split: str) -> list[tuple[int, Tree, int]]:
    """Runs on many samples and on few: how many, the output, and the values that are held.

    The output of many comes without its graph, which would be held for nothing.  Both are of all
    samples where fewer do not fit: the nodes of one graph.
    """

    def without_graph(run: tuple[int, Tree, int]) -> tuple[int, Tree, int]:
        return run[0], _detached(run[1]), run[2]

    try:
        many = without_graph(_counted(module, rows_of(x, slice(MANY))))
        return [many, _counted(module, rows_of(x, slice(FEW)))]
    except Exception as error:
        if isinstance(error, TypeError) and NO_TENSOR in str(error):
            raise
        dtype, run = next(module.parameters()).dtype, partial(call, module)
        if _is(x):
            _refuse_dtype(f"{split} x", x[:FEW], dtype, run, error)
        if len(tree_leaves(x)[0]) > FEW and _runs(run, x):
            whole = _counted(module, x)
            return [without_graph(whole), whole]
        raise ValueError(f"{split} samples do not fit the network or its loss: {error}") from error


def _counted(module: nn.Module, x: Tree) -> tuple[int, Tree, int]:
    """How many samples, what the network answers, and how many values it holds at a time.

    These are what its layers put out, or where that is more, as with attention, what autograd keeps
    beside parameters, buffers and inputs.
    """
    counts: list[int] = []
    kept: dict[int, int] = {}
    known = {place_of(v) for v in [*tree_leaves(x), *module.parameters(), *module.buffers()]}

    def keep(value: Tensor) -> Tensor:
        if (place := place_of(value)) not in known:
            kept[place] = value.untyped_storage().nbytes() // value.element_size()
        return value

    hooks = [
        m.register_forward_hook(lambda _m, _i, o: counts.append(o.numel() if _is(o) else 0))
        for m in module.modules()
        if not list(m.children())
    ]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            output = call(module, x)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(map(_is, tree_leaves(output))):
        raise TypeError(_no_tensor(output))
    return len(tree_leaves(x)[0]), output, max(sum(counts), sum(kept.values()))


def _no_tensor(output) -> str:
    return (
        f"the network returns a {type(output).__name__}, {NO_TENSOR}; pass output=, a function "
        "that takes the tensor out of it: lambda o: o[0], or lambda o: o.logits"
    )


def _run_loss(
    loss: Callable, output: Tree, y: Tree, n: int, split: str, parameters: list[Tensor]
) -> Tensor:
    """The loss of n samples, its gradient tried; where there is no parameter, of a metric."""
    every, y = y, rows_of(y, slice(n))
    leaves = tree_leaves(y)
    versions = [v._version for v in leaves]
    try:
        value = loss(output, y)
        if parameters and _is(value) and value.dim() == 0:
            torch.autograd.grad(value, parameters, allow_unused=True)
    except Exception as error:
        if not _is(output):
            raise TypeError(f"{_no_tensor(output)} ({error})") from error
        check_labels(split, loss, output, every)
        output = output.detach()
        if _is(y):
            _refuse_dtype(f"{split} y", y, output.dtype, lambda v: loss(output, v), error)
        raise ValueError(f"{split} samples do not fit the network or its loss: {error}") from error
    if [v._version for v in leaves] != versions:
        raise ValueError(
            f"the loss or metric writes to its targets, the {split} y; compute with a new tensor"
        )
    is_number = not parameters and isinstance(value, Real)
    return tree_leaves(output)[0].new_tensor(value) if is_number else value


def _refuse_dtype(
    name: str, v: Tensor, dtype: torch.dtype, function: Callable, error: Exception
) -> None:
    """Raise TypeError where it is its dtype that keeps a tensor from being run."""
    needed = f"{name} has dtype {v.dtype} where the network or its loss needs"
    argument = name.split()[-1]
    if v.is_complex():
        raise TypeError(
            f"{needed} another; torch.view_as_real({argument}) has both parts as real numbers "
            f"({error})"
        ) from error
    if v.is_floating_point():
        return
    casts = {"long": (torch.int64, "int64"), "float": (dtype, "floating point")}
    for method, (other, text) in casts.items():
        if other != v.dtype and _runs(function, v.to(other)):
            raise TypeError(f"{needed} {text}: pass {argument}.{method}() ({error})") from error


def _check_answer(module: nn.Module, x: Tree, output: Tree) -> None:
    """Raise ValueError where a network gives another answer than before."""

    def is_same(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)

    def is_steady(network: nn.Module, answer: Tree) -> bool:
        again = (tree_leaves(_detached(call(network, x))) for _ in range(2))
        return all(all(map(is_same, tree_leaves(answer), leaves)) for leaves in again)

    steady, evaluated = is_steady(module, output), copied(module).eval()
    if steady and (not _trains(module) or is_steady(evaluated, output)):
        return
    if steady:
        raise ValueError(
            "the network answers otherwise in train mode, in which it is, than in eval mode; call "
            "module.eval() first"
        )
    advice = "draws random numbers, in eval mode too; F.dropout needs training=self.training"
    if is_steady(evaluated, _detached(call(evaluated, x))):
        advice = "call module.eval() first"
    raise ValueError(f"the network answers differently to the same input: {advice}")


def _trains(module: nn.Module) -> bool:
    return any(layer.training for layer in module.modules())


def needs_autograd(module: nn.Module, x: Tree) -> bool:
    """Whether a network runs only where autograd records: its forward takes derivatives."""
    with torch.no_grad():
        return not _runs(partial(call, module), x)


def check_is_mean(
    metric: Callable, answer: Callable[[Tree], Tree], sample: Sample, dtype: torch.dtype, parts: int
) -> None:
    """Refuse a metric of which parts of a sample would give another value than the whole.

    Args:
        metric: of (output, y).
        answer: maps inputs to the outputs of a network.
        sample: of a task.
        dtype: of the network.
        parts: samples at a time.

    Raises:
        ValueError: a loss is known for weights of classes or for labels that it leaves out; of up
            to 64 samples and two of each label the mean over two parts differs from the whole; or
            the last, smaller part cannot be measured.
    """
    size = size_of(sample)
    refusal = f"eval_chunk is {parts}, but the metric is no mean over samples"
    advice = (
        "leave eval_chunk out (a dataset is read in parts all the same), or give a mean (of class "
        "weights: (w[y] * F.cross_entropy(output, y, reduction='none')).mean(); of labels that "
        "are ignored: leave them out of the sample)"
    )
    index = torch.linspace(0, size - 1, min(MANY, size)).long()
    if not isinstance(sample, Streamed) and _is(sample[1]) and not sample[1].is_floating_point():
        y = sample[1].cpu()
        if hasattr(metric, "ignore_index") and bool((y == metric.ignore_index).any()):
            raise ValueError(f"{refusal}: labels {metric.ignore_index} are left out; {advice}")
        if y.dim() == 1:  # a rare label may be what makes the difference
            of_label = [(y == label).nonzero()[:2, 0] for label in y.unique()[:MANY]]
            index = torch.cat([index, *of_label]).unique()
    if getattr(metric, "weight", None) is not None and getattr(metric, "reduction", "") == "mean":
        if isinstance(metric, nn.CrossEntropyLoss | nn.NLLLoss):
            raise ValueError(f"{refusal}: it weighs classes; {advice}")
    n, first = len(index), len(index) // 3
    if first == 0:
        return
    read = partial(part_of, sample, dtype=dtype)
    device = tree_leaves(read(slice(0, 1))[0])[0].device
    x, y = read(index.to(device))
    cuts = slice(n), slice(first), slice(first, n)
    whole, *values = (
        torch.as_tensor(metric(_detached(answer(rows_of(x, k))), rows_of(y, k))).double()
        for k in cuts
    )
    mean = (first * values[0] + (n - first) * values[1]) / n
    rounding = 100 * torch.finfo(dtype).eps * sum(v.abs() for v in values)
    if not torch.allclose(mean, whole, rtol=0, atol=float(rounding.nan_to_num(0)), equal_nan=True):
        raise ValueError(
            f"{refusal}, or the network mixes samples: {whole:.6g} of {n} samples, {mean:.6g} as "
            f"the mean of two parts of them; {advice}"
        )
    rest = size % parts
    if rest:
        x, y = read(slice(size - rest, size))
        try:
            output = _detached(answer(x))
            shapes = [tuple(v.shape) for v in tree_leaves(output)]
            if not all(shape[:1] == (rest,) for shape in shapes):
                raise ValueError(f"its outputs have shape {shapes[0]}")
            metric(output, y)
        except Exception as error:
            raise ValueError(
                f"eval_chunk is {parts}, and the last part has {rest} of the {size} samples, which "
                f"the network or its metric does not take ({error}); give another eval_chunk"
            ) from error


def _refuse_unlike_shapes() -> None:
    """Within `catch_warnings`: outputs and targets that torch would broadcast are an error."""
    warnings.filterwarnings("error", "Using a target size", UserWarning)


def _detached(output: Tree) -> Tree:
    return tree_map(lambda v: v.detach(), output)


def _runs(function: Callable, v: Tree) -> bool:
    """Whether a function takes a tensor: what torch says of a dtype varies."""
    try:
        with warnings.catch_warnings():
            _refuse_unlike_shapes()
            function(v)
    except Exception:
        return False
    return True


def _is(value) -> bool:
    return isinstance(value, Tensor)
