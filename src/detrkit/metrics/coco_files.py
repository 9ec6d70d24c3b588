"""Reading COCO ground truth from real files into the strict form that evaluators need.

Files differ in missing keys (annotation ids, ``iscrowd``, ``area``) and in their numbering. Values that follow without
guessing are filled in; everything else is an error that names the file and the row. Rows are read some thousands at a
time, so that a large file is never in memory as Python objects.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import Any

import hotcoco.mask
import numpy as np
from numpy.typing import NDArray

from detrkit.collection import without_collection
from detrkit.data.clean_rows import (
    IdReader,
    clean_annotation,
    clean_category,
    clean_image,
    id_reader,
    is_crowd,
    row_area,
    row_problem,
)
from detrkit.data.coco_json import Json, Row, annotation_lists, read_annotations
from detrkit.data.listing import posix_name
from detrkit.data.packed_masks import RLE, pack, size_problem
from detrkit.data.values import read_value
from detrkit.errors import DataError
from detrkit.metrics.object_table import IdNumbers, ObjectTable, TableDraft, plain_truth

__all__ = [
    "GroundTruth",
    "by_id",
    "in_id_order",
    "packed_mask",
    "packed_masks",
    "read_ground_truth",
    "rows_by_id",
    "unique_names",
]


@dataclass(frozen=True)
class GroundTruth:
    """Cleaned COCO ground truth."""

    image_rows: list[Row]
    """Images numbered from 1 in the order of their original ids."""

    category_rows: list[Row]
    """Categories numbered from 0 in the order of their original ids."""

    objects: ObjectTable
    """The annotations, in the same numbers."""

    image_numbers: dict[Hashable, int]
    """Original image id -> number."""

    category_numbers: dict[Hashable, int]
    """Original category id -> number."""

    class_names: list[str]
    """Unique names in category order."""

    source: str
    """Name of the ground truth in messages."""

    images: Mapping[Hashable, Row]
    """The images of the file by their original id."""

    categories: Mapping[Hashable, Row]
    """The categories of the file by their original id."""

    read_image_id: IdReader = read_value
    read_category_id: IdReader = read_value
    """How results refer to images and categories."""

    @property
    def dataset(self) -> Row:
        """The same as COCO JSON; annotations are numbered from 1, since evaluators take id 0 for "no match"."""
        rows = list(self.objects.truth_rows(1))
        return {"images": self.image_rows, "annotations": rows, "categories": self.category_rows}

    @cached_property
    def images_named(self) -> tuple[dict[str, list[Hashable]], dict[str, list[Hashable]]]:
        """Original ids of the images with a file name, and with a name in any folder."""
        whole: dict[str, list[Hashable]] = {}
        base: dict[str, list[Hashable]] = {}
        for key, row in self.images.items():
            path = PurePosixPath(posix_name(str(row["file_name"])))
            whole.setdefault(str(path), []).append(key)
            base.setdefault(path.name, []).append(key)
        return whole, base

    def image(self, number: int) -> Row:
        """The image with this number."""
        return self.image_rows[number - 1]


def read_ground_truth(source: object, *, iou_type: str, name: str | None = None) -> GroundTruth:
    """Read ground truth from a COCO annotation file or from its JSON value; messages call it ``name``.

    Filled in: annotation ids, ``iscrowd`` 0, and for boxes ``area`` = width times height. With ``"segm"`` a missing
    ``area`` stays missing: the evaluator measures it on the mask.

    Raises:
        DataError: no such file, not COCO annotations, or an invalid row.
    """
    data, chunks, default_name = read_annotations(source, "ground truth")
    name = name or default_name
    image_list, _, category_list = annotation_lists(data, name)
    read_image_id, read_category_id = id_reader(image_list), id_reader(category_list)
    images_by_id = by_id(image_list, f"{name}: images", partial(clean_image, read_id=read_image_id))
    categories_by_id = by_id(category_list, f"{name}: categories", partial(clean_category, read_id=read_category_id))
    image_numbers = {key: number for number, key in enumerate(in_id_order(images_by_id), start=1)}
    category_numbers = {key: number for number, key in enumerate(in_id_order(categories_by_id))}
    class_names = unique_names([(key, categories_by_id[key]["name"]) for key in category_numbers])
    kept = ("file_name", "height", "width")
    image_rows: list[Row] = [
        {"id": number, **{word: images_by_id[key][word] for word in kept if word in images_by_id[key]}}
        for key, number in image_numbers.items()
    ]
    masks = iou_type == "segm"
    draft, orphans = TableDraft(width=8, masks=masks), 0

    def where(index: int) -> str:
        return f"{name}: annotations[{index}]"

    with without_collection():
        known = IdNumbers(image_numbers), IdNumbers(category_numbers)
        for chunk in chunks:
            reader = partial(packed_masks, images=image_rows, where=where, first=chunk.first) if masks else None
            plain = plain_truth(chunk.rows if masks else chunk.columns, *known, reader)
            if plain is not None:
                draft.add(*plain)
                continue
            for index, raw in enumerate(chunk.exact(), start=chunk.first):
                row = clean_annotation(
                    raw, where(index), read_image_id=read_image_id, read_category_id=read_category_id
                )
                image, category = image_numbers.get(row["image_id"]), category_numbers.get(row["category_id"])
                if category is None:
                    raise DataError(
                        f"{where(index)}: category_id {row['category_id']!r} is not among the categories of the file"
                    )
                if image is None:
                    orphans += 1
                    continue
                problem = row_problem(row, flat=True)
                if problem is not None:
                    raise DataError(f"{where(index)}: {problem}")
                packed = [packed_mask(row, image_rows[image - 1], where(index))] if masks else []
                unmeasured = masks and row.get("area") is None
                area = float("nan") if unmeasured else row_area(row)
                draft.add([[image, *row["bbox"], area, category, is_crowd(row)]], packed)
    if orphans:
        warnings.warn(f"{name}: {orphans} annotations of images that it does not list are ignored", stacklevel=3)
    return GroundTruth(
        image_rows=image_rows,
        category_rows=[
            {"id": number, "name": class_name}
            for number, class_name in zip(category_numbers.values(), class_names, strict=True)
        ],
        objects=draft.done(),
        image_numbers=image_numbers,
        category_numbers=category_numbers,
        class_names=class_names,
        source=name,
        images=images_by_id,
        categories=categories_by_id,
        read_image_id=read_image_id,
        read_category_id=read_category_id,
    )


def rows_by_id(rows: Sequence[object], where: str) -> dict[Hashable, Row]:
    """Rows of images by id, with their sides as numbers.

    Raises:
        DataError: a row without id, or two unlike rows with the same.
    """
    return by_id(rows, where, partial(clean_image, read_id=id_reader(rows)))


def by_id(rows: Sequence[object], where: str, clean: Callable[[object, str], Row]) -> dict[Hashable, Row]:
    """Rows by id, each read by ``clean(row, name of the row)``.

    Raises:
        DataError: as ``clean`` raises it, or two unlike rows with the same id.
    """
    result: dict[Hashable, Row] = {}
    for index, raw in enumerate(rows):
        row = clean(raw, f"{where}[{index}]")
        if result.setdefault(row["id"], row) != row:
            raise DataError(f"{where}[{index}]: id {row['id']} is used twice")
    return result


def in_id_order(ids: Iterable[Hashable]) -> list[Hashable]:
    """Sorted ids; numbers come before strings if a file mixes them."""
    return sorted(ids, key=lambda key: (isinstance(key, str), key))


def unique_names(categories: list[tuple[Hashable, object]]) -> list[str]:
    """One name per class: its name, or its id if it has none; the id is added if two classes share a name."""
    names = [str(key) if name is None else str(name) for key, name in categories]
    return [
        f"{name} (id {key})" if names.count(name) > 1 else name
        for name, (key, _) in zip(names, categories, strict=True)
    ]


def packed_masks(
    rows: Sequence[Any],
    numbers: NDArray[np.int64],
    *,
    images: Sequence[Row],
    where: Callable[[int], str],
    first: int,
) -> list[bytes]:
    """The packed masks of rows that follow each other.

    Args:
        rows: rows with ``segmentation``.
        numbers: (N,) numbers of their images.
        images: all images; the first has number 1.
        where: gives the name of the row with an index, for messages.
        first: the index of the first row.

    Raises:
        DataError: the mask of a row cannot be used; of the first such row.
    """
    owners = [images[number - 1] for number in numbers.tolist()]
    quick = _plain_masks([row.get("segmentation") for row in rows], owners)
    if quick is not None:
        return quick
    pairs = zip(rows, owners, strict=True)
    return [packed_mask(row, image, where(index)) for index, (row, image) in enumerate(pairs, start=first)]


def packed_mask(row: Json, image: Json, where: str) -> bytes:
    """Polygons, or a run-length encoding with the size of the image, packed.

    Raises:
        DataError: there is none, or it is malformed, or of another size.
    """
    value = row.get("segmentation")
    if not value:
        raise DataError(f"{where}: no segmentation, which masks are scored on (boxes: iou type bbox)")
    quick = _plain_masks([value], [image])
    if quick is not None:
        return quick[0]
    try:
        packed = pack(value)
    except DataError as error:
        raise DataError(f"{where}: segmentation {error}") from None
    if packed[:1] != RLE and ("height" not in image or "width" not in image):
        raise DataError(f"{where}: polygons need the image's height and width, which the ground truth does not give")
    if packed[:1] == RLE:
        height, width = struct.unpack_from("<II", packed, 1)
        problem = size_problem(packed, image.get("width", width), image.get("height", height))
        if problem is not None:
            raise DataError(f"{where}: segmentation {problem}")
    return packed


def _plain_masks(values: Sequence[object], images: Sequence[Json]) -> list[bytes] | None:
    """Compressed RLEs as they are, where hotcoco can read all of them: ``pack`` takes 100 times as long.

    None: there is something else among them, an empty mask, or one of another size than its image.
    """
    rles: list[Any] = [
        value for value in values if isinstance(value, dict) and isinstance(value.get("counts"), str | bytes)
    ]
    if len(rles) != len(values):
        return None
    sizes = [rle.get("size") for rle in rles]
    if any(
        not isinstance(size, list)
        or [image.get("height", size[0] if size else 0), image.get("width", size[-1] if size else 0)] != size
        or set(map(type, size)) != {int}
        for size, image in zip(sizes, images, strict=True)
    ):
        return None
    try:
        pixels = hotcoco.mask.area([{"size": rle["size"], "counts": rle["counts"]} for rle in rles])
        found = [RLE + struct.pack("<II", *rle["size"]) + _ascii(rle["counts"]) for rle in rles]
    except (ValueError, TypeError, OverflowError, struct.error):
        return None  # pack says what is wrong
    return found if np.all(np.asarray(pixels) > 0) else None


def _ascii(text: str | bytes) -> bytes:
    return text.encode("ascii") if isinstance(text, str) else text
