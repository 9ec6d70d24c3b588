"""Class maps: PNG masks whose values or colours are classes, as annotation rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detrkit.data.class_lists import ClassList, extent
from detrkit.data.coco_json import Row
from detrkit.data.findings import Finding, finding
from detrkit.data.images import stored_size
from detrkit.data.label_maps import is_rgb_png
from detrkit.data.map_files import Map, MapFile, read_values, values_in
from detrkit.data.records import Table
from detrkit.errors import DataError
from detrkit.structures import Category
from detrkit.structures.segment_maps import segment_shapes

__all__ = ["IGNORE", "ONE_CLASS", "channels", "class_map_rows", "class_remarks", "ignored_values"]

ONE_CLASS = "one class"
"""The check for masks of one class and of pixels to ignore, of which nothing is learned."""
IGNORE = 255
"""The value of pixels without a class, where it is not that of a class and ``classes.json`` names no other."""


def class_map_rows(path: Path, image: Path, size: tuple[int, int], classes: ClassList) -> tuple[Row, list[Row]]:
    """What the row of an image has of its class map, and one annotation row per class in it.

    Args:
        path: the mask, a PNG file with numbers or colours of classes.
        image: the file of the image.
        size: (width, height) of the upright image. The mask may also have that of the file before the EXIF rotation.
        classes: what the numbers and colours stand for.

    Raises:
        DataError: the mask cannot be read, has another size, a value of no class, or no class at all; two classes have
            one colour.
    """
    rgb = is_rgb_png(path)
    values = read_values(path, rgb=rgb)
    height, width = values.shape
    if (width, height) != size and (width, height) != stored_size(image):
        raise DataError(
            f"{path}: the mask is {width}x{height} pixels but {image.name} is {size[0]}x{size[1]}; masks must have the "
            "size of their image"
        )
    value_of, void = _values(classes, rgb), ignored_values(classes)
    if rgb:
        void = tuple(map(_gray, void))
    unknown = sorted(values_in(values) - set(value_of.values()) - set(void))
    if unknown:
        raise DataError(f"{path}: {_unknown(unknown, values, classes, rgb)}")
    shapes = segment_shapes(values + 1)  # which leaves out 0
    found = {number - 1: index for index, number in enumerate(shapes.ids.tolist())}
    rows = [
        {
            "category_id": category,
            "bbox": shapes.boxes[found[value]].tolist(),
            "area": int(shapes.areas[found[value]]),
            "value": value,
            "where": f"{path}: class {category}",
        }
        for category, value in value_of.items()
        if value in found and value not in void
    ]
    if not rows:
        raise DataError(f"{path}: has only pixels to ignore; leave out the image, or mark something in it")
    listed = tuple(row["value"] for row in rows)
    file = MapFile(path=path, values=listed, void=void, rgb=rgb, listed_in=classes.source)
    return {"width": width, "height": height, "map": file}, rows


def _values(classes: ClassList, rgb: bool) -> dict[int, int]:
    """The value of each class in a mask file: in RGB files that of its colour, or of the gray that is its number.

    Raises:
        DataError: two classes have one colour.
    """
    if not rgb:
        return {category.id: category.id for category in classes.categories}
    found: dict[int, Category] = {}
    for category in classes.categories:
        color = category.color
        value = _gray(category.id) if color is None else color[0] + 256 * color[1] + 65536 * color[2]
        if value in found:
            raise DataError(
                f"{classes.source}: '{found[value].name}' and '{category.name}' have one colour in masks of RGB, "
                f'{channels(value)} (without "color" the gray of their number); give each class its own'
            )
        found[value] = category
    return {category.id: value for value, category in found.items()}


def _gray(value: int) -> int:
    return value * (1 + 256 + 65536)


def ignored_values(classes: ClassList) -> tuple[int, ...]:
    """The values without a class: that of classes.json, or 255 unless it is a class."""
    if classes.ignore is not None:
        return (classes.ignore,)
    return () if IGNORE in classes.categories.ids else (IGNORE,)


def class_remarks(table: Table, classes: ClassList, split: str) -> Iterator[Finding]:
    """What the classes of a split say about its class maps: one whose value is ignored, one that is all there is."""
    pixels = sum(image["width"] * image["height"] for image in table.images if "map" in image)
    ignored = ignored_values(classes) if pixels else ()
    void = [f"'{category.name}': {category.id}" for category in classes.categories if category.id in ignored]
    message = "classes whose value is the one to ignore: their pixels do not count, in training and in evaluation"
    yield finding("warning", "ignored classes", split, void, message)
    counted = {row["category_id"] for row in table.annotations}
    area = sum(row["area"] for row in table.annotations)
    if split != "train" or len(classes.categories) == 1 or len(counted) != 1 or not area < pixels:
        return
    names = {category.id: category.name for category in classes.categories}
    (only,) = counted
    other = next(str(name) for number, name in names.items() if number != only)
    values = " or ".join(map(str, ignored))
    message = (
        f"class alone has pixels; all others have the value to ignore ({values}). If masks are black and white, "
        f'the classes are {{"{only}": "{names[only]}", "{values}": "{other}"}}'
    )
    yield finding("warning", ONE_CLASS, split, [f"'{names[only]}'"], message)


def _unknown(unknown: list[int], values: Map, classes: ClassList, rgb: bool) -> str:
    number = int(np.isin(values, unknown).sum())
    more = ", …" if len(unknown) > 5 else ""
    if rgb:
        shown = ", ".join(str(channels(value)) for value in unknown[:5])
        return (
            f"colour {shown}{more} ({number} pixels) is that of no class of {classes.source}; add a class with this "
            '"color", or correct the mask'
        )
    ignored = " or ".join(map(str, ignored_values(classes))) or "none"
    return (
        f"value {', '.join(map(str, unknown[:5]))}{more} ({number} pixels) is no class of {classes.source} "
        f"({extent(classes.categories.ids)}) and not the value to ignore ({ignored}); add the class, set "
        '"ignore_index" there, or correct the mask'
    )


def channels(value: int) -> list[int]:
    """The colour [red, green, blue] whose value this is."""
    return [value % 256, value // 256 % 256, value // 65536]
