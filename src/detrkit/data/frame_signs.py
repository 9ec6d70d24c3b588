"""Whether boxes were written for these pictures: not as fractions, as corners, or for pictures of another size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from detrkit.data.clean_rows import row_problem
from detrkit.data.findings import Finding, finding
from detrkit.data.frames import BORDER_TOLERANCE
from detrkit.data.records import Table

__all__ = ["frame_signs"]

_SAMPLE = 20_000  # boxes that are looked at
_LEAST = 20  # boxes
_MANY = 0.2  # share of the boxes that do not fit into their images as they stand
_FITTING = 0.98  # … and do when they are read otherwise
_CORNER = 0.6  # of the sides of the images: boxes that all end before it were drawn on smaller pictures
_IMAGES = 20


def frame_signs(split: str, table: Table) -> Iterator[Finding]:
    """An error where boxes fit their images only when they are read in another way."""
    boxes, sizes, images = _columns(table)
    found = [] if len(boxes) < _LEAST else _readings(boxes, sizes, images)
    yield finding("error", "box frame", split, found, "boxes that were not written for these pictures as COCO has them")


def _readings(boxes: NDArray[np.float64], sizes: NDArray[np.float64], images: int) -> list[str]:
    x, y, w, h = boxes.T
    width, height = sizes.T
    if (boxes.max(axis=1) <= 1.0).mean() >= _FITTING:
        return ["their numbers lie between 0 and 1: multiply them by width and height of the image"]
    beyond = 1.0 - _share_inside(boxes, sizes)
    if ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)).mean() > 0.9:
        return []  # another finding: they lie outside
    if beyond >= _MANY:
        corners = np.stack([x, y, w - x, h - y], axis=1)
        readings = {
            "[x1, y1, x2, y2] instead of [x, y, width, height]": corners,
            "[y, x, height, width] instead of [x, y, width, height]": boxes[:, [1, 0, 3, 2]],
            "the middle of the box instead of its corner": np.stack([x - w / 2, y - h / 2, w, h], axis=1),
        }
        for what, read in readings.items():
            if (read[:, 2:] > 0).all(axis=1).mean() >= _FITTING and _share_inside(read, sizes) >= _FITTING:
                return [f"{beyond:.0%} of them leave their images; all fit when read as {what}"]
        reach = np.quantile(np.maximum((x + w) / width, (y + h) / height), _FITTING)
        return [f"{beyond:.0%} of them leave their images, up to {reach:.1f} times as far: drawn on larger pictures?"]
    reach_x, reach_y = float(((x + w) / width).max()), float(((y + h) / height).max())
    if images >= _IMAGES and max(reach_x, reach_y) < _CORNER:
        reach_of = f"{reach_x:.0%} of the width and {reach_y:.0%} of the height"
        return [f"none reaches beyond {reach_of}: drawn on smaller pictures?"]
    return []


def _share_inside(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    slack = BORDER_TOLERANCE + 0.02 * sizes
    return float(((low >= -slack) & (high <= sizes + slack)).all(axis=1).mean())


def _columns(table: Table) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Boxes (N, 4) as they are written, (width, height) of their images, and the number of these images."""
    known = {row["id"]: (row.get("width"), row.get("height")) for row in table.images}
    step = max(1, len(table.annotations) // _SAMPLE)
    boxes, sizes, seen = [], [], set()
    for number, row in enumerate(table.annotations):
        if number % step:
            continue
        width, height = known.get(row["image_id"], (None, None))
        if width and height and row_problem(row) is None:
            boxes.append(row["bbox"])
            sizes.append((width, height))
            seen.add(row["image_id"])
    return np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(sizes, dtype=np.float64).reshape(-1, 2), len(seen)
