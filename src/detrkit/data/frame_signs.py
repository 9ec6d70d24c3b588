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
_SOME = 0.05  # share of the boxes that do not fit into their images as they stand, and …
_FITTING = 0.98  # … share that does when they are read otherwise
_MANY = 0.2  # the same without another reading
_OUTSIDE = 0.9
_CORNER = 0.6  # of the sides of the images: boxes that all end before it were drawn on smaller pictures
_IMAGES = 20


def frame_signs(split: str, table: Table) -> Iterator[Finding]:
    """An error where boxes fit their images only when they are read in another way.

    A warning where they seem to be drawn on larger or smaller pictures: boxes of hidden parts, or of one corner of a
    scene, look alike.
    """
    boxes, sizes, images = _columns(table)
    known = len(boxes) >= _LEAST
    read, drawn = (_reading(boxes, sizes), _other_size(boxes, sizes, images)) if known else ("", "")
    message = "boxes that were not written for these pictures as COCO has them"
    yield finding("error", "box frame", split, [read] if read else [], message)
    yield finding(
        "warning", "box reach", split, [drawn] if drawn and not read else [], "boxes do not fit their pictures"
    )


def _reading(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> str:
    """How boxes have to be read to fit their images; empty where they do, or nothing helps."""
    x, y, w, h = boxes.T
    if (boxes.max(axis=1) <= 1.0).mean() >= _FITTING:
        return "their numbers lie between 0 and 1: multiply them by width and height of the image"
    beyond = 1.0 - _share_inside(boxes, sizes)
    readings = {
        "[x1, y1, x2, y2] instead of [x, y, width, height]": np.stack([x, y, w - x, h - y], axis=1),
        "[y, x, height, width] instead of [x, y, width, height]": boxes[:, [1, 0, 3, 2]],
        "the middle of the box instead of its corner": np.stack([x - w / 2, y - h / 2, w, h], axis=1),
    }
    for what, read in readings.items() if beyond >= _SOME else ():
        if (read[:, 2:] > 0).all(axis=1).mean() >= _FITTING and _share_inside(read, sizes) >= _FITTING:
            return f"{beyond:.0%} of them leave their images; all fit when read as {what}"
    return ""


def _other_size(boxes: NDArray[np.float64], sizes: NDArray[np.float64], images: int) -> str:
    """What speaks for pictures of another size."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    beyond, reach = 1.0 - _share_inside(boxes, sizes), high / sizes
    outside = ((low >= sizes) | (high <= 0)).any(axis=1).mean()
    if beyond >= _MANY and outside < _OUTSIDE:  # all of them outside is another finding
        far = float(np.quantile(reach.max(axis=1), _FITTING))
        return f"{beyond:.0%} of them leave their images, up to {far:.1f} times as far: drawn on larger pictures?"
    width, height = reach.max(axis=0).tolist()
    if images >= _IMAGES and 0 < max(width, height) < _CORNER:
        return (
            f"none reaches beyond {width:.0%} of the width and {height:.0%} of the height: drawn on smaller pictures?"
        )
    return ""


def _share_inside(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    slack = BORDER_TOLERANCE + 0.02 * sizes
    return float(((low >= -slack) & (high <= sizes + slack)).all(axis=1).mean())


def _columns(table: Table) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Boxes (N, 4) as they are written, (width, height) of their images, and the number of these images."""
    known = table.sizes
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
