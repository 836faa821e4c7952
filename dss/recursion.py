"""Read this first: the paper's five steps, one network at a time.

Plain modules, `torch.optim` and recursion, as Sec. II.B tells it.  `dss.sampling` takes steps 2
to 5 for thousands of pairs side by side, in the functions that the comments below name; step 1 is
`dss.train_endpoints`.  Asked to put beads where this does (`t_star="grid"`), it finds the same
strings.  What it has beyond this: minibatches, landscapes without a network, maxima between grid
points, a margin for rounding, a push for beads that start at a stationary point.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

OPTIMIZERS = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def train_to(
    task, theta: Tensor, target: float,
    optimizer: str = "rmsprop", lr: float = 1e-3, max_steps: int = 20_000, patience: int = 1_000,
) -> tuple[Tensor, bool, int]:  # fmt: skip
    """Steps 1 and 3: descend the training loss until the metric is at or below the target.

    Args:
        task: of a network, trained on whole batches.
        theta: `(P,)`, where the descent begins.
        target: in the unit of `task.metric`.
        optimizer, lr, max_steps, patience: as in `dss.descent.Training`.

    Returns:
        theta `(P,)` at the end, whether it reached the target, and the gradient steps it took.
    """
    module = module_of(task, theta)
    descent = OPTIMIZERS[optimizer](module.parameters(), lr=lr)
    (x, y), (x_test, y_test) = task.splits["train"], task.splits["test"]
    best, best_step = float("inf"), 0
    for step in range(max_steps + 1):
        with torch.no_grad():
            value = task.metric_function(module(x_test), y_test).item()
        if value <= target:
            return parameters_to_vector(module.parameters()).detach(), True, step
        if value < 0.999 * best:
            best, best_step = value, step
        if step - best_step >= patience or step == max_steps:
            break
        descent.zero_grad()
        task.loss_function(module(x), y).backward()
        descent.step()
    return parameters_to_vector(module.parameters()).detach(), False, step


def measure_segment(task, theta_1: Tensor, theta_2: Tensor, n_t: int = 33) -> tuple[float, float]:
    """Step 2: where the interpolated loss gamma is largest on a grid, t*, and how large.

    Of equal maxima the nearest to the middle.
    """
    module, (x, y) = module_of(task, theta_1), task.splits["test"]
    grid, gamma = torch.linspace(0, 1, n_t, dtype=theta_1.dtype), []
    for t in grid:
        vector_to_parameters(theta_1 * (1 - t) + theta_2 * t, module.parameters())  # Eq. (1)
        with torch.no_grad():
            gamma.append(task.metric_function(module(x), y).item())  # Eq. (2)
    largest = [k for k, value in enumerate(gamma) if value == max(gamma)]
    t_star = grid[min(largest, key=lambda k: abs(grid[k] - 0.5))]
    return float(t_star), max(gamma)


def find_string(
    task, theta_1: Tensor, theta_2: Tensor, L0: float,
    alpha: float = 0.9, max_depth: int = 10, n_t: int = 33, **training,
) -> tuple[list[Tensor], bool]:  # fmt: skip
    """Steps 2 to 5: the networks between two, and whether no segment exceeds L0.

    Args:
        task, theta_1, theta_2, L0, alpha, max_depth, n_t: as in `dss.find_string`.
        training: keyword arguments of `train_to`.

    Returns:
        Beads `(P,)`, in order, and True; or those found until the search failed, and False.

    Paper: Sec. II.B.
    """
    t_star, gamma_max = measure_segment(task, theta_1, theta_2, n_t)  # step 2, measure_segments
    if gamma_max <= L0:  # step 4, test_segments: this branch has come to its end
        return [], True
    if max_depth == 0:
        return [], False
    start = torch.lerp(theta_1, theta_2, t_star)
    bead, reached, _ = train_to(task, start, alpha * L0, **training)  # step 3, train_beads
    if not reached:
        return [], False
    deeper = {"alpha": alpha, "max_depth": max_depth - 1, "n_t": n_t, **training}
    left, left_is_low = find_string(task, theta_1, bead, L0, **deeper)  # step 5, halve_segments
    if not left_is_low:
        return [*left, bead], False
    right, right_is_low = find_string(task, bead, theta_2, L0, **deeper)
    return [*left, bead, *right], right_is_low


def module_of(task, theta: Tensor) -> nn.Module:
    """The task's network with the parameters `theta` `(P,)`; ValueError for other tasks."""
    if task.module is None:
        raise ValueError(f"{task.name} is an explicit function of theta; use dss.find_string")
    if task.reference is not None:
        raise ValueError(f"{task.name} has statistics of a reference; use dss.find_string")
    module = copy.deepcopy(task.module)
    vector_to_parameters(theta.clone(), module.parameters())
    return module
