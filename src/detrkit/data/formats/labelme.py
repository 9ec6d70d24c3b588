"""LabelMe: one JSON file beside each image, in ``train``, ``val`` and ``test`` or directly in the folder.

Polygons, rectangles, circles and masks become objects; those with the same label and ``group_id`` are one object.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable
from pathlib import Path

from detrkit.data.coco_json import Row, read_json
from detrkit.data.formats.base import Format, Source, split_folders
from detrkit.data.formats.shapes import (
    Drawing,
    Shape,
    box,
    ellipse,
    entries,
    from_mask,
    numbers,
    polygon,
    size_of,
    table_of,
    text_of,
)
from detrkit.data.listing import files_in, posix_name
from detrkit.data.once import remembered
from detrkit.data.records import Table
from detrkit.errors import DataError
from detrkit.files import beginning

__all__ = ["FORMAT", "read"]

_HEAD = 65536  # of a file, in which its keys can be seen; images may be inside, at the end
_SEEN = 5  # files to look at


def recognises(root: Path) -> bool:
    """Whether there is a JSON file with ``shapes``."""
    return bool(split_folders(root, _holds))


def locate(root: Path, split: str) -> Source | None:
    """The folder of the split, or the folder itself for train."""
    folder = split_folders(root, _holds).get(split)
    return None if folder is None else Source(format="labelme", root=root, split=split, annotations=folder)


def _holds(folder: Path) -> bool:
    return any(_is_labelme(path) for path in _files(folder)[:_SEEN])


def _is_labelme(path: Path) -> bool:
    head = beginning(path, _HEAD)
    return b'"shapes"' in head and (b'"shape_type"' in head or b'"imagePath"' in head or b'"version"' in head)


def _files(folder: Path) -> list[Path]:
    return files_in(folder, {".json"}, recursive=True)


def read(source: Source) -> Table:
    """Read one split. Classes are the labels of all splits, in alphabetical order from id 1.

    Raises:
        DataError: a file is not JSON of LabelMe.
    """
    folders = split_folders(source.root, _holds).values()
    names = {name for folder in folders for path in _files(folder) for name, _, _ in _drawing(path, folder).objects}
    files = _files(source.annotations)
    drawings = [_drawing(path, source.annotations) for path in files]
    return table_of(source, drawings, names, source.images or source.annotations, files)


def _drawing(path: Path, folder: Path) -> Drawing:
    return remembered(("labelme", path), lambda: _content(path, folder))


def _content(path: Path, folder: Path) -> Drawing:
    data, _ = read_json(path, change=_without_image)
    if not isinstance(data, dict) or "shapes" not in data:
        raise DataError(f"{path}: is not a JSON file of LabelMe: it has no 'shapes'")
    written = posix_name(str(data.get("imagePath") or f"{path.stem}.jpg"))
    image = path.parent / written
    image = image if image.is_file() else path.with_name(image.name or path.stem)
    drawing = Drawing(Path(os.path.relpath(image, folder)).as_posix(), size_of(data, "imageWidth", "imageHeight"))
    groups: dict[tuple[str, str], int] = {}  # where the object of a label and a group is
    for place, shape in enumerate(entries(data["shapes"], f"{path}: shapes"), start=1):
        where = f"{path}: shape {place}"
        kind = str(shape.get("shape_type") or "polygon")
        if kind not in _KINDS:
            drawing.left_out.append(f"{where} ({kind})")
            continue
        try:
            label = text_of(shape.get("label"), "label")
            region = _KINDS[kind](shape, drawing.size)
        except DataError as error:
            drawing.faults.append(f"{where}: {error}")
            continue
        group = label, str(shape.get("group_id"))
        if shape.get("group_id") is None or not isinstance(region.segmentation, list):
            drawing.objects.append((label, region, where))
        elif group in groups:
            _, first, said = drawing.objects[groups[group]]
            assert isinstance(first.segmentation, list)
            drawing.objects[groups[group]] = (label, polygon(*first.segmentation, *region.segmentation), said)
        else:
            groups[group] = len(drawing.objects)
            drawing.objects.append((label, region, where))
    return drawing


def _without_image(row: Row) -> Row:
    row.pop("imageData", None)
    return row


def _corners(shape: Row, count: int) -> list[list[float]]:
    points = shape.get("points")
    found = [numbers(point, "a point") for point in points] if isinstance(points, list) else []
    if len(found) < count or any(len(point) != 2 for point in found):
        raise DataError(f"points are not {count} or more pairs of numbers")
    return found


def _polygon(shape: Row, _: dict[str, int]) -> Shape:
    return polygon([value for point in _corners(shape, 3) for value in point])


def _rectangle(shape: Row, _: dict[str, int]) -> Shape:
    xs, ys = zip(*_corners(shape, 2), strict=True)
    return box(min(xs), min(ys), max(xs), max(ys))


def _circle(shape: Row, _: dict[str, int]) -> Shape:
    (x, y), (x2, y2) = _corners(shape, 2)[:2]
    radius = ((x2 - x) ** 2 + (y2 - y) ** 2) ** 0.5
    return ellipse(x, y, radius, radius)


def _mask(shape: Row, size: dict[str, int]) -> Shape:
    try:
        encoded = base64.b64decode(text_of(shape.get("mask"), "mask"), validate=True)
    except binascii.Error as error:
        raise DataError(f"mask is not base64 ({error})") from error
    (x, y), *_ = _corners(shape, 1)
    return from_mask(encoded, (x, y), size)


_KINDS: dict[str, Callable[[Row, dict[str, int]], Shape]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "rotation": _polygon,
    "circle": _circle,
    "mask": _mask,
}

FORMAT = Format(
    name="labelme",
    looked_for="LabelMe: *.json with shapes beside images",
    recognises=recognises,
    locate=locate,
    read=read,
)
