"""Curvature of the loss at a network: the spectrum of its Hessian, exact or from both ends."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from dss.checks import (
    check_flag,
    check_generator,
    check_number,
    check_theta,
    check_whole,
    lookup,
)
from dss.networks.modes import in_usual_mode
from dss.networks.samples import arguments_of, part_of, size_of
from dss.task import Landscape, Network, Task, check_task, thetas_of
from dss.theta import shapes_of, unflatten

MOST_EXACT = 1_000  # parameters up to which all eigenvalues are computed where nobody says how many
N_ENDS = 6  # eigenvalues from each end of larger networks
MOST_RESTARTS = 1_000  # of Lanczos' algorithm
N_PROBES = 16  # random vectors for the trace of these


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of the Hessian of the training loss at a network.

    Attributes:
        eigenvalues: ascending, float64: all P, or as many from each end.
        loss: the training loss, on the split that was asked for.
        gradient_norm: Euclidean.
        trace: the sum of all eigenvalues.
        trace_error: its standard error; 0 where all are known.
        n_params: P.
        rounding: eigenvalues closer to zero than this count as zero.
    """

    eigenvalues: np.ndarray = field(repr=False)
    loss: float
    gradient_norm: float
    trace: float
    trace_error: float
    n_params: int
    rounding: float

    @property
    def is_whole(self) -> bool:
        """Whether all P eigenvalues are known."""
        return len(self.eigenvalues) == self.n_params

    @property
    def index(self) -> int:
        """Directions in which the loss curves down; at least so many, see `index_is_known`."""
        return int((self.eigenvalues < -self.rounding).sum())

    def index_beyond(self, share: float) -> int:
        """Directions in which it curves down by more than a share of the largest curvature.

        At least so many, unless `is_whole`.
        """
        share = check_number(share, "share", lambda v: 0 <= v < 1, "in [0, 1)")
        cut = max(self.rounding, share * float(np.abs(self.eigenvalues).max()))
        return int((self.eigenvalues < -cut).sum())

    @property
    def index_is_known(self) -> bool:
        """Whether an eigenvalue that is not negative was found next to the negative ones."""
        return self.is_whole or 2 * self.index < len(self.eigenvalues)

    @property
    def sharpness(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues[-1])

    def summary(self) -> dict:
        """One row for a table over networks."""
        names = ("loss", "gradient_norm", "index", "index_is_known", "sharpness", "trace")
        row = {name: getattr(self, name) for name in names}
        return row | {"trace_error": self.trace_error, "lowest": float(self.eigenvalues[0])}


