"""Precision against recall, and precision, recall and F1 against the score threshold, for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detrkit.drawing.palette import class_color
from detrkit.report.charts.canvas import chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detrkit.report.precision_recall import ThresholdCurve

__all__ = ["draw_precision_recall", "draw_threshold_curve"]

FloatArray = NDArray[np.float64]

_NAMED = 10  # classes with a colour and a name of their own; more are thin grey lines
_GRID = np.linspace(0, 1, 501)
_VALUES = {"precision": 0, "recall": 1, "F1": 2}  # positions in ``ThresholdCurve.on_grid``


def draw_precision_recall(
    overall: ThresholdCurve, classes: Sequence[ThresholdCurve], *, ap50: Mapping[str, float | None]
) -> Figure:
    """Precision at every recall at IoU 0.5, as COCO draws it.

    Args:
        overall: the curve of all objects.
        classes: those of the classes, in label order.
        ap50: the area below the curve of each class, to be named; None: not defined.
    """

    def named(curve: ThresholdCurve) -> str:
        value = ap50.get(curve.name)
        return curve.name if value is None else f"{curve.name}: AP50 {value:.3f}"

    lines = [(named(curve), _GRID, curve.interpolated(_GRID)) for curve in classes if curve.objects]
    whole = (f"all {overall.objects:,} objects", _GRID, overall.interpolated(_GRID))
    panel = partial(_curves, lines=lines, whole=whole, title="precision and recall at IoU 0.5")
    return chart([partial(panel, labels=("recall", "precision"))], columns=1, size=(6.4, 4.8))


def draw_threshold_curve(
    overall: ThresholdCurve, classes: Sequence[ThresholdCurve], *, value: str, threshold: float | None = None
) -> Figure:
    """Precision, recall or F1 of the detections with at least a score, at IoU 0.5.

    Args:
        overall: the curve of all objects.
        classes: those of the classes, in label order.
        value: ``"precision"``, ``"recall"`` or ``"F1"``.
        threshold: a threshold to mark.
    """
    place = _VALUES[value]

    def named(curve: ThresholdCurve, values: FloatArray) -> str:
        if value != "F1":
            return curve.name
        return f"{curve.name}: {values.max():.2f} at {_GRID[int(values.argmax())]:.2f}"

    grids = [(curve, curve.on_grid(_GRID)[place]) for curve in classes if curve.objects]
    lines = [(named(curve, values), _GRID, values) for curve, values in grids]
    whole = ("all objects", _GRID, overall.on_grid(_GRID)[place])
    panel = partial(_curves, lines=lines, whole=whole, title=f"{value} by score threshold, at IoU 0.5")
    panel = partial(panel, labels=("score threshold", value), mark=threshold, reading=partial(_at, overall, place))
    return chart([panel], columns=1, size=(6.4, 4.8))


def _at(curve: ThresholdCurve, place: int, threshold: float) -> float:
    return float(curve.at(threshold)[place])


Line = tuple[str, FloatArray, FloatArray]
"""Name, x, y."""


def _curves(
    axes: Axes,
    *,
    lines: Sequence[Line],
    whole: Line,
    title: str,
    labels: tuple[str, str],
    mark: float | None = None,
    reading: partial[float] | None = None,
) -> None:
    for label, (name, x, y) in enumerate(lines):
        if len(lines) <= _NAMED:
            color = tuple(part / 255 for part in class_color(label))
            axes.plot(x, y, color=color, linewidth=1.4, label=name.replace("$", r"\$"))
        else:
            axes.plot(x, y, color="#b8b8b8", linewidth=0.6, label=f"{len(lines)} classes" if label == 0 else None)
    name, x, y = whole
    axes.plot(x, y, color="#111111", linewidth=2.4, label=name)
    if mark is not None and reading is not None:
        at = reading(mark)
        axes.axvline(mark, color="#555555", linestyle="--", linewidth=1)
        axes.annotate(f" {at:.3f} at {mark:.3f}", (mark, 0.02), fontsize=9, color="#333333")
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1], xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
