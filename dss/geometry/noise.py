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
from torch.utils._pytree import tree_map

from dss.checks import (
    check_generator,
    check_number,
    check_theta,
    check_whole,
    per_pair,
    short,
)
from dss.networks.modes import in_usual_mode
from dss.networks.samples import Streamed, part_of, size_of
from dss.networks.stacks import own_batch_gradients
from dss.task import Task, check_task

N_NODES = 8_001  # of the grid on which one parameter's noise is summed, eight widths to each side
LEAST_SAMPLES = 8.0  # on which a mean of exp(-loss / T) must rest
NOISE_AT_A_TIME = 2**22  # random numbers that are drawn at a time
MOST_SEED = 2**63 - 1


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
    batch_size: int | None = None,
    at: Sequence[int] = (),
    until: Callable[[Tensor], Tensor] | None = None,
) -> Cloud:
    """N runs of descent with noise, side by side.

    The noise of a run follows from `seed` and its number alone, so that it does not depend on how
    many others run beside it.  What is random is the added noise, and with `batch_size` the choice
    of the samples whose mean gradient a step takes; each run chooses its own.  A run takes
    generators of its own, about a kilobyte each.

    Args:
        task: gives the gradients.
        thetas: `(N, P)` where the runs begin.
        temperature: T >= 0, in the unit of the loss; one for all, or `(N,)`.
        lr: the step, > 0.
        n_steps: most steps of a run.
        seed: of the noise, from 0 to 2**63 - 1.
        first: number of the first run, likewise; the others follow it.
        batch_size: samples that each run draws for each step, with replacement, at most as many as
            there are; None: gradients are those of the whole training sample.
        at: steps at which the runs are looked at, from 0 to n_steps.
        until: given those that still run, `(n, P)`, says which have arrived, `(n,)` bool; they end.

    Returns:
        `Cloud`; its thetas are on the task's device.

    Raises:
        TypeError: thetas or a number that is none; until gives something else than flags.
        ValueError: an argument out of range, a task with noise of its own, a batch_size for one
            without samples or with samples that are streamed or augmented, or a run that is not
            finite: lr is too large.

    Source: Welling and Teh 2011; Mandt, Hoffman and Blei 2017.
    """
    check_task(task)
    thetas = check_theta(thetas, "thetas", (None, task.n_params), finite=True).detach()
    if not (n := len(thetas)):
        raise ValueError("thetas has 0 rows; at least one run is needed")
    if task.noise is not None:
        raise ValueError(f"{task.name} has noise of its own in training; a task without is needed")
    lr = check_number(lr, "lr", lambda v: 0 < v < np.inf, "a finite number > 0")
    n_steps = check_whole(n_steps, "n_steps", 0)
    seed, first = (
        check_whole(v, name, 0, MOST_SEED) for v, name in ((seed, "seed"), (first, "first"))
    )
    looks = sorted({check_whole(step, "at", 0, n_steps) for step in at})
    temperature = per_pair(temperature, n, "temperature")
    for value in temperature.tolist():
        check_number(value, "temperature", lambda v: 0 <= v < np.inf, "finite and >= 0")
    theta, is_look = thetas.to(task.device).clone(), set(looks)
    width = (2 * lr * temperature).sqrt().to(theta)[:, None]  # (N, 1)
    ended, steps = theta.clone(), torch.full((n,), n_steps, dtype=torch.int64)
    arrived, rows, seen = torch.zeros(n, dtype=torch.bool), torch.arange(n), []
    noise = _Draws(seed, first, n, task.n_params, np.random.Generator.standard_normal)
    batches = None if batch_size is None else _batches_of(task, batch_size, seed, first, n)
    for step in range(n_steps + 1):
        if until is not None:
            there = _flags(until(theta.clone()), len(rows))
            gone = rows[there]
            ended[gone.to(theta.device)], steps[gone], arrived[gone] = theta[there], step, True
            rows, theta, width = rows[~there], theta[~there], width[~there]
        if step in is_look:
            ended[rows.to(theta.device)] = theta
            seen.append(ended.clone())
        if step == n_steps or not len(rows):
            break
        if step % 256 == 0 and not bool(theta.isfinite().all()):
            break
        xi = noise.of(step, rows).to(theta)
        if batches is None:
            slope = task.gradients(theta)[1]
        else:
            slope = _slopes_on(task, theta, batches.of(step, rows))
        theta = theta - lr * slope + width * xi
    ended[rows.to(theta.device)] = theta
    if not bool(ended.isfinite().all()):
        raise ValueError(f"lr is {lr}, and a run is not finite; a smaller lr is needed")
    seen += [ended.clone()] * (len(looks) - len(seen))  # all have arrived before
    at = torch.tensor(looks, dtype=torch.int64)
    seen = torch.stack(seen) if seen else ended.new_empty(0, *ended.shape)
    return Cloud(ended, steps, arrived, at, seen)


