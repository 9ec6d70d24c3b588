"""Arrays of detections, from what a caller has: lists, arrays of any precision, tensors on any device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrkit.structures.run_lengths import Masks

__all__ = ["as_bitmaps", "as_boxes", "as_labels", "as_scores"]


def as_boxes(given: object) -> NDArray[np.float32]:
    """float32 (N, 4).

    Raises:
        ValueError: another shape.
    """
    boxes = _array(given)
    if boxes.size == 0:
        return np.zeros((0, 4), dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes are (N, 4), got {boxes.shape}")
    return boxes.astype(np.float32, copy=False)


def as_scores(given: object) -> NDArray[np.float32]:
    """float32 (N,).

    Raises:
        ValueError: another shape.
    """
    return _row(given, "scores").astype(np.float32, copy=False)


def as_labels(given: object, classes: int) -> NDArray[np.int64]:
    """int64 (N,), 0..classes - 1.

    Raises:
        ValueError: another shape, or numbers that are no labels.
    """
    labels = _row(given, "labels")
    whole = labels.astype(np.int64, copy=False)
    wrong = (whole != labels) | (whole < 0) | (whole >= classes)
    if wrong.any():
        raise ValueError(f"labels are whole numbers from 0 to {classes - 1}, got {labels[wrong][0]}")
    return whole


def as_bitmaps(given: object, image_size: tuple[int, int]) -> Masks:
    """Masks from bitmaps (N, H, W): all but 0 is part of an object.

    Raises:
        ValueError: another shape.
    """
    bitmaps = _array(given)
    if bitmaps.ndim != 3 or (len(bitmaps) and bitmaps.shape[1:] != tuple(image_size)):
        height, width = image_size
        raise ValueError(f"masks are (N, {height}, {width}) as the image, got {bitmaps.shape}")
    return Masks.of(bitmaps.astype(bool, copy=False), image_size)


def _row(given: object, name: str) -> NDArray[Any]:
    values = _array(given)
    if values.ndim != 1:
        raise ValueError(f"{name} are (N,), got {values.shape}")
    return values


def _array(given: Any) -> NDArray[Any]:
    if hasattr(given, "detach"):  # a tensor; numpy knows neither bfloat16 nor other devices
        given = given.detach().cpu()
        given = given.float() if given.is_floating_point() else given
    return np.asarray(given)
