"""A legend of colours and names below a picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from detrkit.drawing.marks import caption_font
from detrkit.drawing.palette import Color

__all__ = ["with_legend"]


def with_legend(canvas: Image.Image, entries: Sequence[tuple[Color, str]]) -> Image.Image:
    """The picture on top of a white strip with a coloured square and the name of every entry."""
    if not entries:
        return canvas
    font, size = caption_font(canvas.size)
    gap, draw = size // 2, ImageDraw.Draw(canvas)
    places: list[tuple[int, int]] = []
    x, y = gap, canvas.height + gap
    for _, name in entries:
        width = round(draw.textlength(name, font=font)) + 2 * size + gap
        if x > gap and x + width > canvas.width:
            x, y = gap, y + size + gap
        places.append((x, y))
        x += width
    whole = Image.new("RGB", (canvas.width, y + size + gap), (255, 255, 255))
    whole.paste(canvas)
    draw = ImageDraw.Draw(whole)
    for (color, name), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y, x + size - 1, y + size - 1), fill=color)
        draw.text((x + size + gap, y + size / 2), name, font=font, fill=(0, 0, 0), anchor="lm")
    return whole
