"""Checking annotations in COCO's structure and turning them into one record per image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detrkit.data.annotations import Segments, clipped
from detrkit.data.coco_json import Row, box_problem, finite_number, is_crowd, lvis_problems, row_area
from detrkit.data.images import image_size
from detrkit.errors import DataError
from detrkit.structures import NEGATIVES, NOT_EXHAUSTIVE, Categories, Category

__all__ = [
    "ImageRecord",
    "OnError",
    "ScoreProtocol",
    "Table",
    "build_records",
    "coco_rows",
    "frequencies_of",
    "missing_files",
]

OnError = Literal["raise", "skip"]
ScoreProtocol = Literal["coco", "lvis", "panoptic", "semantic"]
_SKIP = "Correct it, or set on_error to skip to leave such {} out and count them."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRecord:
    """One image and its annotations.

    Boxes are in pixels of the upright image, or of the stored image if it was annotated without the EXIF rotation.

    Attributes:
        segments: the annotations; ``detrkit.data.annotations.objects_of`` turns them into the objects of a task.
        negatives: (K,) labels verified to be absent (LVIS; None: unknown).
        not_exhaustive: (E,) labels whose objects are not all annotated (LVIS; None: unknown).
    """

    image_id: int
    path: Path
    file_name: str
    width: int
    height: int
    segments: Segments = field(default_factory=Segments.none)
    negatives: NDArray[np.int64] | None = None
    not_exhaustive: NDArray[np.int64] | None = None

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(N, 4) xyxy of the objects, clipped to the image, with positive size."""
        return self._clipped_boxes(self.segments.single)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) labels of the objects."""
        return self.segments.labels[self.segments.single]

    @property
    def areas(self) -> NDArray[np.float64]:
        """(N,) areas of the objects as in the file."""
        return self.segments.areas[self.segments.single]

    @property
    def crowd_boxes(self) -> NDArray[np.float64]:
        """(M, 4) xyxy of the crowd regions, clipped to the image, with positive size."""
        return self._clipped_boxes(self._crowd)

    @property
    def crowd_labels(self) -> NDArray[np.int64]:
        """(M,) labels of the crowd regions."""
        return self.segments.labels[self._crowd]

    @property
    def _crowd(self) -> NDArray[np.bool_]:
        return self.segments.crowd & ~self.segments.outside

    def _clipped_boxes(self, selected: NDArray[np.bool_]) -> NDArray[np.float64]:
        return clipped(self.segments.boxes[selected], np.asarray((self.width, self.height)))


@dataclass(frozen=True, kw_only=True)
class Table:
    """The annotations of one split in COCO's structure, read from any format."""

    origin: Path
    """The file to name in messages."""
    image_root: Path
    """The folder to which the file names of images are relative."""
    images: list[Row]
    """Rows with id, file_name, and width and height where known."""
    annotations: list[Row]
    """Rows with id, image_id, category_id, bbox [x, y, w, h], area, iscrowd, and ``where``: file and line for messages,
    which COCO files do not have."""
    categories: list[Row]
    """Rows with id and name."""
    info: Row = field(default_factory=dict)
    """The entry ``info`` of COCO files."""
    protocol: ScoreProtocol = "coco"
    """How results on these images are scored. With "lvis", images and categories have the fields of LVIS, which
    ``detrkit.data.coco_json.lvis_problems`` checks."""

    def path(self, image: Row) -> Path:
        """The path of the file of an image row."""
        return self.image_root / str(image["file_name"]).replace("\\", "/")


def coco_rows(rows: Iterable[Row]) -> list[Row]:
    """Copies of annotation rows for a COCO file: with ``area`` and ``iscrowd``, and with unique positive ids.

    Ids that are unique and positive already are kept, others are replaced by 1, 2, … (for evaluators, id 0 means "no
    match").
    """
    copies = [{key: value for key, value in row.items() if key != "where"} for row in rows]
    ids = [row.get("id") for row in copies]
    keep_ids = len(set(ids)) == len(ids) and all(type(value) is int and value > 0 for value in ids)
    for number, row in enumerate(copies, start=1):
        row["id"] = row["id"] if keep_ids else number
        row["iscrowd"] = int(is_crowd(row))
        if row.get("area") is None and box_problem(row.get("bbox")) is None:
            row["area"] = row_area(row)
    return copies


def missing_files(paths: Sequence[Path]) -> list[int]:
    """Indices of the paths that do not exist; lists every folder once and opens no file."""
    listings: dict[str, frozenset[str]] = {}
    missing = []
    for index, path in enumerate(paths):
        parent, name = os.path.split(path)
        if parent not in listings:
            try:
                listings[parent] = frozenset(os.listdir(parent))
            except OSError:
                listings[parent] = frozenset()
        # exists() handles file systems that ignore case or normalise accents
        if name not in listings[parent] and not path.exists():
            missing.append(index)
    return missing


