"""What people bring, made into what a task holds: factories, frozen parameters, losses, weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dss.checks import short
from dss.files import checked_path
from dss.theta import shapes_of

TRAINABLE = {"all": False, "requires_grad": True}  # whether frozen parameters are constants
# Of BatchNorm; they belong to no interpolated network, and a task does not use them.
RUNNING = ("running_mean", "running_var", "num_batches_tracked")
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
        with torch.random.fork_rng(devices=[]):
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
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                kept = [p.detach() for p in factory().parameters() if is_trainable(p)]
            rows.append(torch.cat([p.reshape(-1).cpu() for p in kept]))
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
            the key `state_dict` or `model`.

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
    for key in ("state_dict", "model"):
        if isinstance(source, Mapping) and isinstance(source.get(key), Mapping):
            source = source[key]
    if not isinstance(source, Mapping) or not all(isinstance(v, Tensor) for v in source.values()):
        raise TypeError(f"{short(source)} is no module, no tensors by name and no file of them")
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
    used = {n: v for n, v in weights.items() if n.rpartition(".")[2] not in RUNNING}
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
    for prefix in ("_orig_mod.", "module."):
        is_wrapped = bool(weights) and all(name.startswith(prefix) for name in weights)
        if is_wrapped and not any(name.startswith(prefix) for name in names):
            weights = {name.removeprefix(prefix): v for name, v in weights.items()}
    return weights


def check_layers(module: nn.Module, other: nn.Module) -> None:
    """Refuse a network whose layers are others, as one with another activation.

    Raises:
        ValueError: a layer of another class or with other settings; both are shown.
    """

    def layers_of(network: nn.Module) -> dict[str, str]:
        return {
            name: f"{type(layer).__name__}({layer.extra_repr()})"
            for name, layer in network.named_modules()
            if name and "Norm" not in type(layer).__name__
        }

    mine, theirs = layers_of(module), layers_of(other)
    for name, layer in mine.items():
        if name in theirs and theirs[name] != layer:
            raise ValueError(f"layer {name!r} is {theirs[name]}, that of the task is {layer}")
