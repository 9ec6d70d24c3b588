"""The annotations of an image drawn on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image

from detrkit.data.geometry import Geometry
from detrkit.data.rasterise import draw_mask
from detrkit.data.records import ImageRecord
from detrkit.data.segments import clipped
from detrkit.drawing.legend import with_legend
from detrkit.drawing.marks import Mark, draw_captions, draw_marks
from detrkit.drawing.palette import category_color, instance_colors
from detrkit.drawing.tint import tint_masks
from detrkit.structures import Categories, Masks

__all__ = ["draw_labels"]

_MAX_NAMES = 40  # objects with masks that are named in place; the legend names the classes of all


def draw_labels(image: Image.Image, record: ImageRecord, categories: Categories) -> Image.Image:
    """Draw the annotations on a copy of the image: boxes and class names, or masks if the record has them.

    Masks are tinted and outlined, and a legend below the image counts them by class. Up to 40 of them are also named in
    place.

    Raises:
        DataError: the file with the masks cannot be used.
    """
    canvas = image.copy()
    if record.segments.masks is not None:
        return _draw_segments(canvas, record, categories)
    marks = [
        Mark(tuple(box), label, _caption(categories, label, crowd), crowd)
        for boxes, labels, crowd in (
            (record.boxes, record.labels, False),
            (record.crowd_boxes, record.crowd_labels, True),
        )
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
    ]
    draw_marks(canvas, marks)
    return canvas


def _draw_segments(canvas: Image.Image, record: ImageRecord, categories: Categories) -> Image.Image:
    order = np.argsort(~record.segments.things, kind="stable")  # things are on top of stuff
    segments = record.segments[order]
    labels = segments.labels.tolist()
    class_colors = [category_color(categories[label], label) for label in labels]
    count = int(segments.things.sum())
    colors = [*instance_colors(class_colors[:count]), *class_colors[count:]]
    tint_masks(canvas, Masks(_run_lengths(record, order.tolist()), (record.height, record.width)), colors)
    if count <= _MAX_NAMES:
        boxes = clipped(segments.boxes[:count], np.asarray(canvas.size)).tolist()
        rows = zip(boxes, labels[:count], segments.crowd[:count].tolist(), colors[:count], strict=True)
        marks = [
            Mark(tuple(box), label, _caption(categories, label, crowd), shade=color)
            for box, label, crowd, color in rows
        ]
        draw_captions(canvas, marks)
    numbers = Counter(labels)
    return with_legend(
        canvas,
        [
            (category_color(categories[label], label), f"{categories[label].name} {numbers[label]}")
            for label in sorted(numbers)
        ],
    )


def _run_lengths(record: ImageRecord, order: list[int]) -> Iterator[bytes]:
    """The masks of a record in an order, drawn one at a time."""
    masks, geometry = record.segments.masks, Geometry.whole((record.width, record.height))
    assert masks is not None
    segment_map = record.segment_map()
    for index in order:
        yield from Masks.encode(draw_mask(masks, index, geometry, segment_map)[None])


def _caption(categories: Categories, label: int, crowd: bool) -> str:
    return f"{categories[label].name}{' (crowd)' if crowd else ''}"
