"""Pictures of doubted labels: the part of the image around each, with the label as it is and what the model sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detrkit.data.suspects import Suspect

__all__ = ["draw_suspect"]

_LABELLED = (255, 77, 77)  # the doubted label
_SUGGESTED = (47, 191, 91)  # what the model sees
_OTHERS = (61, 165, 255)  # other labels

_SIDE = 320  # pixels of a picture
_AROUND = 1.5  # sides of the object that are shown around it


def draw_suspect(image: Image.Image, suspect: Suspect) -> Image.Image:
    """The surroundings of a suspect, 320 x 320 pixels: other labels blue, the doubted one red, the object green.

    image: the image of the record, as its annotations have it.
    """
    seen = suspect.box if suspect.suggested_box is None else suspect.suggested_box
    both = np.stack((suspect.box, seen))
    low, high = both[:, :2].min(0), both[:, 2:].max(0)
    centre = (low + high) / 2
    half = max(24.0, float((high - low).max()) * (0.5 + _AROUND / 2))
    corner = centre - half
    scale = _SIDE / (2 * half)
    region = (float(corner[0]), float(corner[1]), float(corner[0] + 2 * half), float(corner[1] + 2 * half))
    canvas = image.convert("RGB").transform((_SIDE, _SIDE), Image.Transform.EXTENT, region, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)

    def outline(box: NDArray[np.float64], color: tuple[int, int, int], width: int) -> None:
        x1, y1, x2, y2 = ((box - np.tile(corner, 2)) * scale).tolist()
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=width)

    for position, box in enumerate(suspect.record.boxes):
        if position != suspect.position:
            outline(box, _OTHERS, 1)
    if suspect.position is None:
        outline(suspect.box, _SUGGESTED, 3)
    else:
        outline(suspect.box, _LABELLED, 3)
        if suspect.suggested_box is not None:
            outline(suspect.suggested_box, _SUGGESTED, 2)
    return canvas
