"""A second device that only pretends: its data lie on the CPU, and it refuses to mix with it.

Code that leaves a tensor where it does not belong runs on a CPU, and ends with an error on CUDA.
Within `pretended()` it ends so here as well.  Tensors on the device are of a class of their own;
every operation on them, those of `vmap` and autograd included, is checked and done on the CPU.  The
device is called `meta`: beside the CPU, that is where torch runs autograd on any machine.

Refused, as on CUDA: operations on tensors here and there, `numpy()`, and a generator of the CPU
that is to draw on the device.  Allowed, as there: `to` and `copy_` between the two; CPU tensors of
no dimension in elementwise arithmetic (not in `lerp`, `addcmul` and `addcdiv`, where versions of
torch differ); CPU indices of tensors on the device; `item`, `tolist`, `float` and `bool`.

It covers: where every tensor of a computation lies, in eager code, under `vmap` and in both passes
of autograd.  Results are those of the CPU bit for bit, but for recurrent layers and attention,
which torch computes on a CPU in a way of its own.  It does not cover: the numerics of CUDA's
kernels, and those that CUDA lacks or that are not deterministic there; memory, streams, graphs and
autocast; `cuda` beside `cuda:0`; shapes that change in place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
DEVICE = torch.device("meta")

COPIES = {aten._to_copy, aten.copy_, aten.copy}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# A tensor of no dimension, on the CPU, may take part in what is elementwise, but for these.
STRICT = {aten.lerp, aten.lerp_, aten.addcmul, aten.addcmul_, aten.addcdiv, aten.addcdiv_}
EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
LOST = {torch.int64: 2**62}
# What torch leaves without values on `meta`.
OF_VALUES = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}


class OnDevice(Tensor):
    """A tensor on the device; `raw` holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> "OnDevice":
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        layout |= {"dtype": raw.dtype, "device": DEVICE}
        tensor = Tensor._make_wrapper_subclass(cls, raw.size(), **layout)
        tensor.raw = raw
        return tensor

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: "OnDevice") -> None:  # as nn.Module.to does
        Tensor.data.__set__(self, other)
        self.raw = other.raw

    def tolist(self) -> list:
        return self.raw.tolist()

    def numpy(self, **keywords):
        raise TypeError(f"can't convert a tensor on {DEVICE} to numpy; use Tensor.cpu()")

    def __format__(self, spec: str) -> str:
        return format(self.raw, spec)

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), keywords=None):
        return on_cpu(operation, arguments, keywords or {})


def each(function: Callable, value):
    """A value with a function applied to it, or to all in lists and tuples."""
    if isinstance(value, list | tuple):
        return type(value)([each(function, v) for v in value])
    return function(value)


def on_cpu(operation, arguments: tuple, keywords: dict):
    """Check an operation, and do it with the values."""
    wrappers = {}

    def raw(value):
        if not isinstance(value, OnDevice):
            return value
        wrappers[id(value.raw)] = value
        return value.raw

    def wrapped(value):
        if not isinstance(value, Tensor):
            return value
        return wrappers[id(value)] if id(value) in wrappers else OnDevice(value)

    check(operation, arguments, keywords)
    raws = each(raw, arguments), {name: each(raw, v) for name, v in keywords.items()}
    goes_there = bool(wrappers)
    if keywords.get("device") is not None:
        goes_there = keywords["device"] == DEVICE
        raws[1]["device"] = torch.device("cpu")
    elif operation.overloadpacket in COPIES:
        goes_there = isinstance(arguments[0], OnDevice)
    results = operation(*raws[0], **raws[1])
    if operation.overloadpacket in EMPTY:  # so that nobody takes what it holds for values
        results.fill_(torch.nan if results.is_floating_point() else LOST.get(results.dtype, 1))
    if any(value.shape != value.raw.shape for value in wrappers.values()):
        raise NotImplementedError(f"{operation} changes a shape in place")
    return each(wrapped, results) if goes_there else results


def check(operation, arguments: tuple, keywords: dict) -> None:
    """Raise RuntimeError where CUDA would."""
    packet, known = operation.overloadpacket, operation._schema.arguments
    named = dict(zip((a.name for a in known), arguments, strict=False)) | keywords
    tensors = []
    for value in named.values():
        each(lambda v: tensors.append(v) if isinstance(v, Tensor) else None, value)
    device = keywords.get("device")
    if device != DEVICE and not any(isinstance(v, OnDevice) for v in tensors):
        return
    if named.get("generator") is not None:
        raise RuntimeError(f"{operation}: a generator of the CPU cannot draw on {DEVICE}")
    if packet in COPIES or device is not None:
        return
    if packet in INDEXED and isinstance(named["self"], OnDevice):
        values = named.get("values")
        tensors = [] if values is None or values.dim() == 0 else [values]
    elif torch.Tag.pointwise in operation.tags and packet not in STRICT:
        written = [named.get(a.name) for a in known if a.is_write]
        tensors = [v for v in tensors if v.dim() or any(v is out for out in written)]
    if not all(isinstance(v, OnDevice) for v in tensors):
        shapes = [(str(v.device), tuple(v.shape)) for v in tensors]
        raise RuntimeError(f"{operation}: expected all tensors on the same device, found {shapes}")


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        return on_cpu(operation, arguments, keywords or {})


class _Values(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function in OF_VALUES and keywords.get("device") is not None:
            device = torch.device(keywords["device"])
            return function(*arguments, **keywords | {"device": "cpu"}).to(device)
        if function in INDEXING:
            tensor, index, *rest = arguments
            parts = index if isinstance(index, tuple) else (index,)
            parts = [torch.tensor(v) if isinstance(v, list | np.ndarray) else v for v in parts]
            return function(tensor, tuple(parts), *rest)
        return function(*arguments, **keywords)


@contextmanager
def pretended() -> Iterator[torch.device]:
    """A second device, which is there as long as this lasts."""
    with _Operations(), _Values():
        yield DEVICE
