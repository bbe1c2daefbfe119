"""The report's plots as inline SVG in the colours of the page, light or dark."""

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

mpl.use("svg")

_INK = "#010203"
"""Colour of text and axes; replaced by the page's text colour in the SVG."""
_SERIES = {"#0a0b01": "var(--teacher)", "#0a0b02": "var(--student)", "#0a0b03": "var(--export)"}
"""Colours of the series, and the page's colours that replace them in the SVG."""
_COLOURS = dict(zip(("teacher", "student", "export"), _SERIES, strict=True))
_MARKERS = {"teacher": "s", "student": "o", "export": "^"}
_GAP, _LABEL_HEIGHT = 12.0, 16.0
"""Distance from the centre of a marker to its label, and from one label to the next, in pixels."""
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Point:
    """One system in a scatter plot."""

    name: str
    role: str
    """`teacher`, `student` or `export`, for colour and marker."""
    x: float
    y: float
    low: float | None = None
    """Lower end of the interval of y; None for no interval."""
    high: float | None = None
    """Upper end of the interval of y."""


def scatter(points: Sequence[Point], x_label: str, y_label: str, plot_id: str) -> str:
    """Draw labelled points with their intervals; the x axis is logarithmic if the values span more than a factor of 10.

    `plot_id` makes the ids inside the SVG unique on the page.
    """
    with _style(plot_id):
        figure, axes = plt.subplots(figsize=(5.6, 3.8))
        if min(point.x for point in points) * 10 < max(point.x for point in points):
            axes.set_xscale("log")
            # Plain numbers at 1, 2 and 5 of each power of ten: matplotlib's own labels overlap within a decade.
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        for point in points:
            colour = _COLOURS[point.role]
            if point.low is not None and point.high is not None:
                axes.vlines(point.x, point.low, point.high, color=colour, alpha=0.45, linewidth=1.5)
            axes.plot(point.x, point.y, _MARKERS[point.role], color=colour, markersize=8)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.18, y=0.18)
        figure.canvas.draw()
        pixels = [tuple(axes.transData.transform((point.x, point.y))) for point in points]
        left, right = axes.transAxes.transform([(0, 0), (1, 0)])[:, 0]
        boxes = place_labels(pixels, [6.2 * len(point.name) for point in points], (left, right))
        for point, (x, y), (start, middle) in zip(points, pixels, boxes, strict=True):
            # Labels are placed in pixels of the canvas; annotate takes offsets in points (1/72 inch).
            shift = ((start - x) * 72 / figure.dpi, (middle - y) * 72 / figure.dpi)
            # A label that is not at the height of its marker is connected to it by a line.
            line = {"arrowstyle": "-", "linewidth": 0.6, "color": _COLOURS[point.role], "shrinkA": 1, "shrinkB": 4}
            axes.annotate(
                point.name, (point.x, point.y), xytext=shift, textcoords="offset points", va="center", fontsize=9,
                arrowprops=line if abs(middle - y) > _LABEL_HEIGHT / 2 else None,
            )  # fmt: skip
        return _svg(figure, plot_id)


def place_labels(
    markers: Sequence[tuple[float, float]], widths: Sequence[float], limits: tuple[float, float]
) -> list[tuple[float, float]]:
    """Choose a position for the label of each marker: its left end and the height of its middle, in pixels.

    A label is placed to the right or left of its marker, at the nearest height where it touches no other label and no
    other marker. It stays inside `limits` if it fits there on one of the sides.

    Args:
        markers: Positions of the markers (x, y), in pixels.
        widths: Widths of the labels, in pixels.
        limits: Left and right end of the plot, in pixels.
    """
    placed: list[tuple[float, float, float]] = []
    for index, ((x, y), width) in enumerate(zip(markers, widths, strict=True)):
        others = [marker for other, marker in enumerate(markers) if other != index]
        sides = [x + _GAP, x - _GAP - width]
        starts = [start for start in sides if limits[0] <= start and start + width <= limits[1]] or sides
        offsets = (sign * step * _LABEL_HEIGHT / 2 for step in range(4 * len(markers) + 1) for sign in (1, -1))
        start, middle = next(
            (start, y + offset)
            for offset in offsets
            for start in starts
            if not any(_overlap(start, y + offset, width, *label) for label in placed)
            and not any(
                start - _GAP < marker_x < start + width + _GAP and abs(marker_y - y - offset) < _LABEL_HEIGHT / 2 + 4
                for marker_x, marker_y in others
            )
        )
        placed.append((start, middle, width))
    return [(start, middle) for start, middle, _ in placed]


def _overlap(
    start: float, middle: float, width: float, other_start: float, other_middle: float, other_width: float
) -> bool:
    beside = start + width <= other_start or other_start + other_width <= start
    return abs(middle - other_middle) < _LABEL_HEIGHT and not beside


def curves(
    series: Sequence[tuple[str, str, list[float], list[float]]],
    y_label: str,
    plot_id: str,
    *,
    x_label: str = "optimiser step",
    log: bool = False,
) -> str:
    """Draw lines; further lines of the same role are dashed.

    Args:
        series: For each line its name, its role (for the colour), and its x and y values.
        y_label: Label of the y axis.
        plot_id: Makes the ids inside the SVG unique on the page.
        x_label: Label of the x axis.
        log: Whether the y axis is logarithmic.
    """
    lines_by_role = Counter[str]()
    with _style(plot_id):
        figure, axes = plt.subplots(figsize=(5.6, 3.2))
        for name, role, steps, values in series:
            axes.plot(
                steps,
                values,
                color=_COLOURS[role],
                linewidth=1.6,
                linestyle=_DASHES[lines_by_role[role] % len(_DASHES)],
                label=name,
                marker="o" if len(steps) < 30 else "",
            )
            lines_by_role[role] += 1
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend(frameon=False, labelcolor=_INK)
        return _svg(figure, plot_id)


def histogram(edges: Sequence[float], counts: Sequence[int], x_label: str, y_label: str, plot_id: str) -> str:
    """Draw bars of heights `counts` [n] between `edges` [n + 1]."""
    with _style(plot_id):
        figure, axes = plt.subplots(figsize=(5.6, 3.2))
        axes.stairs(counts, edges, fill=True, color=_COLOURS["student"])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure, plot_id)


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Return the exponential moving average, corrected for its start at zero as in Adam (Kingma and Ba 2015)."""
    average, scale, result = 0.0, 0.0, []
    for value in values:
        average, scale = weight * average + (1 - weight) * value, weight * scale + (1 - weight)
        result.append(average / scale)
    return result


def _style(plot_id: str) -> Any:
    return mpl.rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": plot_id, "text.color": _INK, "axes.labelcolor": _INK,
            "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
            "axes.spines.right": False, "axes.linewidth": 0.8, "font.size": 10, "font.family": "sans-serif",
            "axes.grid": True, "grid.alpha": 0.15, "grid.color": _INK,
        }
    )  # fmt: skip


def _svg(figure: Any, plot_id: str) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None}
    )
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Make the ids unique on the page, and let the drawing scale with its column.
    text = re.sub(r'(id="|#)([A-Za-z_][\w.-]*)(?=["\)])', rf"\1{plot_id}-\2", text)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    for colour, variable in _SERIES.items():
        text = text.replace(colour, variable)
    return text.replace(_INK, "currentColor")
