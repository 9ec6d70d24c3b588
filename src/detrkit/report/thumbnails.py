"""Small pictures of the worst images: labels that are found, labels that are missed, and what is wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from detrkit.errors import DataError
from detrkit.report.mistakes import Mistakes, WorstImage
from detrkit.report.scored_set import ScoredSet

__all__ = ["MISTAKE_COLORS", "ReadImage", "thumbnail"]

ReadImage = Callable[[int], Image.Image]
"""Reads the image at a position of a scored set, upright; may raise a DataError."""

MISTAKE_COLORS = {
    "right": "#2fbf5b",
    "missed": "#ffd400",
    "false": "#ff4d4d",
    "wrong class": "#ff8c1a",
    "loose box": "#3da5ff",
    "duplicate": "#e05cff",
}
"""Colours of boxes; missed objects are dashed."""

_SIDE = 480
_QUALITY = 72


def thumbnail(data: ScoredSet, mistakes: Mistakes, worst: WorstImage, read: ReadImage) -> str | None:
    """An image with its mistakes as a data URI; None where it cannot be read."""
    try:
        picture = read(worst.position).convert("RGB")
    except (DataError, OSError):
        return None
    scale = min(1.0, _SIDE / max(picture.size))
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    canvas = ImageDraw.Draw(small)
    rows = data.found_slices[worst.position]
    for place in sorted(range(rows.start, rows.stop), key=lambda place: mistakes.found[place] is not None):
        kind = mistakes.found[place]
        if kind is None and mistakes.object[place] < 0:
            continue  # not judged
        box = (data.found.boxes[place] * scale).tolist()
        canvas.rectangle(_ordered(box), outline=MISTAKE_COLORS[kind or "right"], width=1 if kind is None else 2)
    truth = data.truth_slices[worst.position]
    for place in range(truth.start, truth.stop):
        if mistakes.missed[place]:
            _dashed(canvas, (data.truth.boxes[place] * scale).tolist(), MISTAKE_COLORS["missed"])
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _ordered(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)]


def _dashed(canvas: ImageDraw.ImageDraw, box: list[float], color: str, *, dash: int = 6) -> None:
    x1, y1, x2, y2 = _ordered(box)
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x1, y2), (x2, y2)), ((x1, y1), (x1, y2))):
        first, last = np.array(start), np.array(end)
        length = float(np.abs(last - first).max())
        for at in np.arange(0.0, max(length, 1.0), 2 * dash):
            ends = [first + (last - first) * (min(place, length) / max(length, 1e-9)) for place in (at, at + dash)]
            canvas.line([tuple(one.tolist()) for one in ends], fill=color, width=2)
