"""The algorithm as the paper tells it, one module and one bead after the other.

What `dss` is measured against.  Nothing of it is used here but the tasks: plain modules,
`torch.optim`, recursion.  It gives the strings of `dss.find_strings(..., t_star="grid")`.
"""

import copy

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

OPTIMIZERS = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class Sequential:
    """One task, searched pair by pair, with counts of what was spent.

    Args:
        task: with whole batches.
        L0, alpha, max_depth, n_t, optimizer, lr, max_steps, patience: as in `dss.find_strings`.
    """

    def __init__(
        self, task, L0, alpha=0.9, max_depth=10, n_t=33, optimizer="rmsprop", lr=1e-3,
        max_steps=20_000, patience=1_000,
    ):  # fmt: skip
        self.module = copy.deepcopy(task.module)
        self.L0, self.alpha, self.max_depth = L0, alpha, max_depth
        self.loss, self.metric, self.splits = task.loss_function, task.metric_function, task.splits
        self.t = torch.linspace(0, 1, n_t, dtype=task.dtype)
        self.optimizer, self.lr = OPTIMIZERS[optimizer], lr
        self.max_steps, self.patience = max_steps, patience
        self.gradient_steps = 0

    def measure(self, theta) -> float:
        """The metric on the evaluation set."""
        vector_to_parameters(theta, self.module.parameters())
        x, y = self.splits["test"]
        with torch.no_grad():
            return self.metric(self.module(x), y).item()

    def train(self, theta, target):
        """Step 1 and 3: descend to the target; None when the descent stalls."""
        module = copy.deepcopy(self.module)
        vector_to_parameters(theta.clone(), module.parameters())
        descent = self.optimizer(module.parameters(), lr=self.lr)
        (x, y), (x_test, y_test) = self.splits["train"], self.splits["test"]
        best, best_step = float("inf"), 0
        for step in range(self.max_steps + 1):
            with torch.no_grad():
                value = self.metric(module(x_test), y_test).item()
            if value <= target:
                return parameters_to_vector(module.parameters()).detach()
            if value < 0.999 * best:
                best, best_step = value, step
            if step - best_step >= self.patience or step == self.max_steps:
                return None
            descent.zero_grad()
            self.loss(module(x), y).backward()
            descent.step()
            self.gradient_steps += 1

    def connect(self, theta_1, theta_2, depth=0):
        """Steps 2 to 5: the beads between two networks, or None when the search fails."""
        gamma = [self.measure(torch.lerp(theta_1, theta_2, t)) for t in self.t]
        if max(gamma) <= self.L0:
            return []
        if depth == self.max_depth:
            return None
        middle = min(
            (k for k, value in enumerate(gamma) if value == max(gamma)),
            key=lambda k: abs(self.t[k] - 0.5),
        )
        bead = self.train(torch.lerp(theta_1, theta_2, self.t[middle]), self.alpha * self.L0)
        if bead is None:
            return None
        left = self.connect(theta_1, bead, depth + 1)
        right = left if left is None else self.connect(bead, theta_2, depth + 1)
        return None if right is None else [*left, bead, *right]
