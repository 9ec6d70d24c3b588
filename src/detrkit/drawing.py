"""Drawing of boxes, masks and class names, for labels and detections, with one palette. Uses only Pillow."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detrkit.data.annotations import clipped
from detrkit.data.geometry import Geometry
from detrkit.data.images import read_image
from detrkit.data.rasterise import draw_mask
from detrkit.data.records import ImageRecord
from detrkit.structures import Categories, Detections

__all__ = ["class_color", "draw_detections", "draw_labels"]

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

# Clearly different colours, legible on photographs; more classes get hues around the colour circle.
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
_MOST_NAMES = 40  # of objects with masks; a legend names the classes of more
_SHADES = (0.0, 0.45, 0.2)  # how far the colour of a class goes towards white, by turns
_LIGHTEST_FOR_WHITE = 150  # of 255: captions on lighter colours are black


def class_color(label: int) -> Color:
    """The colour of a class, the same in every picture and run."""
    if label < len(_PALETTE):
        code = _PALETTE[label]
        return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)
    # Multiples of the golden ratio never repeat a hue.
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618033988749895 % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


class _Masks(Protocol):
    """Masks (H, W), of which one at a time becomes pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.bool_]: ...


@dataclass(frozen=True)
class _Mark:
    """One object to draw: box (xyxy in pixels), class and caption. Crowd regions are crossed out."""

    box: Rectangle
    label: int
    caption: str
    crowd: bool = False
    outline: bool = True


def draw_detections(
    detections: Detections, image: Image.Image | NDArray[np.uint8] | str | Path | None = None
) -> Image.Image:
    """Draw every detection with its box and a caption of name and score.

    Lines and text scale with the image. The best detections are drawn last. Captions avoid each other where possible.

    Args:
        detections: the detections to draw.
        image: the image; default: the file that the detections come from.

    Raises:
        ValueError: no image is given and the detections have no path, or the image has another size.
        DataError: the image cannot be read.
    """
    source = detections.path if image is None else image
    if source is None:
        raise ValueError("these detections carry no path: pass the image to draw on")
    canvas = read_image(source).copy()
    if (canvas.height, canvas.width) != tuple(detections.image_size):
        height, width = detections.image_size
        raise ValueError(f"the image is {canvas.width}x{canvas.height}, but the detections are for {width}x{height}")

    labels = detections.labels.tolist()
    if detections.masks is not None:
        _tint(canvas, detections.masks, labels)
    rows = zip(detections.boxes.tolist(), labels, detections.names, detections.scores.tolist(), strict=True)
    _draw(canvas, [_Mark(tuple(box), label, f"{name} {score:.2f}") for box, label, name, score in rows])
    return canvas


def draw_labels(image: Image.Image, record: ImageRecord, categories: Categories) -> Image.Image:
    """Draw the annotations on a copy of the image: boxes and class names, or masks where the record has them.

    Masks are tinted and outlined, and a legend below the image counts them by class. Up to 40 of them are also named in
    place.

    Raises:
        DataError: the file with the masks cannot be used.
    """
    canvas = image.copy()
    if record.segments.masks is not None:
        return _draw_segments(canvas, record, categories)
    marks = [
        _Mark(tuple(box), label, _caption(categories, label, crowd), crowd)
        for boxes, labels, crowd in (
            (record.boxes, record.labels, False),
            (record.crowd_boxes, record.crowd_labels, True),
        )
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
    ]
    _draw(canvas, marks)
    return canvas


@dataclass(frozen=True)
class _RecordMasks:
    """The masks of a record in an order, drawn one at a time."""

    record: ImageRecord
    order: NDArray[np.int64]
    segment_map: NDArray[np.int32] | None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int, /) -> NDArray[np.bool_]:
        masks = self.record.segments.masks
        assert masks is not None
        geometry = Geometry.whole((self.record.width, self.record.height))
        return draw_mask(masks, int(self.order[index]), geometry, self.segment_map)


def _draw_segments(canvas: Image.Image, record: ImageRecord, categories: Categories) -> Image.Image:
    order = np.argsort(~record.segments.things, kind="stable")  # things are drawn on stuff
    segments = record.segments[order]
    labels = segments.labels.tolist()
    _tint(canvas, _RecordMasks(record, order, record.segment_map()), labels)
    things = segments[segments.things]
    if len(things) <= _MOST_NAMES:
        boxes = clipped(things.boxes, np.asarray(canvas.size)).tolist()
        rows = zip(boxes, things.labels.tolist(), things.crowd.tolist(), strict=True)
        marks = [
            _Mark(tuple(box), label, _caption(categories, label, crowd), outline=False) for box, label, crowd in rows
        ]
        _draw(canvas, marks)
    counts = Counter(labels)
    entries = [(label, str(categories[label].name), counts[label]) for label in sorted(counts)]
    return _with_legend(canvas, [(label, f"{name} {count}" if count > 1 else name) for label, name, count in entries])


