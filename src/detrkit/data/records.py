"""COCO-shaped annotations checked and turned into one record an image."""

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
_SKIP = "Mend it, or set on_error to skip to leave such {} out and count them."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRecord:
    """One image and its annotations, in pixels of the frame that the annotations were drawn in (the upright image).

    Attributes:
        segments: all that evaluation and training need of the annotations; ``detrkit.data.annotations.objects_of``
            makes of them what a task trains on.
        negatives: (K,) labels verified to be absent (LVIS; None: not known).
        not_exhaustive: (E,) labels of which not every object is annotated (LVIS; None: not known).
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
        """(N, 4) xyxy of the objects, inside the image and of positive size."""
        return self._inside(self.segments.single)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) labels of the objects."""
        return self.segments.labels[self.segments.single]

    @property
    def areas(self) -> NDArray[np.float64]:
        """(N,) areas of the objects, as in the file."""
        return self.segments.areas[self.segments.single]

    @property
    def crowd_boxes(self) -> NDArray[np.float64]:
        """(M, 4) xyxy of the crowd regions, inside the image and of positive size."""
        return self._inside(self._crowd)

    @property
    def crowd_labels(self) -> NDArray[np.int64]:
        """(M,) labels of the crowd regions."""
        return self.segments.labels[self._crowd]

    @property
    def _crowd(self) -> NDArray[np.bool_]:
        return self.segments.crowd & ~self.segments.outside

    def _inside(self, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        return clipped(self.segments.boxes[chosen], np.asarray((self.width, self.height)))


@dataclass(frozen=True, kw_only=True)
class Table:
    """The annotations of one split in COCO's shape, whatever format they came in.

    images: id, file_name (relative to ``image_root``), width and height where known · annotations: id, image_id,
    category_id, bbox [x, y, w, h], area, iscrowd, ``where`` (file and line, for messages; not in COCO files) ·
    categories: id, name · origin: the file to name in messages · protocol: how results on these images are scored;
    with "lvis" images and categories have what ``detrkit.data.coco_json.lvis_problems`` names.
    """

    origin: Path
    image_root: Path
    images: list[Row]
    annotations: list[Row]
    categories: list[Row]
    info: Row = field(default_factory=dict)
    protocol: ScoreProtocol = "coco"

    def path(self, image: Row) -> Path:
        """Where the file of a row of ``images`` lies."""
        return self.image_root / str(image["file_name"]).replace("\\", "/")


def coco_rows(rows: Iterable[Row]) -> list[Row]:
    """Copies of annotation rows as COCO files have them: ``area`` and ``iscrowd`` present, ids unique and positive.

    Ids are kept where they are so already (evaluators take id 0 for "no match"), else counted from 1.
    """
    done = [{key: value for key, value in row.items() if key != "where"} for row in rows]
    ids = [row.get("id") for row in done]
    keep = len(set(ids)) == len(ids) and all(type(value) is int and value > 0 for value in ids)
    for number, row in enumerate(done, start=1):
        row["id"] = row["id"] if keep else number
        row["iscrowd"] = int(is_crowd(row))
        if row.get("area") is None and box_problem(row.get("bbox")) is None:
            row["area"] = row_area(row)
    return done


def missing_files(paths: Sequence[Path]) -> list[int]:
    """Positions of the paths that do not exist; each folder is listed once, no file is opened."""
    listings: dict[str, frozenset[str]] = {}
    missing = []
    for index, path in enumerate(paths):
        parent, name = os.path.split(path)
        if parent not in listings:
            try:
                listings[parent] = frozenset(os.listdir(parent))
            except OSError:
                listings[parent] = frozenset()
        # exists() covers file systems that ignore case or normalise accents
        if name not in listings[parent] and not path.exists():
            missing.append(index)
    return missing


def build_records(table: Table, *, on_error: OnError = "raise") -> tuple[list[ImageRecord], Categories, list[str]]:
    """Records sorted by image id, the categories in label order (sorted by id), and a line for all that was left out.

    Crowd is set apart, boxes are clamped to the image and those that lie outside dropped, images without boxes stay.
    With ``on_error="skip"`` bad boxes and missing images are left out too; annotations of images that the file does
    not list are ignored always (the published COCO subsets have them).

    Raises:
        DataError: duplicate or unknown ids and incomplete LVIS annotations always; bad boxes and missing images with
            ``on_error="raise"``.
    """
    categories = _categories(table)
    label_of = {category.id: label for label, category in enumerate(categories)}
    images, notes = _images(table, on_error)
    position = {image["id"]: index for index, image in enumerate(images)}
    left_out = {image["id"] for image in table.images} - position.keys()
    owners: list[int] = []
    rows: list[Row] = []
    orphans = 0
    for row in table.annotations:
        if row["category_id"] not in label_of:
            raise DataError(_unknown_category(table, row, categories))
        index = position.get(row["image_id"], -1)
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
    order = np.argsort(owner, kind="stable")  # by image, else as in the file
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
    """How frequent the classes are, in label order; None where that is not known (LVIS says it)."""
    if table.protocol != "lvis":
        return None
    return [row["frequency"] for row in sorted(table.categories, key=lambda row: int(row["id"]))]


def _federated(image: Row, label_of: dict[int, int]) -> dict[str, NDArray[np.int64]]:
    """What the record of an LVIS image has beside boxes."""
    if NEGATIVES not in image:
        return {}
    keys = {"negatives": NEGATIVES, "not_exhaustive": NOT_EXHAUSTIVE}
    return {name: np.asarray([label_of[number] for number in image[key]], np.int64) for name, key in keys.items()}


def _categories(table: Table) -> Categories:
    ids = [row["id"] for row in table.categories]
    if not ids:
        raise DataError(f"{table.origin}: has no categories")
    twice = _first_duplicate(ids)
    if twice is not None:
        raise DataError(f"{table.origin}: category id {twice} stands twice in categories")
    if table.protocol == "lvis":
        for problem in lvis_problems(table.images, table.categories):
            raise DataError(f"{table.origin}: {problem}")
    ordered = sorted(table.categories, key=lambda row: int(row["id"]))
    return Categories(Category(row["id"], str(row.get("name", row["id"]))) for row in ordered)


def _images(table: Table, on_error: OnError) -> tuple[list[Row], list[str]]:
    """Image rows sorted by id, each with width and height, and a line for each that was left out."""
    if not table.images:
        raise DataError(f"{table.origin}: lists no images")
    twice = _first_duplicate(image["id"] for image in table.images)
    if twice is not None:
        raise DataError(f"{table.origin}: image id {twice} stands twice in images")
    images = sorted(table.images, key=lambda image: int(image["id"]))
    missing = missing_files([table.path(image) for image in images])
    if missing and (on_error == "raise" or len(missing) == len(images)):
        more = f" (and {len(missing) - 1} more of {len(images)} images)" if len(missing) > 1 else ""
        raise DataError(
            f"{table.path(images[missing[0]])}: image file missing{more}, listed in {table.origin}. "
            + _SKIP.format("images")
        )
    notes = [f"{table.path(images[index])}: image file missing" for index in missing]
    gone = set(missing)
    kept = []
    for index, image in enumerate(images):
        if index in gone:
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
    place = row.get("where") or f"{table.origin}: annotation id {row.get('id')}"
    return f"{place} (image '{image['file_name']}')"


def _unknown_category(table: Table, row: Row, categories: Categories) -> str:
    ids = categories.ids
    listed = f"{ids[0]} to {ids[-1]}" if len(ids) > 8 else ", ".join(map(str, ids))
    place = row.get("where") or f"{table.origin}: annotation id {row.get('id')}"
    return (
        f"{place}: category id {row['category_id']} is not among the categories ({listed}). If ids are off by one, "
        "'detrkit data check' shows it"
    )
