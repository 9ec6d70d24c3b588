"""Rows of COCO files with the values that :mod:`detrkit.data.values` reads in them.

Whoever reads images, categories or annotations of a COCO file reads them here: checks, training, conversion and scores
then keep, refuse and leave out the same rows. A row that is left out or refused says why in its ``problem``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import hotcoco.mask
import numpy as np

from detrkit.data.coco_json import Json, Row, image_file
from detrkit.data.packed_masks import pack, unpack
from detrkit.data.values import LARGEST, as_box, box_problem, is_absent, is_name, read_value, shown, size, whole
from detrkit.errors import DataError
from detrkit.structures import NEGATIVES, NOT_EXHAUSTIVE

__all__ = [
    "OUTLINE",
    "TEXT",
    "IdReader",
    "Tell",
    "clean_annotation",
    "clean_category",
    "clean_image",
    "clean_owner",
    "has_mask",
    "id_reader",
    "is_crowd",
    "is_plain",
    "outline_area",
    "outline_box",
    "row_area",
    "row_problem",
    "with_box",
    "written_area",
]

Tell = Callable[[str, str], object]
"""Tell(kind, line), called for every value that is not as COCO has it: how it was read."""
TEXT, OUTLINE = "values", "boxes from outlines"
"""The kinds."""

IdReader = Callable[[Json, str, str], Hashable]
"""IdReader(row, key, where): the id that a key of a row has, a whole number or a name.

Raises:
    DataError: it has none.
