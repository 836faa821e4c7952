"""One function per kind of figure: arrays and tables in, a matplotlib Figure out.

Where there is nothing to draw, a figure says so in words.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import MatplotlibDeprecationWarning
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

if TYPE_CHECKING:
    import pandas as pd

# seaborn's palette "colorblind"; importing seaborn for it would take longer than all the rest.
PALETTE = [
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#cc78bc",
    "#ca9161",
    "#fbafe4",
    "#949494",
    "#ece133",
    "#56b4e9",
]
MARKERS = "osD^vPX"
# Inches of a page and of one of its two columns.  A figure is drawn at the size at which it is
# printed, so that its text has the size that it says: 8 points and more.
PAGE, COLUMN = 7.0, 3.4
CHARACTERS = 50  # of tick labels, which stand side by side below a column
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def use_style() -> None:
    """Draw all figures of this process in the style of the companion."""
    plt.rcParams.update(STYLE)


def nothing(reason: str) -> Figure:
    """A figure that says why there is nothing to see in it.

    Args:
        reason: in plain words.
    """
    figure, axis = plt.subplots(figsize=(COLUMN, 1.3))
    axis.set_axis_off()
    _say(axis, reason)
    return figure


def means(
    table: "pd.DataFrame",
    x: str,
    panels: Mapping[str, str],
    by: str,
    x_label: str,
    log: Sequence[str] = (),
    lines: Mapping[str, float] | None = None,
    n_columns: int = 2,
    log_x: bool = True,
    names: Mapping | None = None,
    of_connected: Sequence[str] = ("n_beads", "normalized_length", "gradient_steps"),
) -> Figure:
    """Means with their 95 % intervals against `x`, a panel per column, a line per group.

    A mean over connected pairs has an open mark where fewer than three in four connected: it is
    the mean of the easier ones.

    Args:
        table: as `dss.stats.summarise` returns it: `<name>`, `<name>_low`, `<name>_high`.
        x: column of the horizontal axis.
        panels: column to draw and its label.
        by: column that tells the lines apart.
        x_label: with its unit.
        log: columns on a logarithmic axis, where all their means are > 0.
        lines: height of a dashed reference line per column.
        n_columns: panels side by side.
        log_x: whether x is on a logarithmic axis, where all its values are > 0.
        names: legend entry per value of `by`; with them a single line has a legend too.
        of_connected: columns whose means are over connected pairs.
    """
    if not panels:
        return nothing("no column was chosen")
    n_rows = -(-len(panels) // n_columns)
    size = (COLUMN * n_columns, 2.5 * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, sharex=True, squeeze=False)
    groups = list(table[by].drop_duplicates())
    for axis, (column, label) in zip(axes.flat, panels.items(), strict=False):
        axis.set_ylabel(label)
        for i, group in enumerate(groups):
            rows = table[(table[by] == group) & table[column].notna()].sort_values(x)
            name = (names or {}).get(group, str(group))
            _means_line(axis, rows, x, column, i, name, column in of_connected)
        if lines and column in lines and table[column].notna().any():
            axis.axhline(lines[column], color="0.4", linestyle="--", linewidth=1)
        if log_x and _all_positive(table[x]):
            _log_x_of_means(axis, table[x])
        if column in log and _all_positive(table[column]):
            axis.set_yscale("log")
            plain_ticks(axis.yaxis, (1, 2, 5))
        if table[column].isna().all():
            axis.set_yticks([])
            _say(axis, "nothing was measured")
        if column == "fraction":
            axis.set(ylim=(-0.05, 1.05), yticks=[0, 0.25, 0.5, 0.75, 1])
        if column == "fraction" and len(groups) == 1:
            _count_below(axis, table, x)
    for axis in axes.flat[max(0, len(panels) - n_columns) : len(panels)]:  # lowest of its column
        axis.set_xlabel(x_label)
        axis.tick_params(labelbottom=True)
    if len(groups) > 1 or (groups and names):
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(groups)))
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    return figure


def _means_line(
    axis: Axes, rows: "pd.DataFrame", x: str, column: str, i: int, name: str, of_connected: bool
) -> None:
    """The means of one group with their intervals, in the i-th style."""
    mean = rows[column].to_numpy(float)
    ends = (rows[f"{column}_{end}"].to_numpy(float) for end in ("low", "high"))
    low, high = (np.where(np.isnan(end), mean, end) for end in ends)
    bars = np.clip([mean - low, high - mean], 0, None)
    style = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
    axis.errorbar(rows[x], mean, yerr=bars, capsize=2, label=name, **style)
    if of_connected and "fraction" in rows:
        few = rows.fraction.to_numpy() < 0.75
        style |= {"linestyle": "", "markerfacecolor": "white", "zorder": 3}
        axis.plot(rows[x][few], mean[few], **style)


def _log_x_of_means(axis: Axes, values: "pd.Series") -> None:
    """A logarithmic axis whose ticks are the values themselves where these are few."""
    axis.set_xscale("log")
    plain_ticks(axis.xaxis, (1, 2, 5) if values.max() < 20 * values.min() else (1,))
    distinct = np.sort(values.unique())
    if len(distinct) <= 4 and (np.diff(np.log(distinct)) > 0.03).all():  # not side by side
        axis.set_xticks(distinct)
    if len(distinct) == 1:  # limits of one point are none
        axis.set_xlim(distinct[0] / 2, distinct[0] * 2)


def _count_below(axis: Axes, table: "pd.DataFrame", x: str) -> None:
    """Connected of all pairs as numbers under the points."""
    axis.set_ylim(-0.4, 1.05)  # room for the counts, below all points
    for _, row in table.iterrows():
        text = f"{row.n_connected:.0f}/{row.n_pairs:.0f}"
        style = {"ha": "center", "va": "bottom", "rotation": 90, "fontsize": 8}
        axis.annotate(text, (row[x], -0.37), **style)


def curves(
    table: "pd.DataFrame",
    x: str,
    y: str,
    by: str,
    x_label: str,
    y_label: str,
    L0: float | None = None,
    log_y: bool = False,
    marks: "pd.DataFrame | None" = None,
    joined: bool = True,
    reason: str = "nothing was measured",
    log_x: bool = False,
) -> Figure:
    """Lines of `y` against `x`, one per group, with the threshold L0 and marked points.

    Args:
        table: long, with columns `x`, `y`, `by`.
        x, y, by: its columns.
        x_label, y_label: with units.
        L0: drawn as a dashed line.
        log_y: logarithmic vertical axis, where all values are > 0.
        marks: points to mark, with columns `x`, `y`.
        joined: whether the points of a group are joined; else, and where there is one, they have
            markers.
        reason: what the figure says where there is no row.
        log_x: logarithmic horizontal axis, where all values are > 0.
    """
    if table.empty:
        return nothing(reason)
    figure, axis = plt.subplots(figsize=(COLUMN, 2.7))
    for i, (group, rows) in enumerate(table.groupby(by, sort=False)):
        is_line = joined and len(rows) > 1
        dash = ("-", "--", "-.", ":")[i % 4] if is_line else MARKERS[i % len(MARKERS)]
        axis.plot(rows[x], rows[y], dash, color=PALETTE[i % len(PALETTE)], label=group)
    if marks is not None:
        axis.plot(marks[x], marks[y], "o", color="black", markersize=4, label="networks")
    if L0 is not None:
        axis.axhline(L0, color="0.4", linestyle="--", linewidth=1)
        axis.annotate("$L_0$", (1.01, L0), xycoords=("axes fraction", "data"), va="center")
    if log_y and _all_positive(table[y]):
        axis.set_yscale("log")
        plain_ticks(axis.yaxis, (1, 2, 5) if table[y].max() < 100 * table[y].min() else (1,))
    if log_x and _all_positive(table[x]):
        axis.set_xscale("log")
        plain_ticks(axis.xaxis, (1, 2, 5) if table[x].max() < 20 * table[x].min() else (1,))
    axis.set(xlabel=x_label, ylabel=y_label)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def paths(table: "pd.DataFrame", L0: float, unit: str = "loss", log_y: bool = True) -> Figure:
    """The loss along paths against arc length, with the networks of all but the first marked.

    Args:
        table: as `dss.compare_paths` returns it, the straight line first.
        L0: drawn as a dashed line.
        unit: what the loss is, for its axis.
        log_y: logarithmic vertical axis.
    """
    marks = table[table.is_network & (table.path != table.path.iloc[0])]
    axes = "position", "loss", "path", "arc length (fraction)", unit
    return curves(table, *axes, L0, log_y, marks)


def distributions(
    table: "pd.DataFrame",
    x: str,
    panels: Mapping[str, str],
    by: str,
    x_label: str,
    names: Mapping | None = None,
) -> Figure:
    """Every row of a table as a point over the quartiles of its group, a panel per column.

    Args:
        table: a row per pair (`String.summary`).
        x: column of the horizontal axis; its values stand side by side, in order.
        panels: column to draw and its label.
        by: column that tells the groups at one x apart.
        x_label: with its unit.
        names: legend entry per value of `by`.
    """
    import seaborn as sns

    if table.empty or not panels:
        return nothing("there is no row to show" if panels else "no column was chosen")
    groups = list(table[by].drop_duplicates())
    labels = [(names or {}).get(group, str(group)) for group in groups]
    table = table.assign(**{by: table[by].map(dict(zip(groups, labels, strict=True)))})
    n = len(panels)
    size = (COLUMN * n, 2.5 + 0.25 * ((len(groups) - 1) // 4))  # room for the rows of the legend
    figure, axes = plt.subplots(1, n, figsize=size, squeeze=False)
    colours = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}
    shared = {"x": x, "hue": by, "hue_order": labels, "palette": colours, "dodge": True}
    for axis, (column, label) in zip(axes.flat, panels.items(), strict=True):
        rows = {"data": table, "y": column, "ax": axis}
        with _seaborn_tamed():
            sns.boxplot(**shared, **rows, fill=False, showfliers=False, width=0.7, linewidth=1)
            sns.stripplot(**shared, **rows, size=3, alpha=0.5, legend=False, jitter=0.15)
        axis.set(xlabel=x_label, ylabel=label)
        if (table[column] % 1 == 0).all():
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.get_legend().remove()
        if table[x].drop_duplicates().astype(str).str.len().sum() > CHARACTERS:
            axis.tick_params(axis="x", labelrotation=40)
            plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    handles = [plt.Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(groups)))
    return figure


@contextmanager
def _seaborn_tamed() -> Iterator[None]:
    """The same jitter every time, from NumPy's global generator, which is left as it was; and no
    word of how seaborn 0.13 calls matplotlib 3.11."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MatplotlibDeprecationWarning)
            yield
    finally:
        np.random.set_state(state)


