"""Rows of large JSON files, some thousands at a time: memory for a part of them as Python objects, not for all.

A file is cut between rows without looking at what they hold: text from the beginning of a row to a closing brace that
parses as a list of objects is exactly some whole rows, as a brace inside a row leaves it open. Whatever cannot be cut
so (another encoding than UTF-8, NaN, a list of other things) is left to ``detrkit.data.coco_json.read_json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detrkit.collection import without_collection
from detrkit.data.uniform_rows import SPACE, UniformRows, uniform_rows
from detrkit.errors import DataError
from detrkit.files import beginning, check_regular

__all__ = ["Chunk", "RowFile", "chunks_of", "rows_of_list", "seam_of_list", "telling_progress"]

_SLICE = 128 << 10
"""Bytes of text that are parsed at a time: so few that its rows, five times as many, stay in a cache of the CPU."""
_WORTH_TWO = 16 << 20
"""Bytes of a file from which on it pays that two processes read it."""
_KEPT = 16 << 20
"""Bytes of a file up to which the columns of its rows are kept."""
_ENDS_TRIED = 8
"""Closing braces tried as the end of a slice; an RLE in a row has one of its own."""
_ROWS = 20_000
"""Rows at a time of a list that is in memory."""
_NOTHING = "no rows: they stand elsewhere"

_tell: ContextVar[Callable[[int, int], object] | None] = ContextVar("progress of reading", default=None)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some rows that follow each other."""

    first: int
    """The index of the first one."""
    text: bytes | memoryview
    """Their JSON; empty where they do not come from a file."""
    place: int = 0
    """The byte of the file at which they begin."""
    known: Sequence[Any] | UniformRows | None = None
    """The rows as they have been read already."""

    @cached_property
    def columns(self) -> Sequence[Any] | UniformRows:
        """The numbers of the rows where these are alike, else the rows."""
        return self.known or uniform_rows(bytes(self.text)) or self.rows

    @cached_property
    def rows(self) -> Sequence[Any]:
        """The rows."""
        return _parsed(bytes(self.text)) if self.known is None or isinstance(self.known, UniformRows) else self.known

    def exact(self) -> Sequence[Any]:
        """The rows as Python reads them: orjson makes floats of whole numbers of more than 64 bits."""
        rows: Sequence[Any] = json.loads(b"[%b]" % bytes(self.text)) if self.text else self.rows
        return rows


class _NotCutError(ValueError):
    """The rows cannot be cut."""


