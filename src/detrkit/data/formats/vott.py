"""VoTT: the JSON export ``*-export.json`` beside its images, or in ``vott-json-export/``. Everything is train.

A region with several tags is an object of the first one.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from detrkit.data.coco_json import Row, read_json
from detrkit.data.formats.base import Format, Source
from detrkit.data.formats.shapes import Drawing, Shape, box, entries, numbers, polygon, size_of, table_of, text_of
from detrkit.data.listing import child, files_in
from detrkit.data.records import Table
from detrkit.errors import DataError
from detrkit.files import beginning

__all__ = ["FORMAT", "read"]

_HEAD = 1 << 20


def recognises(root: Path) -> bool:
    """Whether there is a JSON export of VoTT."""
    return _file(root) is not None


def locate(root: Path, split: str) -> Source | None:
    """The export, for train."""
    path = _file(root)
    if path is None or split != "train":
        return None
    return Source(format="vott", root=root, split=split, annotations=path)


def _file(root: Path) -> Path | None:
    folders = [root, child(root, "vott-json-export")]
    files = [path for folder in folders if folder is not None for path in files_in(folder, {".json"})]
    return next((path for path in files if path.stem.lower().endswith("-export") and _is_vott(path)), None)


def _is_vott(path: Path) -> bool:
    head = beginning(path, _HEAD)
    return b'"assets"' in head and b'"tags"' in head


def read(source: Source) -> Table:
    """Read the export. Classes are its tags, in alphabetical order from id 1.

    Raises:
        DataError: the file is not JSON of VoTT.
    """
    path = source.annotations
    data, _ = read_json(path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: is not a JSON file of VoTT")
    names = {text_of(tag.get("name"), f"{path}: name of a tag") for tag in entries(data.get("tags"), f"{path}: tags")}
    drawings = [_drawing(row, path) for row in entries(data.get("assets"), f"{path}: assets")]
    names |= {name for drawing in drawings for name, _, _ in drawing.objects}
    return table_of(source, drawings, names, source.images or path.parent)


def _drawing(row: Row, path: Path) -> Drawing:
    asset = row.get("asset")
    if not isinstance(asset, dict):
        raise DataError(f"{path}: an entry of assets has no 'asset'")
    name = unquote(text_of(asset.get("name"), f"{path}: name of an asset"))
    drawing = Drawing(name, size_of(asset.get("size")))
    for place, region in enumerate(entries(row.get("regions") or [], f"{path}: regions of {name}"), start=1):
        where = f"{path}: region {place} of {name}"
        try:
            tags = region.get("tags")
            label = text_of(tags[0] if isinstance(tags, list) and tags else None, "its first tag")
            drawing.objects.append((label, _shape(region), where))
        except DataError as error:
            drawing.faults.append(f"{where}: {error}")
    return drawing


def _shape(region: Row) -> Shape:
    """The polygon of a region that is one, else its box."""
    points = region.get("points")
    if region.get("type") == "POLYGON" and isinstance(points, list):
        corners = [numbers([point.get("x"), point.get("y")], "a point") for point in entries(points, "points")]
        return polygon([value for corner in corners for value in corner])
    bounds = region.get("boundingBox")
    if not isinstance(bounds, dict):
        raise DataError("it has no 'boundingBox'")
    keys = ("left", "top", "width", "height")
    x, y, width, height = numbers([bounds.get(key) for key in keys], "boundingBox")
    return box(x, y, x + width, y + height)


FORMAT = Format(
    name="vott",
    looked_for="VoTT: *-export.json",
    recognises=recognises,
    locate=locate,
    read=read,
)
