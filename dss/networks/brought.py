"""What people bring, made into what a task holds: factories, frozen parameters, losses, weights."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from dss.checks import short
from dss.files import checked_path
from dss.networks.batchnorm import WithReference
from dss.networks.samples import Tree, arguments_of, call, seeded
from dss.theta import shapes_of, unflatten

TRAINABLE = {"all": False, "requires_grad": True}  # whether frozen parameters are constants
# Of BatchNorm; they belong to no interpolated network, and a task does not use them.
RUNNING = ("running_mean", "running_var", "num_batches_tracked")
KEYS = ("state_dict", "model", "model_state_dict")  # under which files keep a state_dict
# Losses as modules that stand for a name, when they are as PyTorch makes them.
KNOWN = {"mse": nn.MSELoss, "mae": nn.L1Loss, "cross_entropy": nn.CrossEntropyLoss}
# Names of metrics of which more is better.
LOWER_IS_BETTER = ("error", "loss", "minus", "negative", "inverse")  # these turn it round
HIGHER_IS_BETTER = ("accuracy", "acc", "f1", "auc", "auroc", "precision", "recall", "r2", "bleu")


def network_of(module: nn.Module | Callable) -> tuple[nn.Module, Callable | None]:
    """A network, and the factory that it came from, if it came from one.

    Raises:
        TypeError: neither a module nor a function without arguments that returns one.
    """
    if isinstance(module, nn.Module):
        return module, None
    if not callable(module):
        raise TypeError(f"module is a {type(module).__name__}; a torch.nn.Module is needed")
    try:
        with seeded(0, torch.device("cpu")):
            network = module()
    except TypeError as error:
        raise TypeError(
            f"module is {short(module)}, which makes no network without arguments ({error}); a "
            "torch.nn.Module, or a function that returns one, is needed"
        ) from error
    if not isinstance(network, nn.Module):
        raise TypeError(f"module returns a {type(network).__name__}; a torch.nn.Module is needed")
    return network, module


def drawn_by(factory: Callable, is_trainable: Callable[[nn.Parameter], bool]) -> Callable:
    """The `init` of a task: n networks of a factory, each from a seed of its own."""

    def init(n: int, generator: torch.Generator) -> Tensor:
        rows = []
        for seed in torch.randint(2**62, (n,), generator=generator).tolist():
            with seeded(seed, torch.device("cpu")):
                kept = [p.detach() for p in factory().parameters() if is_trainable(p)]
            rows.append(torch.cat([p.reshape(-1).cpu() for p in kept]))
        if n > 1 and torch.equal(rows[0], rows[1]):
            raise ValueError(
                f"{short(factory)} makes the same network again and again, whatever the seed; it "
                "must draw from the global generator of torch, NumPy or Python, and not seed it; "
                "or pass init="
            )
        return torch.stack(rows)

    return init


def freeze(module: nn.Module) -> None:
    """Turn parameters that do not require a gradient into buffers; they are constants then."""
    for layer in module.modules():
        for name, p in list(layer._parameters.items()):
            if p is not None and not p.requires_grad:
                del layer._parameters[name]
                layer.register_buffer(name, p.detach())


@dataclass(frozen=True)
class OutputTaken:
    """A forward hook that takes the tensor out of what a network returns."""

    take: Callable

    def __call__(self, network: nn.Module, x, found):
        return self.take(found)

    @classmethod
    def leave(cls, network: nn.Module) -> nn.Module:
        """The network without such a hook, so that it returns what its maker expects."""
        hooks = network._forward_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, cls)]:
            del hooks[key]
        return network


def named_loss(loss: str | Callable) -> str | Callable:
    """The name of a loss that is a module as PyTorch makes it; any other loss as it is."""
    for name, kind in KNOWN.items():
        if type(loss) is kind and vars(loss) == vars(kind()):
            return name
    return loss


def check_lower_is_better(metric: str | Callable) -> None:
    """Refuse a metric that is known to be better where it is higher.

    Raises:
        ValueError: it says so itself (`higher_is_better`), or its name is known.
    """
    name = getattr(metric, "__name__", "")
    words = set(name.lower().split("_"))
    is_named = words & set(HIGHER_IS_BETTER) and not words & set(LOWER_IS_BETTER)
    if getattr(metric, "higher_is_better", False) or is_named:
        raise ValueError(
            f"metric is {name or type(metric).__name__}, of which more is better, but L0 bounds it "
            "from above; give what is to be small: 'error', or lambda output, y: 1 - ..."
        )


def weights_of(source: nn.Module | Mapping | str | Path) -> dict[str, Tensor]:
    """Tensors by name of a network, its state_dict, or a file that holds one.

    Args:
        source: files are `.safetensors`, or what `torch.save` wrote; a state_dict may lie under
            one of `KEYS`.

    Raises:
        TypeError: none of these.
        ValueError: a file that is no such file.
        OSError: there is no such file.
    """
    if isinstance(source, nn.Module):
        named = [*source.named_parameters(remove_duplicate=False), *source.named_buffers()]
        return {name: value.detach() for name, value in named}
    if isinstance(source, str | Path):
        path = checked_path(source, "the file of a network")
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                source = load_file(path)
            else:
                source = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"{path} holds no state_dict: {error}") from error
    for key in KEYS:
        if isinstance(source, Mapping) and isinstance(source.get(key), Mapping):
            source = source[key]
    if not isinstance(source, Mapping) or not all(isinstance(v, Tensor) for v in source.values()):
        raise TypeError(
            f"{short(source)} is no module, no tensors by name and no file of them (they may lie "
            f"under {', '.join(map(repr, KEYS))})"
        )
    return dict(source)


def theta_by_name(module: nn.Module, weights: Mapping[str, Tensor]) -> Tensor:
    """The flat vector `(P,)` of a network of this architecture, its tensors found by name.

    Raises:
        ValueError: a tensor is missing, of another shape or one too many; a tied one differs from
            its twin; or a buffer (a frozen parameter) is not that of the architecture.
    """
    shapes, weights = shapes_of(module), _without_wrapper(weights, set(shapes_of(module)))
    known = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers())
    used = {n: v for n, v in weights.items() if n.rpartition(".")[2] not in RUNNING or n in buffers}
    missing = [n for n in shapes if n not in used]
    extra = [n for n in used if n not in known and n not in buffers]
    if missing or extra:
        parts = [f"lacks {missing[0]!r} and {len(missing) - 1} more"] if missing else []
        parts += [f"has {extra[0]!r} and {len(extra) - 1} more that are not known"] if extra else []
        raise ValueError(f"the network {', and '.join(parts)}: its names are not those of the task")
    for name, value in used.items():
        wanted = buffers[name] if name in buffers else known[name]
        if value.shape != wanted.shape:
            raise ValueError(
                f"{name!r} has shape {tuple(value.shape)}, {tuple(wanted.shape)} is needed"
            )
        if name in buffers and not torch.equal(value.to(wanted), wanted):
            raise ValueError(
                f"{name!r} is constant in the task and has other values in this network; only what "
                "is trained may differ"
            )
    first = {id(p): n for n, p in module.named_parameters()}
    for name, value in used.items():
        twin = first.get(id(known.get(name)), name)
        if not torch.equal(value, used[twin]):
            raise ValueError(f"{name!r} is tied to {twin!r} in the task, and differs from it here")
    return torch.cat([used[name].detach().reshape(-1) for name in shapes])


def _without_wrapper(weights: Mapping[str, Tensor], names: set[str]) -> Mapping[str, Tensor]:
    """The tensors without the prefix that `torch.compile` or DataParallel gives to all names."""
    if "x" in weights and all(name.startswith("module.") for name in weights if name != "x"):
        weights = {name: v for name, v in weights.items() if name != "x"}  # of batch_statistics
    for prefix in ("_orig_mod.", "module."):
        is_wrapped = bool(weights) and all(name.startswith(prefix) for name in weights)
        if is_wrapped and not any(name.startswith(prefix) for name in names):
            weights = {name.removeprefix(prefix): v for name, v in weights.items()}
    return weights


def plain(network: nn.Module) -> nn.Module:
    """A network without what was wrapped around it: compiled, on several devices, a reference."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if isinstance(network, WithReference):
            inner = network.module
        if inner is None:
            return network
        network = inner