def _flags(there: Tensor, n: int) -> Tensor:
    """What `until` gave, on the CPU; TypeError for something else than one flag a run."""
    if not isinstance(there, Tensor) or there.dtype != torch.bool or there.shape != (n,):
        kind = f"{type(there).__name__} {tuple(getattr(there, 'shape', ()))}"
        kind += f" of {there.dtype}" if isinstance(there, Tensor) else ""
        raise TypeError(f"until gave a {kind}; a tensor ({n},) of torch.bool is needed")
    return there.cpu()


class _Draws:
    """`size` numbers a step for N runs, each from a generator of its own, many steps at once.

    `draw` gives them, of a generator and a shape.  Two kinds of numbers of one run differ by
    `n_jumps`: a jump leads to a part of the generator's period that no run comes to.
    """

    def __init__(self, seed: int, first: int, n: int, size: int, draw: Callable, n_jumps: int = 0):
        keys = [np.array([seed, first + run], dtype=np.uint64) for run in range(n)]
        streams = [np.random.Philox(key=key).jumped(n_jumps) for key in keys]
        self.generators, self.draw = [np.random.Generator(s) for s in streams], draw
        self.shape = max(1, NOISE_AT_A_TIME // (n * size)), size
        self.begin, self.block = 0, np.empty((0, n, size))

    def of(self, step: int, rows: Tensor) -> Tensor:
        """Those of one step for some of the runs, `(len(rows), size)`; steps only rise."""
        if step >= self.begin + len(self.block):
            drawn = {row: self.draw(self.generators[row], self.shape) for row in rows.tolist()}
            unused = np.zeros(self.shape, next(iter(drawn.values())).dtype)  # a run that has ended
            runs = [drawn.get(row, unused) for row in range(len(self.generators))]
            self.begin, self.block = step, np.stack(runs, axis=1)
        return torch.from_numpy(self.block[step - self.begin])[rows]


def _batches_of(task: Task, batch_size: int, seed: int, first: int, n: int) -> _Draws:
    """The samples that runs draw; ValueError for a task that has none at hand."""
    sample = task.splits.get("train")
    if sample is None or isinstance(sample, Streamed) or task.augment is not None:
        kind = "no samples" if sample is None else "samples that are streamed or augmented"
        raise ValueError(f"batch_size is {short(batch_size)}; {task.name} has {kind}")
    n_samples = size_of(sample)
    batch_size = check_whole(batch_size, "batch_size", 1, n_samples)

    def places(generator: np.random.Generator, shape: tuple) -> np.ndarray:
        return generator.integers(n_samples, size=shape)

    return _Draws(seed, first, n, batch_size, places, n_jumps=1)


def _slopes_on(task: Task, thetas: Tensor, batch: Tensor) -> Tensor:
    """The gradient of each network `(N, P)` on the samples of its row of `batch` `(N, B)`."""

    def slopes(rows: slice) -> Tensor:
        chosen = batch[rows].to(thetas.device)
        parts = part_of(task.splits["train"], chosen.flatten(), thetas.dtype)
        x, y = (tree_map(lambda v: v.unflatten(0, chosen.shape), part) for part in parts)
        return own_batch_gradients(task.module, task.loss_function, thetas[rows], x, y)[1]

    n_samples = batch.shape[1]
    return torch.cat(task.budget.by_rows(slopes, len(thetas), n_samples, thetas.dtype))


@in_usual_mode
def smoothed_losses(
    task: Task,
    thetas: Tensor,
    width: float,
    temperature: float = np.inf,
    n_samples: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The metric about each network, averaged over Gaussian noise of a width in every parameter.

    At an infinite temperature it is the mean.  At a finite one it is the local entropy of Chaudhari
    et al., with its sign turned: `-T log mean exp(-loss / T)`, which low places nearby pull down.
    With more than one parameter and a low temperature few samples make all of that mean; the value
    then lies above the true one, and where fewer than eight count it is refused.

    Args:
        task: gives the metric on the training sample.
        thetas: `(N, P)`.
        width: standard deviation of the noise, >= 0.
        temperature: T > 0.
        n_samples: noise drawn, the same for all networks and each with both signs, where there is
            more than one parameter; for one parameter a sum over a fine grid takes its place.
        generator: CPU generator of the noise; a new one with seed 0 by default.

    Returns:
        `(N,)` float64, on the CPU.

    Raises:
        TypeError: an argument that is no number.
        ValueError: an argument out of range, or a mean that rests on fewer than eight samples.

    Source: Kleinberg, Li and Yuan 2018; Chaudhari et al. 2017.
    """
    check_task(task)
    thetas = check_theta(thetas, "thetas", (None, task.n_params), finite=True).to(task.device)
    width = check_number(width, "width", lambda v: 0 <= v < np.inf, "a finite number >= 0")
    temperature = check_number(temperature, "temperature", lambda v: v > 0, "> 0")
    n_samples, generator = check_whole(n_samples, "n_samples", 1), check_generator(generator)
    if task.n_params == 1:
        xi = torch.linspace(-8, 8, N_NODES, dtype=torch.float64)[:, None]
        weights = torch.softmax(-(xi[:, 0] ** 2) / 2, 0)
    else:
        xi = torch.randn(n_samples, task.n_params, generator=generator, dtype=torch.float64)
        xi, weights = torch.cat([xi, -xi]), torch.full((2 * n_samples,), 0.5 / n_samples)
    weights, values = weights.double(), []
    for theta in thetas:
        losses = task.losses(theta + width * xi.to(theta), split="train").double().cpu()
        if np.isinf(temperature):
            values.append(weights @ losses)
            continue
        logs = weights.log() - losses / temperature
        values.append(-temperature * torch.logsumexp(logs, 0))
        n_counted = float(1 / torch.softmax(logs, 0).square().sum())
        if width and task.n_params > 1 and n_counted < min(LEAST_SAMPLES, len(losses)):
            raise ValueError(
                f"temperature is {temperature} and width {width}: the mean rests on "
                f"{n_counted:.1f} of {len(losses)} samples; a higher temperature, a smaller width "
                "or more samples are needed"
            )
    return torch.stack(values) if values else torch.empty(0, dtype=torch.float64)


def stationary_density(potential: np.ndarray, step: float, temperature: float) -> np.ndarray:
    """Where a cloud of runs settles: exp(-V / T), normalised so that its sum times `step` is one.

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
    is, and free energy falls, for any step of the grid.  In time it is solved to a relative 1e-8 of
    the highest density, so that a density of nothing may be that much below zero.

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
        RuntimeError: SciPy cannot solve it: the potential rises too steeply from point to point.

    Source: Risken, The Fokker-Planck Equation (1989).
    """
    from scipy import sparse
    from scipy.integrate import solve_ivp

    potential, step, temperature = _checked(potential, step, temperature)
    density = _density(density, potential)
    times = np.array([check_number(t, "a time", lambda v: 0 <= v < np.inf, ">= 0") for t in times])
    rise = np.diff(potential) / (2 * temperature)
    up, down = (temperature / step**2 * np.exp(sign * rise) for sign in (-1, 1))  # rates of jumps
    stay = -np.append(up, 0) - np.append(0, down)
    rates = sparse.diags([up, stay, down], [-1, 0, 1], format="csc")
    moments, places = np.unique(times, return_inverse=True)
    if not moments.any():
        return np.tile(density, (len(times), 1))
    options = {"method": "BDF", "jac": rates, "rtol": 1e-8, "atol": 1e-10 * density.max()}
    try:
        span = 0, moments[-1]
        found = solve_ivp(lambda _, p: rates @ p, span, density, t_eval=moments, **options)
    except RuntimeError as error:
        raise RuntimeError(f"{error}; a finer grid or a higher temperature helps") from error
    if not found.success:
        raise RuntimeError(f"{found.message}; a finer grid or a higher temperature helps")
    return found.y.T[places]


def free_energy(
    density: np.ndarray, potential: np.ndarray, step: float, temperature: float
) -> float:
    """Mean loss minus T times entropy of a density on a grid, `sum(p V + T p log p) * step`.

    Args:
        density: `(n,)`, >= 0.
        potential, step, temperature: as in `stationary_density`.

    Raises:
        TypeError, ValueError: a potential or density that is none, or a number out of range.
    """
    potential, step, temperature = _checked(potential, step, temperature)
    density = _density(density, potential, least=-1e-6)
    entropy = -np.where(density > 0, density * np.log(np.where(density > 0, density, 1)), 0)
    return float(((density * potential) - temperature * entropy).sum() * step)


def mean_arrival_time(
    potential: np.ndarray, step: float, temperature: float, start: int, end: int
) -> float:
    """The mean time from one point of a grid to another, exact for one parameter.

    Behind the start the grid must go on so far that exp(-V / T) is next to nothing at its first
    point.

    Args:
        potential, step, temperature: as in `stationary_density`.
        start, end: places on the grid, start < end; turn the potential round for the other way.

    Returns:
        Time in units of `lr` times gradient steps.

    Raises:
        TypeError, ValueError: a potential that is none, a number or place out of range, a grid that
            ends too early behind the start, or a time that is no finite number.

    Source: Risken, The Fokker-Planck Equation (1989).
    """
    potential, step, temperature = _checked(potential, step, temperature)
    end = check_whole(end, "end", 1, len(potential) - 1)
    start = check_whole(start, "start", 0, end - 1)
    level = (potential - potential[: end + 1].min()) / temperature
    weights = np.exp(-level)
    if weights[0] > 1e-6 * weights[: end + 1].max():
        raise ValueError(f"the grid begins at a weight of {weights[0]:.2g}; it must go on further")
    if level[start : end + 1].max() > 700:
        raise ValueError(f"temperature is {temperature}; the time is no finite number")
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
    if barrier / temperature > 700:
        raise ValueError(f"temperature is {temperature}; the time is no finite number")
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


def _density(density, potential: np.ndarray, least: float = 0.0) -> np.ndarray:
    """A density on the grid of a potential; ValueError for what is none."""
    density = np.asarray(density, dtype=float)
    is_right = density.shape == potential.shape and np.isfinite(density).all()
    if not is_right or density.max() <= 0 or density.min() < least * density.max():
        raise ValueError(
            f"density {density.shape}; finite numbers >= 0 and not all 0, of shape "
            f"{potential.shape}, are needed"
        )
    return density
