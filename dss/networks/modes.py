"""Modes of torch that a caller may be in, and in which results would be others."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps

import torch

_here = threading.local()


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
    """Run a function outside `torch.autocast`, `inference_mode` and `no_grad`, its new tensors on
    the CPU unless it says otherwise, whatever the caller has set.

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
            _here.inside = True
            try:
                return function(*arguments, **keywords)
            finally:
                _here.inside = False

    return undisturbed


def usual(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of one that was made in `inference_mode` and takes no gradient."""
    return tensor.clone() if tensor.is_inference() else tensor
