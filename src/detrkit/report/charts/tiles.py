"""Pictures side by side on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["sheet"]

_GAP = 6
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def sheet(
    pictures: Sequence[Image.Image], *, columns: int, captions: Sequence[str] = (), widest: int = 1920
) -> Image.Image:
    """Pictures in rows on white paper, each with its caption above it.

    Args:
        pictures: what is shown; each keeps its shape, and none is enlarged.
        columns: pictures of a row.
        captions: one for each picture, cut where they are wider than it; none: no captions.
        widest: width of the sheet in pixels, at most.
    """
    columns = min(columns, len(pictures))
    cell = min(max(picture.width for picture in pictures), (widest - _GAP) // columns - _GAP)
    shown = [picture if picture.width <= cell else _narrowed(picture, cell) for picture in pictures]
    font, line = ImageFont.load_default(13), 19 if captions else 0
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    heights = [max(picture.height for picture in row) + line + _GAP for row in rows]
    paper = Image.new("RGB", (columns * (cell + _GAP) + _GAP, sum(heights) + _GAP), _PAPER)
    draw, y, number = ImageDraw.Draw(paper), _GAP, 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            x = _GAP + column * (cell + _GAP)
            if captions:
                draw.text((x, y), _fitting(captions[number], cell, font), font=font, fill=_INK)
            paper.paste(picture, (x, y + line))
            number += 1
        y += height
    return paper


def _narrowed(picture: Image.Image, width: int) -> Image.Image:
    height = max(1, round(picture.height * width / picture.width))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or its beginning and its end, where a name of a file differs from others."""
    if font.getlength(text) <= width:
        return text
    kept = max(2, math.floor(len(text) * width / font.getlength(text)) - 2)
    return f"{text[: kept // 3]}…{text[-(kept - kept // 3) :]}"
