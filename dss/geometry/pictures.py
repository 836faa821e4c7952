"""Pictures of many networks: their merge tree, its bars, their heights, a triangle between three.

Where there is nothing to draw, a figure says so in words.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from dss import plots
from dss.checks import check_number
from dss.geometry.passes import Passes

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])  # of a triangle


def merge_trees(passes: Mapping[str, Passes], unit: str) -> Figure:
    """Disconnectivity graphs: every network hangs at its loss, and joins others at their pass.

    Args:
        passes: of each panel, by its title.
        unit: label of the loss, with its unit.

    Source: Becker and Karplus, The topology of multidimensional potential energy surfaces (1997).
    """
    if not passes:
        return plots.nothing("there are no two networks to join")
    figure, axes = _panels(passes)
    for axis, (title, of_task) in zip(axes, passes.items(), strict=True):
        _merge_tree(axis, of_task.losses, of_task.linkage)
        axis.set(title=title, xticks=[], xlabel=f"{len(of_task.losses)} networks")
        axis.grid(axis="x", visible=False)
    axes[0].set_ylabel(unit)
    return figure


def _merge_tree(axis: Axes, losses: np.ndarray, linkage: np.ndarray) -> None:
    from scipy.cluster.hierarchy import leaves_list

    place = np.empty(len(losses))
    place[leaves_list(linkage)] = np.arange(len(losses))
    ends = list(zip(place, losses, strict=True))
    style = {"color": plots.PALETTE[0], "linewidth": 1, "solid_capstyle": "round"}
    low, high, scale = _limits([*losses, *linkage[:, 2]])
    for first, second, height, _ in linkage:
        height = min(height, high)  # no path has a finite loss
        (x_1, y_1), (x_2, y_2) = (ends[int(k)] for k in (first, second))
        axis.plot([x_1, x_1, x_2, x_2], [y_1, height, height, y_2], **style)
        ends.append(((x_1 + x_2) / 2, height))
    x, top = ends[-1]
    axis.set_yscale(scale)
    axis.plot([x, x], [top, high], **style)
    axis.set_ylim(low, high)


def barcodes(passes: Mapping[str, Passes], unit: str) -> Figure:
    """A bar for the valley of every network, from its loss to the pass where it joins a lower one.

    The lowest never does; its bar leaves the picture.

    Args:
        passes: of each panel, by its title.
        unit: label of the loss, with its unit.
    """
    if not passes:
        return plots.nothing("there are no two networks to join")
    figure, axes = _panels(passes)
    for axis, (title, of_task) in zip(axes, passes.items(), strict=True):
        births, deaths = _by_length(of_task.bars())
        is_last, rows = ~np.isfinite(deaths), np.arange(len(births))
        low, high, scale = _limits([*births, *deaths[~is_last]])
        style = {"linewidth": min(3, 150 / len(births))}
        axis.hlines(rows[~is_last], births[~is_last], deaths[~is_last], plots.PALETTE[0], **style)
        axis.hlines(rows[is_last], births[is_last], high, plots.PALETTE[1], **style)
        axis.plot(births, rows, "|", color="0.2", markersize=3)  # a bar may be too short to be seen
        axis.set(title=title, yticks=[], xlabel=unit, xscale=scale, xlim=(low, high))
        axis.grid(axis="y", visible=False)
    axes[0].set_ylabel("networks")
    return figure


def _by_length(bars: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Births and deaths, the shortest bar first."""
    births, deaths = bars[np.argsort(bars[:, 1] - bars[:, 0], kind="stable")].T
    return births, deaths


def _panels(passes: Mapping[str, Passes]) -> tuple[Figure, np.ndarray]:
    n = len(passes)
    figure, axes = plots.plt.subplots(1, n, figsize=(plots.COLUMN * n, 2.8), squeeze=False)
    return figure, axes[0]


def height_map(passes: Passes, unit: str) -> Figure:
    """The matrix of passes with networks of one valley side by side, and the tree beside it.

    Args:
        passes: of the networks.
        unit: label of the height, with its unit.
    """
    import seaborn as sns

    heights, linkage = passes.heights, passes.linkage
    if not np.isfinite(heights).all():
        return plots.nothing("between some networks no path has a finite loss")

    is_log = heights.min() > 0 and heights.max() > 2 * heights.min()
    with plots.plt.rc_context({"figure.constrained_layout.use": False, "axes.grid": False}):
        grid = sns.clustermap(
            heights,
            row_linkage=linkage,
            col_linkage=linkage,
            cmap="viridis",
            norm=LogNorm() if is_log else None,
            xticklabels=False,
            yticklabels=False,
            figsize=(plots.COLUMN, plots.COLUMN),
            dendrogram_ratio=0.12,
            cbar_pos=(0.98, 0.15, 0.04, 0.6),
            cbar_kws={"label": unit},
            rasterized=True,
        )
    grid.ax_heatmap.set(xlabel=f"{len(heights)} networks", ylabel="")
    return grid.figure


def triangle(losses: np.ndarray, weights: np.ndarray, L0: float, unit: str) -> Figure:
    """The loss on the triangle between three networks; the dashed line is where it is L0.

    Args:
        losses: `(n,)`.
        weights: `(n, 3)`, of the three networks at each point; they add up to 1.
        L0: threshold.
        unit: label of the loss, with its unit.

    Raises:
        TypeError, ValueError: another shape, weights that do not add up to 1, or L0 is no number.
    """
    losses, weights = np.asarray(losses, float), np.asarray(weights, float)
    if weights.shape != (len(losses), 3) or not np.allclose(weights.sum(axis=1), 1):
        raise ValueError(
            f"weights has shape {weights.shape}; ({len(losses)}, 3) is needed, a row for each "
            "loss, whose numbers add up to 1"
        )
    L0 = check_number(L0, "L0", np.isfinite, "a finite number")
    figure, axis = plots.plt.subplots(figsize=(plots.COLUMN, 2.8))
    x, y = (weights @ CORNERS).T
    mesh, is_log = Triangulation(x, y), losses.min() > 0
    norm = LogNorm() if is_log and losses.max() > 2 * losses.min() else None
    image = axis.tripcolor(mesh, losses, shading="gouraud", cmap="viridis", norm=norm)
    if losses.min() < L0 < losses.max():
        axis.tricontour(mesh, losses, levels=[L0], colors="white", linestyles="--", linewidths=1.2)
    figure.colorbar(image, ax=axis, label=unit)
    for (x, y), name, side in zip(CORNERS, "123", ("right", "left", "center"), strict=True):
        up = {"va": "bottom"} if side == "center" else {"va": "top"}
        axis.annotate(rf"$\theta_{name}$", (x, y), ha=side, **up)
    axis.set_aspect("equal")
    axis.set_axis_off()
    return figure


def _limits(values: list[float]) -> tuple[float, float, str]:
    """Ends of an axis around all values, logarithmic where they are positive and far apart."""
    values = np.array(values)[np.isfinite(values)]
    low, high = float(np.min(values)), float(np.max(values))
    if low > 0 and high > 2 * low:
        margin = (high / low) ** 0.08
        return low / margin, high * margin, "log"
    margin = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    return low - margin, high + margin, "linear"