@contextmanager
def telling_progress(tell: Callable[[int, int], object]) -> Iterator[None]:
    """Context in which ``tell(bytes read, bytes of the file)`` is called while rows of a file are read."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


def chunks_of(rows: Sequence[Any]) -> Iterator[Chunk]:
    """The rows of a list in memory."""
    for start in range(0, len(rows), _ROWS):
        yield Chunk(start, b"", known=rows[start : start + _ROWS])


def seam_of_list(path: Path, others: int = 0) -> int:
    """Where a row seems to begin that halves the work of two who read a large file; 0: nowhere.

    others: bytes of files that the first one reads as well.
    """
    if not path.is_file() or (size := path.stat().st_size) < _WORTH_TWO or not _begins(path, b"["):
        return 0
    middle = max(size - others, size // 4) // 2
    with open(path, "rb") as file:
        file.seek(middle)
        found = re.compile(rb"\}\s*,\s*(?=\{)").search(file.read(_SLICE))
    return 0 if found is None else middle + found.end()


def rows_of_list(path: Path, start: int = 0, seam: int = 0) -> Iterator[Chunk | None]:
    """The rows of a file that is a list; None, after which nothing comes: it cannot be cut, or is empty.

    start: the byte of the file at which a row begins, from which on rows are read; their indices are as if it were the
    first · seam: a byte at which a part shall begin, if a row begins there; what follows is read when it is asked for.
    """
    if not _begins(path, b"["):
        yield None
        return
    tell, number, size = _tell.get(), 0, path.stat().st_size
    while True:
        data = _content(path, start, seam)
        if data is None or (start == 0 and data[:1] != b"["):
            yield None
            return
        end = 0
        try:
            for first, end, rows in _slices(data, 0 if start else 1, whole=not seam):
                yield Chunk(number, memoryview(data)[first:end], start + first, rows)
                number += len(rows)
                if tell is not None:
                    tell(start + end, size)
        except _NotCutError:
            if not seam:
                yield None
                return
        if not seam:
            if data[end:].strip() != b"]":
                yield None
            return
        start, seam = start + end + bool(end), 0


@dataclass(frozen=True, eq=False)
class RowFile:
    """A JSON object in a file, of which one list is read in parts.

    Attributes:
        rest: the object, without that list.
    """

    rest: dict[str, Any]
    rows: int
    """How many rows the list has."""
    firsts: list[int]
    """The first row of each part."""
    _path: Path
    _state: tuple[int, int]
    """Size and time of the file."""
    _cuts: list[tuple[int, int]]
    """The first byte of each part and that behind it."""
    _columns: dict[int, UniformRows]
    """The rows of parts that are alike, of a small file."""

    @classmethod
    def read(cls, path: Path, key: str) -> RowFile | None:
        """The file, if it can be cut at the rows of the list with this key.

        Raises:
            DataError: it is no regular file.
        """
        data = _content(path) if _begins(path, b"{") else None
        state = (0, 0) if data is None else _state(path)
        found = None if data is None else re.compile(rb'"%b"\s*:\s*\[\s*' % key.encode()).search(data)
        if data is None or found is None:
            return None
        cuts: list[tuple[int, int]] = []
        firsts: list[int] = []
        columns: dict[int, UniformRows] = {}
        number, end, tell = 0, found.end(), _tell.get()
        try:
            with without_collection():
                for start, end, rows in _slices(data, found.end()):
                    if isinstance(rows, UniformRows) and len(data) <= _KEPT:
                        columns[len(cuts)] = rows
                    cuts.append((start, end))
                    firsts.append(number)
                    number += len(rows)
                    if tell is not None:
                        tell(end, len(data))
            behind = data[end:].lstrip()
            text = b'%b"%b":"%b"%b' % (data[: found.start()], key.encode(), _NOTHING.encode(), behind[1:])
            rest = json.loads(text.decode())
        except ValueError:
            return None
        # of a list of this name inside another value the object has another value here
        if not cuts or behind[:1] != b"]" or not isinstance(rest, dict) or rest.pop(key, None) != _NOTHING:
            return None
        return cls(rest, number, firsts, path, state, cuts, columns)

    def __iter__(self) -> Iterator[Chunk]:
        tell = _tell.get()
        for part, (_, end) in enumerate(self._cuts):
            yield self.chunk(part)
            if tell is not None:
                tell(end, self._state[0])

    def chunk(self, part: int) -> Chunk:
        """The rows of one part.

        Raises:
            DataError: the file has changed.
        """
        start, end = self._cuts[part]
        try:
            with open(self._path, "rb") as file:
                file.seek(start)
                text = file.read(end - start)
            same = _state(self._path) == self._state
        except OSError:
            same = False
        if not same:
            raise DataError(f"{self._path}: has changed while it was read")
        return Chunk(self.firsts[part], text, start, self._columns.get(part))


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _begins(path: Path, sign: bytes) -> bool:
    """Whether a file has this first byte, apart from white space; a large one of another kind is not read for it."""
    check_regular(path)
    return beginning(path, 64).lstrip().startswith(sign)


def _content(path: Path, start: int = 0, end: int = 0) -> bytes | None:
    """Some bytes of a file, up to ``end`` or all."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(end - start if end else -1)
    except OSError:
        return None


def _slices(data: bytes, start: int, *, whole: bool = True) -> Iterator[tuple[int, int, list[Any] | UniformRows]]:
    """First and last byte of some rows, and the rows, up to the last of a list that begins at ``start``.

    whole: the text has the end of the list; else it ends between two rows.

    Raises:
        _NotCutError: it is no list of objects, is empty, or goes on in a way that is not seen.
    """
    while start < len(data):
        if data[start] in SPACE:
            start += 1
            continue
        near = -1 if whole or len(data) - start > _SLICE else data.rfind(b"}", start)
        end, rows, last = _slice(data, start, start + _SLICE if near < 0 else near)
        if not rows:
            raise _NotCutError
        yield start, end, rows
        if last:
            return
        start = end + 1


def _slice(data: bytes, start: int, end: int) -> tuple[int, list[Any] | UniformRows, bool]:
    """The end of some rows, the rows, and whether they are the last.

    end: they end not before this byte.
    """
    import orjson

    for _ in range(_ENDS_TRIED):
        end = data.find(b"}", end) + 1 or len(data)
        text = data[start:end]
        rows: list[Any] | UniformRows | None
        try:
            rows = uniform_rows(text) or orjson.loads(b"[%b]" % text)
        except orjson.JSONDecodeError as error:
            length = len(error.doc[: error.pos].encode()) - 1
            inside = data[start : start + length].rstrip()
            rows = _parsed(inside[:-1]) if inside.endswith(b"]") else []  # the list may end before
            if rows:
                return start + len(inside) - 1, rows, True
            if end == len(data):
                break
            continue
        following = re.compile(rb"\s*(,|\])").match(data, end)
        if following is None:
            break
        return following.start(1), rows, following[1] == b"]"
    raise _NotCutError


def _parsed(text: bytes) -> list[Any]:
    import orjson

    try:
        rows: list[Any] = orjson.loads(b"[%b]" % text)
    except orjson.JSONDecodeError:
        return []
    return rows
