"""What formats share whose annotations are drawn shapes with a class name: LabelMe, VIA, Supervisely, VoTT.

Each gives one :class:`Drawing` per image; :func:`table_of` makes a table of them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hotcoco.mask
import numpy as np
from PIL import Image

from detrkit.data.clean_rows import outline_area
from detrkit.data.coco_json import Row
from detrkit.data.findings import finding
from detrkit.data.formats.base import Source
from detrkit.data.listing import posix_name
from detrkit.data.packed_masks import Rle, mask_rle
from detrkit.data.records import Table
from detrkit.data.values import number, shown, size
from detrkit.errors import DataError

__all__ = [
    "Drawing",
    "Shape",
    "box",
    "ellipse",
    "entries",
    "from_mask",
    "numbers",
    "polygon",
    "size_of",
    "table_of",
    "text_of",
]

_ARC = 32  # corners of the polygon that stands for a circle


@dataclass(frozen=True)
class Shape:
    """The region of an object. bbox: [x, y, width, height] in pixels · segmentation: polygons, RLE, or None."""

    bbox: list[float]
    segmentation: list[list[float]] | Rle | None = None


@dataclass
class Drawing:
    """The annotated objects of an image.

    Attributes:
        file_name: of the image, relative to the image folder of its split.
        size: width and height where they are known.
        objects: (class name, shape, its place in the file for messages).
        faults: shapes that cannot be read, one message each.
        left_out: places of shapes that are no objects, such as points and lines.
    """

    file_name: str
    size: dict[str, int] = field(default_factory=dict)
    objects: list[tuple[str, Shape, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def table_of(
    source: Source,
    drawings: Sequence[Drawing],
    names: Iterable[str],
    image_root: Path,
    label_files: Iterable[Path] = (),
) -> Table:
    """A table of drawn images. names: the classes of all splits; they get category ids from 1 in alphabetical order."""
    ids = {name: number for number, name in enumerate(sorted(set(names)), start=1)}
    images: list[Row] = []
    annotations: list[Row] = []
    for number_, drawing in enumerate(drawings, start=1):
        images.append({"id": number_, "file_name": posix_name(drawing.file_name), **drawing.size})
        for name, shape, where in drawing.objects:
            row = {
                "id": len(annotations) + 1,
                "image_id": number_,
                "category_id": ids[name],
                "bbox": shape.bbox,
                "where": where,
            }
            if shape.segmentation is not None:
                row |= {"segmentation": shape.segmentation, "area": outline_area(shape.segmentation)}
            annotations.append(source.slim(row))
    left_out = [place for drawing in drawings for place in drawing.left_out]
    message = "shapes that are no regions, such as points and lines: left out"
    return Table(
        origin=source.annotations,
        image_root=image_root,
        images=images,
        annotations=annotations,
        categories=[{"id": number, "name": name} for name, number in ids.items()],
        faults=tuple(fault for drawing in drawings for fault in drawing.faults),
        remarks=(finding("warning", "shapes", source.split, left_out, message),),
        label_files=tuple(label_files),
    )


def entries(value: object, what: str) -> list[Row]:
    """A list of JSON objects, or the values of an object.

    Raises:
        DataError: something else.
    """
    found = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError(f"{what} is not a list of objects")
    return found


def text_of(value: object, what: str) -> str:
    """A text that is not empty.

    Raises:
        DataError: something else.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what} is {shown(value)}, not a text")
    return value.strip()


def numbers(values: object, what: str) -> list[float]:
    """A list of finite numbers.

    Raises:
        DataError: something else.
    """
    found = [number(value) for value in values] if isinstance(values, list | tuple) else [None]
    if not all(value is not None and math.isfinite(value) for value in found):
        raise DataError(f"{what} is {shown(values)}, not a list of numbers")
    return [float(value) for value in found if value is not None]


def box(x1: float, y1: float, x2: float, y2: float) -> Shape:
    """A rectangle from any two opposite corners."""
    return Shape([min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)])


def polygon(*parts: list[float]) -> Shape:
    """Polygons ``[x1, y1, x2, y2, …]`` of one object.

    Raises:
        DataError: one has fewer than three corners.
    """
    if any(len(part) < 6 or len(part) % 2 for part in parts) or not parts:
        raise DataError("a polygon has fewer than three corners")
    xs = [value for part in parts for value in part[0::2]]
    ys = [value for part in parts for value in part[1::2]]
    return Shape([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], [list(part) for part in parts])


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Shape:
    """An ellipse around (x, y), turned by an angle in radians, as a polygon."""
    corners = []
    for place in range(_ARC):
        turn = 2 * math.pi * place / _ARC
        a, b = rx * math.cos(turn), ry * math.sin(turn)
        corners += [x + a * math.cos(angle) - b * math.sin(angle), y + a * math.sin(angle) + b * math.cos(angle)]
    return polygon(corners)


def from_mask(encoded: bytes, corner: tuple[float, float], size: dict[str, int]) -> Shape:
    """A mask in a PNG file that covers a part of the image from a corner (x, y) on.

    Raises:
        DataError: it is no PNG file, empty, or the size of the image is not known.
    """
    if len(size) != 2:
        raise DataError("a mask needs the width and height of its image in the file")
    try:
        with Image.open(io.BytesIO(encoded), formats=["PNG"]) as opened:
            if opened.width > size["width"] or opened.height > size["height"]:
                raise DataError("the mask is larger than its image")
            transparent = opened.mode in ("RGBA", "LA") or "transparency" in opened.info
            part = np.asarray(opened.convert("RGBA").getchannel("A") if transparent else opened.convert("L")) > 0
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"the mask cannot be read as PNG ({error})") from error
    whole = np.zeros((size["height"], size["width"]), dtype=np.uint8)
    x, y = (max(0, round(value)) for value in corner)
    target = whole[y : y + part.shape[0], x : x + part.shape[1]]
    target[:] = part[: target.shape[0], : target.shape[1]]
    if not whole.any():
        raise DataError("the mask is empty")
    rle = mask_rle(whole)
    return Shape(hotcoco.mask.toBbox(rle).tolist(), rle)


def size_of(value: object, width: str = "width", height: str = "height") -> dict[str, int]:
    """The size of an image where the value is a JSON object that has it; otherwise it is read from the image."""
    row = value if isinstance(value, dict) else {}
    found = {"width": size(row.get(width)), "height": size(row.get(height))}
    return {key: value for key, value in found.items() if value is not None} if all(found.values()) else {}
