"""Colours of classes, and shades that tell apart the instances of a class."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

from detrkit.structures import Category

__all__ = ["Color", "category_color", "class_color", "instance_colors", "shade", "text_color"]

Color = tuple[int, int, int]

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
_GOLDEN = 0.618033988749895  # multiples of the golden ratio never repeat, and neighbours lie far apart
_LIGHTEST_FOR_WHITE = 150  # of 255: text on lighter colours is black


def class_color(label: int) -> Color:
    """The colour of a class, the same in every picture and run."""
    if label < len(_PALETTE):
        code = _PALETTE[label]
        return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)
    return _rgb(*colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, 0.75, 0.95))


def category_color(category: Category, label: int) -> Color:
    """The colour of a class in pictures of masks: the data set's own, else that of the palette."""
    return class_color(label) if category.color is None else category.color


def shade(color: Color, number: int) -> Color:
    """The colour of instance ``number`` of a class; the first one has the colour of the class."""
    step = (number * _GOLDEN + 0.5) % 1.0 - 0.5
    hue, light, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
    light = min(max(light + 0.4 * step, 0.2), 0.85)
    return color if number == 0 else _rgb(*colorsys.hls_to_rgb((hue + 0.08 * step) % 1.0, light, saturation))


def instance_colors(colors: Iterable[Color]) -> list[Color]:
    """Colours of instances, given those of their classes."""
    seen: dict[Color, int] = {}
    shades = []
    for color in colors:
        number = seen.get(color, 0)
        seen[color] = number + 1
        shades.append(shade(color, number))
    return shades


def text_color(background: Color) -> Color:
    """White, or black on light colours."""
    red, green, blue = background
    return (255, 255, 255) if 0.299 * red + 0.587 * green + 0.114 * blue < _LIGHTEST_FOR_WHITE else (0, 0, 0)


def _rgb(red: float, green: float, blue: float) -> Color:
    return round(red * 255), round(green * 255), round(blue * 255)
