"""Passes: the height that no path between two networks can avoid, for one pair and for many."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dss.checkpoint import fingerprint, load_state, save_state
from dss.checks import (
    Rule,
    check_flag,
    check_generator,
    check_number,
    check_theta,
    check_whole,
    is_whole,
    short,
    table,
    thresholds_of,
)
from dss.curve import grid_of, without_nan
from dss.descent import rounding
from dss.networks.modes import in_usual_mode
from dss.sampling import check_options, find_strings
from dss.status import Status
from dss.strings import String
from dss.task import Network, Task, check_task, thetas_of

if TYPE_CHECKING:
    import pandas as pd

NETWORKS_A_PAIR = 64  # that the strings of one batch of pairs may come to, for the memory they take


@dataclass(frozen=True, eq=False)
class Passes:
    """Upper bounds of Gamma, Eq. (3), for all pairs of N networks.

    A path that was found proves that Gamma is not higher (on the points where it was measured; see
    `certified`).  A path that was not found proves nothing: no entry is a lower bound.

    Attributes:
        losses: `(N,)` float64, of the networks.
        own: `(N, N)` float64, symmetric: the largest loss on the best path of each pair's own, its
            straight line or a string.  The diagonal holds the losses.
        strings: of every edge of the tree, `(i, j)` with i < j, that best path.
        searches: a row for each threshold, from the highest: `L0`, `n_low` networks at or below it,
            `n_pairs` of these, of which `n_known` had a low path before, `n_searched`,
            `n_connected` by a string of their own, `n_joined` without a low path of their own,
            which other networks join, `gradient_steps` and `forward_passes` of all searches.
    """

    losses: np.ndarray
    own: np.ndarray
    strings: dict[tuple[int, int], String] = field(repr=False)
    searches: "pd.DataFrame" = field(repr=False)

    @property
    def linkage(self) -> np.ndarray:
        """Single linkage of `own`, `(N - 1, 4)`, as `scipy.cluster.hierarchy` has it.

        It is the merge tree of the level sets, as far as the paths go that were found.
        """
        return linkage_of(self.own)

    @property
    def heights(self) -> np.ndarray:
        """`(N, N)`: the best path of each pair through any of the other networks (minimax)."""
        return heights_of(self.own)

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The N - 1 edges of a tree that holds a best path of every pair."""
        return edges_of(self.own)

    def n_components(self, L0: float) -> int:
        """Pieces of the level set that hold a network, at most: networks with no path known at L0.

        Raises:
            TypeError, ValueError: L0 is no number, or not finite.
        """
        L0 = check_number(L0, "L0", np.isfinite, "a finite number")
        return int((self.losses <= L0).sum() - (self.linkage[:, 2] <= L0).sum())

    def bars(self) -> np.ndarray:
        """0-dimensional persistence, `(N, 2)`: birth and death of the valley of each network.

        A valley is born at the loss of its network.  Where two join, at the height of the pass, the
        one that was born higher dies.  The lowest never does; its death is inf.

        Source: Barannikov et al., Topological obstructions in neural networks' learning (2020).
        """
        n, deaths = len(self.losses), np.full(len(self.losses), np.inf)
        elder = list(range(n))  # of each cluster, the network with the lowest loss
        for a, b, height, _ in self.linkage:
            first, second = sorted((elder[int(a)], elder[int(b)]), key=lambda i: self.losses[i])
            deaths[second] = height
            elder.append(first)
        return np.stack([self.losses, deaths], axis=1)

    def certified(self, task: Task, tolerance: float = 0.01, **options) -> "Passes":
        """The same with proved heights: no path in the tree exceeds its own anywhere.

        Args:
            task: of the networks.
            tolerance, options: as in `dss.certify_strings`; the smaller the tolerance, the closer
                the bounds, and the more they take.

        Returns:
            Passes whose paths are those of the tree, each with the upper end of its certificate.
            All other pairs have `own` inf; they are joined through the tree.

        Raises:
            TypeError, ValueError: as in `dss.certify_strings`, for a network that has no bounds.
        """
        from dss.proofs.certify import certify_strings

        edges = list(self.strings)
        strings = [self.strings[edge] for edge in edges]
        proofs = certify_strings(task, strings, tolerance=tolerance, **options)
        own = np.where(np.eye(len(self.losses), dtype=bool), self.losses, np.inf)
        for (i, j), proof in zip(edges, proofs, strict=True):
            own[i, j] = own[j, i] = max(proof.Gamma_tilde[1], self.losses[i], self.losses[j])
        return replace(self, own=own)


