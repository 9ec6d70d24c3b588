"""One row of a YOLO label file: ``class x y width height``, a polygon, or a box with key points.

All numbers but the class are fractions of the image. What a row is follows from the number of its values and from
``kpt_shape`` of ``data.yaml``, never from the values themselves:

=====================  ==========================================================
values after the class  meaning
=====================  ==========================================================
4                       box: centre, width and height
5                       box and confidence (0 to 1), which is left out
6, 8, 10, …             polygon ``x1 y1 x2 y2 x3 y3 …``
4 + K · D, one more     with ``kpt_shape: [K, D]``: box, key points (, confidence)
=====================  ==========================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from detrkit.errors import DataError

__all__ = ["LabelRow", "parse_row"]

# Fractions of the image beyond which a value is none: drawn shapes end a little outside at most.
_LIMITS = (-0.5, 1.5)


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One object: class, box (x, y, width, height) from the top left corner, polygon if it is one, all in fractions."""

    label: int
    box: tuple[float, float, float, float]
    polygon: list[float] | None = None
    confidence: float | None = None


def parse_row(words: list[str], keypoints: tuple[int, int] | None) -> LabelRow:
    """Read a row. keypoints: ``kpt_shape``, number of key points and of values of each, or None.

    Raises:
        DataError: the row is none of these; the message does not say where it is.
    """
    try:
        number = float(words[0])
        label = int(number)
    except (ValueError, OverflowError) as error:
        raise DataError(f"'{words[0]}' is not a class number") from error
    if label != number or label < 0:
        raise DataError(f"'{words[0]}' is not a class number: 0, 1, 2, …")
    try:
        values = [float(word) for word in words[1:]]
    except ValueError as error:
        raise DataError(f"'{' '.join(words[1:5])}' are not four numbers x y width height") from error
    kept, confidence = _without_confidence(values, keypoints)
    for value in kept:
        if not math.isfinite(value):
            raise DataError(f"has a number that is not finite: {value}")
        if not _LIMITS[0] <= value <= _LIMITS[1]:
            raise DataError(
                f"{value:g} is no fraction of the image: YOLO counts from 0 to 1, not in pixels (and key points need "
                "kpt_shape in data.yaml)"
            )
    if len(kept) == 4:
        x, y, width, height = kept
        return LabelRow(label, (x - width / 2, y - height / 2, width, height), confidence=confidence)
    xs, ys = kept[0::2], kept[1::2]
    box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    return LabelRow(label, box, polygon=kept)


def _without_confidence(values: list[float], keypoints: tuple[int, int] | None) -> tuple[list[float], float | None]:
    """The numbers of the box or the polygon, and the confidence after a box."""
    count = len(values)
    if keypoints is not None:
        points = keypoints[0] * keypoints[1]
        if count == 4 or count == 4 + points:
            return values[:4], None
        if count == 5 + points:
            return values[:4], values[-1]
        raise DataError(
            f"{count} numbers after the class; with kpt_shape [{keypoints[0]}, {keypoints[1]}] in data.yaml a "
            f"row is a box of four numbers and {points} for its key points"
        )
    if count == 5 and 0 <= values[4] <= 1:
        return values[:4], values[4]
    if count == 4 or (count >= 6 and count % 2 == 0):
        return values, None
    raise DataError(
        f"{count} numbers after the class; a box has four numbers x y width height (a confidence may follow), "
        "a polygon an even number from 6 on, and key points need kpt_shape in data.yaml"
    )
