"""Annotation rows that stay in their file: each pass over them parses it anew, so that memory holds a part of them.

A million boxes as Python objects take seven times the memory of their text; a pass over them takes a second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from detrkit.collection import without_collection
from detrkit.data.coco_json import Row
from detrkit.data.row_slices import Chunk, RowFile

__all__ = ["ChunkReader", "FileRows"]

ChunkReader = Callable[[Chunk], list[Row]]
"""The rows of a part of a file as the rest of the library takes them."""


class FileRows(Sequence[Row]):
    """The rows of a file.

    Args:
        file: the file, cut at its rows.
        read: gives the rows of a part; called once for each in every pass.
    """

    def __init__(self, file: RowFile, read: ChunkReader) -> None:
        self._file, self._read = file, read
        self._kept: tuple[int, list[Row]] = (-1, [])

    def __len__(self) -> int:
        return self._file.rows

    def __iter__(self) -> Iterator[Row]:
        for chunk in self._file:
            with without_collection():
                rows = self._read(chunk)
            yield from rows

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        part = bisect_right(self._file.firsts, place) - 1
        if self._kept[0] != part:
            self._kept = part, self._read(self._file.chunk(part))
        return self._kept[1][place - self._file.firsts[part]]
