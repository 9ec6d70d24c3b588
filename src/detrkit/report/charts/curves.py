"""The course of a run: losses, scores, learning rates, speed and memory over the optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detrkit.report.charts.canvas import chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "main_losses"]

Table = Sequence[Mapping[str, float]]
_COLORS = ("#0a7cff", "#e6194b", "#3cb44b", "#f58231", "#911eb4", "#00c2d1")
_FEW = 20  # points; a mean of fewer says nothing that the points do not


def main_losses(names: Sequence[str]) -> list[str]:
    """The losses of the matching queries in the last layer, of all that a log has: ``loss_class``, ``loss_bbox``, …"""
    return [name for name in names if name.startswith("loss_") and "_" not in name[5:]]


def draw_curves(table: Table, *, scores: Sequence[str], title: str = "") -> Figure:
    """Draw the rows of ``metrics.csv``.

    Args:
        table: one mapping a row with ``step`` and what was logged there.
        scores: names of the scores to draw in one panel; the best value of the first is marked.
        title: of the figure.
    """
    names = list(dict.fromkeys(name for row in table for name in row))
    losses = [name for name in ("loss", *main_losses(names)) if name in names]
    panels = [partial(_loss, table=table, name=name) for name in losses]
    shown = [name for name in scores if name in names]
    if shown:
        panels.append(partial(_scores, table=table, names=shown))
    if rates := [name for name in names if name == "lr" or name.startswith("lr_")]:
        panels.append(partial(_lines, table=table, names=rates, title="learning rate"))
    for name, label in (("images_per_second", "images / s"), ("memory_gb", "memory in GB")):
        if name in names:
            panels.append(partial(_lines, table=table, names=[name], title=label, from_zero=True))
    if not panels:
        raise ValueError("the table has no column to draw")
    return chart(panels, columns=4, size=(3.4, 2.5), title=title)


def _finish(axes: Axes, table: Table, title: str) -> None:
    """Title, and the same axis of whole steps for all panels."""
    from matplotlib.ticker import MaxNLocator

    axes.set(title=title, xlabel="step", xlim=(0, 1.03 * max(row["step"] for row in table)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _column(table: Table, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = [(row["step"], row[name]) for row in table if name in row]
    steps, values = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _loss(axes: Axes, *, table: Table, name: str) -> None:
    steps, values = _column(table, name)
    if len(values) < _FEW:
        axes.plot(steps, values, color=_COLORS[0], marker=".")
    else:
        axes.plot(steps, values, color=_COLORS[0], alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smooth(values, len(values) // 20 + 1), color=_COLORS[0], linewidth=1.6)
        # single peaks must not flatten the rest
        low, high = float(values.min()), float(np.percentile(values, 99.5))
        if high > low:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    _finish(axes, table, "total loss" if name == "loss" else name)


def _smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred means over ``2 window + 1`` values, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.minimum(np.arange(len(values)) + window + 1, len(values))
    first = np.maximum(np.arange(len(values)) - window, 0)
    return (sums[last] - sums[first]) / (last - first)


def _scores(axes: Axes, *, table: Table, names: Sequence[str]) -> None:
    for name, color in zip(names, _COLORS, strict=False):
        steps, values = _column(table, name)
        axes.plot(steps, values, color=color, marker=".", label=name)
    steps, values = _column(table, names[0])
    best = int(values.argmax())
    axes.plot(steps[best], values[best], "o", color=_COLORS[0], markersize=7, fillstyle="none")
    axes.set_ylim(0, max(0.05, 1.12 * max(float(_column(table, name)[1].max()) for name in names)))
    _finish(axes, table, f"validation (best {names[0]} {values[best]:.3f})")
    axes.legend(loc="best")


def _lines(axes: Axes, *, table: Table, names: Sequence[str], title: str, from_zero: bool = False) -> None:
    for name, color in zip(names, _COLORS, strict=False):
        steps, values = _column(table, name)
        axes.plot(steps, values, color=color, label=name.removeprefix("lr_"), linewidth=1.3)
    if len(names) > 1:
        axes.legend(loc="best")
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if from_zero:
        axes.set_ylim(bottom=0)
    _finish(axes, table, title)
