"""Descent with noise: clouds of runs, where they settle, and how long they stay in a valley.

A run is gradient descent with Gaussian noise of a temperature T, the Euler-Maruyama scheme of the
Langevin equation: `theta <- theta - lr * gradient + sqrt(2 * lr * T) * xi`.  After k steps its time
is `lr * k`.  Densities of one parameter are given on a grid of equal steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dss.checks import (
    check_generator,
    check_number,
    check_theta,
    check_whole,
    numbers_of,
)
from dss.networks.modes import in_usual_mode
from dss.task import Task, check_task

N_NODES = (
    96  # of the quadrature for one parameter: exact up to some seven widths of a cosine's wave
)
NOISE_AT_A_TIME = 2**22  # random numbers that are drawn at a time


@dataclass(frozen=True, eq=False)
class Cloud:
    """What `cloud` returns, for N runs.

    Attributes:
        thetas: `(N, P)`, where each run ended.
        steps: `(N,)` int64, gradient steps that it took.
        arrived: `(N,)` bool, it came to where it was to end; False where no place was named.
        at: `(R,)` int64, the steps at which the runs were looked at.
        seen: `(R, N, P)`, where they were; a run that has arrived stays where it arrived.
    """

    thetas: Tensor = field(repr=False)
    steps: Tensor
    arrived: Tensor
    at: Tensor
    seen: Tensor = field(repr=False)


@in_usual_mode
def cloud(
    task: Task,
    thetas: Tensor,
    temperature: float | Tensor,
    lr: float,
    n_steps: int,
    *,
    seed: int = 0,
    first: int = 0,
    at: Sequence[int] = (),
    until: Callable[[Tensor], Tensor] | None = None,
) -> Cloud:
    """N runs of descent with noise, side by side.

    The noise of a run follows from `seed` and its number alone, so that it does not depend on how
    many others run beside it.  Gradients are those of the whole training sample: what is random
    here is the added noise, not the choice of a batch.

    Args:
        task: gives the gradients.
        thetas: `(N, P)` where the runs begin.
        temperature: T >= 0, in the unit of the loss; one for all, or `(N,)`.
        lr: the step, > 0.
        n_steps: most steps of a run.
        seed: of the noise, >= 0.
        first: number of the first run; the others follow it.
        at: steps at which the runs are looked at, from 0 to n_steps.
        until: given `(N, P)`, says which runs have arrived, `(N,)` bool; those end.

    Returns:
        `Cloud`, on the task's device.

    Raises:
        TypeError: thetas or a number that is none.
        ValueError: an argument out of range, or a run that is not finite: lr is too large.

    Source: Welling and Teh 2011; Mandt, Hoffman and Blei 2017.
    """
    check_task(task)
    thetas = check_theta(thetas, "thetas", (None, task.n_params), finite=True).detach()
    n, lr = len(thetas), check_number(lr, "lr", lambda v: 0 < v < np.inf, "a finite number > 0")
    n_steps, first = check_whole(n_steps, "n_steps", 0), check_whole(first, "first", 0)
    seed = check_whole(seed, "seed", 0)
    looks = sorted({check_whole(step, "at", 0, n_steps) for step in at})
    temperature = numbers_of(temperature, "temperature").double().expand(n)
    if not bool(((temperature >= 0) & temperature.isfinite()).all()):
        raise ValueError(f"temperature is {float(temperature.min())}; it must be finite and >= 0")
    theta = thetas.to(task.device).clone()
    width = (2 * lr * temperature).sqrt().to(theta)[:, None]  # (N, 1)
    ended, steps = theta.clone(), torch.full((n,), n_steps, dtype=torch.int64)
    arrived, rows, seen = torch.zeros(n, dtype=torch.bool), torch.arange(n), []
    noise = _Noise(seed, first, n, task.n_params)
    for step in range(n_steps + 1):
        if until is not None and len(rows):
            there = until(theta).cpu()
            gone = rows[there]
            ended[gone.to(theta.device)], steps[gone], arrived[gone] = theta[there], step, True
            rows, theta, width = rows[~there], theta[~there], width[~there]
        if step in looks:
            ended[rows.to(theta.device)] = theta
            seen.append(ended.clone())
        if step == n_steps or not len(rows):
            break
        xi = noise.of(step, rows).to(theta)
        theta = theta - lr * task.gradients(theta)[1] + width * xi
    ended[rows.to(theta.device)] = theta
    if not bool(ended.isfinite().all()):
        raise ValueError(f"lr is {lr}, and a run is not finite; a smaller lr is needed")
    seen += [ended.clone()] * (len(looks) - len(seen))  # all have arrived before
    at = torch.tensor(looks, dtype=torch.int64)
    seen = torch.stack(seen) if seen else ended.new_empty(0, *ended.shape)
    return Cloud(ended, steps, arrived, at, seen)


class _Noise:
    """Normal numbers of N runs, each from a generator of its own, drawn for many steps at once."""

    def __init__(self, seed: int, first: int, n: int, n_params: int):
        keys = [[seed, first + run] for run in range(n)]
        self.draws = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self.shape = max(1, NOISE_AT_A_TIME // (n * n_params)), n_params
        self.begin, self.block = 0, np.empty((0, n, n_params))

    def of(self, step: int, rows: Tensor) -> Tensor:
        """Those of one step for some of the runs, `(len(rows), P)` float64; steps only rise."""
        if step >= self.begin + len(self.block):
            block = np.zeros((self.shape[0], len(self.draws), self.shape[1]))
            for row in rows.tolist():  # a run that has ended draws no more
                block[:, row] = self.draws[row].standard_normal(self.shape)
            self.begin, self.block = step, block
        return torch.from_numpy(self.block[step - self.begin])[rows]


@in_usual_mode
def smoothed_losses(
    task: Task,
    thetas: Tensor,
    width: float,
    temperature: float = np.inf,
    n_samples: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loss about each network, averaged over Gaussian noise of a width in every parameter.

    At an infinite temperature it is the mean of the loss, what SGD descends in the picture of
    Kleinberg, Li and Yuan.  At a finite one it is the local entropy of Chaudhari et al., with its
    sign turned: `-T log mean exp(-loss / T)`, which low places nearby pull down.

    Args:
        task: gives the losses of the training sample.
        thetas: `(N, P)`.
        width: standard deviation of the noise, >= 0.
        temperature: T > 0.
        n_samples: noise drawn, the same for all networks and each with both signs, where there is
            more than one parameter; for one parameter a quadrature takes its place.
        generator: CPU generator of the noise; a new one with seed 0 by default.

    Returns:
        `(N,)` float64, on the CPU.

    Raises:
        TypeError, ValueError: an argument out of range.

    Source: Kleinberg, Li and Yuan 2018; Chaudhari et al. 2017.
    """
    check_task(task)
    thetas = check_theta(thetas, "thetas", (None, task.n_params), finite=True).to(task.device)
    width = check_number(width, "width", lambda v: 0 <= v < np.inf, "a finite number >= 0")
    temperature = check_number(temperature, "temperature", lambda v: v > 0, "> 0")
    n_samples, generator = check_whole(n_samples, "n_samples", 1), check_generator(generator)
    if task.n_params == 1:
        nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
        xi, weights = torch.from_numpy(nodes)[:, None], torch.from_numpy(weights / weights.sum())
    else:
        xi = torch.randn(n_samples, task.n_params, generator=generator, dtype=torch.float64)
        xi, weights = torch.cat([xi, -xi]), torch.full((2 * n_samples,), 0.5 / n_samples)
    weights, values = weights.double(), []
    for theta in thetas:
        losses = task.losses(theta + width * xi.to(theta), split="train").double().cpu()
        if np.isinf(temperature):
            values.append(weights @ losses)
        else:
            values.append(-temperature * torch.logsumexp(weights.log() - losses / temperature, 0))
    return torch.stack(values) if values else torch.empty(0, dtype=torch.float64)


