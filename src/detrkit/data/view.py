"""Drawing the annotations of a data set on its images."""

from __future__ import annotations

import colorsys

from PIL import Image, ImageDraw, ImageFont

from detrkit.data.records import ImageRecord
from detrkit.structures import Categories

__all__ = ["draw_record"]


def draw_record(image: Image.Image, record: ImageRecord, categories: Categories) -> Image.Image:
    """A copy of the image with its boxes and class names; crowd regions are crossed out."""
    picture = image.copy()
    draw = ImageDraw.Draw(picture)
    line = max(2, round(min(image.size) / 250))
    font = ImageFont.load_default(size=max(11, round(min(image.size) / 40)))
    for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
        colour = _colour(label, len(categories))
        draw.rectangle(_inside(box), outline=colour, width=line)
        _caption(draw, str(categories[label].name), box, colour, font, image.size)
    for box, label in zip(record.crowd_boxes.tolist(), record.crowd_labels.tolist(), strict=True):
        colour = _colour(label, len(categories))
        x1, y1, x2, y2 = box
        draw.rectangle(_inside(box), outline=colour, width=line)
        draw.line((x1, y1, x2, y2), fill=colour, width=line)
        draw.line((x1, y2, x2, y1), fill=colour, width=line)
        _caption(draw, f"{categories[label].name} (crowd)", box, colour, font, image.size)
    return picture


def _inside(box: list[float]) -> tuple[float, float, float, float]:
    """The pixels of a box: its right and bottom edge are where the next pixel begins."""
    x1, y1, x2, y2 = box
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def _colour(label: int, count: int) -> tuple[int, int, int]:
    hue = label / max(count, 1)
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 0.75 + 0.25 * (label % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


def _caption(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: list[float],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """The class name above the box, or inside it where there is no room; moved left where it would be cut off."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    wide, tall = right - left + 4, bottom - top + 4
    x = max(0, min(box[0], size[0] - 1 - wide))
    y = box[1] - tall if box[1] >= tall else min(box[1], size[1] - tall)
    draw.rectangle((x, y, x + wide, y + tall), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, fill=(255, 255, 255) if sum(colour) < 400 else (0, 0, 0), font=font)
