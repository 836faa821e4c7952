"""Passes: the height that no path between two networks can avoid."""

import numpy as np


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