def stationary_density(potential: np.ndarray, step: float, temperature: float) -> np.ndarray:
    """Where a cloud of runs settles: exp(-V / T), normalised to a sum of one over `step`.

    Args:
        potential: `(n,)`, the loss V on a grid.
        step: of the grid, > 0.
        temperature: T > 0.

    Returns:
        `(n,)` density.

    Raises:
        TypeError, ValueError: a potential that is none, or a number out of range.

    Source: Chaudhari and Soatto 2018.
    """
    potential, step, temperature = _checked(potential, step, temperature)
    weights = np.exp(-(potential - potential.min()) / temperature)
    return weights / (weights.sum() * step)


def fokker_planck(
    potential: np.ndarray,
    step: float,
    temperature: float,
    density: np.ndarray,
    times: Sequence[float],
) -> np.ndarray:
    """The density of a cloud at later times, from the one-dimensional Fokker-Planck equation.

    `dp/dt = d/dx (V' p) + T d^2p/dx^2`, with walls that nothing crosses at both ends of the grid,
    as jumps between neighbouring points in detailed balance: mass is kept, exp(-V / T) stays as it
    is, and free energy falls, for any step.

    Args:
        potential: `(n,)`, the loss V on a grid.
        step: of the grid, > 0.
        temperature: T > 0.
        density: `(n,)` at time 0.
        times: >= 0, in units of `lr` times gradient steps.

    Returns:
        `(len(times), n)` densities.

    Raises:
        TypeError, ValueError: a potential or density that is none, or a number out of range.

    Source: Risken, The Fokker-Planck Equation (1989).
    """
    from scipy import sparse
    from scipy.integrate import solve_ivp

    potential, step, temperature = _checked(potential, step, temperature)
    density = np.asarray(density, dtype=float)
    if density.shape != potential.shape or not (density >= 0).all():
        raise ValueError(f"density {density.shape}; numbers >= 0, {potential.shape}, are needed")
    times = np.array([check_number(t, "a time", lambda v: 0 <= v < np.inf, ">= 0") for t in times])
    rise = np.diff(potential) / (2 * temperature)
    up, down = (temperature / step**2 * np.exp(sign * rise) for sign in (-1, 1))  # rates of jumps
    stay = -np.append(up, 0) - np.append(0, down)
    rates = sparse.diags([up, stay, down], [-1, 0, 1], format="csc")
    moments, places = np.unique(times, return_inverse=True)
    if not moments.any():
        return np.tile(density, (len(times), 1))
    options = {"method": "BDF", "jac": rates, "rtol": 1e-8, "atol": 1e-10 * density.max()}
    found = solve_ivp(lambda _, p: rates @ p, (0, moments[-1]), density, t_eval=moments, **options)
    return found.y.T[places]


