"""Supervisely: ``meta.json``, and data set folders with ``img/`` and ``ann/<image>.json``.

The data set folders ``train``, ``val`` and ``test`` are the splits; otherwise all folders together are train.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable
from pathlib import Path

from detrkit.data.coco_json import Row, read_json
from detrkit.data.formats.base import Format, Source, split_of
from detrkit.data.formats.shapes import (
    Drawing,
    Shape,
    box,
    entries,
    from_mask,
    numbers,
    polygon,
    size_of,
    table_of,
    text_of,
)
from detrkit.data.listing import child, files_in, is_hidden
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]

_LARGEST_MASK = 1 << 26  # bytes of a PNG file, unpacked


def recognises(root: Path) -> bool:
    """Whether there are ``meta.json`` and a folder with ``ann``."""
    return bool(_folders(root))


def locate(root: Path, split: str) -> Source | None:
    """The folder with the annotations of the split; the root where it has several."""
    found = _folders(root).get(split)
    if not found:
        return None
    annotations = found[0] / "ann" if len(found) == 1 else root
    return Source(format="supervisely", root=root, split=split, annotations=annotations)


def _folders(root: Path) -> dict[str, list[Path]]:
    """The data set folders of each split."""
    if not root.is_dir() or child(root, "meta.json") is None:
        return {}
    inside = (path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name))
    folders = [path for path in (root, *inside) if (path / "ann").is_dir()]
    named: dict[str, list[Path]] = {}
    for folder in folders:
        named.setdefault(split_of(folder.name) or "train", []).append(folder)
    return named


def read(source: Source) -> Table:
    """Read one split. Classes are those of ``meta.json``, in alphabetical order from id 1.

    Raises:
        DataError: ``meta.json`` or an annotation file is not JSON of Supervisely.
    """
    meta = child(source.root, "meta.json") or source.root / "meta.json"
    data, _ = read_json(meta)
    classes = entries(data.get("classes") if isinstance(data, dict) else None, f"{meta}: classes")
    names = [text_of(row.get("title"), f"{meta}: title of a class") for row in classes]
    files = [path for folder in _folders(source.root)[source.split] for path in files_in(folder / "ann", {".json"})]
    root = source.images or source.root
    return table_of(source, [_drawing(path, root, set(names), meta) for path in files], names, root, files)


def _drawing(path: Path, root: Path, names: set[str], meta: Path) -> Drawing:
    data, _ = read_json(path)
    if not isinstance(data, dict) or "objects" not in data:
        raise DataError(f"{path}: is not a JSON file of Supervisely: it has no 'objects'")
    image = path.parent.parent / "img" / path.stem
    name = image.relative_to(root).as_posix() if image.is_relative_to(root) else image.name
    drawing = Drawing(name, size_of(data.get("size")))
    for place, row in enumerate(entries(data["objects"], f"{path}: objects"), start=1):
        where = f"{path}: object {place}"
        kind = str(row.get("geometryType") or row.get("type"))
        if kind not in _KINDS:
            drawing.left_out.append(f"{where} ({kind})")
            continue
        try:
            title = text_of(row.get("classTitle"), "classTitle")
            if title not in names:
                raise DataError(f"class '{title}' is not in {meta}")
            drawing.objects.append((title, _KINDS[kind](row, drawing.size), where))
        except DataError as error:
            drawing.faults.append(f"{where}: {error}")
    return drawing


def _exterior(row: Row) -> list[list[float]]:
    points = row.get("points")
    corners = points.get("exterior") if isinstance(points, dict) else None
    found = [numbers(point, "a point") for point in corners] if isinstance(corners, list) else []
    if len(found) < 2 or any(len(point) != 2 for point in found):
        raise DataError("points.exterior is not a list of pairs of numbers")
    return found


def _rectangle(row: Row, _: dict[str, int]) -> Shape:
    (x1, y1), (x2, y2) = _exterior(row)[:2]
    return box(x1, y1, x2, y2)


def _polygon(row: Row, _: dict[str, int]) -> Shape:
    return polygon([value for point in _exterior(row) for value in point])


def _bitmap(row: Row, size: dict[str, int]) -> Shape:
    content = row.get("bitmap")
    if not isinstance(content, dict):
        raise DataError("it has no 'bitmap'")
    x, y = [*numbers(content.get("origin"), "bitmap.origin"), 0.0, 0.0][:2]
    try:
        packed = base64.b64decode(text_of(content.get("data"), "bitmap.data"), validate=True)
        encoded = zlib.decompressobj().decompress(packed, _LARGEST_MASK)
    except (binascii.Error, zlib.error) as error:
        raise DataError(f"bitmap.data is not a packed PNG file ({error})") from error
    return from_mask(encoded, (x, y), size)


_KINDS: dict[str, Callable[[Row, dict[str, int]], Shape]] = {
    "rectangle": _rectangle,
    "polygon": _polygon,
    "bitmap": _bitmap,
}

FORMAT = Format(
    name="supervisely",
    looked_for="Supervisely: meta.json and */ann/*.json",
    recognises=recognises,
    locate=locate,
    read=read,
)
