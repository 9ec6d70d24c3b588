"""Checking annotations in COCO's structure and turning them into one record per image."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterable
from dataclasses import replace

import hotcoco.mask
import numpy as np
from numpy.typing import NDArray

from detrkit.data.class_lists import valid_color
from detrkit.data.clean_rows import has_mask, is_crowd, row_area, row_problem
from detrkit.data.coco_json import Row, lvis_problems
from detrkit.data.frames import turned_images, upright
from detrkit.data.images import image_size
from detrkit.data.packed_masks import PackedMasks, pack, pack_value, size_problem, unpack
from detrkit.data.rasterise import rle_of
from detrkit.data.records import WAY_ON, ImageRecord, OnError, Table, missing_files, without_images
from detrkit.data.segments import Segments, clipped, rules_of
from detrkit.errors import DataError, MissingFilesError
from detrkit.structures import NEGATIVES, NOT_EXHAUSTIVE, Categories, Category

__all__ = ["build_records", "mask_problem"]

_SKIP = f"Correct it, or {WAY_ON}."


def build_records(
    table: Table, *, task: str = "det", on_error: OnError = "raise"
) -> tuple[list[ImageRecord], Categories, list[str]]:
    """Check a table and turn it into records for a task.

    Detection and instance segmentation have the classes that are things; only tasks with masks keep masks.

    Images without boxes are kept. With ``on_error="skip"`` bad boxes and missing images are left out. Annotations of
    images that the file does not list are always ignored, since the published COCO subsets have them.

    Returns:
        The records sorted by image id, the categories in label order (sorted by id), and one note per row that was
        left out.

    Raises:
        DataError: duplicate or unknown ids, no class or no mask for the task, no usable annotation among several, or
            incomplete LVIS annotations; with ``on_error="raise"`` also bad boxes and masks, and missing images.
    """
    rules = rules_of(task)
    categories, left_aside = _categories(table, task)
    label_of = {category.id: label for label, category in enumerate(categories)}
    if task == "sem" and len(categories) == 1:
        warnings.warn(
            f"{table.origin}: '{categories[0].name}' is the only class, so a model that sees it everywhere makes no "
            "error; give the background a class of its own",
            stacklevel=2,
        )
    if rules.masks and table.annotations and not any(map(has_mask, table.annotations)):
        raise DataError(
            f"{table.origin}: none of its {len(table.annotations)} annotations has a segmentation, which task '{task}' "
            "needs; task 'det' uses the boxes alone"
        )
    if table.faults and on_error == "raise":
        more = f" (and {len(table.faults) - 1} more rows)" if len(table.faults) > 1 else ""
        raise DataError(f"{table.faults[0]}{more}. {_SKIP.format('rows')}")
    images, notes = _images(table, on_error)
    notes += table.faults
    turned = turned_images(table, images)
    if turned:
        images = upright(images, turned)
        warnings.warn(
            f"{table.origin}: {len(turned)} photos have width and height of the file as stored, but boxes of the "
            "upright picture (EXIF); they are used upright. 'detrkit data check' lists them",
            stacklevel=2,
        )
    index_of = {image["id"]: index for index, image in enumerate(images)}
    left_out = {image["id"] for image in table.images} - index_of.keys()
    kept = _Columns()
    masks: list[bytes] | None = [] if rules.masks else None
    unusable: list[str] = []
    orphans = 0
    for place, row in enumerate(table.annotations):
        if row["category_id"] in left_aside:
            continue
        if row["category_id"] not in label_of:
            raise DataError(_unknown_category(table, row, categories))
        index = index_of.get(row["image_id"], -1)
        if index < 0:
            orphans += row["image_id"] not in left_out
            continue
        try:
            problem = row_problem(row)
            if problem:
                raise DataError(problem)
            area = row_area(row)
            if masks is not None:
                masks.append(_packed(row, images[index]))
                area = _drawn_area(masks[-1], images[index]) if row.get("area") is None else area
        except DataError as error:
            message = f"{_where(table, row, images[index])}: {error}"
            if on_error == "raise":
                raise DataError(f"{message}. {_SKIP.format('annotations')}") from None
            unusable.append(message)
        else:
            kept.add(place, index, row, label_of[row["category_id"]], area)
    if unusable and not kept.places:
        raise DataError(
            f"{table.origin}: all {len(unusable)} annotations are unusable, so none is left. The first: {unusable[0]}"
        )
    notes += unusable
    if orphans:
        notes.append(f"{table.origin}: {orphans} annotations of images that it does not list")
    owners = np.asarray(kept.owners, dtype=np.int64)
    segments = _segments(images, owners, kept, categories)
    if masks is not None:
        segments = replace(segments, masks=PackedMasks.of(masks))
    for index in np.flatnonzero(segments.outside).tolist():
        row = table.annotations[kept.places[index]]
        notes.append(f"{_where(table, row, images[owners[index]])}: bbox {row['bbox']} lies outside the image")
    return _assemble(table, images, owners, segments, label_of), categories, notes


class _Columns:
    """Usable rows: their places in the table, the indices of their images, and their values."""

    def __init__(self) -> None:
        self.places, self.owners, self.labels = array("q"), array("q"), array("q")
        self.boxes, self.areas, self.crowd = array("d"), array("d"), array("b")

    def add(self, place: int, owner: int, row: Row, label: int, area: float) -> None:
        """Add a row."""
        self.places.append(place)
        self.owners.append(owner)
        self.labels.append(label)
        self.boxes.extend(row["bbox"])
        self.areas.append(area)
        self.crowd.append(is_crowd(row))


def _segments(images: list[Row], owner: NDArray[np.int64], rows: _Columns, categories: Categories) -> Segments:
    """The segments of usable rows, without masks. owner: the index of the image of each row."""
    sizes = np.asarray([(image["width"], image["height"]) for image in images], dtype=np.float64).reshape(-1, 2)
    boxes = np.asarray(rows.boxes, dtype=np.float64).reshape(-1, 4)
    corners = clipped(boxes, sizes[owner])
    labels = np.asarray(rows.labels, dtype=np.int64)
    return Segments(
        boxes=boxes,
        labels=labels,
        areas=np.asarray(rows.areas, dtype=np.float64),
        crowd=np.asarray(rows.crowd, dtype=bool),
        outside=np.logical_or(*(corners[:, 2:] <= corners[:, :2]).T),
        things=np.asarray([category.is_thing for category in categories], dtype=bool)[labels],
    )


def _assemble(
    table: Table, images: list[Row], owner: NDArray[np.int64], segments: Segments, label_of: dict[int, int]
) -> list[ImageRecord]:
    """One record per image. owner: the index of the image of each segment."""
    order = np.argsort(owner, kind="stable")  # by image, then in the order of the file
    segments, owner = segments[order], owner[order]
    starts = np.searchsorted(owner, np.arange(len(images) + 1)).tolist()
    return [
        ImageRecord(
            image_id=image["id"],
            path=table.path(image),
            file_name=str(image["file_name"]),
            width=image["width"],
            height=image["height"],
            segments=segments[starts[index] : starts[index + 1]],
            map_file=None if segments.masks is None else image.get("map"),
            **_federated(image, label_of),
        )
        for index, image in enumerate(images)
    ]


def _packed(row: Row, image: Row) -> bytes:
    """The packed mask of a row.

    Raises:
        DataError: it has none, or it is malformed or of another size than the image.
    """
    if "value" in row:
        return pack_value(row["value"])
    try:
        packed = pack(row.get("segmentation"))
    except DataError as error:
        raise DataError(f"segmentation {error}") from None
    problem = size_problem(packed, image["width"], image["height"])
    if problem:
        raise DataError(f"segmentation {problem}")
    return packed


def _drawn_area(packed: bytes, image: Row) -> float:
    """The pixels of polygons or of RLE, which scores count too where a file has no areas."""
    content = unpack(packed)
    assert isinstance(content, list | dict), "readers of segment maps measure their segments"
    return float(hotcoco.mask.area(rle_of(content, (image["width"], image["height"]))))


def mask_problem(table: Table, row: Row, image: Row) -> str | None:
    """Why the segmentation of a row cannot be used on its image, and where it is; None for a good one or none."""
    if not has_mask(row):
        return None
    try:
        _packed(row, image)
    except DataError as error:
        return f"{_where(table, row, image)}: {error}"
    return None


def _federated(image: Row, label_of: dict[int, int]) -> dict[str, NDArray[np.int64]]:
    """The LVIS fields of a record; empty for other images."""
    if NEGATIVES not in image:
        return {}
    keys = {"negatives": NEGATIVES, "not_exhaustive": NOT_EXHAUSTIVE}
    return {name: np.asarray([label_of[number] for number in image[key]], np.int64) for name, key in keys.items()}


def _categories(table: Table, task: str) -> tuple[Categories, frozenset[int]]:
    """The classes of a task in label order, and the ids of those that it has no use for (stuff)."""
    ids = [row["id"] for row in table.categories]
    if not ids:
        raise DataError(f"{table.origin}: has no categories")
    duplicate = _first_duplicate(ids)
    if duplicate is not None:
        raise DataError(f"{table.origin}: category id {duplicate} occurs twice in categories")
    if table.protocol == "lvis":
        for problem in lvis_problems(table.images, table.categories):
            raise DataError(f"{table.origin}: {problem}")
    ordered = sorted(table.categories, key=lambda row: int(row["id"]))
    everything = Categories(
        Category(
            int(row["id"]), str(row.get("name", row["id"])), bool(row.get("isthing", 1)), valid_color(row.get("color"))
        )
        for row in ordered
    )
    if rules_of(task).stuff:
        return everything, frozenset()
    things = Categories(category for category in everything if category.is_thing)
    if not things:
        raise DataError(
            f"{table.origin}: task '{task}' needs classes of things that can be counted, but all {len(everything)} "
            "classes are stuff (isthing 0); task 'sem' or 'pan' uses them"
        )
    return things, frozenset(category.id for category in everything if not category.is_thing)


def _images(table: Table, on_error: OnError) -> tuple[list[Row], list[str]]:
    """Image rows with width and height, sorted by id, and one note per image that was left out."""
    if not table.images:
        raise DataError(f"{table.origin}: lists no images")
    duplicate = _first_duplicate(image["id"] for image in table.images)
    if duplicate is not None:
        raise DataError(f"{table.origin}: image id {duplicate} occurs twice in images")
    images = sorted(table.images, key=lambda image: int(image["id"]))
    missing = missing_files([table.path(image) for image in images])
    if missing and (on_error == "raise" or len(missing) == len(images)):
        more = f" (and {len(missing) - 1} more of {len(images)} images)" if len(missing) > 1 else ""
        raise MissingFilesError(
            f"{table.path(images[missing[0]])}: image file missing{more}, listed in {table.origin}"
            + (
                f": {without_images(table.image_folder)}"
                if len(missing) == len(images)
                else f". {_SKIP.format('images')}"
            )
        )
    notes = [f"{table.path(images[index])}: image file missing" for index in missing]
    skipped = set(missing)
    kept = []
    for index, image in enumerate(images):
        if index in skipped:
            continue
        if "problem" in image:
            if on_error == "raise":
                raise DataError(f"{image['problem']}. {_SKIP.format('images')}")
            notes.append(image["problem"])
            continue
        width, height = image.get("width"), image.get("height")
        if width is None or height is None:
            try:
                width, height = image_size(table.path(image))
            except DataError as error:
                if on_error == "raise":
                    raise
                notes.append(str(error))
                continue
            image = {**image, "width": width, "height": height}
        kept.append(image)
    if not kept:
        raise DataError(f"{table.origin}: none of its {len(images)} images can be read")
    return kept, notes


def _first_duplicate(values: Iterable[int]) -> int | None:
    seen: set[int] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _where(table: Table, row: Row, image: Row) -> str:
    return f"{_location(table, row)} (image '{image['file_name']}')"


def _location(table: Table, row: Row) -> str:
    return str(row.get("where") or f"{table.origin}: annotation id {row.get('id')}")


def _unknown_category(table: Table, row: Row, categories: Categories) -> str:
    ids = categories.ids
    listed = f"{ids[0]} to {ids[-1]}" if len(ids) > 8 else ", ".join(map(str, ids))
    return (
        f"{_location(table, row)}: category id {row['category_id']} is not among the categories ({listed}). If ids are "
        "off by one, 'detrkit data check' shows it"
    )