def free_energy(
    density: np.ndarray, potential: np.ndarray, step: float, temperature: float
) -> float:
    """Mean loss minus T times entropy of a density on a grid, `sum(p V + T p log p) * step`.

    Args:
        density: `(n,)`, >= 0.
        potential, step, temperature: as in `stationary_density`.

    Raises:
        TypeError, ValueError: a potential that is none, or a number out of range.
    """
    potential, step, temperature = _checked(potential, step, temperature)
    density = np.asarray(density, dtype=float)
    entropy = -np.where(density > 0, density * np.log(np.where(density > 0, density, 1)), 0)
    return float(((density * potential) - temperature * entropy).sum() * step)


def mean_arrival_time(
    potential: np.ndarray, step: float, temperature: float, start: int, end: int
) -> float:
    """The mean time from one point of a grid to another, exact for one parameter.

    Behind the start the grid should go on so far that exp(-V / T) is nothing at its first point.

    Args:
        potential, step, temperature: as in `stationary_density`.
        start, end: places on the grid, start < end; turn the potential round for the other way.

    Returns:
        Time in units of `lr` times gradient steps.

    Raises:
        TypeError, ValueError: a potential that is none, or a number or place out of range.

    Source: Risken, The Fokker-Planck Equation (1989).
    """
    potential, step, temperature = _checked(potential, step, temperature)
    end = check_whole(end, "end", 1, len(potential) - 1)
    start = check_whole(start, "start", 0, end - 1)
    level = (potential - potential[: end + 1].min()) / temperature
    weights = np.exp(-level)
    below = step * (np.cumsum(weights) - weights / 2)  # up to each point
    inner = np.exp(level[start : end + 1]) * below[start : end + 1]
    return float(np.trapezoid(inner, dx=step) / temperature)


def kramers_time(barrier: float, temperature: float, low: np.ndarray, top: np.ndarray) -> float:
    """The mean time out of a valley over a pass, where the barrier is high against T.

    `2 pi / |lambda| * sqrt(|det H_top| / det H_low) * exp(barrier / T)`, with the one negative
    eigenvalue lambda at the pass; after it the other valley is reached, and half of it is the time
    to the top itself.

    Args:
        barrier: loss of the pass over that of the minimum, >= 0.
        temperature: T > 0.
        low: `(P,)` eigenvalues of the Hessian at the minimum, all > 0.
        top: `(P,)` at the pass, one of them < 0 and no other.

    Returns:
        Time in units of `lr` times gradient steps.

    Raises:
        TypeError: no numbers.
        ValueError: a number out of range, or eigenvalues that no minimum or no pass has.

    Source: Kramers 1940; Berglund 2013.
    """
    barrier = check_number(barrier, "barrier", lambda v: 0 <= v < np.inf, ">= 0")
    temperature = check_number(temperature, "temperature", lambda v: 0 < v < np.inf, "> 0")
    low, top = (np.atleast_1d(np.asarray(v, dtype=float)) for v in (low, top))
    if low.shape != top.shape or not (low > 0).all():
        raise ValueError(f"low is {low}; as many eigenvalues as at the pass are needed, all > 0")
    if (top < 0).sum() != 1 or not (top != 0).all():
        raise ValueError(f"top is {top}; one eigenvalue < 0 and no other, and none of 0, is needed")
    ratio = np.exp((np.log(np.abs(top)).sum() - np.log(low).sum()) / 2)
    return float(2 * np.pi / -top.min() * ratio * np.exp(barrier / temperature))


def _checked(potential, step, temperature) -> tuple[np.ndarray, float, float]:
    """A potential on a grid, its step and the temperature; ValueError for what is out of range."""
    potential = np.asarray(potential, dtype=float)
    if potential.ndim != 1 or len(potential) < 2 or not np.isfinite(potential).all():
        raise ValueError(f"potential {potential.shape}; finite numbers (n,), n >= 2, are needed")
    step = check_number(step, "step", lambda v: 0 < v < np.inf, "> 0")
    return (
        potential,
        step,
        check_number(temperature, "temperature", lambda v: 0 < v < np.inf, "> 0"),
    )
