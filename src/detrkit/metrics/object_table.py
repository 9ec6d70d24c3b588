"""Objects of ground truth and results as columns, and the quick reading of rows that are as COCO describes them.

Rows with anything else in them (text, a missing value, an unknown id, keys that decide) are left to the reading row by
row of :mod:`detrkit.metrics.coco_files` and :mod:`detrkit.metrics.result_files`, which mends them or says what is
wrong.
Both give equal numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrkit.data.coco_json import Row
from detrkit.data.packed_masks import PackedMasks, text_rle, unpack
from detrkit.data.values import LARGEST

__all__ = ["MaskReader", "ObjectTable", "TableDraft", "plain_results", "plain_truth"]

Table = NDArray[np.float64]
Numbers = Mapping[Hashable, int]
"""Id in the file -> number in the evaluation."""
MaskReader = Callable[[Sequence[Any], NDArray[np.int64]], list[bytes]]
"""MaskReader(rows, numbers of their images): their packed masks. It raises DataError for the first that is unusable."""

_IMAGE, _BOX, _VALUE, _CATEGORY, _CROWD = 0, slice(1, 5), 5, 6, 7
_LARGEST_AREA = 1e9  # as in clean_rows: more needs a second look
_INTEGER, _NUMBER = {int}, {int, float}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectTable:
    """N objects in the order of their file.

    Attributes:
        numbers: (N, 7) image, x, y, width, height, score, category; of ground truth (N, 8) with the area in place of
            the score (NaN: not known) and with 1 for crowd regions. Images are numbered from 1, categories from 0.
        masks: their masks, or None.
    """

    numbers: Table
    masks: PackedMasks | None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> ObjectTable:
        return ObjectTable(numbers=self.numbers[index], masks=None if self.masks is None else self.masks[index])

    @property
    def images(self) -> NDArray[np.int64]:
        """(N,) numbers of the images."""
        return self.numbers[:, _IMAGE].astype(np.int64)

    @property
    def values(self) -> NDArray[np.float64]:
        """(N,) scores, or areas."""
        return self.numbers[:, _VALUE]

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(N, 4) x, y, width, height in pixels."""
        return self.numbers[:, _BOX]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) numbers of the categories."""
        return self.numbers[:, _CATEGORY].astype(np.int64)

    @property
    def crowds(self) -> NDArray[np.bool_]:
        """(N,) whether an object of the ground truth is a crowd region."""
        return self.numbers[:, _CROWD] == 1

    def with_values(self, values: NDArray[np.float64]) -> ObjectTable:
        """The table with other scores or areas."""
        numbers = self.numbers.copy()
        numbers[:, _VALUE] = values
        return replace(self, numbers=numbers)

    def truth_rows(self, first_id: int) -> Iterator[Row]:
        """Annotations of a COCO file with the ids ``first_id``, ``first_id`` + 1, …; ``area`` where it is known."""
        whole = (self.numbers[:, place].astype(np.int64).tolist() for place in (_IMAGE, _CATEGORY, _CROWD))
        numbers = zip(count(first_id), *whole, self.numbers[:, _BOX].tolist(), self.values.tolist(), strict=False)
        for place, (key, image, category, crowd, box, area) in enumerate(numbers):
            row: Row = {"id": key, "image_id": image, "category_id": category, "iscrowd": crowd, "bbox": box}
            if area == area:
                row["area"] = area
            if self.masks is not None:
                row["segmentation"] = _segmentation(self.masks.packed(place))
            yield row

    def outlines(self) -> Iterator[Row]:
        """Annotations with masks and little else, also of results."""
        assert self.masks is not None
        for place, image in enumerate(self.images.tolist()):
            mask = _segmentation(self.masks.packed(place))
            yield {"id": place + 1, "image_id": image, "category_id": 0, "iscrowd": 0, "segmentation": mask}

    def mask_results(self) -> Iterator[Row]:
        """Rows of a COCO results list with masks alone: with a box, the evaluator would take the area of the box."""
        assert self.masks is not None
        for place, (image, *_, score, category) in enumerate(self.numbers.tolist()):
            mask = _segmentation(self.masks.packed(place))
            yield {"image_id": int(image), "category_id": int(category), "score": score, "segmentation": mask}


def _segmentation(packed: bytes) -> object:
    content = unpack(packed)
    if isinstance(content, dict):
        return text_rle(content)
    assert isinstance(content, list)
    return [polygon.ravel().tolist() for polygon in content]


class TableDraft:
    """An object table that grows."""

    def __init__(self, *, width: int, masks: bool) -> None:
        self._width, self._rows = width, 0
        self._parts: list[Table] = []
        self._masks: list[bytes] | None = [] if masks else None

    def __len__(self) -> int:
        return self._rows

    def add(self, numbers: Table | Sequence[Sequence[float]], masks: Sequence[bytes] = ()) -> None:
        """Add objects; their masks if the table has masks."""
        part = np.asarray(numbers, dtype=np.float64).reshape(-1, self._width)
        self._parts.append(part)
        self._rows += len(part)
        if self._masks is not None:
            self._masks += masks

    def done(self) -> ObjectTable:
        """The table."""
        numbers = np.concatenate([np.empty((0, self._width)), *self._parts])
        return ObjectTable(numbers=numbers, masks=None if self._masks is None else PackedMasks.of(self._masks))


def plain_results(
    rows: Sequence[Any], images: Numbers, categories: Numbers, masks: MaskReader | None = None
) -> tuple[Table, list[bytes]] | None:
    """Numbers (N, 7) of results and their masks; None: not all rows are as COCO describes them.

    masks: how masks are read; None: boxes count, and masks are not looked at.

    Raises:
        DataError: as ``masks`` raises it.
    """
    keys = _keys(rows)
    if keys is None:
        return None
    table = np.zeros((len(rows), 7))
    if not _owners(rows, images, categories, table):
        return None
    if masks is None and not (_boxes(rows, table) and _plain_values(rows, keys, table)):
        return None
    if not _column(rows, "score", table) or not np.isfinite(table[:, _VALUE]).all():
        return None
    return table, [] if masks is None else masks(rows, table[:, _IMAGE].astype(np.int64))


def plain_truth(
    rows: Sequence[Any], images: Numbers, categories: Numbers, masks: MaskReader | None = None
) -> tuple[Table, list[bytes]] | None:
    """Numbers (N, 8) of ground truth and their masks; None: not all rows are as COCO describes them, with equal keys.

    masks: how masks are read; None: boxes count, and masks are not looked at.

    Raises:
        DataError: as ``masks`` raises it.
    """
    keys = _keys(rows)
    if keys is None:
        return None
    table = np.zeros((len(rows), 8))
    if not _owners(rows, images, categories, table) or not _boxes(rows, table):
        return None
    table[:, _VALUE] = table[:, 3] * table[:, 4] if masks is None else np.nan
    if not _plain_values(rows, keys, table):
        return None
    if "iscrowd" in keys:
        table[:, _CROWD] = [row["iscrowd"] for row in rows]
    return table, [] if masks is None else masks(rows, table[:, _IMAGE].astype(np.int64))


def _keys(rows: Sequence[Any]) -> set[object] | None:
    """All keys of the rows; None: there are no rows, or not all are objects."""
    if not rows or not set(map(type, rows)) <= {dict}:
        return None
    return set(chain.from_iterable(set(map(tuple, rows))))


def _owners(rows: Sequence[Any], images: Numbers, categories: Numbers, table: Table) -> bool:
    """Fill in images and categories; False: an id is no whole number, or not known."""
    for key, known, place in (("image_id", images, _IMAGE), ("category_id", categories, _CATEGORY)):
        ids = [row.get(key) for row in rows]
        if not set(map(type, ids)) <= _INTEGER:
            return False
        numbers = list(map(known.get, ids))
        if None in numbers:
            return False
        table[:, place] = numbers
    return True


def _plain_values(rows: Sequence[Any], keys: set[object], table: Table) -> bool:
    """Fill in areas, where rows have them; False: an area or a crowd flag is not as COCO describes it."""
    if "area" in keys:
        areas = table[:, _VALUE]
        if not _column(rows, "area", table) or not ((areas >= 0) & (areas <= _LARGEST_AREA)).all():
            return False
    crowds = [row.get("iscrowd") for row in rows] if "iscrowd" in keys else []
    return "problem" not in keys and set(map(type, crowds)) <= _INTEGER and set(crowds) <= {0, 1}


def _column(rows: Sequence[Any], key: str, table: Table) -> bool:
    """Fill in scores or areas; False: one is no number."""
    values = [row.get(key) for row in rows]
    if not set(map(type, values)) <= _NUMBER:
        return False
    try:
        table[:, _VALUE] = values
    except OverflowError:  # a whole number beyond the range of floats
        return False
    return True


def _boxes(rows: Sequence[Any], table: Table) -> bool:
    """Fill in boxes; False: one is not four numbers in range."""
    boxes = [row.get("bbox") for row in rows]
    if not set(map(type, boxes)) <= {list} or not set(map(len, boxes)) <= {4}:
        return False
    corners = list(chain.from_iterable(boxes))
    if not set(map(type, corners)) <= _NUMBER:
        return False
    try:
        found = np.asarray(corners, dtype=np.float64).reshape(-1, 4)
    except OverflowError:
        return False
    table[:, _BOX] = found
    return bool((np.abs(found) <= LARGEST).all() and (found[:, 2:] >= 0).all())
