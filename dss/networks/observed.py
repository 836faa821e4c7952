"""What a network's forward does beside answering: the tensors that it writes to."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from dss.networks.samples import Tree, call


class _Writes(TorchDispatchMode):
    """Collects the memory that operations write to, whatever values they leave there."""

    def __init__(self):
        super().__init__()
        self.places: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True imports the compiler, which takes seconds

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        schema = function._schema.arguments
        given = [*zip(schema, arguments, strict=False)]  # defaults may follow
        given += [(a, keywords[a.name]) for a in schema if a.name in keywords]
        for argument, value in given:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.places |= {place_of(v) for v in tree_iter(value) if isinstance(v, Tensor)}
        return function(*arguments, **keywords)


def place_of(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 for one without values."""
    return tensor.untyped_storage().data_ptr()


def check_writes(module: nn.Module, x: Tree) -> None:
    """Refuse a network whose forward writes to its parameters or buffers, or replaces them.

    Beads would be changed by being looked at, and results would depend on what ran before.

    Args:
        module: is changed where it is refused.
        x: `(B, ...)`, few samples, or several such inputs.  That they do not fit is no matter here.

    Raises:
        ValueError: it does; the tensor is named.
    """
    x = tree_map(torch.clone, x)  # a forward that writes to it would change the sample
    before = {name: (value, place_of(value)) for _, name, value in _members(module)}
    with _Writes() as writes:
        for with_gradient in (False, True):
            try:
                with torch.set_grad_enabled(with_gradient):
                    call(module, x)
                break
            except Exception:
                continue  # what cannot be run at all is said when samples are
    if any(place_of(v) in writes.places for v in tree_iter(x)):
        raise ValueError(
            "the network's forward writes to its inputs, so that looking at a sample changes it; "
            "compute with a new tensor (x = x - 1, not x -= 1; inplace=False in the first layer)"
        )
    for kind, name, value in _members(module):
        old, place = before.get(name, (None, 0))
        if value is old and place_of(value) == place and place not in writes.places - {0}:
            continue
        if old is None:
            raise ValueError(
                f"the network's forward makes the {kind} {name!r}; run one batch through it first: "
                "module(x[:1])"
            )
        advice = {
            "parameter": "compute with a new tensor (w.clamp(...), not w.clamp_(...)), and leave "
            "max_norm of an Embedding out",
            "buffer": "call module.eval() first, or keep it out of forward",
        }
        raise ValueError(
            f"the network's forward writes to its {kind} {name!r}, so that looking at a network "
            f"changes it and results depend on what ran before; {advice[kind]}"
        )


def _members(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Kind, name and tensor of all parameters and buffers."""
    for kind, members in (
        ("parameter", module.named_parameters(remove_duplicate=False)),
        ("buffer", module.named_buffers(remove_duplicate=False)),
    ):
        for name, value in members:
            yield kind, name, value
