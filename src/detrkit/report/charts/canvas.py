"""What all charts share: figures without a window, one style, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.errors import RunError
from detrkit.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["chart", "save_chart"]

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
}

Panel = Callable[["Axes"], None]
"""Draws on one pair of axes."""


def chart(panels: Sequence[Panel], *, columns: int, size: tuple[float, float], title: str = "") -> Figure:
    """A figure with a grid of panels.

    Args:
        panels: what draws each of them.
        columns: panels side by side.
        size: width and height of a panel in inches.
        title: of the whole.
    """
    # a figure of its own and no pyplot: nothing is opened, and the drawing of a notebook is left alone
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = NewFigure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        FigureCanvasAgg(figure)
        grid: Any = figure.subplots(rows, columns, squeeze=False)
        places = list(grid.flat)
        for panel, axes in zip(panels, places, strict=False):
            panel(axes)
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        if title:
            figure.suptitle(title.replace("$", r"\$"))
    return figure


def save_chart(figure: Figure, path: Path, *, dpi: int = 120) -> None:
    """Write a figure as PNG, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        with replacing(path) as draft:
            figure.savefig(draft, format="png", dpi=dpi)
    except OSError as error:
        raise RunError(f"{path}: the picture cannot be written ({error.strerror or error})") from error
