"""The report's plots as inline SVG that follows the page's light or dark colours."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

_INK = "#010203"  # replaced by currentColor
_SERIES = {"#0a0b01": "var(--teacher)", "#0a0b02": "var(--student)", "#0a0b03": "var(--export)"}
_COLOURS = dict(zip(("teacher", "student", "export"), _SERIES, strict=True))
_MARKERS = {"teacher": "s", "student": "o", "export": "^"}


@dataclass(frozen=True)
class Point:
    """One system in a scatter plot."""

    name: str
    role: str
    x: float
    y: float
    low: float | None = None
    """Lower end of y's interval."""
    high: float | None = None


def scatter(points: Sequence[Point], x_label: str, y_label: str, plot_id: str) -> str:
    """Labelled points with intervals; a logarithmic x axis when the values span more than tenfold."""
    with _style(plot_id):
        figure, axes = plt.subplots(figsize=(5.6, 3.8))
        if min(point.x for point in points) * 10 < max(point.x for point in points):
            axes.set_xscale("log")
        for point in points:
            colour = _COLOURS[point.role]
            if point.low is not None and point.high is not None:
                axes.vlines(point.x, point.low, point.high, color=colour, alpha=0.45, linewidth=1.5)
            axes.plot(point.x, point.y, _MARKERS[point.role], color=colour, markersize=8)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.18, y=0.18)
        figure.canvas.draw()
        places = axes.transData.transform([(point.x, point.y) for point in points])
        offsets = spread([float(y) for _, y in places], [float(x) for x, _ in places], height=14.0, reach=130.0)
        middle = axes.transAxes.transform((0.62, 0))[0]
        for point, (x, _), y in zip(points, places, offsets, strict=True):
            left = x < middle
            # Offsets are in pixels of the drawing canvas, annotations in points.
            axes.annotate(
                point.name, (point.x, point.y), ha="left" if left else "right", va="center", fontsize=9,
                xytext=(9 if left else -9, (y - axes.transData.transform((point.x, point.y))[1]) * 72 / figure.dpi),
                textcoords="offset points",
            )  # fmt: skip
        return _svg(figure, plot_id)


def spread(heights: Sequence[float], across: Sequence[float], *, height: float, reach: float) -> list[float]:
    """New heights of labels so that those nearer than `reach` across are at least `height` apart; order is kept."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed: dict[int, float] = {}
    for index in order:
        y = heights[index]
        for other in order:
            if other in placed and abs(across[other] - across[index]) < reach:
                y = max(y, placed[other] + height)
        placed[index] = y
    return [placed[index] for index in range(len(heights))]


def curves(
    series: Sequence[tuple[str, str, list[float], list[float]]],
    y_label: str,
    plot_id: str,
    *,
    log: bool = False,
) -> str:
    """Lines over training steps: (name, colour role, steps, values)."""
    with _style(plot_id):
        figure, axes = plt.subplots(figsize=(5.6, 3.2))
        for name, role, steps, values in series:
            axes.plot(
                steps,
                values,
                color=_COLOURS[role],
                linewidth=1.6,
                label=name,
                marker="o" if len(steps) < 30 else "",
            )
        if log:
            axes.set_yscale("log")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(y_label)
        axes.legend(frameon=False, labelcolor=_INK)
        return _svg(figure, plot_id)


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
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
    # Ids are unique on the page; the drawing scales with its column.
    text = re.sub(r'(id="|#)([A-Za-z_][\w.-]*)(?=["\)])', rf"\1{plot_id}-\2", text)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    for colour, variable in _SERIES.items():
        text = text.replace(colour, variable)
    return text.replace(_INK, "currentColor")
