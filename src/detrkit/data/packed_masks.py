"""Masks of annotated segments, packed into one buffer: no Python object per segment, and no pixels.

COCO's training set has 860,000 segments with 10 million polygon vertices. Packed they take 200 MB, as bitmaps 280 GB.
Masks become pixels when a sample is made (:mod:`detrkit.data.rasterise`). Polygons stay in float64, so that the pixels
are exactly those of pycocotools.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco.mask
import numpy as np
from numpy.typing import NDArray

from detrkit.data.values import LARGEST, number, shown, whole
from detrkit.data.values import size as side
from detrkit.errors import DataError

__all__ = [
    "RLE",
    "PackedMasks",
    "Polygons",
    "Rle",
    "mask_rle",
    "pack",
    "pack_value",
    "size_problem",
    "text_rle",
    "unpack",
]

Polygons = list[NDArray[np.float64]]
"""The parts of a mask: polygons (V, 2) with the vertices x, y in pixels."""
Rle = dict[str, Any]
"""``{"size": [height, width], "counts": bytes}``, compressed."""

RLE = b"R"
"""How a packed RLE begins: then height and width in four bytes each, little-endian, and the compressed counts."""
_POLYGONS, _VALUE = b"P", b"V"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedMasks:
    """The masks of N segments.

    Attributes:
        buffer: the packed masks, shared by all selections of them.
        starts: (N,) int64, where each mask begins in the buffer.
        stops: (N,) int64, where it ends; equal to the start where there is no mask.
    """

    buffer: NDArray[np.uint8]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @classmethod
    def of(cls, packed: Sequence[bytes]) -> PackedMasks:
        """Join packed masks; empty bytes stand for no mask."""
        stops = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        return cls(buffer=np.frombuffer(b"".join(packed), np.uint8), starts=stops[:-1], stops=stops[1:])

    @classmethod
    def none(cls) -> PackedMasks:
        """The masks of no segments."""
        return cls.of([])

    @classmethod
    def cat(cls, parts: Sequence[PackedMasks]) -> PackedMasks:
        """Concatenate the masks of all parts; parts with the same buffer keep sharing it."""
        buffers = {id(part.buffer): part.buffer for part in parts}
        shifts = dict(zip(buffers, np.cumsum([0, *map(len, buffers.values())]).tolist(), strict=False))
        joined = next(iter(buffers.values())) if len(buffers) == 1 else np.concatenate(list(buffers.values()))
        starts, stops = (
            np.concatenate([getattr(part, name) + shifts[id(part.buffer)] for part in parts])
            for name in ("starts", "stops")
        )
        return cls(buffer=joined, starts=starts, stops=stops)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.int64] | slice) -> PackedMasks:
        """Select masks by a mask, indices or a slice."""
        return PackedMasks(buffer=self.buffer, starts=self.starts[index], stops=self.stops[index])

    def packed(self, position: int) -> bytes:
        """One packed mask, for :func:`unpack`."""
        return self.buffer[self.starts[position] : self.stops[position]].tobytes()


def pack(segmentation: object) -> bytes:
    """The packed form of ``segmentation`` of a COCO annotation: polygons, or RLE (compressed or not).

    Parts of less than three points beside a polygon are left out.

    Raises:
        DataError: neither of them, or malformed; the message says what is wrong, without file and row.
    """
    if isinstance(segmentation, bytes):  # packed while the file was parsed
        return segmentation
    if isinstance(segmentation, list | tuple):
        return _pack_polygons(segmentation)
    if isinstance(segmentation, dict):
        return _pack_rle(segmentation)
    raise DataError(f"is {_kind(segmentation)}, not a list of polygons or an RLE object")


def pack_value(value: int) -> bytes:
    """The packed form of a mask that is a value of the segment map of its image."""
    return _VALUE + struct.pack("<I", value)


def size_problem(packed: bytes, width: int, height: int) -> str | None:
    """What is wrong with the size of a packed mask on an image of this size, or None."""
    if packed[:1] != RLE:
        return None
    found = struct.unpack_from("<II", packed, 1)
    if found == (height, width):
        return None
    return f"is an RLE for {found[1]}x{found[0]} pixels, but the image is {width}x{height}"


def unpack(packed: bytes) -> Polygons | Rle | int | None:
    """What was packed: polygons, RLE, a value of the image's segment map, or None for no mask."""
    kind = packed[:1]
    if kind == _VALUE:
        return int(struct.unpack("<I", packed[1:])[0])
    if kind == RLE:
        return {"size": list(struct.unpack_from("<II", packed, 1)), "counts": packed[9:]}
    if not kind:
        return None
    (count,) = struct.unpack_from("<I", packed, 1)
    lengths = struct.unpack_from(f"<{count}I", packed, 5)
    vertices = np.frombuffer(packed, np.float64, offset=5 + 4 * count).reshape(-1, 2)
    return np.split(vertices, np.cumsum(lengths[:-1]))


def mask_rle(mask: NDArray[np.generic]) -> Rle:
    """A mask (H, W) as compressed RLE, ready for JSON."""
    return text_rle(hotcoco.mask.encode(np.asfortranarray(mask)))


