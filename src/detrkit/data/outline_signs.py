"""Whether masks were written for these pictures: they lie where the boxes of their objects are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from detrkit.data.clean_rows import outline_box, row_problem
from detrkit.data.findings import Finding, finding
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["MASK_FRAME", "outline_signs"]

MASK_FRAME = "mask frame"
"""The check."""

_SAMPLE = 2000  # masks that are looked at
_LEAST = 20
_APART = 0.5  # IoU of the box of a mask with the box of its object, below which they lie apart, …
_MANY = 0.5  # … and the share of the masks for which that is no slip
_FITTING = 0.9  # share of those that fit when they are read otherwise

Boxes = NDArray[np.float64]


def outline_signs(split: str, table: Table) -> Iterator[Finding]:
    """An error where most masks lie elsewhere than the boxes of their objects, with the reading in which they fit."""
    boxes, drawn, sizes = _columns(table)
    off = _iou(boxes, drawn) < _APART
    found = []
    if len(boxes) >= _LEAST and off.mean() >= _MANY:
        fitting = (what for what, read in _readings(boxes, drawn, sizes) if _share(boxes[off], read[off]) >= _FITTING)
        how = next(fitting, None)
        found = [f"{off.mean():.0%} of {len(off)} lie elsewhere{f'; they fit when read as {how}' if how else ''}"]
    message = "masks that do not lie where the boxes of their objects are"
    yield finding("error", MASK_FRAME, split, found, message)


def _readings(boxes: Boxes, drawn: Boxes, sizes: Boxes) -> Iterator[tuple[str, Boxes]]:
    """Other readings of coordinates, in words and as the boxes (N, 4) that masks then have."""
    yield "fractions of the image", drawn * sizes
    yield "percent of the image", drawn * sizes / 100
    yield "[y1, x1, y2, x2, …] instead of [x1, y1, x2, y2, …]", drawn[:, [1, 0, 3, 2]]
    yield "pixels from the corner of the box", drawn + boxes * [1, 1, 0, 0]
    usual = np.median(boxes[:, 2:] / np.maximum(drawn[:, 2:], 1e-9))
    yield f"pixels of pictures of {1 / usual:.2f} times the size", drawn * usual


def _share(boxes: Boxes, read: Boxes) -> float:
    return float((_iou(boxes, read) >= _APART).mean())


def _iou(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """(N,) of boxes [x, y, width, height] in pairs."""
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    return np.asarray(shared / (np.prod(first[:, 2:], axis=1) + np.prod(second[:, 2:], axis=1) - shared))


def _columns(table: Table) -> tuple[Boxes, Boxes, Boxes]:
    """Boxes (N, 4) of objects and of their masks, and width, height, width, height of their images."""
    known = table.sizes
    step = max(1, len(table.annotations) // _SAMPLE)
    boxes, drawn, sizes = [], [], []
    for number, row in enumerate(table.annotations):
        width, height = known.get(row["image_id"], (None, None))
        if number % step or not row.get("segmentation") or not width or not height or row_problem(row) is not None:
            continue
        try:
            drawn.append(outline_box(row["segmentation"]))
        except DataError:  # another finding
            continue
        boxes.append(row["bbox"])
        sizes.append((width, height, width, height))
    columns = (np.array(rows, dtype=np.float64).reshape(-1, 4) for rows in (boxes, drawn, sizes))
    return next(columns), next(columns), next(columns)
