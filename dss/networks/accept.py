"""Which networks and samples a task takes, and why others are refused."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dss.checks import check_finite, check_sizes
from dss.networks.losses import LOSSES
from dss.networks.modes import usual


def with_layers_apart(module: nn.Module) -> nn.Module:
    """A copy in which a layer that stands in several places has a shell in each.

    The shells hold the same parameters.  `functional_call` leaves its own tensors in a layer that
    it meets twice.

    Raises:
        ValueError: a layer holds itself, through a child that holds its parent.
    """
    module, seen = copy.deepcopy(module), set()

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
        if getattr(layer, "running_mean", None) is not None:
            raise ValueError(
                f"{where} keeps running statistics, which do not belong to an interpolated model; "
                "use dss.batch_statistics (BatchNorm), GroupNorm or LayerNorm, or set "
                "track_running_stats=False"
            )
        if eval_chunk is not None and isinstance(layer, nn.modules.batchnorm._BatchNorm):
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


def check_split(split: str, sample: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple:
    """Inputs and targets of a sample, floating-point ones in the dtype of the network.

    Raises:
        TypeError: not a pair of tensors.
        ValueError: unlike numbers of inputs and targets, or none; NaN or inf.
    """
    is_list = isinstance(sample, tuple | list)
    kinds = [type(v).__name__ for v in sample] if is_list else [type(sample).__name__]
    if len(kinds) != 2 or not all(isinstance(v, Tensor) for v in sample):
        raise TypeError(
            f"{split} is {', '.join(kinds)}; a pair (x, y) of tensors is needed (of arrays "
            "torch.as_tensor makes them, a TensorDataset holds them as .tensors)"
        )
    x, y = sample
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{split}: {len(x)} inputs and {len(y)} targets; need as many, > 0")
    pair = [usual(v.to(dtype) if v.is_floating_point() else v) for v in (x, y)]
    check_samples(split, *pair)
    return tuple(pair)


def check_samples(split: str, x: Tensor, y: Tensor) -> None:
    """Raise ValueError for NaN and inf; also for what a number became in the network's dtype."""
    for name, v in (("x", x), ("y", y)):
        check_finite(v, f"{split} {name} (in {v.dtype})")


def check_labels(split: str, loss: Callable, output: Tensor, y: Tensor) -> None:
    """Raise for labels that are no class of the outputs `(B, C)`, where the loss is known.

    Raises:
        TypeError: an error rate of what are no labels.
        ValueError: a label outside 0 to C - 1, but for one that the loss ignores.
    """
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
    n_classes = output.shape[1] if output.dim() > 1 else 0
    wrong = (y < 0) | (y >= n_classes)
    if hasattr(loss, "ignore_index"):
        wrong &= y != loss.ignore_index
    if bool(wrong.any()):
        index = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{split} y holds {int(wrong.sum())} labels that are no class, the first "
            f"{int(y[index])} at index {index}; 0 to {n_classes - 1} is needed"
        )


def run_samples(
    module: nn.Module, loss: Callable, x: Tensor, y: Tensor, split: str, descends: bool
) -> tuple[int, int]:
    """Run two samples, for errors while the cause is in sight.

    Args:
        module, loss, x, y: of a task.
        split: what messages call the samples.
        descends: whether the loss must have a gradient.

    Returns:
        Values that one sample's activations hold in one network, input included; and those that
        a network holds whatever the sample (the reference of `batch_statistics`).

    Raises:
        TypeError, ValueError: as `Task.from_module` says.
    """
    module.requires_grad_(True)
    counts, output = [], None
    hooks = [
        m.register_forward_hook(lambda _m, _i, o: counts.append(o.numel() if _is(o) else 0))
        for m in module.modules()
        if not list(m.children())
    ]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            output, n_many = module(x[:64]), sum(counts)
            value = loss(module(x[:2]), y[:2])
            if descends and _is(value) and value.dim() == 0:
                torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
    except Exception as error:
        if output is not None and not _is(output):
            raise TypeError(
                f"the network returns a {type(output).__name__}, which the loss cannot take "
                f"({error}); pass output=, a function that takes the tensor out of it: "
                "lambda o: o[0], or lambda o: o.logits"
            ) from error
        if _is(output):
            check_labels(split, loss, output, y)
        for name, v in (("x", x), ("y", y)):
            for dtype, method in (("int64", "long"), ("floating point", "float")):
                cast = getattr(v[:2], method)()
                is_other = not v.is_floating_point() and cast.dtype != v.dtype
                if is_other and _runs(module, loss, **{"x": x[:2], "y": y[:2], name: cast}):
                    raise TypeError(
                        f"{split} {name} has dtype {v.dtype} where the network or its loss needs "
                        f"{dtype}: pass {name}.{method}() ({error})"
                    ) from error
        raise ValueError(f"{split} samples do not fit the network or its loss: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if _is(output):
        check_labels(split, loss, output, y)
    if not _is(value) or value.dim() != 0:
        shape = tuple(value.shape) if _is(value) else type(value).__name__
        raise ValueError(f"the loss of two {split} samples is {shape}; a scalar is needed")
    n_few = sum(counts) - n_many
    answers = [module(x[:64]) for _ in range(2)]
    if _is(output) and not all(torch.equal(output, again) for again in answers):
        raise ValueError(
            "the network answers differently to the same input (dropout in its forward?); call "
            "module.eval() first"
        )
    many, few = len(x[:64]), len(x[:2])
    per_sample = (n_many - n_few) // (many - few) if many > few else n_many // many
    return per_sample + x[0].numel(), max(0, n_few - few * per_sample)


def _runs(module: nn.Module, loss: Callable, x: Tensor, y: Tensor) -> bool:
    """Whether the loss of these samples can be computed: what torch says of a dtype varies."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            loss(module(x), y)
    except Exception:
        return False
    return True


def _is(value) -> bool:
    return isinstance(value, Tensor)
