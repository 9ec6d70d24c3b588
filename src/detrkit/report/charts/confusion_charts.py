"""The confusion matrix as a picture."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from detrkit.report.charts.canvas import chart
from detrkit.report.confusion import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detrkit.report.confusion import Confusion

__all__ = ["draw_confusion"]

_WITH_NUMBERS = 25  # classes; more cells could not hold a number
_WITH_NAMES = 60


def draw_confusion(confusion: Confusion, *, normalized: bool) -> Figure:
    """Draw a confusion matrix: rows as labelled, columns as found; the last ones are the background.

    Args:
        confusion: the matrix.
        normalized: shares of the rows in place of numbers.
    """
    side = float(np.clip(2.4 + 0.42 * len(confusion.names), 4.6, 16))
    panel = partial(_matrix, confusion=confusion, normalized=normalized)
    return chart([panel], columns=1, size=(side + 1.0, side))


def _matrix(axes: Axes, *, confusion: Confusion, normalized: bool) -> None:
    counts, names = confusion.counts, confusion.names
    # colours are always those of shares: a frequent class would leave all others pale
    axes.imshow(confusion.shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    if len(names) <= _WITH_NAMES:
        classes, places = [_short(name) for name in names[:-1]], range(len(names))
        slanted: Any = {"rotation": 45, "ha": "right"} if len(names) > 4 else {}
        axes.set_xticks(places, [*classes, names[-1]], **slanted)
        axes.set_yticks(places, [*classes, names[-1]])
    axes.axvline(len(names) - 1.5, color="#888888", linewidth=0.8)
    axes.axhline(len(names) - 1.5, color="#888888", linewidth=0.8)
    if len(names) <= _WITH_NUMBERS:
        for row, column in np.ndindex(*counts.shape):
            share = confusion.shares[row, column]
            if counts[row, column]:
                text = f"{share:.2f}" if normalized else short_count(int(counts[row, column]))
                color = "white" if share > 0.55 else "#222222"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    kind = f"shares of the labelled {confusion.of}" if normalized else f"numbers of {confusion.of}"
    how = "\n(IoU 0.5, best thresholds)" if confusion.of == "objects" else ""
    axes.set(title=kind + how, xlabel="found as", ylabel="labelled as")
    axes.spines[:].set_visible(True)


def _short(name: str) -> str:
    return (name if len(name) <= 18 else name[:17] + "…").replace("$", r"\$")
