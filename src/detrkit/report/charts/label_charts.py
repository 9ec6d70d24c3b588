"""The labels of a data set as a picture: classes, sizes, shapes, boxes an image, where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detrkit.drawing.palette import Color, category_color
from detrkit.report.charts.canvas import chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detrkit.data.annotated_images import AnnotatedImages

__all__ = ["draw_label_charts"]

_MOST_CLASSES = 15  # named bars; more would not be legible
_COLOR = "#0a7cff"
_COCO_SIZES = (32, 96)
_CELLS = (12, 40)  # of a heat map along each axis: fewest and most


def draw_label_charts(data: AnnotatedImages) -> Figure:
    """Draw the labels of a split: no image is opened, crowd regions do not count.

    Six panels: boxes of each class; boxes an image; sizes (square root of the area, in pixels of the files); width over
    height; centres, and widths and heights as shares of the image.
    """
    records = data.unique_records()
    labels = np.concatenate([np.zeros(0, np.int64), *(record.labels for record in records)])
    boxes = np.concatenate([np.zeros((0, 4)), *(record.boxes for record in records)])
    owner = np.repeat(np.arange(len(records)), [len(record.labels) for record in records])
    sides = np.asarray([(record.width, record.height) for record in records], dtype=np.float64).reshape(-1, 2)[owner]
    corners = np.clip(boxes, 0, np.tile(sides, 2))
    extent = np.maximum(corners[:, 2:] - corners[:, :2], 1e-6)
    centres = (corners[:, :2] + corners[:, 2:]) / 2 / sides
    counts = np.bincount(owner, minlength=len(records))
    names = [str(category.name or category.id) for category in data.categories]
    colors = [category_color(category, label) for label, category in enumerate(data.categories)]
    panels = [
        partial(_classes, names=names, colors=colors, counts=np.bincount(labels, minlength=len(names))),
        partial(_per_image, counts=counts),
        partial(_sizes, sizes=np.sqrt(extent.prod(axis=1))),
        partial(_aspects, aspects=extent[:, 0] / extent[:, 1]),
        partial(_heat, points=centres, title="centres", labels=("x / width", "y / height"), image=True),
        partial(_heat, points=extent / sides, title="widths and heights", labels=("of the width", "of the height")),
    ]
    title = f"{data.name}: {len(records):,} images, {len(labels):,} boxes, {len(names):,} classes"
    return chart(panels, columns=3, size=(4.2, 3.1), title=title)


def _classes(axes: Axes, *, names: Sequence[str], colors: Sequence[Color], counts: NDArray[np.int64]) -> None:
    order = np.argsort(-counts, kind="stable")
    shown = order[: min(_MOST_CLASSES, max(1, int((counts > 0).sum())))]
    places = np.arange(len(shown))
    axes.barh(places, counts[shown], color=[tuple(value / 255 for value in colors[label]) for label in shown])
    texts = [names[label] if len(names[label]) <= 18 else names[label][:17] + "…" for label in shown]
    axes.set_yticks(places, [text.replace("$", r"\$") for text in texts])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    for place, count in zip(places, counts[shown], strict=True):
        axes.annotate(f" {count:,}", (count, place), va="center", fontsize=8)
    axes.margins(x=0.18)
    more, none = int((counts > 0).sum()) - len(shown), int((counts == 0).sum())
    rest = ", ".join([f"{more} more"] * (more > 0) + [f"{none} without any"] * (none > 0))
    axes.set(title=f"boxes of each class{f' ({rest})' if rest else ''}")


def _per_image(axes: Axes, *, counts: NDArray[np.int64]) -> None:
    most = int(counts.max(initial=0))
    step = max(1, -(-(most + 1) // 30))
    axes.hist(counts, bins=np.arange(-0.5, most + step + 0.5, step).tolist(), color=_COLOR)
    middle = float(np.median(counts)) if len(counts) else 0.0
    axes.set(title=f"boxes per image (median {middle:g}, most {most:,})", xlabel="boxes", ylabel="images")


def _sizes(axes: Axes, *, sizes: NDArray[np.float64]) -> None:
    axes.set(title="sizes: square root of the area", xlabel="pixels of the file", ylabel="boxes")
    if not len(sizes):
        return
    low, high = max(0.5, float(sizes.min())), max(1.0, float(sizes.max())) * 1.001
    axes.hist(sizes.clip(low), bins=np.geomspace(low, max(high, low * 1.1), 40).tolist(), color=_COLOR)
    axes.set_xscale("log")
    _plain_log_ticks(axes)
    for limit in _COCO_SIZES:
        if low < limit < high:
            axes.axvline(limit, color="#555555", linestyle="--", linewidth=0.9)
    small = float((sizes < _COCO_SIZES[0]).mean())
    axes.set_title(f"sizes: root of the area ({100 * small:.0f} % below 32 px)")


def _aspects(axes: Axes, *, aspects: NDArray[np.float64]) -> None:
    axes.set(title="shapes: width / height", xlabel="width / height", ylabel="boxes")
    if not len(aspects):
        return
    limit = float(np.clip(np.abs(np.log(aspects)).max(), np.log(2), np.log(16)))
    axes.hist(
        np.exp(np.log(aspects).clip(-limit, limit)), bins=np.exp(np.linspace(-limit, limit, 41)).tolist(), color=_COLOR
    )
    axes.set_xscale("log", base=2)
    ticks = [tick for tick in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16) if abs(np.log(tick)) <= limit * 1.001]
    axes.set_xticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
    axes.axvline(1, color="#555555", linestyle="--", linewidth=0.9)


def _plain_log_ticks(axes: Axes) -> None:
    """Numbers such as 5, 10, 20 on a logarithmic axis in place of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _heat(axes: Axes, *, points: NDArray[np.float64], title: str, labels: tuple[str, str], image: bool = False) -> None:
    axes.grid(visible=False)
    number = int(np.clip(np.sqrt(len(points)), *_CELLS))
    cells, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=number, range=((0, 1), (0, 1)))
    # of the counts the square root: rare places remain visible beside frequent ones
    axes.imshow(np.sqrt(cells), origin="lower", extent=(0, 1, 0, 1), cmap="viridis", aspect="auto")
    if image:
        axes.invert_yaxis()  # as in the image, y points down
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
