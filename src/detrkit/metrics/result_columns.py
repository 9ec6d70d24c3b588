"""Results of boxes as columns: the quick reading of rows that are as COCO describes them.

Rows with anything else in them (text, a missing value, an unknown id, keys that decide) are left to the reading row by
row of :mod:`detrkit.metrics.coco_files`, which mends them or says what is wrong. Both give equal numbers.
"""

from __future__ import annotations

import gc
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrkit.data.values import LARGEST

__all__ = ["columns_of_file", "columns_of_rows"]

Columns = NDArray[np.float64]
"""(N, 7): image, x, y, width, height, score, category."""
Numbers = Mapping[Hashable, int]
"""Id in the file -> number in the evaluation."""

_SLICE = 8 << 20
"""Bytes of text that are parsed at a time: the memory that parsed rows need is this many times five."""
_ENDS_TRIED = 8
"""Closing braces tried as the end of a slice; an RLE in a row has one of its own."""
_KEYS_THAT_DECIDE = {"iscrowd", "area", "problem"}
_INTEGER, _NUMBER = {int}, {int, float}


def columns_of_file(path: Path, images: Numbers, categories: Numbers) -> Columns | None:
    """The rows of a results file; None: not all of them are as COCO describes them."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    parts = []
    with _without_collection():
        for rows in _slices(data):
            part = None if rows is None else columns_of_rows(rows, images, categories)
            if part is None:
                return None
            parts.append(part)
    return np.concatenate(parts)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Rows are many objects without cycles; looking for cycles among them takes nearly as long as parsing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def columns_of_rows(rows: Sequence[Any], images: Numbers, categories: Numbers) -> Columns | None:
    """The rows of a results list; None: there are none, or not all of them are as COCO describes them."""
    if (
        not rows
        or not set(map(type, rows)) <= {dict}
        or _KEYS_THAT_DECIDE & set(chain.from_iterable(set(map(tuple, rows))))
    ):
        return None
    try:
        image_ids, category_ids = [row["image_id"] for row in rows], [row["category_id"] for row in rows]
        scores, boxes = [row["score"] for row in rows], [row["bbox"] for row in rows]
    except KeyError:
        return None
    if not (
        set(map(type, image_ids)) <= _INTEGER
        and set(map(type, category_ids)) <= _INTEGER
        and set(map(type, scores)) <= _NUMBER
        and set(map(type, boxes)) <= {list}
        and set(map(len, boxes)) <= {4}
    ):
        return None
    corners = list(chain.from_iterable(boxes))
    numbers = list(map(images.get, image_ids)), list(map(categories.get, category_ids))
    if not set(map(type, corners)) <= _NUMBER or None in numbers[0] or None in numbers[1]:
        return None
    columns = np.empty((len(rows), 7))
    try:
        columns[:, 0], columns[:, 6] = numbers
        columns[:, 5] = scores
        columns[:, 1:5] = np.asarray(corners, dtype=np.float64).reshape(-1, 4)
    except OverflowError:  # a whole number beyond the range of floats
        return None
    in_range = bool((np.abs(columns[:, 1:5]) <= LARGEST).all() and (columns[:, 3:5] >= 0).all())
    return columns if in_range and bool(np.isfinite(columns[:, 5]).all()) else None


def _slices(data: bytes) -> Iterator[list[Any] | None]:
    """The rows of a JSON list of objects, some thousands at a time; None: no such list, or not to be cut safely.

    Text from the beginning of a row to a closing brace that parses as a list of objects is exactly some whole rows: a
    brace inside a row leaves it open.
    """
    import orjson

    last = data.rfind(b"]")
    if data[:1] != b"[" or data[last + 1 : last + 9].strip() or len(data) > last + 9:
        yield None
        return
    start = 1
    while True:
        end = start + _SLICE
        for _ in range(_ENDS_TRIED):
            end = data.find(b"}", end, last) + 1 or last
            try:
                rows = orjson.loads(b"[%b]" % data[start:end])
            except orjson.JSONDecodeError:
                continue
            break
        else:
            yield None
            return
        yield rows or None
        while data[end : end + 1].isspace():
            end += 1
        if end == last:
            return
        if data[end : end + 1] != b",":
            yield None
            return
        start = end + 1
