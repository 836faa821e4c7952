"""Whether a figure can be read where it is printed: on a page, at the size it is drawn."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from dss.plots import PAGE

LEAST_POINTS = 8


def unreadable(figure: Figure) -> list[str]:
    """What a reader of the printed page could not read, a phrase for each."""
    faults = []
    width = figure.get_size_inches()[0]
    if width > PAGE + 0.01:
        faults.append(f"the figure is {width:.1f} inches wide, the page {PAGE}")
    figure.draw_without_rendering()
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text.get_fontsize() < LEAST_POINTS:
            faults.append(f"{text.get_text()!r} has {text.get_fontsize():g} points")
    for axis in figure.axes:
        if axis.axison and axis.name != "3d":
            faults += _of_axis(axis) + _outside(axis)
    return faults


def _outside(axis) -> list[str]:
    """Markers that are not seen: above or below the axis, or a whole line of them beside it (an
    axis may be zoomed to some of its points)."""
    faults, box = [], axis.get_window_extent().padded(1)
    for line in axis.lines:
        is_data = line.get_visible() and line.get_transform() == axis.transData
        if is_data and line.get_marker() not in (None, "None", "", " "):
            places = axis.transData.transform(np.column_stack(line.get_data()).astype(float))
            places = places[np.isfinite(places).all(axis=1)]
            beside = np.array([not box.x0 <= x <= box.x1 for x, _ in places], bool)
            lost = [y for _, y in places[~beside] if not box.y0 <= y <= box.y1]
            hidden = len(places) if len(places) and beside.all() else len(lost)
            faults += [f"{hidden} of {len(places)} points lie outside their axis"] if hidden else []
    return faults


def _of_axis(axis) -> list[str]:
    """Tick labels on top of each other, and labels that are longer than their axis."""
    faults, box = [], axis.get_window_extent()
    for side, low, high in ((axis.xaxis, "x0", "x1"), (axis.yaxis, "y0", "y1")):
        begin, end = getattr(box, low), getattr(box, high)
        ticks = [label for label in side.get_ticklabels() if label.get_text().strip()]
        boxes = [(t.get_window_extent(), t.get_text()) for t in ticks if t.get_visible()]
        places = sorted((getattr(b, low), getattr(b, high), text) for b, text in boxes)
        places = [p for p in places if p[1] > begin and p[0] < end]
        for (_, last, text), (first, _, after) in zip(places, places[1:], strict=False):
            if first < last - 1:
                faults.append(f"tick labels {text!r} and {after!r} overlap")
        label = side.label.get_window_extent()
        if getattr(label, high) - getattr(label, low) > 1.15 * (end - begin):
            faults.append(f"the label {side.label.get_text()!r} is longer than its axis")
    return faults