def linkage_of(own: np.ndarray) -> np.ndarray:
    """Single linkage of a symmetric matrix `(N, N)` of heights, some of them perhaps inf."""
    values, merged = _linkage_of_ranks(own)
    merged[:, 2] = values[merged[:, 2].astype(int) - 1]
    return merged


def _linkage_of_ranks(own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All heights, ascending, and the linkage of their ranks from 1: SciPy's heights are > 0."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    values, ranks = np.unique(own, return_inverse=True)
    ranks = ranks.reshape(own.shape) + 1.0
    return values, linkage(squareform(ranks, checks=False), "single")


def heights_of(own: np.ndarray) -> np.ndarray:
    """The largest entry on the best way through a symmetric matrix `(N, N)`; its diagonal stays."""
    from scipy.cluster.hierarchy import cophenet
    from scipy.spatial.distance import squareform

    values, merged = _linkage_of_ranks(own)
    ranks = squareform(cophenet(merged)).astype(int)
    heights = values[ranks - 1]  # the diagonal, of rank 0, follows
    heights[np.diag_indices_from(heights)] = own.diagonal()
    return heights


def edges_of(own: np.ndarray) -> list[tuple[int, int]]:
    """The edges of a minimum spanning tree of a symmetric matrix `(N, N)` of heights.

    Of equal heights the first counts as lower, so that no edge enters the tree again whose height
    has not changed.
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    i, j = np.triu_indices(len(own), 1)
    ranks = np.zeros(own.shape)
    ranks[i, j] = np.argsort(np.argsort(own[i, j], kind="stable")) + 1  # SciPy takes 0 for no edge
    tree = minimum_spanning_tree(ranks).tocoo()
    return sorted(zip(tree.row.tolist(), tree.col.tolist(), strict=True))


@in_usual_mode
def pass_matrix(
    task: Task,
    thetas: Tensor | Sequence[Network],
    L0: float | Tensor | Sequence[float],
    *,
    through_others: bool = False,
    pairs_at_once: int | None = None,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    **options,
) -> Passes:
    """Seek paths between all pairs of N networks, at thresholds that fall.

    At each threshold those pairs are searched, in large batches, of which both networks are at or
    below it and no path of their own is.  What is found at a high threshold may also serve a lower
    one.

    Args:
        task: as in `find_strings`.
        thetas: `(N, P)`; or a list of what `task.theta` takes.
        L0: T thresholds, in any order, in the unit of `task.metric`.
        through_others: leave out pairs that a way through other networks joins already.  This saves
            searches, but `own` then says nothing of what a search of such a pair would give.
        pairs_at_once: pairs in a batch; it may change the last bits.  None: as many as memory holds
            while their strings have 64 networks each.
        generator: CPU generator; a new one with seed 0 by default.
        checkpoint: a file that holds what was found after each batch.  The same call, made again
            after the process was killed, goes on there.
        options: keyword arguments of `find_strings`, but for `checkpoint`, `first_bead` and
            `client`.

    Returns:
        What was found of all pairs.

    Raises:
        TypeError, ValueError: as in `find_strings`; ValueError too for fewer than two networks, one
            above the highest threshold, or a checkpoint of another call.
        ImportError: scipy or pandas is not installed; they come with the extra `notebooks`.

    Paper: Eq. (3) and (4), for every pair.
    Source: minimax paths through intermediate networks, as in Draxler et al. (2018).
    """
    import pandas as pd

    check_task(task)
    (thetas,) = thetas_of(task, thetas=thetas)
    check_theta(thetas, "thetas", (None, task.n_params), finite=True)
    if len(thetas) < 2:
        raise ValueError(f"thetas holds {len(thetas)} networks; at least two are needed")
    thetas = thetas.detach().to(task.device)
    L0 = thresholds_of(L0).sort(descending=True).values
    through_others = check_flag(through_others, "through_others")
    for name in ("first_bead", "client"):
        if options.get(name) is not None:
            raise ValueError(f"{name} is {short(options[name])}; a search of all pairs has none")
    check_options(task, L0, options)
    if pairs_at_once is not None:
        pairs_at_once = check_whole(pairs_at_once, "pairs_at_once", 1)
    generator = check_generator(generator)
    seeds = torch.randint(2**62, (len(L0),), generator=generator).tolist()
    losses = task.losses(thetas).double().cpu()
    limits = L0 * (1 + rounding(thetas.dtype))
    if not bool((losses <= limits[0]).all()):
        i = int((~(losses <= limits[0])).nonzero()[0])
        raise ValueError(
            f"network {i} has loss {float(losses[i]):.6g}, above the highest threshold "
            f"{float(L0[0]):.6g}; train it further, or give a higher one"
        )
    search = {"seeds": seeds, "L0": L0, "limits": limits, "through_others": through_others}
    made_by, state, n_t = None, None, options.get("n_t", 33)
    if checkpoint is not None:
        call = search | {"thetas": thetas, "pairs_at_once": pairs_at_once}
        made_by = fingerprint(task, call | {f"option {name}": v for name, v in options.items()})
        state = load_state(checkpoint, made_by, task.device, lambda s: _rules(thetas, len(L0), s))
    if state is None:
        # What fits now; a run that goes on has the batches that it began with.
        at_once = pairs_at_once or task.budget.rows_that_fit(NETWORKS_A_PAIR, thetas.dtype)
        lines = _straight_lines(task, thetas, losses, n_t, at_once)
        state = _begin(lines, 0, **search) | {"at_once": at_once}
    at_once = state["at_once"]
    while state["level"] < len(L0):
        if made_by:
            save_state(checkpoint, made_by, state)
        k, todo = state["level"], state["todo"]
        if len(todo) == 0:
            state = _begin(state, k + 1, **search)
            continue
        first, second = (thetas[side.to(thetas.device)] for side in todo[:at_once].T)
        level = torch.Generator().manual_seed(seeds[k])
        strings = find_strings(task, first, second, float(L0[k]), generator=level, **options)
        state = _with_strings(state, strings)
    if made_by:
        save_state(checkpoint, made_by, state)
    own, paths = state["own"].numpy(), _paths_of(state)
    strings = {
        (i, j): _low_string(task, paths.get((i, j), thetas[[i, j]]), own[i, j], n_t)
        for i, j in edges_of(own)
    }
    return Passes(losses.numpy(), own, strings, pd.DataFrame(state["rows"]))


def _straight_lines(task: Task, thetas: Tensor, losses: Tensor, n_t: int, at_once: int) -> dict:
    """What is known of all pairs before any search: no level, no path but the straight lines."""
    pairs, t = torch.combinations(torch.arange(len(thetas))), grid_of(n_t)
    own = torch.full((len(thetas), len(thetas)), torch.inf, dtype=torch.float64)
    own.fill_diagonal_(0).diagonal().copy_(losses)
    for part in pairs.split(at_once):
        first, second = (thetas[side.to(thetas.device)] for side in part.T)
        highest = without_nan(task.losses_between(first, second, t)).amax(dim=1).double().cpu()
        own = _with_heights(own, part, highest)
    none = torch.zeros(0, dtype=torch.int64)
    none = {"edges": none.view(0, 2), "sizes": none, "beads": thetas[:0]}
    return {"level": 0, "todo": pairs[:0], "own": own, "rows": [], **none}


def _with_heights(own: Tensor, pairs: Tensor, highest: Tensor) -> Tensor:
    """`own` with the heights `(Q,)` of paths of pairs `(Q, 2)`, where these are lower."""
    i, j = pairs.T
    highest = highest.maximum(own.diag()[i]).maximum(own.diag()[j])  # rounding
    own = own.clone()
    own[i, j] = own[j, i] = highest.minimum(own[i, j])
    return own


def _begin(state: dict, k: int, seeds, L0, limits, through_others: bool) -> dict:
    """The state at the beginning of level k; what was counted of the level before is complete."""
    own, losses, rows = state["own"], state["own"].diag(), [dict(row) for row in state["rows"]]
    pairs = torch.combinations(torch.arange(len(own)))
    i, j = pairs.T
    heights = torch.from_numpy(heights_of(own.numpy()))
    if rows:
        is_low = (heights <= limits[k - 1]) & (own > limits[k - 1])
        rows[-1]["n_joined"] = int(is_low[i, j].sum())
    if k == len(L0):
        return state | {"level": k, "rows": rows}
    is_low, known = losses <= limits[k], heights if through_others else own
    pairs = pairs[is_low[i] & is_low[j]]
    todo = pairs[~(known[pairs[:, 0], pairs[:, 1]] <= limits[k])]
    row = {"L0": float(L0[k]), "n_low": int(is_low.sum()), "n_pairs": len(pairs)}
    row |= {"n_known": len(pairs) - len(todo), "n_searched": len(todo), "n_connected": 0}
    row |= {"n_joined": 0, "gradient_steps": 0, "forward_passes": 0}
    return state | {"level": k, "todo": todo, "rows": [*rows, row]}


def _with_strings(state: dict, strings: list[String]) -> dict:
    """The state after a batch: its heights, and the paths of those edges that are in the tree."""
    pairs, todo = state["todo"][: len(strings)], state["todo"][len(strings) :]
    # A string that is too high is a path all the same, often lower than the straight line.
    highest = torch.tensor([s.Gamma_tilde for s in strings], dtype=torch.float64)
    own = _with_heights(state["own"], pairs, without_nan(highest))
    paths = _paths_of(state)
    for (i, j), string in zip(pairs.tolist(), strings, strict=True):
        if own[i, j] < state["own"][i, j]:
            paths[i, j] = string.thetas
    kept = [edge for edge in edges_of(own.numpy()) if edge in paths]
    row = dict(state["rows"][-1])
    row["n_connected"] += sum(s.connected for s in strings)
    for name in ("gradient_steps", "forward_passes"):
        row[name] += sum(getattr(s, name) for s in strings)
    return state | {
        "todo": todo,
        "own": own,
        "rows": [*state["rows"][:-1], row],
        "edges": torch.tensor(kept, dtype=torch.int64).view(-1, 2),
        "sizes": torch.tensor([len(paths[edge]) for edge in kept], dtype=torch.int64),
        "beads": torch.cat([state["beads"][:0], *(paths[edge] for edge in kept)]),
    }


def _paths_of(state: dict) -> dict[tuple[int, int], Tensor]:
    parts = state["beads"].split(state["sizes"].tolist())
    return {(i, j): part for (i, j), part in zip(state["edges"].tolist(), parts, strict=True)}


def _low_string(task: Task, thetas: Tensor, height: float, n_t: int) -> String:
    """A path as a string that is connected at its own height."""
    return String(
        thetas=thetas,
        status=Status.CONNECTED,
        L0=float(height),
        alpha=1.0,
        slack=1.0,
        n_t=n_t,
        Gamma_tilde=float(height),
        length_mask=task.length_mask,
        task=task,
    )


def _rules(thetas: Tensor, n_levels: int, found: dict) -> dict[str, Rule]:
    """What the state in a file must be."""
    n, n_params = thetas.shape
    n_paths = getattr(found.get("sizes"), "shape", (0,))[0]
    inside = {"allowed": lambda v: (v >= 0) & (v < n), "needed": f"< {n}"}
    whole = lambda v: is_whole(v) and v <= n_levels  # noqa: E731
    return {
        "level": (whole, f"a whole number from 0 to {n_levels}"),
        "todo": table("int64", None, 2, **inside),
        "own": table("float64", n, n, allowed=lambda v: ~v.isnan(), needed="without NaN"),
        "edges": table("int64", n_paths, 2, **inside),
        "sizes": table("int64", n_paths, allowed=lambda v: v >= 2, needed=">= 2"),
        "beads": table(str(thetas.dtype)[6:], None, n_params),
        "at_once": (lambda v: is_whole(v) and v >= 1, "a whole number >= 1"),
        "rows": (lambda v: isinstance(v, list) and all(map(_is_row, v)), "rows of numbers"),
    }


def _is_row(row) -> bool:
    return isinstance(row, dict) and all(isinstance(v, int | float) for v in row.values())


def Gamma_on_grid(loss: np.ndarray, cell_1: tuple[int, ...], cell_2: tuple[int, ...]) -> float:
    """The least height at which two cells of a grid lie in one flooded piece.

    The minimum over all paths is taken over those that step from cell to neighbouring cell, edges
    and corners included.  It can be had where the landscape has two or three dimensions; in the
    weight space of a network Gamma cannot be computed, and strings bound it from above
    (`dss.Gamma_tilde`).

    Args:
        loss: of any number of dimensions, the loss at each grid point; no NaN.
        cell_1, cell_2: indices of the two networks.

    Returns:
        Gamma, in the unit of `loss`, which it tends to as the grid gets finer.

    Raises:
        ValueError: a loss that is NaN, or a cell outside the grid.
        ImportError: scipy is not installed; it comes with the extra `notebooks`.

    Paper: Eq. (3), Sec. II.A.
    """
    from scipy import ndimage

    if np.isnan(loss).any():
        raise ValueError(f"loss holds {int(np.isnan(loss).sum())} values that are NaN")
    for cell in (cell_1, cell_2):
        is_inside = len(cell) == loss.ndim and all(
            0 <= k < n for k, n in zip(cell, loss.shape, strict=True)
        )
        if not is_inside:
            raise ValueError(f"cell {cell} is not on a grid of shape {loss.shape}")
    neighbours = np.ones((3,) * loss.ndim)

    def is_joined(height: float) -> bool:
        pieces, _ = ndimage.label(loss <= height, structure=neighbours)
        return pieces[cell_1] == pieces[cell_2] != 0

    heights = np.unique(loss)  # the answer is one of them
    lowest, highest = 0, len(heights) - 1
    while lowest < highest:
        middle = (lowest + highest) // 2
        if is_joined(heights[middle]):
            highest = middle
        else:
            lowest = middle + 1
    return float(heights[highest])
