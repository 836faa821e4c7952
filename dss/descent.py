"""One step of a descent, by optimiser; and the settings of a whole one."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dss.checks import check_number, check_whole, lookup
from dss.networks.samples import size_of


def _rmsprop(theta, gradient, state, step, lr) -> None:
    (square,) = state
    square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
    theta.addcdiv_(gradient, square.sqrt().add_(1e-8), value=-lr)


def _adam(theta, gradient, state, step, lr) -> None:
    mean, square = state
    mean.lerp_(gradient, 0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    root = square.sqrt().div_(math.sqrt(1 - 0.999**step)).add_(1e-8)
    theta.addcdiv_(mean, root, value=-lr / (1 - 0.9**step))


def _sgd(theta, gradient, state, step, lr) -> None:
    theta.add_(gradient, alpha=-lr)


def _nesterov(theta, gradient, state, step, lr) -> None:
    (velocity,) = state
    velocity.mul_(0.9).add_(gradient)
    theta.add_(gradient.add(velocity, alpha=0.9), alpha=-lr)


# torch.optim's rules with its defaults (a momentum of .9 for Nesterov), in place on `(N, P)`: they
# act elementwise, so that this is N independent descents.  torch.optim takes longer to call than a
# small network to differentiate, and knows no rows that leave.  With each rule how many `(N, P)`
# tensors of state it keeps.
OPTIMIZERS = {
    "rmsprop": (_rmsprop, 1),
    "adam": (_adam, 2),
    "sgd": (_sgd, 0),
    "nesterov": (_nesterov, 1),
}

# Flat vectors that are held for a bead that descends, by method.  "paper": start, result, itself,
# its gradient in parts and joined, two of the optimiser's state and two of its temporaries.
# "averaged": start, iterate, velocity, gradient in parts and joined, means, candidate, result, both
# ends of the segment, and what a test interpolates.
COPIES = {"paper": 9, "averaged": 14}

# In what the gradients are computed; None: in the dtype of the networks.
PRECISIONS = {None: None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Training:
    """How networks descend.  Functions that train take these as keyword arguments.

    Attributes:
        optimizer: `"rmsprop"`, `"adam"`, `"sgd"` or `"nesterov"` (SGD with momentum .9).
        lr: learning rate, > 0.
        batch_size: samples per gradient step; None: the task's own, for polynomials all.
        max_steps: most gradient steps for a network.
        patience: a network whose best metric has not fallen by 0.1 % in so many steps has stalled.
        check_every: gradient steps between measurements of the metric; None: 1 with the whole
            training sample in each step, else 20.
        precision: `"bfloat16"`: gradients of float32 networks come from a forward pass as under
            `torch.autocast`, its loss in float32.  The networks themselves, what the optimiser
            keeps, and every loss that is reported or tested stay float32.  None: all in the dtype
            of the networks.

    Raises:
        TypeError: a value that is no number.
        ValueError: a value out of range, or an unknown precision.
    """

    optimizer: str = "rmsprop"
    lr: float = 1e-3
    batch_size: int | None = None
    max_steps: int = 20_000
    patience: int = 1_000
    check_every: int | None = None
    precision: str | None = None

    def __post_init__(self):
        if not isinstance(self.optimizer, str) or self.optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise ValueError(f"unknown optimizer {self.optimizer!r}; known: {known}")
        lookup(PRECISIONS, self.precision, "precision")
        check_number(self.lr, "lr", lambda v: 0 < v < math.inf, "a finite number > 0")
        least = {"batch_size": 1, "max_steps": 0, "patience": 1, "check_every": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is None and name in ("batch_size", "check_every"):
                continue
            object.__setattr__(self, name, check_whole(value, name, lowest))

    def samples_in(self, task) -> int:
        """How many samples a gradient step on a task sees; 1 for a landscape."""
        n = size_of(task.splits["train"]) if task.splits else 1
        return min(n, self.batch_size or task.batch_size or n)

    def check_dtype(self, task, dtype: torch.dtype) -> None:
        """Raise ValueError where networks of a dtype cannot descend in this precision."""
        if self.precision is None:
            return
        if task.module is None:
            raise ValueError(
                f"precision is {self.precision!r}; {task.name} is an explicit function of theta, "
                "and only networks descend in a lower precision"
            )
        if dtype != torch.float32:
            raise ValueError(
                f"precision is {self.precision!r} and the networks are {dtype}; float32 is needed: "
                "task.to(dtype=torch.float32), or precision=None"
            )


TRAINING_SETTINGS = tuple(field.name for field in dataclasses.fields(Training))


def training_of(settings: dict) -> Training:
    """`Training(**settings)`; TypeError for a name that it does not have, with those it has."""
    for name in settings:
        if name not in TRAINING_SETTINGS:
            known = ", ".join(TRAINING_SETTINGS)
            raise TypeError(f"unknown argument {name!r}; the settings of training are: {known}")
    return Training(**settings)


def takes_training(function: Callable) -> Callable:
    """Show the fields of `Training` in the signature of a function that takes `**training`."""
    signature = inspect.signature(function)
    *own, _ = signature.parameters.values()
    fields = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in dataclasses.fields(Training)
    ]
    function.__signature__ = signature.replace(parameters=[*own, *fields])
    return function


def rounding(dtype: torch.dtype) -> float:
    """Relative margin by which a loss at a threshold may lie above it: 8 epsilons, 1e-5 at most."""
    return min(8 * torch.finfo(dtype).eps, 1e-5)
