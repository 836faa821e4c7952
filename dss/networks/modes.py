"""Modes of torch that a caller may be in, and in which results would be others."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps

import torch

_here = threading.local()


class _FullFloat32:
    """float32 as float32, and cuDNN's kernels that repeat; threads may be within it together.

    cuDNN by default rounds the factors of convolutions and recurrent layers to the ten bits of
    TF32, and adds in any order: gradients are then off by a hundredth, and others at every call.
    A caller may have set the like for matrix products, on CPUs too.  The switches are those of the
    process, other threads see them meanwhile.  Sums that a network makes by other kernels (scatter,
    some interpolations) may still come out in any order.
    """

    def __init__(self):
        self.lock, self.n_inside, self.before = threading.Lock(), 0, []

    def __enter__(self):
        with self.lock:
            if self.n_inside == 0:
                self.before = [(write, _told(read)) for read, write, _ in SWITCHES]
                try:
                    for _, write, value in SWITCHES:
                        _quietly(write, value)
                except BaseException:
                    self._restore()
                    raise
            self.n_inside += 1

    def __exit__(self, *_):
        with self.lock:
            self.n_inside -= 1
            if self.n_inside == 0:
                self._restore()

    def _restore(self) -> None:
        for write, value in self.before:
            if value is not None:
                with suppress(RuntimeError):  # the others are to be restored as well
                    _quietly(write, value)


def _told(read: Callable) -> bool | str | None:
    """What a switch of torch says; None where it cannot, since parts of it were set apart."""
    try:
        return _quietly(read)
    except RuntimeError:
        return None


def _quietly(call: Callable, *arguments):
    """A call without torch's advice to use newer switches; some versions give it at every one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*arguments)


def _attribute(place: object, name: str, value: bool | str) -> tuple[Callable, Callable, object]:
    return partial(getattr, place, name), partial(setattr, place, name), value


def _switches() -> Iterator[tuple[Callable, Callable, bool | str]]:
    """How each of torch's switches is read and written, and its value within.

    The old ones come first; since torch 2.9 there are those of single operations as well.
    """
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    for name, value in (("allow_tf32", False), ("benchmark", False), ("deterministic", True)):
        yield _attribute(cudnn, name, value)
    if hasattr(torch.backends, "fp32_precision"):
        for place, parts in ((cuda, "matmul"), (cudnn, "conv rnn"), (mkldnn, "matmul conv rnn")):
            for part in parts.split():
                operation = getattr(place, part)
                _, write, value = _attribute(operation, "fp32_precision", "ieee")
                yield partial(_own_precision, operation), write, value


def _own_precision(operation: object) -> str:
    """The precision of an operation; "none" where it is that of all torch, and so inherited."""
    own, of_all = operation.fp32_precision, torch.backends.fp32_precision
    return "none" if own == of_all else own


SWITCHES, full_float32 = tuple(_switches()), _FullFloat32()


@contextmanager
def _without_requests() -> Iterator[None]:
    """Without vmap's warnings of what it runs slowly; torch has no public switch for them."""
    switch = torch._C._functorch._set_vmap_fallback_warning_enabled
    switch(False)
    try:
        yield
    finally:
        switch(True)


def in_usual_mode(function: Callable) -> Callable:
    """Run a function outside `torch.autocast`, `inference_mode` and `no_grad`, in full float32, its
    new tensors on the CPU unless it says otherwise, whatever the caller has set.

    Autocast would turn float32 into bfloat16, the others would end descents with an error.  Within
    the function, which calls others like it thousands of times, nothing is looked at again.  Nor
    does vmap ask the user there to file an issue for every operation that it runs one by one.
    """

    @wraps(function)
    def undisturbed(*arguments, **keywords):
        if getattr(_here, "inside", False):
            return function(*arguments, **keywords)
        with ExitStack() as modes:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    modes.enter_context(torch.autocast(device, enabled=False))
            if torch.is_inference_mode_enabled():
                modes.enter_context(torch.inference_mode(False))
            if torch.get_default_device().type != "cpu":
                modes.enter_context(torch.device("cpu"))
            modes.enter_context(torch.enable_grad())
            modes.enter_context(_without_requests())
            modes.enter_context(full_float32)
            _here.inside = True
            try:
                return function(*arguments, **keywords)
            finally:
                _here.inside = False

    return undisturbed


def usual(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of one that was made in `inference_mode` and takes no gradient."""
    return tensor.clone() if tensor.is_inference() else tensor