def check_same_function(module: nn.Module, theta: Tensor, other: nn.Module, x: Tree) -> None:
    """Refuse a network that is another function of the same parameters.

    Args:
        module: of a task.
        theta: `(P,)`, the parameters of `other`.
        other: a network, perhaps with another forward, other settings or other constants.
        x: a few inputs, on which both answer.

    Raises:
        ValueError: the answers differ; a layer that differs is shown.
    """
    mine, theirs = copy.deepcopy(module).eval(), copy.deepcopy(plain(other)).to(theta).eval()
    takes = [h.take for h in mine._forward_hooks.values() if isinstance(h, OutputTaken)]
    mine, known = OutputTaken.leave(mine), dict(mine.named_modules())
    for name, layer in theirs.named_modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and not _keeps(known.get(name)):
            layer.track_running_stats = False  # they belong to no network of the task
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    with torch.enable_grad():
        arguments, keywords = arguments_of(x)
        answer = functional_call(mine, unflatten(theta, shapes_of(module)), arguments, keywords)
        try:
            other_answer = call(theirs, x)
            for take in takes:
                answer, other_answer = take(answer), take(other_answer)
            pairs = list(zip(tree_leaves(answer), tree_leaves(other_answer), strict=True))
            pairs = [pair for pair in pairs if isinstance(pair[0], Tensor)]
            pairs = [(a.detach(), b.detach()) for a, b in pairs]
            off = max(float((a - b).abs().max()) / max(1.0, float(a.abs().max())) for a, b in pairs)
        except Exception as error:
            raise ValueError(
                f"the network does not answer as that of the task does ({error}); "
                f"{_difference(module, theirs)}"
            ) from error
    if not off <= 1e-4:
        raise ValueError(
            f"with the same parameters the network answers otherwise than that of the task (by "
            f"{off:.3g}); {_difference(module, theirs)}"
        )


def _keeps(layer: nn.Module | None) -> bool:
    """Whether a norm of a task has running statistics, as constants."""
    return getattr(layer, "running_mean", None) is not None


def _difference(module: nn.Module, other: nn.Module) -> str:
    """The first layer that differs in its class or its settings, as text."""

    def layers_of(network: nn.Module) -> dict[str, str]:
        return {
            name: f"{type(layer).__name__}({layer.extra_repr()})"
            for name, layer in network.named_modules()
            if name and not isinstance(layer, nn.modules.batchnorm._NormBase)
        }

    mine, theirs = layers_of(module), layers_of(other)
    for name, layer in mine.items():
        if name in theirs and theirs[name] != layer:
            return f"layer {name!r} is {theirs[name]}, that of the task is {layer}"
    return "its forward, a setting, or a tensor that is no parameter is another"