def build_records(table: Table, *, on_error: OnError = "raise") -> tuple[list[ImageRecord], Categories, list[str]]:
    """Check a table and turn it into records.

    Images without boxes are kept. With ``on_error="skip"`` bad boxes and missing images are left out. Annotations of
    images that the file does not list are always ignored, since the published COCO subsets have them.

    Returns:
        The records sorted by image id, the categories in label order (sorted by id), and one note per row that was
        left out.

    Raises:
        DataError: duplicate or unknown ids, or incomplete LVIS annotations; with ``on_error="raise"`` also bad boxes
            and missing images.
    """
    categories = _categories(table)
    label_of = {category.id: label for label, category in enumerate(categories)}
    images, notes = _images(table, on_error)
    index_of = {image["id"]: index for index, image in enumerate(images)}
    left_out = {image["id"] for image in table.images} - index_of.keys()
    owners: list[int] = []
    rows: list[Row] = []
    orphans = 0
    for row in table.annotations:
        if row["category_id"] not in label_of:
            raise DataError(_unknown_category(table, row, categories))
        index = index_of.get(row["image_id"], -1)
        if index < 0:
            orphans += row["image_id"] not in left_out
            continue
        problem = box_problem(row.get("bbox"))
        if problem:
            message = f"{_where(table, row, images[index])}: bbox {row.get('bbox')} {problem}"
            if on_error == "raise":
                raise DataError(f"{message}. {_SKIP.format('boxes')}")
            notes.append(message)
        else:
            owners.append(index)
            rows.append(row)
    if orphans:
        notes.append(f"{table.origin}: {orphans} annotations of images that it does not list")
    return _assemble(table, images, owners, rows, label_of, notes), categories, notes


def _assemble(
    table: Table, images: list[Row], owners: list[int], rows: list[Row], label_of: dict[int, int], notes: list[str]
) -> list[ImageRecord]:
    """Records from valid rows. owners: the index of the image of each row."""
    owner = np.asarray(owners, dtype=np.int64)
    sizes = np.asarray([(image["width"], image["height"]) for image in images], dtype=np.float64).reshape(-1, 2)
    boxes = np.asarray([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    corners = clipped(boxes, sizes[owner])
    segments = Segments(
        boxes=boxes,
        labels=np.asarray([label_of[row["category_id"]] for row in rows], dtype=np.int64),
        areas=_areas(table, images, owners, rows),
        crowd=np.asarray([is_crowd(row) for row in rows], dtype=bool),
        outside=np.logical_or(*(corners[:, 2:] <= corners[:, :2]).T),
    )
    for index in np.flatnonzero(segments.outside).tolist():
        image = images[owners[index]]
        notes.append(f"{_where(table, rows[index], image)}: bbox {rows[index]['bbox']} lies outside the image")
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
            **_federated(image, label_of),
        )
        for index, image in enumerate(images)
    ]


def _areas(table: Table, images: list[Row], owners: list[int], rows: list[Row]) -> NDArray[np.float64]:
    try:
        return np.asarray([row_area(row) for row in rows], dtype=np.float64)
    except (TypeError, ValueError):
        for owner, row in zip(owners, rows, strict=True):
            finite_number(row_area(row), f"{_where(table, row, images[owner])}: area")
        raise


def frequencies_of(table: Table) -> list[str] | None:
    """The frequency ("r", "c" or "f") of each class in label order; None without LVIS annotations."""
    if table.protocol != "lvis":
        return None
    return [row["frequency"] for row in sorted(table.categories, key=lambda row: int(row["id"]))]


def _federated(image: Row, label_of: dict[int, int]) -> dict[str, NDArray[np.int64]]:
    """The LVIS fields of a record; empty for other images."""
    if NEGATIVES not in image:
        return {}
    keys = {"negatives": NEGATIVES, "not_exhaustive": NOT_EXHAUSTIVE}
    return {name: np.asarray([label_of[number] for number in image[key]], np.int64) for name, key in keys.items()}


def _categories(table: Table) -> Categories:
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
    return Categories(Category(row["id"], str(row.get("name", row["id"]))) for row in ordered)


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
        raise DataError(
            f"{table.path(images[missing[0]])}: image file missing{more}, listed in {table.origin}. "
            + _SKIP.format("images")
        )
    notes = [f"{table.path(images[index])}: image file missing" for index in missing]
    skipped = set(missing)
    kept = []
    for index, image in enumerate(images):
        if index in skipped:
            continue
        width, height = image.get("width"), image.get("height")
        if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
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
