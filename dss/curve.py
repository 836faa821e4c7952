"""The loss along straight segments: gamma, its maximum t*, many segments at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dss.checks import check_grid, check_rule, check_segments, check_theta
from dss.networks.modes import in_usual_mode
from dss.task import Network, Task, check_task, thetas_of
from dss.theta import interpolate, segment_lengths

if TYPE_CHECKING:
    import pandas as pd

ROUNDS = 3  # of parabolic interpolation, a forward pass each


@dataclass(frozen=True, eq=False)
class Maxima:
    """Where gamma is largest on each of S segments.

    Attributes:
        t_star: `(S,)` float64.
        gamma_max: `(S,)` float64, the largest value that was evaluated, refined or on the grid.
        grid_max: `(S,)` float64, the largest value on the grid alone.
        n_passes: `(S,)` int64, forward passes of one network over the evaluation set.
    """

    t_star: Tensor
    gamma_max: Tensor
    grid_max: Tensor
    n_passes: Tensor


@in_usual_mode
def interpolated_loss(
    task: Task, theta_1: Tensor | Network, theta_2: Tensor | Network, n_t: int = 33
) -> Tensor:
    """The interpolated loss curve gamma on `linspace(0, 1, n_t)`.

    Args:
        task: gives the metric, measured on the whole evaluation set.
        theta_1, theta_2: `(P,)`, or `(S, P)` for S segments; or what `task.theta` takes.
        n_t: grid points, both ends included; at least 3.

    Returns:
        gamma `(n_t,)` or `(S, n_t)`, in the dtype of `theta_1` and the unit of `task.metric`.

    Raises:
        TypeError, ValueError: bad or unlike thetas (NaN and inf included), or n_t < 3.

    Paper: Eq. (2), Sec. II.A.
    """
    check_task(task)
    theta_1, theta_2 = thetas_of(task, theta_1=theta_1, theta_2=theta_2)
    check_segments(theta_1, theta_2, task.n_params)
    gamma = task.losses_between(torch.atleast_2d(theta_1), torch.atleast_2d(theta_2), grid_of(n_t))
    return gamma if theta_1.dim() == 2 else gamma[0]


def Gamma_tilde(task: Task, thetas: Tensor, n_t: int = 33) -> float:
    """The largest loss between neighbours of a string: an upper bound of Gamma, Eq. (3).

    Args:
        task: gives the metric, measured on the whole evaluation set.
        thetas: `(K, P)`, ordered; two rows for a straight line.
        n_t: grid points on each segment; between them gamma may be higher (`dss.certify`).

    Returns:
        The largest gamma, in the unit of `task.metric`; inf where the loss is NaN.

    Raises:
        TypeError, ValueError: as in `interpolated_loss`; ValueError for fewer than two networks.

    Paper: Eq. (4), Sec. II.B.
    """
    _check_string(task, thetas)
    gamma = interpolated_loss(task, thetas[:-1], thetas[1:], n_t)  # (K - 1, n_t)
    return float(without_nan(gamma).max())


@in_usual_mode
def losses_along(task: Task, thetas: Tensor, n_t: int = 33) -> tuple[Tensor, Tensor]:
    """The loss along a whole string, against arc length.

    Args:
        task: gives the metric, measured on the whole evaluation set.
        thetas: `(K, P)`, ordered; two rows for a straight line.
        n_t: grid points on each segment.

    Returns:
        position `(K - 1, n_t)` float64, arc length over the length of the string, and gamma
        `(K - 1, n_t)`.  Neighbouring rows share a network.

    Raises:
        TypeError, ValueError: as in `interpolated_loss`.

    Paper: Eq. (2), on every segment of a string.
    """
    _check_string(task, thetas)
    gamma = interpolated_loss(task, thetas[:-1], thetas[1:], n_t)
    length = segment_lengths(thetas)
    begin = length.cumsum(0) - length
    position = begin[:, None] + length[:, None] * grid_of(n_t).to(length.device)
    return position / length.sum().clamp(min=1e-300), gamma


def _check_string(task: Task, thetas: Tensor) -> None:
    check_task(task)
    check_theta(thetas, "thetas", (None, task.n_params), finite=True)
    if len(thetas) < 2:
        raise ValueError(f"thetas has {len(thetas)} networks; a string has at least two")


def compare_paths(task: Task, paths: Mapping[str, Tensor], n_t: int = 33) -> "pd.DataFrame":
    """The losses along several paths as one table, for `dss.plots.paths`.

    Args:
        task, n_t: as in `losses_along`.
        paths: by name, each `(K, P)` as `thetas` in `losses_along`.

    Returns:
        A row per point: `path`, `position` (arc length over the length of the path), `loss` and
        `is_network`, which marks the ends of segments, each of them once.

    Raises:
        TypeError: as in `interpolated_loss`.
        ValueError: as there; or no path, or one of fewer than two networks.

    Paper: Eq. (2), on every segment of a string.
    """
    import pandas as pd

    if not isinstance(paths, Mapping):
        raise TypeError(f"paths is a {type(paths).__name__}; paths by name are needed")
    check_task(task)
    n_t = check_grid(n_t)
    if not paths:
        raise ValueError("paths is empty; at least one path is needed")
    parts = []
    for name, thetas in paths.items():
        check_theta(thetas, f"path {name!r}", (None, task.n_params))
        if len(thetas) < 2:
            raise ValueError(f"path {name!r} has {len(thetas)} networks; at least two are needed")
        position, gamma = (v.flatten().tolist() for v in losses_along(task, thetas, n_t))
        marks = [k % n_t == 0 or k == len(gamma) - 1 for k in range(len(gamma))]
        columns = {"path": name, "position": position, "loss": gamma, "is_network": marks}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


@in_usual_mode
def t_star(
    task: Task, theta_1: Tensor, theta_2: Tensor, n_t: int = 33, rule: str = "max"
) -> Tensor:
    """Position of the global maximum of gamma.

    Args:
        task, theta_1, theta_2, n_t: as in `interpolated_loss`.
        rule: `"max"`: the best of the grid, refined by a local search; `"grid"`: the best of the
            grid (of equal ones the nearest to the middle); `"midpoint"`: .5, the alternative;
            `"coarse"`: `"max"` here, while `find_strings` searches segments that are plainly above
            the threshold coarse to fine.

    Returns:
        t* `()` or `(S,)`, float64.

    Raises:
        TypeError, ValueError: as in `interpolated_loss`; ValueError for an unknown rule.

    Paper: Sec. II.A; step 2 of Sec. II.B.
    Differs: the paper's t* is any local maximum of its definition and the global one of its
        algorithm; ends of the segment count here too.
    """
    check_task(task)
    check_segments(theta_1, theta_2, task.n_params)
    maxima = segment_maxima(task, torch.atleast_2d(theta_1), torch.atleast_2d(theta_2), n_t, rule)
    return maxima.t_star[0] if theta_1.dim() == 1 else maxima.t_star


def segment_maxima(
    task: Task,
    theta_1: Tensor,
    theta_2: Tensor,
    n_t: int = 33,
    rule: str = "max",
    limit: Tensor | float = torch.inf,
    ends: Tensor | None = None,
) -> Maxima:
    """Largest gamma of each of S segments, in one batch.

    Args:
        task, n_t, rule: as in `t_star`.  Maxima are refined by three steps of parabolic
            interpolation in the bracket around the best grid point, unless rule is `"grid"`.
        theta_1, theta_2: `(S, P)`.
        limit: `(S,)` or a number, for `"coarse"`: segments above it on every fourth grid point are
            measured there and beside the largest of these points, all others on the whole grid.
            Segments above it are not refined.
        ends: `(S, 2)`, the metric of theta_1 and theta_2 where it is known; it is not measured
            again.

    Raises:
        ValueError: n_t < 3, or an unknown rule.
    """
    check_rule(rule)
    theta_1, theta_2 = theta_1.to(task.device), theta_2.to(task.device)
    limit = torch.as_tensor(limit, dtype=torch.float64, device=task.device).expand(len(theta_1))
    # In groups that fit memory: both ends, the point between them and what makes it, its networks.
    size = task.budget.rows_that_fit(6, theta_1.dtype)
    if ends is None:
        losses = (
            torch.cat([task.losses(part) for part in v.split(size)]) for v in (theta_1, theta_2)
        )
        ends = torch.stack(list(losses), dim=1)
    groups = zip(*(v.split(size) for v in (theta_1, theta_2, limit, ends)), strict=True)
    parts = [_maxima(task, a, b, grid_of(n_t), rule, c, d) for a, b, c, d in groups]
    return Maxima(*(torch.cat(v) for v in zip(*parts, strict=True)))


def _maxima(task: Task, theta_1, theta_2, t, rule, limit, ends) -> tuple[Tensor, ...]:
    """The fields of `Maxima`, for segments that fit memory together."""
    gamma = torch.full((len(ends), len(t)), -torch.inf, dtype=torch.float64, device=task.device)
    gamma[:, [0, -1]] = without_nan(ends.double())
    fill = partial(_fill_coarse_to_fine, limit=limit) if rule == "coarse" else _fill
    n_passes = fill(task, theta_1, theta_2, t, gamma)
    t = t.to(gamma.device)
    grid_max, k = gamma.amax(dim=1), summit_of(gamma, t)
    if rule == "grid":
        return t[k], grid_max, grid_max, n_passes
    rows = (grid_max <= limit).nonzero()[:, 0] if rule == "coarse" else slice(None)
    t_star, gamma_max = t[k], grid_max.clone()
    t_star[rows], gamma_max[rows] = refined(
        task, theta_1[rows], theta_2[rows], t, gamma[rows], k[rows]
    )
    n_passes[rows] += ROUNDS
    t_star = torch.full_like(t_star, 0.5) if rule == "midpoint" else t_star
    return t_star, gamma_max, grid_max, n_passes


def summit_of(gamma: Tensor, t: Tensor) -> Tensor:
    """Index of the largest gamma; of equal ones the nearest to the middle, so that a reversed
    segment gives 1 - t*."""
    off_centre = torch.where(gamma == gamma.amax(dim=1, keepdim=True), (t - 0.5).abs(), torch.inf)
    return off_centre.argmin(dim=1)


def grid_of(n_t: int) -> Tensor:
    """`linspace(0, 1, n_t)`, `(n_t,)` float64; ValueError for fewer than 3 points."""
    return torch.linspace(0, 1, check_grid(n_t), dtype=torch.float64)


def _fill(task: Task, theta_1, theta_2, t, gamma: Tensor) -> Tensor:
    """Measure gamma `(S, n_t)` between its ends; forward passes `(S,)`."""
    gamma[:, 1:-1] = without_nan(task.losses_between(theta_1, theta_2, t[1:-1]).double())
    return torch.full((len(gamma),), len(t) - 2, device=gamma.device)


def _fill_coarse_to_fine(task: Task, theta_1, theta_2, t, gamma: Tensor, limit: Tensor) -> Tensor:
    """The same, but for segments above `limit` the neighbourhood of the summit alone."""
    k = torch.arange(len(t))
    coarse = (k % 4 == 0) | ((len(t) - 1 - k) % 4 == 0)
    inside = (0 < k) & (k < len(t) - 1)
    n_passes = torch.zeros(len(gamma), dtype=torch.int64, device=gamma.device)

    def measure(rows: Tensor, columns: Tensor) -> None:
        """Columns `(n,)`, or `(len(rows), n)` with some for each row."""
        if len(rows) and columns.numel():
            losses = task.losses_between(theta_1[rows], theta_2[rows], t[columns])
            gamma[rows[:, None], columns.to(rows)] = without_nan(losses.double())
            n_passes[rows] += columns.shape[-1]

    measure(torch.arange(len(gamma), device=gamma.device), k[coarse & inside])
    is_high = gamma.amax(dim=1) > limit
    high, low = is_high.nonzero()[:, 0], (~is_high).nonzero()[:, 0]
    measure(low, k[~coarse & inside])
    beside = summit_of(gamma[high], t.to(gamma.device)).cpu()[:, None]
    measure(high, (beside + torch.tensor([-3, -2, -1, 1, 2, 3])).clamp(1, len(t) - 2))
    return n_passes


def without_nan(gamma: Tensor) -> Tensor:
    """No loss is not a low loss: NaN becomes inf."""
    return torch.where(torch.isnan(gamma), torch.inf, gamma)


def refined(task: Task, theta_1, theta_2, t, gamma, k) -> tuple[Tensor, Tensor]:
    """Parabolic interpolation around grid point `k (S,)`; the bracket always shrinks.

    A fit that is no maximum inside the bracket (at an end of the segment, on a plateau, at a kink)
    is replaced by the middle of the larger half.
    """
    rows = torch.arange(len(k), device=k.device)
    low, high = (k - 1).clamp(min=0), (k + 1).clamp(max=len(t) - 1)
    a, m, b = t[low], t[k], t[high]
    fa, fm, fb = (gamma[rows, i] for i in (low, k, high))
    for _ in range(ROUNDS):
        p, q = (m - a) * (fm - fb), (m - b) * (fm - fa)
        u = m - 0.5 * ((m - a) * p - (m - b) * q) / (p - q)
        half = torch.where(b - m >= m - a, (m + b) / 2, (a + m) / 2)
        bad = ~torch.isfinite(u) | (u <= a) | (u >= b) | ((u - m).abs() < 1e-3 * (b - a))
        u = torch.where(bad, half, u)
        fu = without_nan(task.losses(interpolate(theta_1, theta_2, u)).double())
        left, better = u < m, fu > fm
        # The better of m and u becomes the middle, the other one a border on its side.
        a, fa = _pick(better & ~left, (m, fm), _pick(~better & left, (u, fu), (a, fa)))
        b, fb = _pick(better & left, (m, fm), _pick(~better & ~left, (u, fu), (b, fb)))
        m, fm = _pick(better, (u, fu), (m, fm))
    return m, fm


def _pick(condition: Tensor, yes: tuple[Tensor, Tensor], no: tuple[Tensor, Tensor]):
    return tuple(torch.where(condition, y, n) for y, n in zip(yes, no, strict=True))
