"""Boxes, masks and captions of detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detrkit.data.images import read_image
from detrkit.drawing.palette import Color, category_color, class_color, instance_colors, text_color
from detrkit.drawing.tint import tint_masks
from detrkit.structures import Detections

__all__ = ["Captions", "Mark", "caption_font", "draw_captions", "draw_detections", "draw_marks", "upright_picture"]

Rectangle = tuple[float, float, float, float]

Captions = Literal["auto", "all", "none"]
"""Which objects of a picture are named."""

# share of a picture that captions may cover
_AMONG_MASKS = 1 / 12
_AMONG_BOXES = 1 / 4


@dataclass(frozen=True)
class Mark:
    """One object to draw: box (xyxy in pixels), class and caption. Crowd regions are crossed out."""

    box: Rectangle
    label: int
    caption: str
    crowd: bool = False
    shade: Color | None = None

    @property
    def color(self) -> Color:
        """That of its class, unless it has a shade of its own."""
        return class_color(self.label) if self.shade is None else self.shade


def draw_detections(
    detections: Detections,
    image: Image.Image | NDArray[np.uint8] | str | Path | None = None,
    *,
    labels: Captions = "auto",
) -> Image.Image:
    """Draw every detection with its box, or its mask where there are masks, and a caption of name and score.

    Lines and text scale with the image. The best detections are drawn last. Captions avoid each other where possible.
    Masks are tinted in shades of the class colour and outlined.

    Args:
        detections: the detections to draw.
        image: the image; default: the file that the detections come from. Arrays are RGB.
        labels: ``"auto"`` leaves out captions that would cover another one, those of the last detections where they
            would cover much of a crowded picture, and, of masks, those that are larger than their object; ``"all"``;
            ``"none"``.

    Raises:
        ValueError: no image is given and the detections have no path, the image has another size, or ``labels`` is
            unknown.
        DataError: the image cannot be read.
    """
    if labels not in get_args(Captions):
        raise ValueError(f"labels is 'auto', 'all' or 'none', got {labels!r}")
    canvas = upright_picture(detections, image).copy()
    rows = zip(
        detections.boxes.tolist(),
        detections.labels.tolist(),
        (f"{name} {score:.2f}" for name, score in zip(detections.names, detections.scores.tolist(), strict=True)),
        strict=True,
    )
    marks = [Mark(tuple(box), label, caption) for box, label, caption in rows]
    if detections.masks is None:
        draw_marks(canvas, marks, labels=labels)
        return canvas
    colors = instance_colors(category_color(detections.categories[mark.label], mark.label) for mark in marks)
    tint_masks(canvas, detections.masks, colors)
    marks = [replace(mark, shade=color) for mark, color in zip(marks, colors, strict=True)]
    if labels != "none":
        draw_captions(canvas, marks, fitting=labels == "auto", most=_AMONG_MASKS if labels == "auto" else None)
    return canvas


def upright_picture(
    detections: Detections, image: Image.Image | NDArray[np.uint8] | str | Path | None = None
) -> Image.Image:
    """The RGB picture that detections are for; default: the file that they come from.

    Raises:
        ValueError: no image is given and the detections have no path, or the image has another size.
        DataError: the image cannot be read.
    """
    source = detections.path if image is None else image
    if source is None:
        raise ValueError("these detections carry no path: pass the image that they were found in")
    picture = read_image(source)
    if (picture.height, picture.width) != tuple(detections.image_size):
        height, width = detections.image_size
        raise ValueError(f"the image is {picture.width}x{picture.height}, but the detections are for {width}x{height}")
    return picture


def draw_marks(canvas: Image.Image, marks: Sequence[Mark], *, labels: Captions = "all") -> None:
    """Draw outlines, then captions; the first mark is on top."""
    draw = ImageDraw.Draw(canvas)
    line = _line(canvas.size)
    for mark in reversed(marks):
        x1, y1, x2, y2 = mark.box
        # x2 and y2 are exclusive: the last pixel inside the box is one less
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=mark.color, width=line)
        if mark.crowd:
            draw.line((x1, y1, x2, y2), fill=mark.color, width=line)
            draw.line((x1, y2, x2, y1), fill=mark.color, width=line)
    if labels != "none":
        draw_captions(canvas, marks, most=_AMONG_BOXES if labels == "auto" else None)


def draw_captions(
    canvas: Image.Image, marks: Sequence[Mark], *, fitting: bool = False, most: float | None = None
) -> None:
    """Draw captions, the first on top.

    Args:
        canvas: the picture.
        marks: what is named.
        fitting: leave out captions that are larger than their object.
        most: the share of the picture that captions may cover; then none covers another one either. None: no limit.
    """
    draw = ImageDraw.Draw(canvas)
    line = _line(canvas.size)
    font, pad = caption_font(canvas.size)[0], line + 1
    captions: list[tuple[Mark, Rectangle]] = []
    taken: list[Rectangle] = []
    room = float("inf") if most is None else most * canvas.width * canvas.height
    for mark in marks:
        left, top, right, bottom = draw.textbbox((0, 0), mark.caption, font=font)
        size = (right - left + 2 * pad, bottom - top + 2 * pad)
        area = size[0] * size[1]
        if area > room or (fitting and area > _area(mark.box)):
            continue
        place = _place(mark.box, size, canvas.size, taken)
        if most is not None and any(_overlap(place, other) for other in taken):
            continue
        taken.append(place)
        room -= _area(place)
        captions.append((mark, place))
    for mark, place in reversed(captions):
        left, top, _, _ = draw.textbbox((0, 0), mark.caption, font=font)
        draw.rounded_rectangle(place, radius=line + 1, fill=mark.color)
        draw.text((place[0] + pad - left, place[1] + pad - top), mark.caption, font=font, fill=text_color(mark.color))


def _line(canvas: tuple[int, int]) -> int:
    """Width of the lines of boxes on a picture (width, height)."""
    return max(1, round(min(canvas) / 240))


def caption_font(canvas: tuple[int, int]) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, int]:
    """The font of text on a picture (width, height), and its size."""
    size = max(9, round(min(canvas) / 34))
    return _font(size), size


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _place(box: Rectangle, size: tuple[float, float], canvas: tuple[int, int], taken: list[Rectangle]) -> Rectangle:
    """Position of a caption: above the corner of its box, else inside or below, the first one that covers no other."""
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


def _area(box: Rectangle) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
