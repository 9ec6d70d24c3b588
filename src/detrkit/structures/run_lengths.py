"""Masks of the objects of one image as run lengths: 100 masks of 20 megapixels take 1 MB, not 2 GB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypedDict, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Masks", "RunLengths"]


class RunLengths(TypedDict):
    """A mask as COCO writes it: ``size`` [height, width] and the compressed run lengths as text."""

    size: list[int]
    counts: str


class Masks:
    """N masks (H, W) of one image, kept as compressed run lengths.

    ``masks[0]`` is a bool array (H, W); ``masks[index]`` with a slice, positions or a bool array are further ``Masks``;
    ``np.asarray(masks)`` is bool (N, H, W).

    Args:
        runs: compressed run lengths of each mask.
        size: (height, width) of the image.
    """

    def __init__(self, runs: Iterable[bytes], size: tuple[int, int]) -> None:
        self._runs = list(runs)
        self.size = size

    @classmethod
    def of(cls, bitmaps: NDArray[np.bool_], size: tuple[int, int]) -> Masks:
        """Encode bitmaps (N, H, W)."""
        return cls(cls.encode(bitmaps), size)

    @staticmethod
    def encode(bitmaps: NDArray[np.bool_]) -> list[bytes]:
        """Compressed run lengths of bitmaps (N, H, W)."""
        from hotcoco import mask

        height, width = bitmaps.shape[1:]
        rows = [{"size": [height, width], "counts": _run_lengths(one)} for one in bitmaps]
        return [mask.frPyObjects(row, height, width)["counts"] for row in rows]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        return (len(self._runs), *self.size)

    @property
    def dtype(self) -> np.dtype[np.bool_]:
        """That of the decoded masks."""
        return np.dtype(bool)

    @property
    def ndim(self) -> int:
        """3, as of an array (N, H, W)."""
        return 3

    @property
    def areas(self) -> NDArray[np.int64]:
        """(N,) pixels of every mask."""
        from hotcoco import mask

        return np.asarray(mask.area(self._encoded()) if self._runs else [], dtype=np.int64).reshape(-1)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(N, 4) tight boxes xyxy in pixels; zeros for an empty mask."""
        from hotcoco import mask

        if not self._runs:
            return np.zeros((0, 4), dtype=np.float32)
        corners = np.asarray(mask.to_bbox(self._encoded()), dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        return corners

    def resized(self, size: tuple[int, int]) -> Masks:
        """The masks of the image at another (height, width): every pixel that of the nearest one here."""
        rows, columns = ((np.arange(now) * then) // now for now, then in zip(size, self.size, strict=True))
        runs = (self.encode(self._bitmap(one).astype(bool)[rows][None, :, columns])[0] for one in self._runs)
        return Masks(runs, size)

    def mirrored(self) -> Masks:
        """The masks of the image with left and right exchanged."""
        return Masks((self.encode(self._decoded(one)[None, :, ::-1])[0] for one in self._runs), self.size)

    @classmethod
    def joined(cls, first: Masks, second: Masks) -> Masks:
        """The masks of both, which are of one image."""
        return cls([*first._runs, *second._runs], first.size)

    def part(self, index: int, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
        """The part of one mask in a box xyxy of whole pixels: bool (y2 - y1, x2 - x1)."""
        x1, y1, x2, y2 = box
        return self._bitmap(self._runs[index])[y1:y2, x1:x2].astype(bool, order="C")

    def to_coco(self) -> list[RunLengths]:
        """Rows for COCO's ``segmentation``."""
        return [{"size": list(self.size), "counts": runs.decode("ascii")} for runs in self._runs]

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int | np.integer) -> NDArray[np.bool_]: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[np.bool_] | NDArray[np.int64]) -> Masks: ...

    def __getitem__(
        self, index: int | np.integer | slice | Sequence[int] | NDArray[np.bool_] | NDArray[np.int64]
    ) -> NDArray[np.bool_] | Masks:
        if isinstance(index, int | np.integer):
            return self._decoded(self._runs[int(index)])
        positions = np.arange(len(self._runs))[index]
        return Masks((self._runs[position] for position in positions), self.size)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return (self._decoded(runs) for runs in self._runs)

    def __array__(self, dtype: np.dtype[np.generic] | None = None, copy: bool | None = None) -> NDArray[np.generic]:
        dense = np.zeros(self.shape, dtype=bool)
        for place, mask in zip(dense, self, strict=True):
            place[:] = mask
        return dense if dtype is None else dense.astype(dtype)

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self.size[1]}x{self.size[0]})"

    def _decoded(self, runs: bytes) -> NDArray[np.bool_]:
        return self._bitmap(runs).astype(bool, order="C")

    def _bitmap(self, runs: bytes) -> NDArray[np.uint8]:
        """(H, W), column by column in memory."""
        from hotcoco import mask

        bitmap: NDArray[np.uint8] = mask.decode({"size": list(self.size), "counts": runs})
        return bitmap

    def _encoded(self) -> list[dict[str, object]]:
        return [{"size": list(self.size), "counts": runs} for runs in self._runs]


def _run_lengths(bitmap: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of False and True of a bitmap (H, W), in turn, column by column.

    Only the part inside the tight box is read in that order, which is slow for a large image.
    """
    height, width = bitmap.shape
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    if not len(rows):
        return [height * width]
    top, left = int(rows[0]), int(columns[0])
    part = bitmap[top : rows[-1] + 1, left : columns[-1] + 1].T
    # where runs of a column begin and end, in turn, as places in the whole image
    column, row = np.diff(np.pad(part.astype(np.int8), ((0, 0), (1, 1))), axis=1).nonzero()
    edges = (column + left) * height + row + top
    # a run that reaches the bottom may go on at the top of the next column
    joined = 2 * np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate((joined + 1, joined + 2)))
    lengths = np.diff(edges, prepend=0, append=height * width).tolist()
    return lengths if lengths[-1] else lengths[:-1]