def _caption(categories: Categories, label: int, crowd: bool) -> str:
    return f"{categories[label].name}{' (crowd)' if crowd else ''}"


def _with_legend(picture: Image.Image, entries: Sequence[tuple[int, str]]) -> Image.Image:
    """The picture with rows of chips (label, text) below it."""
    if not entries:
        return picture
    draw = ImageDraw.Draw(picture)
    font, pad = _font(_text_size(picture)), max(2, round(min(picture.size) / 150))
    left, top, _, bottom = draw.textbbox((0, 0), "Ag", font=font)
    height = bottom - top + 2 * pad
    places: list[tuple[int, str, float, float, float]] = []
    x, y = float(pad), float(picture.height + pad)
    for label, text in entries:
        width = draw.textlength(text, font=font) + 2 * pad
        if x > pad and x + width + pad > picture.width:
            x, y = float(pad), y + height + pad
        places.append((label, text, x, y, width))
        x += round(width) + pad
    canvas = Image.new("RGB", (picture.width, round(y + height + pad)), (255, 255, 255))
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for label, text, x, y, width in places:
        color = class_color(label)
        draw.rounded_rectangle((x, y, x + width, y + height), radius=pad, fill=color)
        draw.text((x + pad - left, y + pad - top), text, font=font, fill=_text_color(color))
    return canvas


def _text_size(picture: Image.Image) -> int:
    return max(9, round(min(picture.size) / 34))


def _draw(canvas: Image.Image, marks: Sequence[_Mark]) -> None:
    """Draw outlines, then captions; the first mark is on top."""
    draw = ImageDraw.Draw(canvas)
    short = min(canvas.size)
    line = max(1, round(short / 240))
    font, pad = _font(_text_size(canvas)), line + 1
    for mark in reversed(marks):
        if not mark.outline:
            continue
        x1, y1, x2, y2 = mark.box
        color = class_color(mark.label)
        # x2 and y2 are exclusive: the last pixel inside the box is one less
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=line)
        if mark.crowd:
            draw.line((x1, y1, x2, y2), fill=color, width=line)
            draw.line((x1, y2, x2, y1), fill=color, width=line)

    captions: list[Rectangle] = []
    for mark in marks:
        left, top, right, bottom = draw.textbbox((0, 0), mark.caption, font=font)
        size = (right - left + 2 * pad, bottom - top + 2 * pad)
        captions.append(_place(mark.box, size, canvas.size, captions))
    for mark, caption in zip(reversed(marks), reversed(captions), strict=True):
        left, top, _, _ = draw.textbbox((0, 0), mark.caption, font=font)
        color = class_color(mark.label)
        draw.rounded_rectangle(caption, radius=line + 1, fill=color)
        draw.text((caption[0] + pad - left, caption[1] + pad - top), mark.caption, font=font, fill=_text_color(color))


def _text_color(background: Color) -> Color:
    red, green, blue = background
    return (255, 255, 255) if 0.299 * red + 0.587 * green + 0.114 * blue < _LIGHTEST_FOR_WHITE else (0, 0, 0)


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


def _tint(canvas: Image.Image, masks: _Masks, labels: Sequence[int]) -> None:
    """Tint every mask with the colour of its class and outline it; the first mask is on top.

    Objects of one class differ in shade by turns, so that they can be told apart where they touch.
    """
    earlier = [labels[:index].count(label) for index, label in enumerate(labels)]
    pixels = np.asarray(canvas, dtype=np.float32).copy()
    thickness = max(1, round(min(canvas.size) / 400))
    for index in reversed(range(len(masks))):
        mask = masks[index]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            continue
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        color = np.asarray(class_color(labels[index]), dtype=np.float32)
        color = color + _SHADES[earlier[index] % len(_SHADES)] * (255 - color)
        inside, region = mask[part], pixels[part]
        region[inside] = 0.55 * region[inside] + 0.45 * color
        region[inside & ~_eroded(inside, min(thickness, 1 + min(inside.shape) // 20))] = color
    canvas.paste(Image.fromarray(pixels.round().astype(np.uint8)))


def _eroded(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask without its outermost pixels."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask
