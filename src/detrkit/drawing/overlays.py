"""Panoptic and semantic maps on their pictures, with a legend of the classes below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.data.images import ImageSource, read_image
from detrkit.drawing.legend import with_legend
from detrkit.drawing.palette import Color, category_color, instance_colors
from detrkit.drawing.tint import blended, line_width
from detrkit.structures import PanopticMap, SemanticMap

__all__ = ["draw_panoptic", "draw_semantic"]

_TINT = 0.55  # share of the colour of a segment
_ROWS_AT_ONCE = 256


def draw_panoptic(found: PanopticMap, image: ImageSource | None = None) -> Image.Image:
    """Tint every segment with the colour of its class and outline it; pixels without a segment stay as they are.

    Things of one class differ in shade. The legend below the picture names the classes, the largest first, so the
    result is higher than the image.

    Args:
        found: the segments.
        image: the image; default: the file that the map comes from.

    Raises:
        ValueError: no image is given and the map has no path, or the image has another size.
        DataError: the image cannot be read.
    """
    canvas = _canvas(found.path if image is None else image, found.ids.shape)
    colors = [category_color(found.categories[segment.label], segment.label) for segment in found.segments]
    things = [found.categories[segment.label].is_thing for segment in found.segments]
    shades = iter(instance_colors(color for color, thing in zip(colors, things, strict=True) if thing))
    shown = [next(shades) if thing else color for color, thing in zip(colors, things, strict=True)]
    number_of = np.zeros(int(found.ids.max(initial=0)) + 1, dtype=np.int32)
    number_of[[segment.id for segment in found.segments]] = np.arange(1, len(shown) + 1)
    sizes = _paint(canvas, number_of[found.ids], shown)
    areas = np.zeros(len(found.categories), dtype=np.int64)
    np.add.at(areas, [segment.label for segment in found.segments], sizes)
    legend = [(category_color(found.categories[k], k), str(found.categories[k].name)) for k in _largest_first(areas)]
    return with_legend(canvas, legend)


def draw_semantic(found: SemanticMap, image: ImageSource | None = None) -> Image.Image:
    """Tint every pixel with the colour of its class; pixels without a class stay as they are.

    The legend below the picture names the classes, the largest first, so the result is higher than the image.

    Args:
        found: the classes of the pixels.
        image: the image; default: the file that the map comes from.

    Raises:
        ValueError: no image is given and the map has no path, or the image has another size.
        DataError: the image cannot be read.
    """
    canvas = _canvas(found.path if image is None else image, found.labels.shape)
    colors = [category_color(category, label) for label, category in enumerate(found.categories)]
    numbers = np.where(found.labels == found.none, 0, found.labels.astype(np.int32) + 1)
    areas = _paint(canvas, numbers, colors)
    return with_legend(canvas, [(colors[k], str(found.categories[k].name)) for k in _largest_first(areas)])


def _canvas(source: ImageSource | None, shape: tuple[int, ...]) -> Image.Image:
    """A copy of the image, which must have the size (height, width) of the map."""
    if source is None:
        raise ValueError("this map carries no path: pass the image to draw on")
    canvas = read_image(source).copy()
    if (canvas.height, canvas.width) != shape:
        raise ValueError(f"the image is {canvas.width}x{canvas.height}, but the map is for {shape[1]}x{shape[0]}")
    return canvas


def _paint(canvas: Image.Image, numbers: NDArray[np.int32], colors: Sequence[Color]) -> NDArray[np.int64]:
    """Tint and outline the parts of a map (H, W): 0 is no part, part n has colour n - 1. Returns pixels per part."""
    pixels = np.array(canvas)
    solid = np.array([(0, 0, 0), *colors], dtype=np.uint8)
    # row n: what each of the 256 values of a channel becomes in part n; part 0 keeps it
    tables = [
        np.stack([np.arange(256, dtype=np.uint8), *(blended(color[channel], _TINT) for color in colors)])
        for channel in range(3)
    ]
    edges = _edges(numbers, line_width(canvas.size))
    sizes = np.zeros(len(colors) + 1, dtype=np.int64)
    for top in range(0, len(numbers), _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        part, region = numbers[rows], pixels[rows]
        sizes += np.bincount(part.reshape(-1), minlength=len(sizes))
        for channel, table in enumerate(tables):
            region[..., channel] = table[part, region[..., channel]]
        line = edges[rows] & (part > 0)
        region[line] = solid[part[line]]
    canvas.paste(Image.fromarray(pixels))
    return sizes[1:]


def _edges(numbers: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """Pixels at which a part begins and, for lines of two pixels, those before it."""
    edges = np.zeros(numbers.shape, dtype=bool)
    right, down = numbers[:, 1:] != numbers[:, :-1], numbers[1:] != numbers[:-1]
    edges[:, 1:] |= right
    edges[1:] |= down
    if width > 1:
        edges[:, :-1] |= right
        edges[:-1] |= down
    return edges


def _largest_first(areas: NDArray[np.int64]) -> list[int]:
    return [label for label in np.argsort(-areas, kind="stable").tolist() if areas[label]]