"""

_NUMBER = (int, float)


def id_reader(rows: Iterable[object]) -> IdReader:
    """How the ids of these rows, and references to them, are read: as whole numbers, or as names if all are names."""
    ids = [row.get("id") for row in rows if isinstance(row, Mapping)]
    return _read_name if ids and all(map(is_name, ids)) else read_value


def _read_name(row: Json, key: str, where: str) -> Hashable:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {shown(value)}, but the ids that the file lists are names in text")
    return value


def _changed(row: Json, **values: object) -> Row:
    """The row with these values; the row itself where it has them."""
    if isinstance(row, dict) and all(key in row and row[key] is value for key, value in values.items()):
        return row
    return {**row, **values}


def _mapping(row: object, where: str) -> Json:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is not an object but {type(row).__name__}")
    return row


def clean_image(row: object, where: str, read_id: IdReader, tell: Tell = lambda *_: None) -> Row:
    """An image: id, ``file_name`` (empty if there is none), and sides where they are known.

    Raises:
        DataError: not an object, or without id.
    """
    if read_id is read_value and _is_clean_image(row):
        return row
    row = _mapping(row, where)
    number = read_id(row, "id", where)
    found: Row = {"id": number, "file_name": image_file(row)}
    removed = []
    for key in ("width", "height"):
        if key not in row:
            continue
        side = size(row[key])
        if side is None:
            removed.append(key)
            if not is_absent(row[key]):
                tell(TEXT, f"image id {number}: {key} {shown(row[key])} is no number of pixels: read from the image")
            continue
        if type(row[key]) is not int:
            found[key] = side
    _tell_text(row, found, f"image id {number}", tell)
    for key in (NEGATIVES, NOT_EXHAUSTIVE):
        if isinstance(row.get(key), list) and not all(type(value) is int for value in row[key]):
            numbers = [(value, whole(value)) for value in row[key]]
            found[key] = [value if number is None else number for value, number in numbers]
    changed = _changed(row, **found)
    return {key: value for key, value in changed.items() if key not in removed} if removed else changed


def _is_clean_image(row: object) -> TypeGuard[Row]:
    """Whether an image is as COCO describes it, without the lists of LVIS; most are."""
    if type(row) is not dict or type(row.get("file_name")) is not str or not _is_small(row.get("id")):
        return False
    width, height = row.get("width", 1), row.get("height", 1)
    sides = type(width) is int and type(height) is int and 0 < width <= LARGEST and 0 < height <= LARGEST
    return sides and NEGATIVES not in row and NOT_EXHAUSTIVE not in row


def clean_category(row: object, where: str, read_id: IdReader) -> Row:
    """A category: id, name (its id if it has none) and, where the row has it, ``isthing`` 0 or 1.

    Raises:
        DataError: not an object, or a value that cannot be read.
    """
    row = _mapping(row, where)
    number = read_id(row, "id", where)
    named = read_value(row, "name", f"{where} (id {number})")
    found = {"id": number, "name": str(number) if named is None else named}
    if "isthing" in row:
        found["isthing"] = read_value(row, "isthing", f"{where} (id {number})")
    return _changed(row, **found)


def clean_annotation(
    row: object,
    where: str,
    *,
    read_image_id: IdReader = read_value,
    read_category_id: IdReader = read_value,
    tell: Tell = lambda *_: None,
) -> Row:
    """An annotation, or a segment of an image: ids, ``iscrowd``, ``area``, ``bbox``, and ``problem`` where it has one.

    ``id`` stays where it is a number or a name. The box is that of the outline where there is none.

    Raises:
        DataError: not an object, or it does not say which image and category it belongs to.
    """
    if _is_clean(row):
        if is_plain(row):
            return row
        if row.get("id") is None and read_image_id is read_category_id is read_value:  # results have no ids
            return {**row, "where": row.get("where", where)}
    row = _mapping(row, where)
    found = _owner(row, where, read_image_id, read_category_id)
    number = row.get("id")
    if number is not None and not is_name(number):
        found["id"] = whole(number)
    _tell_text(row, found, where, tell)
    named = f"annotation id {shown(number)}" if isinstance(found.get("id", number), int | str) else where
    if found.get("id", number) is None:
        found["where"] = row.get("where", where)
    try:
        for key in ("iscrowd", "area"):
            if key in row:
                found[key] = read_value(row, key, "")
        _tell_text(row, {key: found.get(key) for key in ("iscrowd", "area")}, named, tell)
        if (found.get("area") or 0) < 0:
            tell(TEXT, f"{named}: area {shown(row['area'])} is negative: measured anew")
            found["area"] = None
        changed = with_box(_changed(row, **found))
        if "bbox" in changed and _boxless(row):
            tell(OUTLINE, f"{named}: bbox {changed['bbox']} from its segmentation")
        bbox = as_box(changed.get("bbox"))
        if bbox is not changed.get("bbox"):
            tell(TEXT, f"{named}: bbox {shown(changed['bbox'])} read as {bbox}")
        return _changed(changed, bbox=bbox)
    except DataError as error:
        return {**row, **found, "problem": str(error)}


def clean_owner(
    row: object, where: str, *, read_image_id: IdReader = read_value, read_category_id: IdReader = read_value
) -> Row:
    """An annotation whose ids of image and category alone are read; its other values are as in the file.

    Raises:
        DataError: as ``clean_annotation`` raises it.
    """
    if _is_clean(row) and type(row.get("id")) is int:
        return row
    row = _mapping(row, where)
    return _changed(row, **_owner(row, where, read_image_id, read_category_id))


def _owner(row: Json, where: str, read_image_id: IdReader, read_category_id: IdReader) -> Row:
    return {
        "image_id": read_image_id(row, "image_id", where),
        "category_id": read_category_id(row, "category_id", where),
    }


def _tell_text(row: Json, found: Json, where: str, tell: Tell) -> None:
    """Tell which numbers were text."""
    for key, value in found.items():
        if isinstance(row.get(key), str) and isinstance(value, int | float) and not is_absent(row[key]):
            tell(TEXT, f"{where}: {key} {shown(row[key])} read as {value}")


def _is_clean(row: object) -> TypeGuard[Row]:
    """Whether an annotation is as COCO describes it, apart from its id; most are."""
    if type(row) is not dict:
        return False
    bbox, area = row.get("bbox"), row.get("area", 0)
    return (
        _is_small(row.get("image_id"))
        and _is_small(row.get("category_id"))
        and type(row.get("iscrowd", 0)) is int
        and row.get("iscrowd", 0) in (0, 1)
        and type(area) in _NUMBER
        and 0 <= area <= 1e9
        and type(bbox) is list
        and len(bbox) == 4
        and all(type(value) in _NUMBER for value in bbox)
    )


def is_plain(row: object) -> bool:
    """Whether ``clean_annotation`` gives the row itself, without telling anything; it does for most."""
    return _is_clean(row) and type(row.get("id")) is int


def _is_small(value: Any) -> bool:
    return type(value) is int and -(2**62) < value < 2**62


def with_box(row: Row) -> Row:
    """The row with the box of its outline, if it has an outline but no box.

    Raises:
        DataError: the outline is malformed.
    """
    if not _boxless(row) or not row.get("segmentation"):
        return row
    try:
        return {**row, "bbox": outline_box(row["segmentation"])}
    except DataError as error:
        raise DataError(f"bbox is missing, and its segmentation {error}") from None


def _boxless(row: Json) -> bool:
    bbox = row.get("bbox")
    return is_absent(bbox) or (isinstance(bbox, Sequence) and not bbox)


def outline_box(segmentation: object) -> list[float]:
    """The box [x, y, width, height] around the outline of a COCO annotation.

    Raises:
        DataError: neither polygons nor RLE, or malformed.
    """
    content = unpack(pack(segmentation))
    if isinstance(content, list):
        vertices = np.concatenate(content)
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        corners = [*low.tolist(), *(high - low).tolist()]
    else:
        assert isinstance(content, dict)
        corners = hotcoco.mask.toBbox(content).tolist()
    return [int(value) if value == int(value) else value for value in corners]


def outline_area(segmentation: object) -> float:
    """The area inside the outline of a COCO annotation: of polygons the sum, of RLE its pixels.

    Raises:
        DataError: neither polygons nor RLE, or malformed.
    """
    content = unpack(pack(segmentation))
    if not isinstance(content, list):
        assert isinstance(content, dict)
        return float(hotcoco.mask.area(content))
    area = 0.0
    for corners in content:
        x, y = np.asarray(corners, dtype=np.float64).reshape(-1, 2).T
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return area


def row_problem(row: Json, *, flat: bool = False, signed: bool = False) -> str | None:
    """Why an annotation cannot be used, or None. flat: allow boxes of width or height 0; signed: of any."""
    if "problem" in row:
        return str(row["problem"])
    bbox = row.get("bbox")
    problem = box_problem(bbox, flat=flat, signed=signed)
    return problem and f"bbox {shown(bbox)} {problem}"


def has_mask(row: Json) -> bool:
    """Whether an annotation has an outline, or pixels in a map."""
    return bool(row.get("segmentation")) or "value" in row


def row_area(row: Json) -> float:
    """The ``area`` of a usable annotation, or the area of its box if it has none."""
    area = row.get("area")
    return float(row["bbox"][2] * row["bbox"][3]) if area is None else area


def written_area(row: Json) -> float:
    """The area of a usable annotation for a file: that of its outline before that of its box."""
    if row.get("area") is None and row.get("segmentation"):
        with contextlib.suppress(DataError):  # a malformed outline is another matter
            return outline_area(row["segmentation"])
    return row_area(row)


def is_crowd(row: Json) -> bool:
    """Whether an annotation is a crowd region: a group of objects without individual annotations."""
    return bool(row.get("iscrowd", 0))
