"""Losses and metrics: functions of outputs and targets, by name."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F


def error_rate(output: Tensor, y: Tensor) -> Tensor:
    """Fraction of samples whose largest output is not the label; output `(B, C)`, y `(B,)`.

    An output with NaN has no largest one; it makes the rate NaN.
    """
    wrong = (output.argmax(dim=1) != y).to(output.dtype)
    return torch.where(output.isnan().any(dim=1), torch.nan, wrong).mean()


def cross_entropy_of_softmax(output: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with the softmax applied twice, as the authors' MNIST script trains."""
    return F.cross_entropy(output.softmax(dim=1), y)


# Each maps outputs (B, ...) and targets to their mean over the batch.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    # Residuals on [0, 1] never pass torch's default delta of 1, where huber is mse / 2.
    "huber": partial(F.huber_loss, delta=0.1),
    "cross_entropy": F.cross_entropy,
    "error": error_rate,
    "cross_entropy_of_softmax": cross_entropy_of_softmax,
}

# Losses that are means of a function of the residual: that function and its derivative.
RESIDUAL_LOSSES = [
    (LOSSES["mse"], (torch.square, lambda r: 2 * r)),
    (LOSSES["mae"], (torch.abs, torch.sign)),
    (
        LOSSES["huber"],
        (lambda r: (c := r.clamp(-0.1, 0.1)) * (r - c / 2), lambda r: r.clamp(-0.1, 0.1)),
    ),
]