def envelopes(
    curves: "pd.DataFrame",
    pieces: "pd.DataFrame",
    L0: float,
    y_label: str,
    points: "pd.DataFrame | None" = None,
    log_y: bool = False,
) -> Figure:
    """Losses along a segment under the bounds that are proved on its pieces.

    Args:
        curves: `t`, `loss` and `panel`.
        pieces: `begin`, `end`, `bound` and `panel`, in order.
        L0: a dashed line.
        y_label: of the vertical axis, with its unit.
        points: `t`, `loss` and `panel`, drawn as dots: a grid.
        log_y: whether losses are on a logarithmic axis.
    """
    if pieces.empty:
        return nothing("no bound was computed")
    names = list(pieces.panel.unique())
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    width = COLUMN if len(names) == 1 else PAGE
    size = (width, 2.0 * n_rows + 0.5)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for axis, name in zip(axes.flat, names, strict=False):
        bounds, curve = pieces[pieces.panel == name], curves[curves.panel == name]
        axis.set_axisbelow(True)
        edges = np.append(bounds.begin, bounds.end.iloc[-1])
        axis.stairs(
            bounds.bound,
            edges,
            baseline=None,
            color=PALETTE[1],
            linewidth=1.6,
            label="proved bound",
        )
        axis.plot(curve.t, curve.loss, color=PALETTE[0], label=r"$\gamma(t)$")
        axis.axhline(L0, color="0.3", linestyle="--", linewidth=1, label="$L_0$")
        if points is not None:
            grid = points[points.panel == name]
            axis.plot(grid.t, grid.loss, "o", color="black", markersize=4, label="grid points")
        if len(names) > 1:
            axis.set_title(name)
        if log_y:
            axis.set_yscale("log")
            plain_ticks(axis.yaxis, [1, 3])
    for axis in axes[-1]:
        axis.set_xlabel("position on the segment $t$")
    for axis in axes[:, 0]:
        axis.set_ylabel(y_label)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def contour_panels(
    grid: tuple[np.ndarray, np.ndarray, np.ndarray],
    panels: Sequence[Mapping],
    L0: float,
    labels: tuple[str, str],
    n_columns: int = 4,
    levels: Sequence[float] | None = None,
) -> Figure:
    """A two-dimensional landscape, once per panel, with what the algorithm holds at that moment.

    Args:
        grid: x `(n,)`, y `(m,)`, loss `(m, n)`.
        panels: per panel `title`, and any of `models` `(k, 2)`, `names` (of the models),
            `segments` (list of `(2, 2)`), `high` (list of bool, a segment above L0), `descent`
            `(k, 2)` and `star` `(k, 2)`.
        L0: the level set below is shaded.
        labels: of the two parameters.
        n_columns: panels side by side.
        levels: contour lines; chosen from the losses by default, from L0 on.
    """
    x, y, loss = grid
    n_rows = -(-len(panels) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(PAGE, PAGE / n_columns * n_rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    if levels is None:
        levels = np.geomspace(L0, loss.max(), 9) if L0 < loss.max() else [L0]
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.grid(False)
        axis.contourf(x, y, loss, levels=[-1, L0], colors=["#d5e8f5"])
        axis.contour(x, y, loss, levels=levels, colors="0.7", linewidths=0.6)
        high = panel.get("high", [False] * len(panel.get("segments", [])))
        for ends, is_high in zip(panel.get("segments", []), high, strict=True):
            color, dash = (PALETTE[3], "--") if is_high else (PALETTE[2], "-")
            axis.plot(*np.asarray(ends).T, dash, color=color)
        for path in panel.get("descent", []):
            axis.plot(*np.asarray(path).T, color="black", linewidth=1.2)
        if "star" in panel:
            axis.plot(*np.asarray(panel["star"]).T, "*", color=PALETTE[3], markersize=10)
        if "models" in panel:
            models = np.asarray(panel["models"])
            axis.plot(*models.T, "o", color="black", markersize=4)
            for point, name in zip(models, panel.get("names", []), strict=False):
                axis.annotate(name, point, textcoords="offset points", xytext=(5, 5))
        axis.set_title(panel["title"], loc="left")
    for axis in axes[-1]:
        axis.set_xlabel(labels[0])
    for axis in axes[:, 0]:
        axis.set_ylabel(labels[1])
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    return figure


def string_2d(
    strings: Sequence["pd.DataFrame"],
    titles: Sequence[str],
    L0: float,
    explained: Sequence[float] = (),
) -> Figure:
    """Strings in two principal components: blue up to L0, and coloured by loss above it.

    Args:
        strings: per panel a table with `pc1`, `pc2`, `loss` and `is_network`.
        titles: of the panels.
        L0: the threshold.
        explained: share of the variance along each of the two components, for the axes.
    """
    n, names = len(strings), ["pc1", "pc2"]
    n_rows = -(-n // 2)
    size = (PAGE, 2.3 * n_rows + 0.3)
    figure, axes = plt.subplots(
        n_rows, min(n, 2), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    top = max(1.1, *(s.loss.max() / L0 for s in strings))
    warm = ListedColormap(plt.get_cmap("YlOrRd")(np.linspace(0.3, 1, 256)))
    colours = {"norm": LogNorm(1, top), "cmap": warm}
    points = np.concatenate([s[names].to_numpy(float) for s in strings])
    spread = max(np.ptp(points, axis=0).max(), 1e-9)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * spread  # what is smaller than a straight line's rounding looks straight
    for axis, string, title in zip(axes.flat, strings, titles, strict=False):
        axis.plot(string.pc1, string.pc2, color="0.8", linewidth=1, zorder=1)
        is_low = string.loss <= L0 * (1 + 1e-5)
        axis.scatter(
            *string.loc[is_low, names].to_numpy().T,
            color=PALETTE[0],
            s=9,
            label="at or below $L_0$",
        )
        above = string[~is_low]
        drawn = axis.scatter(above.pc1, above.pc2, c=above.loss / L0, s=9, **colours)
        networks = string.loc[string.is_network, names].to_numpy().T
        axis.plot(*networks, "o", color="black", fillstyle="none", markersize=6, label="networks")
        axis.set_title(title)
        axis.set(xlim=(low[0] - margin, high[0] + margin))
        axis.set(ylim=(low[1] - margin, high[1] + margin))
    shares = [f" ({share:.0%} of the variance)" for share in explained] or ["", ""]
    for axis in axes[-1]:
        axis.set_xlabel(f"PC 1{shares[0]}")
    for axis in axes[:, 0]:
        axis.set_ylabel(f"PC 2{shares[1].replace(' of the variance', '')}")
    for axis in axes.flat[n:]:
        axis.set_axis_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, label="$L / L_0$")
    plain_ticks(bar.ax.yaxis, (1, 2, 5) if top < 20 else (1, 3))
    return figure


def shares(axis: Axes, table: "pd.DataFrame", x: str, by: str, x_label: str) -> None:
    """How many of how many connected, as numbers on shades of blue: a row for each group.

    Args:
        axis: where to draw.
        table: as `dss.stats.summarise` returns it: `n_connected`, `n_pairs`, `fraction`.
        x: column of the columns, which rise from left to right.
        by: column of the rows, in its order.
        x_label: with its unit.
    """
    rows, columns = list(table[by].drop_duplicates()), sorted(table[x].unique())
    grid = table.pivot(index=by, columns=x, values="fraction").loc[rows, columns]
    axis.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for _, row in table.iterrows():
        at = columns.index(row[x]), rows.index(row[by])
        color = "white" if row.fraction > 0.6 else "black"
        text = f"{row.n_connected:.0f}/{row.n_pairs:.0f}"
        axis.text(*at, text, ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xlabel(x_label)
    axis.grid(False)
    axis.tick_params(length=0)


def image_rows(
    images: np.ndarray,
    titles: Sequence[str],
    row_labels: Sequence[str],
    unit: str | None = None,
) -> Figure:
    """Small images in a grid: a row per filter or digit, a column per position.

    Args:
        images: `(n_rows, n_columns, height, width)`.
        titles: of the columns.
        row_labels: of the rows.
        unit: what the values are: all images share one symmetric scale, with a colour bar.  None:
            each row has its own, without one.
    """
    n_rows, n_columns = images.shape[:2]
    size = (PAGE, PAGE / (n_columns + (1 if unit is None else 2.5)) * n_rows + 0.3)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False)
    for i in range(n_rows):
        limit = np.abs(images[i] if unit is None else images).max()
        for j in range(n_columns):
            axis = axes[i, j]
            drawn = axis.imshow(images[i, j], cmap="PuOr", vmin=-limit, vmax=limit)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            if i == 0:
                axis.set_title(titles[j], fontsize=9)
        axes[i, 0].set_ylabel(row_labels[i], rotation=0, ha="right", va="center", fontsize=9)
    if unit is not None:
        figure.colorbar(drawn, ax=axes, shrink=0.6, label=unit)
    return figure


def predictions(
    digits: np.ndarray, probabilities: np.ndarray, labels: Sequence[int], position: np.ndarray
) -> Figure:
    """Test digits, and the probability of their right class along two paths.

    Args:
        digits: `(n, height, width)`.
        probabilities: `(2, n, n_points)`: along the straight line and along the string.
        labels: `(n,)`, the right classes.
        position: `(n_points,)` in [0, 1].
    """
    n = len(digits)
    if n == 0:
        return nothing("no digit was chosen")
    size, heights = (min(PAGE, 1.4 * n), 2.7), [1, 1.3]
    figure, axes = plt.subplots(2, n, figsize=size, height_ratios=heights, squeeze=False)
    for i in range(n):
        axes[0, i].imshow(digits[i], cmap="Greys")
        axes[0, i].set_axis_off()
        axes[0, i].set_title(f"label {labels[i]}")
        for k, (name, dash) in enumerate((("straight line", "--"), ("string", "-"))):
            axes[1, i].plot(position, probabilities[k, i], dash, color=PALETTE[k], label=name)
        axes[1, i].set(ylim=(-0.05, 1.05), xlabel="position")
        if i:
            axes[1, i].set_yticklabels([])
    axes[1, 0].set_ylabel("probability")
    handles, names = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    return figure


def _all_positive(values: "pd.Series") -> bool:
    """Whether there are values, and all have a logarithm; NaN does not count."""
    values = values.dropna()
    return len(values) > 0 and bool((values > 0).all())


def _say(axis, text: str) -> None:
    """Words in the middle of an empty axis."""
    where = {"transform": axis.transAxes, "ha": "center", "va": "center"}
    axis.text(0.5, 0.5, text, color="0.4", **where)


class _LogTicks(LogLocator):
    """Ticks on a logarithmic axis, of which LogLocator has none where decades are very many."""

    def tick_values(self, vmin, vmax):
        ticks = super().tick_values(vmin, vmax)
        inside = (ticks >= vmin) & (ticks <= vmax)
        return ticks if inside.any() else LogLocator(numticks=6).tick_values(vmin, vmax)


def plain_ticks(axis, steps: Sequence[int]) -> None:
    """Label a logarithmic axis 0.1, 0.2, 0.5, 1 and not 2 x 10^-1."""
    axis.set_major_locator(_LogTicks(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def few_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Ticks of a horizontal axis at given values, or at the two outer ones where they are many."""
    values = sorted(values)
    values = values if len(values) <= 3 else [values[0], values[-1]]
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.xaxis.set_minor_formatter(NullFormatter())


def mark(
    figure: Figure,
    value: float,
    text: str,
    place: float,
    vertical: bool = False,
    bottom: float | None = None,
) -> Figure:
    """A dashed line where something is known from elsewhere; none where nothing is drawn.

    Args:
        figure: its first panel gets the line, and is made wide enough for it.
        value: where the line stands.
        text: its name, on the side of the line where there is room.
        place: of the name along the line, as a fraction of its length.
        vertical: whether the line is vertical.
        bottom: where the vertical axis begins.
    """
    axis = figure.axes[0]
    if not axis.axison:
        return figure
    line, of = (axis.axvline, axis.xaxis) if vertical else (axis.axhline, axis.yaxis)
    low, high = of.get_view_interval()
    if not low <= value <= high:
        axis.autoscale(axis="x" if vertical else "y")
    line(value, color="0.3", linestyle="--", linewidth=1)
    if bottom is not None:
        axis.set_ylim(bottom, None)
    is_far = _fraction(of, value) > 0.2  # from the other axis: there is room between the two
    shift = -3 if is_far else 3
    if vertical:
        at, offset, along = (value, place), (shift, 0), axis.get_xaxis_transform()
        side = {"ha": "right" if is_far else "left", "va": "center"}
    else:
        at, offset, along = (place, value), (0, shift), axis.get_yaxis_transform()
        side = {"ha": "left", "va": "top" if is_far else "bottom"}
    where = {"xycoords": along, "textcoords": "offset points", "xytext": offset}
    axis.annotate(text, at, color="0.3", **where, **side)
    return figure


def _fraction(axis, value: float) -> float:
    """Where a value stands on an axis: 0 at its beginning, 1 at its end."""
    points = np.array([*axis.get_view_interval(), value], float)
    begin, end, at = axis.get_transform().transform(points)
    return float((at - begin) / (end - begin))


def integer_axis(figure: Figure) -> Figure:
    """Mark integers only on the horizontal axes (depths)."""
    for axis in figure.axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
