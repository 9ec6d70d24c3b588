"""VGG Image Annotator (VIA 1 and 2): a JSON file beside the images, in ``train``, ``val``, ``test`` or the folder.

The class of a region is its attribute ``class``, ``label``, ``name``, …, or the only one that regions have; without
attributes all regions are of the class ``object``.
"""

from __future__ import annotations

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
    numbers,
    polygon,
    size_of,
    table_of,
    text_of,
)
from detrkit.data.listing import files_in
from detrkit.data.once import remembered
from detrkit.data.records import Table
from detrkit.data.values import number
from detrkit.errors import DataError
from detrkit.files import beginning

__all__ = ["FORMAT", "read"]

_HEAD = 65536
_CLASS_KEYS = ("class", "label", "name", "type", "category", "object")
_NO_ATTRIBUTE = "object"


def recognises(root: Path) -> bool:
    """Whether there is a JSON file with ``regions``, or a project of VIA."""
    return bool(split_folders(root, _holds))


def locate(root: Path, split: str) -> Source | None:
    """The file in the folder of the split, or in the folder itself for train."""
    folder = split_folders(root, _holds).get(split)
    path = None if folder is None else _file(folder)
    return None if path is None else Source(format="via", root=root, split=split, annotations=path)


def _holds(folder: Path) -> bool:
    return _file(folder) is not None


def _file(folder: Path) -> Path | None:
    """The only file of VIA in a folder; the project where there is one beside its export."""
    found = [path for path in files_in(folder, {".json"}) if _is_via(path)]
    projects = [path for path in found if "project" in path.name.lower()]
    return next((paths[0] for paths in (found, projects) if len(paths) == 1), None)


def _is_via(path: Path) -> bool:
    head = beginning(path, _HEAD)
    return b'"_via_' in head or (b'"regions"' in head and b'"filename"' in head)


def read(source: Source) -> Table:
    """Read one split. Classes are those of all splits, in alphabetical order from id 1.

    Raises:
        DataError: a file is not JSON of VIA, or several attributes could be the class.
    """
    files = [path for folder in split_folders(source.root, _holds).values() if (path := _file(folder)) is not None]
    names = {name for path in files for drawing in _drawings(path) for name, _, _ in drawing.objects}
    return table_of(source, _drawings(source.annotations), names, source.images or source.annotations.parent)


def _drawings(path: Path) -> list[Drawing]:
    return remembered(("via", path), lambda: _content(path))


def _content(path: Path) -> list[Drawing]:
    data, _ = read_json(path)
    images = data.get("_via_img_metadata", data) if isinstance(data, dict) else data
    rows = entries(images, f"{path}: its content")
    regions = [entries(row.get("regions") or [], f"{path}: regions of {row.get('filename')}") for row in rows]
    attribute = _class_attribute([region for found in regions for region in found], path)
    drawings = []
    for row, found in zip(rows, regions, strict=True):
        name = text_of(row.get("filename"), f"{path}: filename")
        drawing = Drawing(name, size_of(row.get("file_attributes")))
        for place, region in enumerate(found, start=1):
            where = f"{path}: region {place} of {name}"
            shape = region.get("shape_attributes")
            kind = str(shape.get("name")) if isinstance(shape, dict) else "none"
            if not isinstance(shape, dict) or kind not in _KINDS:
                drawing.left_out.append(f"{where} ({kind})")
                continue
            try:
                drawing.objects.append((_class(region, attribute), _KINDS[kind](shape), where))
            except DataError as error:
                drawing.faults.append(f"{where}: {error}")
        drawings.append(drawing)
    return drawings


def _attributes(region: Row) -> Row:
    found = region.get("region_attributes")
    return found if isinstance(found, dict) else {}


def _class_attribute(regions: list[Row], path: Path) -> str | None:
    """The attribute that is the class of the regions; None if they have none."""
    keys = {key: key.lower() for region in regions for key in _attributes(region)}
    usual = [key for word in _CLASS_KEYS for key, lower in keys.items() if lower == word]
    if len(keys) > 1 and not usual:
        raise DataError(
            f"{path}: which attribute of its regions is the class: {', '.join(sorted(keys))}? Call it 'class' in VIA"
        )
    return usual[0] if usual else next(iter(keys), None)


def _class(region: Row, attribute: str | None) -> str:
    if attribute is None:
        return _NO_ATTRIBUTE
    value = _attributes(region).get(attribute)
    if isinstance(value, dict):  # boxes to tick
        ticked = [name for name, on in value.items() if on]
        value = ticked[0] if len(ticked) == 1 else None
    return text_of(value, f"its attribute '{attribute}'")


def _values(shape: Row, *keys: str) -> list[float]:
    return numbers([shape.get(key) for key in keys], f"its {', '.join(keys)}")


def _rectangle(shape: Row) -> Shape:
    x, y, width, height = _values(shape, "x", "y", "width", "height")
    return box(x, y, x + width, y + height)


def _circle(shape: Row) -> Shape:
    x, y, radius = _values(shape, "cx", "cy", "r")
    return ellipse(x, y, radius, radius)


def _ellipse(shape: Row) -> Shape:
    x, y, rx, ry = _values(shape, "cx", "cy", "rx", "ry")
    return ellipse(x, y, rx, ry, number(shape.get("theta", 0)) or 0.0)


def _polygon(shape: Row) -> Shape:
    xs = numbers(shape.get("all_points_x"), "all_points_x")
    ys = numbers(shape.get("all_points_y"), "all_points_y")
    if len(xs) != len(ys):
        raise DataError(f"it has {len(xs)} all_points_x but {len(ys)} all_points_y")
    return polygon([value for pair in zip(xs, ys, strict=True) for value in pair])


_KINDS: dict[str, Callable[[Row], Shape]] = {
    "rect": _rectangle,
    "circle": _circle,
    "ellipse": _ellipse,
    "polygon": _polygon,
}

FORMAT = Format(
    name="via",
    looked_for="VIA: a JSON file with regions beside the images",
    recognises=recognises,
    locate=locate,
    read=read,
)