@in_usual_mode
def spectrum(
    task: Task,
    theta: Tensor | Network,
    k: int | None = None,
    *,
    split: str = "test",
    chunk: int | None = None,
    n_probes: int = N_PROBES,
    tolerance: float = 1e-6,
    relative: bool = False,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """The Hessian of the training loss at a network, of which gamma is made, by its eigenvalues.

    All are computed where P is small, from the whole matrix.  Of a larger network Lanczos'
    algorithm finds `k` from each end by Hessian-vector products alone, and random vectors
    estimate the trace.  Everything is computed in float64.

    Args:
        task: gives `loss`, not the metric: an error rate has no curvature.
        theta: `(P,)`, or what `task.theta` takes.
        k: eigenvalues from each end.  None: all for P up to 1,000, else 6.
        split: `"test"`, the evaluation set, or `"train"`.
        chunk: samples at a time; the loss must be a mean over samples.  None: the task's
            `eval_chunk`, or all.
        n_probes: random vectors for the trace.
        tolerance: relative accuracy of Lanczos' eigenvalues.
        relative: whether the curvature is per relative change of each parameter, that is, of the
            matrix `theta_i H_ij theta_j`; factors that a ReLU unit's weights may take leave it.
        generator: CPU generator of the random vectors; a new one with seed 0 by default.

    Returns:
        The spectrum.  A ReLU network has kinks, on which nothing of this is defined; between them
        it is exact.  BatchNorm takes its statistics from each chunk, as networks that descend do.

    Raises:
        TypeError, ValueError: theta is no network of the task, or an argument is out of range.
        RuntimeError: the loss cannot be differentiated twice, or Lanczos does not converge.
        ImportError: scipy is not installed; it comes with the extra `notebooks`.

    Source: ARPACK (Lehoucq et al. 1998); Hutchinson (1989); why relative, Dinh et al. (2017).
    """
    parts, theta = _loss_at(task, theta, split, chunk)
    n_params = task.n_params
    if k is not None:
        k = check_whole(k, "k", 1, n_params)
    elif n_params > MOST_EXACT:
        k = N_ENDS
    n_probes = check_whole(n_probes, "n_probes", 2)
    tolerance = check_number(tolerance, "tolerance", lambda v: 0 < v < 1, "in (0, 1)")
    generator = check_generator(generator)
    scales = theta if check_flag(relative, "relative") else torch.ones_like(theta)
    loss, gradient = _slope(parts, theta)
    if k is None or 2 * k >= n_params - 1:  # ARPACK wants fewer than P
        hessian = scales[:, None] * _hessian(parts, theta) * scales
        eigenvalues = torch.linalg.eigvalsh(hessian).cpu().numpy()
        trace, trace_error = float(eigenvalues.sum()), 0.0
    else:
        plain, scales = _products(parts, theta), scales.cpu()

        def apply(vector: Tensor) -> Tensor:
            return scales * plain(scales * vector)

        trace, trace_error = _trace(apply, n_params, n_probes, generator)
        eigenvalues = _ends_of(apply, n_params, k, tolerance, generator)
    scale = float(np.abs(eigenvalues).max(initial=0.0))
    is_whole = len(eigenvalues) == n_params
    rounding = scale * (n_params * torch.finfo(torch.float64).eps if is_whole else 5 * tolerance)
    return Spectrum(
        eigenvalues=eigenvalues,
        loss=loss,
        gradient_norm=float(gradient.norm()),
        trace=trace,
        trace_error=trace_error,
        n_params=n_params,
        rounding=rounding,
    )


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """Where a descent of the gradient's norm ends.

    Attributes:
        theta: `(P,)` float64.
        loss, gradient_norm: of the training loss there.
        converged: whether the gradient is as small as was asked for.
        ended: whether the descent ended by itself; if not, its Hessians were used up.  What ended
            and has not converged is a point where the norm of the gradient is least nearby.
        distance: from where the descent began, Euclidean.
        n_steps: Hessians that it took.
    """

    theta: Tensor = field(repr=False)
    loss: float
    gradient_norm: float
    converged: bool
    ended: bool
    distance: float
    n_steps: int


@in_usual_mode
def critical_point(
    task: Task,
    theta: Tensor | Network,
    *,
    split: str = "test",
    chunk: int | None = None,
    tolerance: float = 1e-7,
    max_steps: int = 200,
) -> CriticalPoint:
    """A point at which the gradient of the training loss vanishes, sought from a network.

    It may lie far away (`distance`), and a saddle nearby may be missed.  The squared norm of the
    gradient is minimised (Gauss and Newton's method with a trust region, through SciPy's
    `least_squares`), up or down the loss.  What is found may be a minimum, a saddle or a maximum:
    see `spectrum`.

    Args:
        task, theta, split, chunk: as in `spectrum`.
        tolerance: norm of the gradient at which a point counts as critical.
        max_steps: Hessians, at most.

    Returns:
        Where it ended, critical or not.  With ReLU the gradient jumps at kinks, so that a descent
        may end at one.

    Raises:
        TypeError, ValueError: as in `spectrum`; ValueError too for more than 1,000 parameters, or
            where the gradient or the Hessian is not finite.
        RuntimeError: the loss cannot be differentiated twice.
        ImportError: scipy is not installed; it comes with the extra `notebooks`.
    """
    from scipy.optimize import least_squares

    parts, start = _loss_at(task, theta, split, chunk)
    tolerance = check_number(tolerance, "tolerance", lambda v: 0 < v < math.inf, "> 0")
    max_steps = check_whole(max_steps, "max_steps", 1)
    if task.n_params > MOST_EXACT:
        raise ValueError(
            f"{task.name} has {task.n_params:,} parameters; a critical point is sought with whole "
            f"Hessians, for {MOST_EXACT:,} at most"
        )

    def finite(name: str, values: Tensor) -> np.ndarray:
        if not bool(values.isfinite().all()):
            raise ValueError(f"the {name} of {task.name} is not finite on the way from theta")
        return values.cpu().numpy()

    def gradient(values: np.ndarray) -> np.ndarray:
        return finite("gradient", _slope(parts, torch.from_numpy(values).to(start))[1])

    def hessian(values: np.ndarray) -> np.ndarray:
        return finite("Hessian", _hessian(parts, torch.from_numpy(values).to(start)))

    least = 4 * np.finfo(float).eps  # SciPy takes no less
    limits = {"ftol": least, "xtol": least, "gtol": max(least, tolerance**2), "max_nfev": max_steps}
    found = least_squares(gradient, start.cpu().numpy(), hessian, **limits)
    end = torch.from_numpy(found.x).to(start)
    loss, slope = _slope(parts, end)
    return CriticalPoint(
        theta=end,
        loss=loss,
        gradient_norm=float(slope.norm()),
        converged=float(slope.norm()) <= tolerance,
        ended=found.status != 0,
        distance=float((end - start).norm()),
        n_steps=found.njev,
    )


def _loss_at(task: Task, theta, split: str, chunk: int | None) -> tuple[list[Callable], Tensor]:
    """The loss on a split in parts, and theta `(P,)`, in float64, after a look at all four."""
    check_task(task)
    (theta,) = thetas_of(task, theta=theta)
    theta = check_theta(theta, "theta", (task.n_params,), finite=True).detach().to(task.device)
    lookup({"test": 0, "train": 0}, split, "split")
    chunk = None if chunk is None else check_whole(chunk, "chunk", 1)
    if not isinstance(task, Landscape):  # the other split need not be copied
        task = replace(task, splits={split: task.splits[split]})
    return _parts_of_loss(task.to(dtype=torch.float64), split, chunk), theta.double()


def _parts_of_loss(task: Task, split: str, chunk: int | None) -> list[Callable]:
    """Functions of theta `(P,)` that add up to the training loss."""
    if isinstance(task, Landscape):
        return [task.function]
    sample, module = task.splits[split], task.module
    n, shapes = size_of(sample), shapes_of(module)
    step = min(chunk or task.eval_chunk or n, n)

    def part(rows: slice) -> Callable[[Tensor], Tensor]:
        x, y = part_of(sample, rows, torch.float64)
        (arguments, keywords), share = arguments_of(x), size_of((x, y)) / n

        def loss(theta: Tensor) -> Tensor:
            output = functional_call(module, unflatten(theta, shapes), arguments, keywords)
            return share * task.loss_function(output, y)

        return loss

    return [part(slice(i, i + step)) for i in range(0, n, step)]


def _slope(parts: list[Callable], theta: Tensor) -> tuple[float, Tensor]:
    """The loss, and its gradient `(P,)`."""
    loss, gradient = 0.0, torch.zeros_like(theta)
    for part in parts:
        leaf = theta.clone().requires_grad_()
        value = part(leaf)
        loss += float(value.detach())
        if value.requires_grad:  # else it does not depend on theta
            gradient += torch.autograd.grad(value, leaf)[0]
    return loss, gradient


def _products(parts: list[Callable], theta: Tensor) -> Callable[[Tensor], Tensor]:
    """The Hessian as a function: a vector `(P,)` to its product with it, both on the CPU."""

    def apply(vector: Tensor) -> Tensor:
        vector, product = vector.to(theta), torch.zeros_like(theta)
        for part in parts:
            leaf = theta.clone().requires_grad_()
            value = part(leaf)
            if not value.requires_grad:
                continue
            (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
            if slope.requires_grad:  # else the loss is linear
                (along,) = torch.autograd.grad(slope, leaf, vector, materialize_grads=True)
                product += along
        return product.cpu()

    return apply


@cache
def _load_forward_mode() -> None:
    """Let torch load what forward derivatives need, which warns of its own code the first time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.ones(())
        torch.func.jvp(torch.sin, (one,), (one,))


def _hessian(parts: list[Callable], theta: Tensor) -> Tensor:
    """The whole matrix, `(P, P)`."""
    try:
        _load_forward_mode()
        hessian = sum(torch.func.hessian(part)(theta) for part in parts)
    except RuntimeError:  # what vmap or forward mode cannot run
        apply = _products(parts, theta)
        rows = [apply(e) for e in torch.eye(len(theta), dtype=theta.dtype)]
        hessian = torch.stack(rows).to(theta)
    return (hessian + hessian.T) / 2


def _trace(apply: Callable, n_params: int, n_probes: int, generator) -> tuple[float, float]:
    """The trace and its standard error, from products with vectors of signs."""
    estimates = []
    for _ in range(n_probes):
        signs = 2.0 * torch.randint(2, (n_params,), generator=generator).double() - 1
        estimates.append(float(apply(signs) @ signs))
    values = np.array(estimates)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(n_probes))


def _ends_of(apply: Callable, n_params: int, k: int, tolerance: float, generator) -> np.ndarray:
    """The k lowest and the k highest eigenvalues, ascending."""

    def start() -> Tensor:
        return torch.randn(n_params, generator=generator, dtype=torch.float64)

    if not bool(apply(start()).any()):
        return np.zeros(2 * k)

    def product(vector: np.ndarray) -> np.ndarray:
        return apply(torch.from_numpy(vector.reshape(-1))).numpy()

    (largest,), _ = _lanczos(product, n_params, 1, "LM", 0.01, start().numpy())
    shift = 2.2 * abs(largest)  # with it all are of one size, so that accuracy is relative to that

    def ends(sign: int) -> np.ndarray:
        """The k lowest of `sign * H`.  One run sees a multiple eigenvalue once: what was found is
        lifted to the top, until a run from another start finds none below the k known ones."""
        values, vectors = np.zeros(0), np.zeros((n_params, 0))
        for _ in range(k + 1):

            def lifted(v: np.ndarray, values=values, vectors=vectors) -> np.ndarray:
                v = v.reshape(-1)
                up = vectors @ ((2 * shift - values) * (vectors.T @ v))
                return sign * product(v) + shift * v + up

            found, directions = _lanczos(lifted, n_params, k, "SA", tolerance, start().numpy())
            found, before = found - shift, np.sort(values)[:k]
            values = np.concatenate([values, found])
            vectors = np.linalg.qr(np.concatenate([vectors, directions], axis=1))[0]
            if len(before) == k and found.min() >= before[-1] - tolerance * shift:
                break
        return np.sort(values)[:k]

    return np.concatenate([ends(1), -ends(-1)[::-1]])


def _lanczos(product: Callable, n_params: int, k: int, which: str, tolerance: float, start):
    """Eigenvalues `(k,)` and vectors `(P, k)` at one end; RuntimeError if they do not converge."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    operator = LinearOperator((n_params, n_params), matvec=product, dtype=np.float64)
    try:
        return eigsh(operator, k, which=which, v0=start, tol=tolerance, maxiter=MOST_RESTARTS)
    except ArpackError as error:
        raise RuntimeError(f"Lanczos' algorithm does not converge: {error}") from error
