"""The size that an image is resized to, by the rules of DETR and of Relation-DETR, and to fit a fixed canvas."""

from __future__ import annotations

import numpy as np

__all__ = ["fitted_shape", "resize_shape", "truncated_shape"]


def resize_shape(height: int, width: int, short_side: int, max_side: int | None = None) -> tuple[int, int]:
    """(height, width) whose shorter side is ``short_side``, or smaller if the longer side would exceed ``max_side``.

    Rounds like the official code: to the nearest for a shorter side that ``max_side`` limits, down for the longer side.
    """
    low, high = min(height, width), max(height, width)
    if max_side is not None and high * short_side > max_side * low:
        short_side = max(1, round(max_side * low / high))
    if low == short_side:
        return height, width
    if width < height:
        return short_side * height // width, short_side
    return short_side, short_side * width // height


def truncated_shape(height: int, width: int, short_side: int, max_side: int | None = None) -> tuple[int, int]:
    """The evaluation size of the Relation-DETR repository: both sides times one ratio in float32, rounded down.

    For many sizes float32 gives one pixel less than exact arithmetic: 375 x 500 becomes 799 x 1066.
    """
    sides = np.array([height, width], np.float32)
    # torch computes number / tensor as number * (1 / tensor); a direct division would round differently
    inverse = np.float32(1) / sides
    ratio = np.float32(short_side) * inverse.max()
    if max_side is not None:
        ratio = min(ratio, np.float32(max_side) * inverse.min())
    new_height, new_width = (sides * ratio).astype(np.int64).clip(min=1).tolist()
    return new_height, new_width


def fitted_shape(shape: tuple[int, int], canvas: tuple[int, int] | None) -> tuple[int, int]:
    """A (height, width) made smaller, in proportion, until it fits into a canvas; None: any size fits."""
    if canvas is None or (shape[0] <= canvas[0] and shape[1] <= canvas[1]):
        return shape
    scale = min(canvas[0] / shape[0], canvas[1] / shape[1])
    height, width = (max(1, min(limit, int(side * scale))) for side, limit in zip(shape, canvas, strict=True))
    return height, width
