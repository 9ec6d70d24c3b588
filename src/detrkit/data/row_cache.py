"""Annotations of large COCO files as columns on disk, by the content of the file: parsed once for all commands.

``data stats``, ``data view``, training and evaluation need the standard values of rows alone. A file whose rows all
have them is written as arrays into ``annotations`` of the cache folder (``DETRKIT_CACHE``), under a hash
of its content, of the version and of how masks were read; a changed file has another hash. Nothing in these files is
executed (no pickles), and one that is damaged, or does not fit together, counts as none. The oldest are deleted beyond
two gigabytes. ``DETRKIT_ANNOTATION_CACHE=off`` switches it off.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from detrkit import __version__
from detrkit.data.clean_rows import is_plain
from detrkit.data.coco_json import Row
from detrkit.data.packed_masks import PackedMasks
from detrkit.files import cache_dir, replacing

__all__ = ["ColumnRows", "cache_key", "recall", "remember"]

_FORMAT = 1
_WORTH = 10_000_000
"""Bytes of a file from which it is cached: a smaller one is parsed in half a second."""
_LIMIT = 2_000_000_000
"""Bytes of all cached files."""
_ROWS = 20_000
_EXACT = 2**53
"""Whole numbers up to this one are floats, too."""
_OFF = ("off", "0", "no", "false")
_COLUMNS = {"ids": "q", "boxes": "d", "areas": "d", "kinds": "B"}
_REMARKS = {"problem", "where", "value"}
"""Keys of rows that are not those of a COCO file."""
_WHOLE_AREA, _AREA, _FLAG, _CROWD = 16, 32, 64, 128
"""Bits of ``kinds`` after four for the numbers of the box that are whole: so is the area; the row has an area, and
``iscrowd``; its value."""


class ColumnRows(Sequence[Row]):
    """Annotation rows made of columns when they are asked for.

    Args:
        columns: ids (N, 3) int64 of annotation, image and category; boxes (N, 4) and areas (N,) float64; kinds (N,)
            uint8, which of these numbers are whole and which values there are.
        masks: packed masks; empty where there is none.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]], masks: PackedMasks | None) -> None:
        self._columns, self._masks = columns, masks

    def __len__(self) -> int:
        return len(self._columns["kinds"])

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _ROWS):
            yield from self._rows(range(start, min(start + _ROWS, len(self))))

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        places = range(len(self))[index]
        return list(self._rows(places)) if isinstance(places, range) else next(self._rows([places]))

    def _rows(self, places: Sequence[int]) -> Iterator[Row]:
        chosen = np.asarray(places, dtype=np.int64)
        values = (self._columns[name][chosen].tolist() for name in _COLUMNS)
        for place, (number, image, category), box, area, kind in zip(places, *values, strict=True):
            if kind & 15:
                box = [int(value) if kind >> axis & 1 else value for axis, value in enumerate(box)]
            row: Row = {"id": number, "image_id": image, "category_id": category, "bbox": box}
            if kind & _AREA:
                row["area"] = int(area) if kind & _WHOLE_AREA else area
            if kind & _FLAG:
                row["iscrowd"] = int(kind & _CROWD > 0)
            if self._masks is not None and (packed := self._masks.packed(place)):
                row["segmentation"] = packed
            yield row


def cache_key(path: Path, masks: str) -> str | None:
    """What a file is cached under, with ``masks`` read in this way; None: it is not cached."""
    if os.environ.get("DETRKIT_ANNOTATION_CACHE", "").lower() in _OFF:
        return None
    try:
        if not path.is_file() or path.stat().st_size < _WORTH:
            return None
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:40]
    except OSError:
        return None
    return f"{digest}-{masks}-{__version__}-{_FORMAT}"


def recall(key: str) -> tuple[Row, ColumnRows] | None:
    """The rest of a cached file and its annotations; None: it is not cached, or not readable."""
    path = _path(key)
    try:
        with np.load(path, allow_pickle=False) as file:  # checks the CRC of every array
            found = {name: file[name] for name in file.files}
        rest = json.loads(found["rest"].tobytes())
        rows = len(found["kinds"])
        wanted = {"ids": (rows, 3), "boxes": (rows, 4), "areas": (rows,), "kinds": (rows,), "stops": (rows,)}
        if {name: found[name].shape for name in wanted} != wanted or not isinstance(rest, dict):
            return None
        starts = np.concatenate([np.zeros(1, np.int64), found["stops"]])[:-1]
        masks = PackedMasks(buffer=found["masks"], starts=starts, stops=found["stops"])
        if rows and (found["stops"][-1] != len(masks.buffer) or (np.diff(found["stops"]) < 0).any()):
            return None
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return rest, ColumnRows(found, masks)


def remember(key: str, rest: Row, rows: Iterable[Row]) -> None:
    """Cache a file, if all its annotations have standard values; what cannot be written is left out in silence.

    rest: the file without its annotations.
    """
    with suppress(OSError, ValueError, OverflowError, TypeError):
        columns = _columns(rows)
        if columns is None:
            return
        columns["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
        if sum(column.nbytes for column in columns.values()) > _LIMIT // 2:
            return
        with replacing(_path(key)) as draft, open(draft, "wb") as file:
            np.savez(file, **columns)
        _delete_oldest(_path(key).parent)


def _columns(rows: Iterable[Row]) -> dict[str, Any] | None:
    """The columns of plain rows; None: some are not."""
    found = {name: array(code) for name, code in _COLUMNS.items()}
    masks, stops = bytearray(), array("q")
    for row in rows:
        packed, area = row.get("segmentation", b""), row.get("area")
        if not is_plain(row) or not isinstance(packed, bytes) or not row.keys().isdisjoint(_REMARKS):
            return None
        box = row["bbox"]
        if not all(abs(value) <= _EXACT for value in box):
            return None
        kind = sum((type(value) is int) << axis for axis, value in enumerate(box))
        kind |= _WHOLE_AREA * (type(area) is int) | _AREA * ("area" in row)
        kind |= _FLAG * ("iscrowd" in row) | _CROWD * row.get("iscrowd", 0)
        found["ids"].extend((row["id"], row["image_id"], row["category_id"]))
        found["boxes"].extend(box)
        found["areas"].append(0 if area is None else area)
        found["kinds"].append(kind)
        masks += packed
        stops.append(len(masks))
    arrays: dict[str, Any] = {name: np.asarray(column) for name, column in found.items()}
    arrays |= {"ids": arrays["ids"].reshape(-1, 3), "boxes": arrays["boxes"].reshape(-1, 4)}
    return {**arrays, "masks": np.frombuffer(bytes(masks), np.uint8), "stops": np.asarray(stops)}


def _path(key: str) -> Path:
    return cache_dir() / "annotations" / f"{key}.npz"


def _delete_oldest(folder: Path) -> None:
    files = sorted(((path.stat(), path) for path in folder.glob("*.npz")), key=lambda pair: pair[0].st_mtime_ns)
    total = sum(found.st_size for found, _ in files)
    for found, path in files[:-1]:
        if total <= _LIMIT:
            break
        path.unlink(missing_ok=True)
        total -= found.st_size
