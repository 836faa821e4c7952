"""Losses and metrics: functions of outputs and targets, by name."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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


def cross_entropy_of_words(output: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of every word; output `(B, T, V)`, y `(B, T)`."""
    return F.cross_entropy(output.flatten(0, 1), y.flatten())


def cross_entropy_of_rows(output: Tensor, y: Tensor) -> Tensor:
    """The same as a sum over the T words of a row, and a mean over rows."""
    return y.shape[1] * cross_entropy_of_words(output, y)


class OneByOne(NamedTuple):
    """A loss or metric that runs on the outputs of one network at a time, not under vmap.

    Attributes:
        function: of (output, y); a metric may return a number of Python or NumPy.
    """

    function: Callable

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        value = self.function(output, y)
        return value if isinstance(value, Tensor) else output.new_tensor(value)


# Each maps outputs (B, ...) and targets to their mean over the batch.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    # Residuals on [0, 1] never pass torch's default delta of 1, where huber is mse / 2.
    "huber": partial(F.huber_loss, delta=0.1),
    "cross_entropy": F.cross_entropy,
    "error": error_rate,
    "cross_entropy_of_softmax": cross_entropy_of_softmax,
    "cross_entropy_of_words": cross_entropy_of_words,
    "cross_entropy_of_rows": cross_entropy_of_rows,
    "perplexity": cross_entropy_of_words,  # its logarithm
}

# Metrics that are no means over samples, but a function of one: applied when the mean over a whole
# sample is known, so that it does not depend on how the sample is cut.  Training descends the mean.
OF_MEAN: dict[str, Callable[[Tensor], Tensor]] = {"perplexity": torch.exp}

# Losses that are means of a function of the residual: that function and its derivative.
RESIDUAL_LOSSES = [
    (LOSSES["mse"], (torch.square, lambda r: 2 * r)),
    (LOSSES["mae"], (torch.abs, torch.sign)),
    (
        LOSSES["huber"],
        (lambda r: (c := r.clamp(-0.1, 0.1)) * (r - c / 2), lambda r: r.clamp(-0.1, 0.1)),
    ),
]
