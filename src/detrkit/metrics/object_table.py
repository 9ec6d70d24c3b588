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
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrkit.data.coco_json import Row
from detrkit.data.packed_masks import PackedMasks, text_rle, unpack
from detrkit.data.uniform_rows import EXACT, UniformRows
from detrkit.data.values import LARGEST

__all__ = ["IdNumbers", "MaskReader", "ObjectTable", "TableDraft", "plain_results", "plain_truth", "renumbered"]

Table = NDArray[np.float64]
MaskReader = Callable[[Sequence[Any], NDArray[np.int64]], list[bytes]]
"""MaskReader(rows, numbers of their images): their packed masks. It raises DataError for the first that is unusable."""

_IMAGE, _BOX, _VALUE, _CATEGORY, _CROWD = 0, slice(1, 5), 5, 6, 7
_DENSE = 1 << 20
"""The largest span of ids for which there is a table of their places; others are searched."""
_LARGEST_AREA = 1e9  # as in clean_rows: more needs a second look


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


class IdNumbers:
    """Numbers in the evaluation, looked up for many ids of a file at once.

    Args:
        numbers: id -> number. Only whole numbers that floats hold are looked up.
    """

    def __init__(self, numbers: Mapping[Hashable, int]) -> None:
        known = {key: number for key, number in numbers.items() if type(key) is int and abs(key) < EXACT}
        self._ids = np.fromiter(sorted(known), np.int64, len(known))
        self._numbers = np.fromiter((known[key] for key in sorted(known)), np.int64, len(known))
        self._places: NDArray[np.int64] | None = None  # of the ids from the least to the largest, if they are dense
        if known and (span := int(self._ids[-1] - self._ids[0]) + 1) <= _DENSE:
            self._places = np.zeros(span, np.int64)
            self._places[self._ids - self._ids[0]] = np.arange(len(known))

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """(N,) numbers of ids (N,); None: not all are known."""
        if len(self._ids) == 0:
            return None
        near = np.clip(ids, self._ids[0], self._ids[-1])
        places = np.searchsorted(self._ids, near) if self._places is None else self._places[near - self._ids[0]]
        return self._numbers[places] if (self._ids[places] == ids).all() else None


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


