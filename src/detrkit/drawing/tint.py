"""Masks on a picture: tinted, with thin outlines. Memory beyond the picture is that of one mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.drawing.palette import Color
from detrkit.structures import Masks

__all__ = ["blended", "inner_border", "line_width", "tint_masks"]

_TINT = 0.45  # share of the colour; the picture has the rest


def line_width(size: tuple[int, int]) -> int:
    """Width of outlines in pixels, for the (width, height) of a picture."""
    return 1 if min(size) < 600 else 2


def blended(color: int, share: float = _TINT) -> NDArray[np.uint8]:
    """The value that each of the 256 values of a channel becomes when it is tinted."""
    table: NDArray[np.uint8] = ((1 - share) * np.arange(256) + share * color).round().astype(np.uint8)
    return table


def tint_masks(canvas: Image.Image, masks: Masks, colors: Sequence[Color]) -> None:
    """Tint masks and draw outlines along the inside of their borders. The first mask is on top.

    Outlines are drawn after all tints, so that masks on top of each other remain legible.
    """
    pixels = np.array(canvas)
    boxes = masks.boxes.round().astype(int)
    borders: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    width = line_width(canvas.size)
    for index in reversed(range(len(masks))):
        x1, y1, x2, y2 = boxes[index].tolist()
        inside = masks.part(index, (x1, y1, x2, y2))
        region = pixels[y1:y2, x1:x2]
        for channel, value in enumerate(colors[index]):
            plane = region[..., channel]
            plane[inside] = blended(value)[plane[inside]]
        rows, columns = inner_border(inside, width).nonzero()
        borders.append((rows + y1, columns + x1))
    for (rows, columns), color in zip(borders, reversed(colors), strict=True):
        pixels[rows, columns] = color
    canvas.paste(Image.fromarray(pixels))


def inner_border(inside: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The pixels of a mask (H, W) that are at most ``width`` steps away from its outside."""
    core = np.pad(inside, 1)
    for _ in range(width):
        eroded = core.copy()
        eroded[1:] &= core[:-1]
        eroded[:-1] &= core[1:]
        eroded[:, 1:] &= core[:, :-1]
        eroded[:, :-1] &= core[:, 1:]
        core = eroded
    return inside & ~core[1:-1, 1:-1]
