"""Beads of a level that are trained apart: here group after group, or on workers.

torch computes a network alone and in a stack by other kernels, so that the last bits may differ.
On an x86 CPU, in float32 and float64, they do not for polynomials, nor for gradients and error rate
of a fully connected network; they do for its cross-entropy, and for gradients of a small
convolutional network.  Stacks of two and more agree; but as beads leave, one is alone in the end.
Networks so large that they run one at a time are alone in any company.  `company_matters` looks at
the task itself.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from torch import Tensor

from dss.descent import COPIES, Training
from dss.networks.samples import size_of
from dss.search import Search, State
from dss.task import Landscape, Task
from dss.train import steps_see_all, train_to

Job = tuple[Search, State, Tensor, Tensor]


def company_matters(task: Task, training: Training, dtype: torch.dtype) -> bool:
    """Whether a bead that is trained alone may differ from one in a group.

    False where networks run one at a time anyway; else three networks take two steps alone and
    together, and every bit counts.
    """
    if not isinstance(task, Landscape):
        n, n_eval = (size_of(task.splits[split]) for split in ("train", "test"))
        batch = n if steps_see_all(task, training.batch_size) else training.batch_size
        samples = batch or task.batch_size, min(task.eval_chunk or n_eval, n_eval)
        if all(task.budget.side_by_side(k, dtype) == 1 for k in samples):
            return False
    thetas = task.probes(3, torch.Generator().manual_seed(0)).to(dtype)
    others, t = thetas.roll(1, dims=0), torch.linspace(0, 1, 5, dtype=torch.float64)
    few = asdict(replace(training, max_steps=2, check_every=1))

    def results(rows: slice) -> tuple[Tensor, ...]:
        trained = train_to(task, thetas[rows], 1e-300, **few)
        between = task.losses_between(thetas[rows], others[rows], t)
        return trained.thetas, trained.losses, between

    together = results(slice(None))
    alone = zip(*(results(slice(i, i + 1)) for i in range(3)), strict=True)
    return not all(torch.equal(a, torch.cat(b)) for a, b in zip(together, alone, strict=True))


def jobs_of(
    search: Search, state: State, is_open: Tensor, beads: Tensor, generator: torch.Generator
) -> Iterator[Job]:
    """A level in groups, each with what its descent needs, without the task.

    Groups are of `side_by_side` beads, or those into which memory cuts the level without workers.

    Args:
        search, state: of the level.
        is_open: `(S,)` bool, with B segments in which beads are trained.
        beads: `(B, P)`, where they begin.
        generator: all groups see the batches that it draws.

    Returns:
        Of each group its search and state, its beads, and the state of the generator.
    """
    fit = search.task.budget.rows_that_fit(COPIES[search.method], beads.dtype)
    size, drawn = min(fit, search.side_by_side or fit), generator.get_state()
    left, right = state.left[is_open], state.right[is_open]
    for rows in torch.arange(len(beads), device=beads.device).split(size):
        pair = state.pair[left[rows]]
        part = replace(
            search,
            task=None,
            limit=search.limit[pair],
            target=search.target[pair],
            first_bead=None,
            run=None,
        )
        yield part, _segments(state, left[rows], right[rows]), beads[rows], drawn


def _segments(state: State, left: Tensor, right: Tensor) -> State:
    """Some segments alone, each as a pair of its own."""
    n, ends = len(left), torch.cat([left, right])
    pair = torch.arange(n, device=left.device)
    return replace(
        state,
        thetas=state.thetas[ends],
        pair=pair.repeat(2),
        position=state.position[ends],
        losses=state.losses[ends],
        left=pair,
        right=pair + n,
        trace=[],
        status=[],
        detail=[],
    )
