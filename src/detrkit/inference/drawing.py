"""Detections drawn on their image, with Pillow alone."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detrkit.data.images import read_image
from detrkit.structures import Detections

__all__ = ["class_color", "draw_detections"]

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

# Far apart from each other and legible on photographs; further classes go round the colour circle.
_PALETTE = (
    "#e6194b",
    "#0a7cff",
    "#3cb44b",
    "#f58231",
    "#911eb4",
    "#00c2d1",
    "#f032e6",
    "#ffd400",
    "#9a6324",
    "#7fd000",
)
_LIGHTEST_FOR_WHITE = 150  # of 255: on lighter chips the text is black


def class_color(label: int) -> Color:
    """The colour of a class: the same in every picture and run."""
    if label < len(_PALETTE):
        code = _PALETTE[label]
        return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)
    # The golden ratio never comes back to a hue that was there.
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618033988749895 % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    detections: Detections, image: Image.Image | NDArray[np.uint8] | str | Path | None = None
) -> Image.Image:
    """The image with a box, and a chip with name and score, for every detection.

    image: by default the file that the detections came from. Lines and text grow with the image; the best detections
    are drawn last, and chips give way to one another where there is room.

    Raises:
        ValueError: no image given and none known, or of another size than the detections are for.
        DataError: the image cannot be read.
    """
    source = detections.path if image is None else image
    if source is None:
        raise ValueError("these detections carry no path: pass the image to draw on")
    canvas = read_image(source).copy()
    if (canvas.height, canvas.width) != tuple(detections.image_size):
        height, width = detections.image_size
        raise ValueError(f"the image is {canvas.width}x{canvas.height}, but the detections are for {width}x{height}")

    if detections.masks is not None:
        _draw_masks(canvas, detections)
    draw = ImageDraw.Draw(canvas)
    short = min(canvas.size)
    line = max(1, round(short / 240))
    font, pad = _font(max(9, round(short / 34))), line + 1
    for index in reversed(range(len(detections))):
        x1, y1, x2, y2 = (float(value) for value in detections.boxes[index])
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=_color(detections, index), width=line)

    chips: list[Rectangle] = []
    texts = [f"{name} {score:.2f}" for name, score in zip(detections.names, detections.scores, strict=True)]
    for index, text in enumerate(texts):
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        size = (right - left + 2 * pad, bottom - top + 2 * pad)
        chips.append(_place(detections.boxes[index].tolist(), size, canvas.size, chips))
    for index in reversed(range(len(detections))):
        chip, color = chips[index], _color(detections, index)
        left, top, _, _ = draw.textbbox((0, 0), texts[index], font=font)
        draw.rounded_rectangle(chip, radius=line + 1, fill=color)
        draw.text((chip[0] + pad - left, chip[1] + pad - top), texts[index], font=font, fill=_text_color(color))
    return canvas


def _color(detections: Detections, index: int) -> Color:
    return class_color(int(detections.labels[index]))


def _text_color(background: Color) -> Color:
    red, green, blue = background
    return (255, 255, 255) if 0.299 * red + 0.587 * green + 0.114 * blue < _LIGHTEST_FOR_WHITE else (0, 0, 0)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _place(box: list[float], size: tuple[float, float], canvas: tuple[int, int], taken: list[Rectangle]) -> Rectangle:
    """Where the chip of a box goes: above its corner, else inside or below, the first place that covers no chip."""
    x1, y1, x2, y2 = box
    width, height = size
    corners = ((x1, y1 - height), (x1, y1), (x2 - width, y1), (x1, y2), (x1, y2 - height), (x2 - width, y2 - height))
    places = []
    for x, y in corners:
        x = min(max(x, 0), max(0, canvas[0] - 1 - width))
        y = min(max(y, 0), max(0, canvas[1] - 1 - height))
        places.append((x, y, x + width, y + height))
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _draw_masks(canvas: Image.Image, detections: Detections) -> None:
    """Tints every mask with the colour of its class, the best on top."""
    assert detections.masks is not None
    pixels = np.asarray(canvas, dtype=np.float32).copy()
    for index in reversed(range(len(detections))):
        mask = detections.masks[index]
        pixels[mask] = 0.55 * pixels[mask] + 0.45 * np.asarray(_color(detections, index), dtype=np.float32)
    canvas.paste(Image.fromarray(pixels.round().astype(np.uint8)))