def text_rle(rle: Rle) -> Rle:
    """Compressed RLE whose counts are text, ready for JSON."""
    counts = rle["counts"]
    return {**rle, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _pack_polygons(parts: Sequence[Any]) -> bytes:
    if not parts:
        raise DataError("is empty")
    if not all(isinstance(part, list | tuple) for part in parts):
        hint = "; wrap it in another list" if all(_is_number(part) for part in parts) else ""
        raise DataError(f"must be a list of polygons, each a list [x1, y1, x2, y2, …]{hint}")
    drawn = [part for part in parts if not _has_no_area(part)]
    if not drawn and len(parts) > 2 and all(len(part) == 2 for part in parts):
        raise DataError("is a list of points; write each polygon as one list: [[x1, y1, x2, y2, …]]")
    for place, part in enumerate(parts, start=1):
        problem = None if drawn and _has_no_area(part) else _polygon_problem(part)
        if problem:
            which = "has a polygon" if len(parts) == 1 else f"has a polygon (part {place} of {len(parts)})"
            raise DataError(f"{which} {problem}")
    parts = drawn
    try:  # array is several times faster than numpy for so few numbers
        vertices = [array("d", part) for part in parts]
    except (TypeError, OverflowError):
        vertices = [array("d", map(_coordinate, part)) for part in parts]
    if not all(math.isfinite(sum(part)) for part in vertices):
        raise DataError("has a polygon with a coordinate that is not finite")
    if not all(min(part) >= -LARGEST and max(part) <= LARGEST for part in vertices):
        raise DataError(f"has a polygon with a coordinate beyond {LARGEST:,} pixels")
    header = struct.pack(f"<I{len(vertices)}I", len(vertices), *(len(part) // 2 for part in vertices))
    return _POLYGONS + header + b"".join(part.tobytes() for part in vertices)


def _coordinate(value: object) -> float:
    """A coordinate, also from text."""
    found = number(value)
    if found is None:
        raise DataError(f"has a polygon with a coordinate that is not a number: {shown(value)}")
    return found


def _polygon_problem(part: Sequence[Any]) -> str | None:
    if len(part) and isinstance(part[0], list | tuple):
        return "that is nested; write it as [x1, y1, x2, y2, …]"
    if len(part) % 2:
        return f"with an odd number of coordinates ({len(part)}); write x and y of every point"
    return f"with {len(part) // 2} points; it needs at least 3" if len(part) < 6 else None


def _has_no_area(part: Sequence[Any]) -> bool:
    """Whether a part of a mask is a point or a line, as tracing of pixels leaves them: pycocotools draws none of it."""
    return len(part) in (0, 2, 4) and not any(isinstance(value, list | tuple) for value in part)


def _pack_rle(rle: Rle) -> bytes:
    size: Any = rle.get("size")
    counts: Any = rle.get("counts")
    sides = [side(value) for value in size] if isinstance(size, list | tuple) else []
    if len(sides) != 2 or None in sides:
        raise DataError(f"is an RLE whose size {shown(size)} is not [height, width]")
    height, width = size = [int(value or 0) for value in sides]
    runs = _runs(counts, height, width)
    total, pixels = sum(runs), height * width
    if pixels >= 2**32:
        raise DataError(f"is an RLE whose size {height}x{width} is too large")
    if min(runs, default=0) < 0 or total != pixels:
        raise DataError(f"is an RLE of {total} pixels, but its size {height}x{width} has {pixels}")
    if isinstance(counts, list):
        counts = hotcoco.mask.frPyObjects({"size": size, "counts": runs}, height, width)["counts"]
    data = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    return RLE + struct.pack("<II", height, width) + data


def _runs(counts: object, height: int, width: int) -> list[int]:
    """Lengths of the runs of an RLE."""
    if isinstance(counts, list):
        if not all(type(value) is int for value in counts):
            counts = [-1 if (run := whole(value)) is None else run for value in counts]
        if min(counts, default=0) < 0:
            raise DataError("is an RLE whose counts are not all whole numbers of at least 0")
        return counts
    if not isinstance(counts, str | bytes):
        raise DataError(f"is an RLE whose counts are {_kind(counts)}, not a list or text")
    text = counts.encode("ascii", errors="replace") if isinstance(counts, str) else counts
    return _decode_counts(np.frombuffer(text, np.uint8))


def _decode_counts(text: NDArray[np.uint8]) -> list[int]:
    """Run lengths of COCO's compressed form: 5 bits per character, differences to the run before the previous one."""
    codes = text.astype(np.int64) - 48
    if len(codes) and (codes.min() < 0 or codes.max() > 63 or codes[-1] & 32):
        raise DataError("is an RLE whose counts are damaged")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    if len(ends) and (ends - starts).max() > 6:
        raise DataError("is an RLE whose counts are damaged")
    position = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 31) << (5 * position), starts) if len(ends) else ends
    negative = (codes[ends] & 16) != 0
    values = values - (negative.astype(np.int64) << (5 * (ends - starts + 1)))
    # from the fourth on each value is the difference to the one two before it
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    found: list[int] = runs.tolist()
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
