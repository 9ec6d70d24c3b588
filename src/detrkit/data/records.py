"""Annotations in COCO's structure as tables, and one record per image for training and evaluation."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from detrkit.data.clean_rows import has_mask, is_crowd, row_problem, written_area
from detrkit.data.coco_json import Row
from detrkit.data.findings import Finding
from detrkit.data.listing import posix_name
from detrkit.data.map_files import MapFile
from detrkit.data.segments import Segments, clipped

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "WAY_ON",
    "ImageRecord",
    "OnError",
    "RowCounts",
    "ScoreProtocol",
    "Table",
    "coco_rows",
    "frequencies_of",
    "missing_files",
    "without_images",
]

OnError = Literal["raise", "skip"]
WAY_ON = "set on_error to skip to leave such {} out and count them (data.on_error=skip; data convert: --on-error skip)"
"""What to do about images and annotations that cannot be used, where they cannot be corrected."""
ScoreProtocol = Literal["cityscapes", "coco", "lvis", "panoptic", "semantic"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRecord:
    """One image and its annotations.

    Boxes are in pixels of the upright image, or of the stored image if it was annotated without the EXIF rotation.

    Attributes:
        segments: the annotations; ``detrkit.data.annotations.objects_of`` turns them into the objects of a task.
        map_file: the PNG file that the masks of the segments are values of, or None.
        negatives: (K,) labels verified to be absent (LVIS; None: unknown).
        not_exhaustive: (E,) labels whose objects are not all annotated (LVIS; None: unknown).
    """

    image_id: int
    path: Path
    file_name: str
    width: int
    height: int
    segments: Segments = field(default_factory=Segments.none)
    map_file: MapFile | None = None
    negatives: NDArray[np.int64] | None = None
    not_exhaustive: NDArray[np.int64] | None = None

    @classmethod
    def unlabelled(cls, image: Image.Image) -> Self:
        """The record of an upright image without annotations, as transforms want one."""
        return cls(image_id=0, path=Path(), file_name="", width=image.width, height=image.height)

    def segment_map(self) -> NDArray[np.int32] | None:
        """The values (H, W) of the map file, or None.

        Raises:
            DataError: it cannot be read or does not fit the image and its segments.
        """
        return None if self.map_file is None else self.map_file.read((self.width, self.height))

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
class RowCounts:
    """What the annotations of a table have, counted in one pass over them."""

    usable: int
    """Annotations that can be used, boxes among them."""
    masks: int
    """Those of them with a mask."""
    classes: Mapping[tuple[int, bool], int]
    """(category id, whether it is a crowd region) -> annotations."""
    images: frozenset[int]
    """The ids of images that annotations refer to."""
    outlines: bool
    """Whether any has a ``segmentation``."""
    crowd_outlines: bool
    """Whether any crowd region has one."""

    @classmethod
    def of(cls, rows: Iterable[Row]) -> RowCounts:
        """Count rows."""
        usable = masks = 0
        classes = Counter[tuple[int, bool]]()
        images: set[int] = set()
        outlined: set[bool] = set()
        for row in rows:
            crowd = is_crowd(row)
            classes[row["category_id"], crowd] += 1
            images.add(row["image_id"])
            if row.get("segmentation"):
                outlined.add(crowd)
            if row_problem(row) is None:
                usable += 1
                masks += has_mask(row)
        return cls(
            usable=usable,
            masks=masks,
            classes=classes,
            images=frozenset(images),
            outlines=bool(outlined),
            crowd_outlines=True in outlined,
        )

    @property
    def categories(self) -> set[int]:
        """The ids of categories that annotations refer to."""
        return {number for number, _ in self.classes}


@dataclass(frozen=True, kw_only=True)
class Table:
    """The annotations of one split in COCO's structure, read from any format."""

    origin: Path
    """The file to name in messages."""
    image_root: Path
    """The folder to which the file names of images are relative."""
    images: list[Row]
    """Rows with id, file_name, and width and height where known. Formats with masks in PNG files add ``map``, a
    :class:`~detrkit.data.map_files.MapFile`, and ``problem``, why the image cannot be used, where it cannot."""
    annotations: Sequence[Row]
    """Rows with id, image_id, category_id, bbox [x, y, w, h], area, iscrowd, and segmentation where there is one. COCO
    files do not have ``where``, file and line for messages, ``value``, that of the segment in the ``map`` of its image,
    and ``problem``, why the row cannot be used, where it cannot."""
    categories: list[Row]
    """Rows with id and name, and ``isthing`` 0 for stuff."""
    info: Row = field(default_factory=dict)
    """The entry ``info`` of COCO files."""
    protocol: ScoreProtocol = "coco"
    """How results on these images are scored. With "lvis", images and categories have the fields of LVIS, which
    ``detrkit.data.coco_json.lvis_problems`` checks."""
    instance_protocol: ScoreProtocol | None = None
    """How masks of instances on these images are scored, where it is another way than ``protocol``."""
    readings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """One line per value that is not as COCO has it and how it was read, by kind (``detrkit.data.clean_rows``)."""
    faults: tuple[str, ...] = ()
    """Rows of annotation files that cannot be read, one message with file and line each."""
    remarks: tuple[Finding, ...] = ()
    """What the reader had to decide: warnings are announced, and ``data check`` lists all of them."""
    label_files: tuple[Path, ...] = ()
    """The annotation files that were read, of formats with one per image."""

    @cached_property
    def counts(self) -> RowCounts:
        """What the annotations have."""
        return RowCounts.of(self.annotations)

    @property
    def sizes(self) -> dict[int, tuple[int | None, int | None]]:
        """Width and height of each image by its id, None where they are unknown."""
        return {image["id"]: (image.get("width"), image.get("height")) for image in self.images}

    def path(self, image: Row) -> Path:
        """The path of the file of an image row."""
        return self.image_root / posix_name(str(image["file_name"]))

    @property
    def image_folder(self) -> Path:
        """The folder that all images are in, or its sub-folders."""
        return Path(os.path.commonpath([self.path(image).parent for image in self.images]))


def coco_rows(rows: Iterable[Row]) -> list[Row]:
    """Copies of annotation rows for a COCO file: with ``area`` and ``iscrowd``, and with unique positive ids.

    Ids that are unique and positive already are kept, others are replaced by 1, 2, … (for evaluators, id 0 means "no
    match").
    """
    rows = list(rows)
    copies = [{key: value for key, value in row.items() if key not in ("where", "value", "problem")} for row in rows]
    ids = [row.get("id") for row in copies]
    keep_ids = len(set(ids)) == len(ids) and all(type(value) is int and value > 0 for value in ids)
    for number, (row, source) in enumerate(zip(copies, rows, strict=True), start=1):
        row["id"] = row["id"] if keep_ids else number
        if row_problem(source) is None:
            row["area"] = written_area(source)
        if "problem" not in source:
            row["iscrowd"] = int(is_crowd(row))
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
        # exists() handles file systems that ignore case or normalise accents; of a name that is too long it says False
        if name not in listings[parent] and not os.path.exists(path):
            missing.append(index)
    return missing


def without_images(folder: Path) -> str:
    """What to do about annotations of which no image is there, whose place is the folder."""
    return f"an export without its images? Put the images into {folder}, or export again with images"


def frequencies_of(table: Table) -> list[str] | None:
    """The frequency ("r", "c" or "f") of each class in label order; None without LVIS annotations."""
    if table.protocol != "lvis":
        return None
    return [row["frequency"] for row in sorted(table.categories, key=lambda row: int(row["id"]))]