class _RowColumns:
    """Columns of rows; see :class:`~detrkit.data.uniform_rows.UniformRows`."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def keys(self) -> set[object] | None:
        """All keys of the rows; None: there are no rows, or not all are objects."""
        if not self._rows or not set(map(type, self._rows)) <= {dict}:
            return None
        return set(chain.from_iterable(set(map(tuple, self._rows))))

    def whole(self, key: str) -> NDArray[np.int64] | None:
        """(N,) the whole numbers of a key, which floats hold too; None: not all are."""
        values = self._values(key)
        if values is None or set(map(type, values)) != {int} or max(map(abs, values)) >= EXACT:
            return None
        return np.fromiter(values, np.int64, len(values))

    def numbers(self, key: str) -> NDArray[np.float64] | None:
        """(N,) the numbers of a key; None: one is none."""
        return _floats(self._values(key))

    def boxes(self, key: str) -> NDArray[np.float64] | None:
        """(N, 4) the boxes of a key; None: one is not four numbers."""
        boxes = self._values(key)
        if boxes is None or not set(map(type, boxes)) <= {list} or not set(map(len, boxes)) <= {4}:
            return None
        corners = _floats(list(chain.from_iterable(boxes)))
        return None if corners is None else corners.reshape(-1, 4)

    def _values(self, key: str) -> list[Any] | None:
        try:
            return list(map(itemgetter(key), self._rows))
        except KeyError:
            return None


_Columns = UniformRows | _RowColumns


def _floats(values: list[Any] | None) -> NDArray[np.float64] | None:
    if values is None or not set(map(type, values)) <= {int, float}:
        return None
    try:
        return np.fromiter(values, np.float64, len(values))
    except OverflowError:  # a whole number beyond the range of floats
        return None


def plain_results(
    rows: Sequence[Any] | UniformRows,
    images: IdNumbers | None,
    categories: IdNumbers | None,
    masks: MaskReader | None = None,
) -> tuple[Table, list[bytes]] | None:
    """Numbers (N, 7) of results and their masks; None: not all rows are as COCO describes them.

    images, categories: numbers of the ids in the rows; None: the ids themselves · masks: how masks are read; None:
    boxes count, and masks are not looked at.

    Raises:
        DataError: as ``masks`` raises it.
    """
    columns = rows if isinstance(rows, UniformRows) else _RowColumns(rows)
    keys = columns.keys
    if keys is None:
        return None
    table = np.zeros((len(columns), 7))
    if not _owners(columns, images, categories, table):
        return None
    if masks is None and not (_boxes(columns, table) and _plain_values(columns, keys, table)):
        return None
    scores = columns.numbers("score")
    if scores is None or not np.isfinite(scores).all():
        return None
    table[:, _VALUE] = scores
    return table, [] if masks is None else masks(_listed(rows), table[:, _IMAGE].astype(np.int64))


def renumbered(table: Table, images: IdNumbers, categories: IdNumbers) -> Table | None:
    """Numbers (N, 7) of results from the same with ids of images and categories; None: not all are known."""
    numbers = [
        known.of(table[:, place].astype(np.int64)) for place, known in ((_IMAGE, images), (_CATEGORY, categories))
    ]
    if numbers[0] is None or numbers[1] is None:
        return None
    found = table.copy()
    found[:, _IMAGE], found[:, _CATEGORY] = numbers
    return found


def plain_truth(
    rows: Sequence[Any] | UniformRows, images: IdNumbers, categories: IdNumbers, masks: MaskReader | None = None
) -> tuple[Table, list[bytes]] | None:
    """Numbers (N, 8) of ground truth and their masks; None: not all rows are as COCO describes them, with equal keys.

    masks: how masks are read; None: boxes count, and masks are not looked at.

    Raises:
        DataError: as ``masks`` raises it.
    """
    columns = rows if isinstance(rows, UniformRows) else _RowColumns(rows)
    keys = columns.keys
    if keys is None:
        return None
    table = np.zeros((len(columns), 8))
    if not _owners(columns, images, categories, table) or not _boxes(columns, table):
        return None
    table[:, _VALUE] = table[:, 3] * table[:, 4] if masks is None else np.nan
    if not _plain_values(columns, keys, table):
        return None
    if "iscrowd" in keys:
        table[:, _CROWD] = columns.whole("iscrowd")
    return table, [] if masks is None else masks(_listed(rows), table[:, _IMAGE].astype(np.int64))


def _listed(rows: Sequence[Any] | UniformRows) -> Sequence[Any]:
    assert not isinstance(rows, UniformRows)  # which have no masks
    return rows


def _owners(columns: _Columns, images: IdNumbers | None, categories: IdNumbers | None, table: Table) -> bool:
    """Fill in images and categories; False: an id is no whole number, or not known."""
    for key, known, place in (("image_id", images, _IMAGE), ("category_id", categories, _CATEGORY)):
        ids = columns.whole(key)
        numbers = ids if ids is None or known is None else known.of(ids)
        if numbers is None:
            return False
        table[:, place] = numbers
    return True


def _plain_values(columns: _Columns, keys: set[object], table: Table) -> bool:
    """Fill in areas, where rows have them; False: an area or a crowd flag is not as COCO describes it."""
    if "area" in keys:
        areas = columns.numbers("area")
        if areas is None or not ((areas >= 0) & (areas <= _LARGEST_AREA)).all():
            return False
        table[:, _VALUE] = areas
    if "iscrowd" in keys:
        crowds = columns.whole("iscrowd")
        if crowds is None or not ((crowds == 0) | (crowds == 1)).all():
            return False
    return "problem" not in keys


def _boxes(columns: _Columns, table: Table) -> bool:
    """Fill in boxes; False: one is not four numbers in range."""
    found = columns.boxes("bbox")
    if found is None:
        return False
    table[:, _BOX] = found
    return bool((np.abs(found) <= LARGEST).all() and (found[:, 2:] >= 0).all())
