"""Rows of JSON that are alike but for their numbers, as columns: no Python object is made of a row.

Programs write the rows of results alike: the same keys in the same order, the same spaces. Then the text between the
numbers says all, and it is compared at once: where numbers begin and end, and what is left when they are taken out.
What is left of commas and numbers is a flat JSON list, which orjson checks and reads. Of exponents only ``e-`` is
known, which low scores have. Any other text is no such rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["UniformRows", "uniform_rows"]

_EXPONENT = b"\1"
"""Stands for the e of an exponent, which is a letter of keys too; JSON has no such byte."""
_NUMBER = b"0123456789.-" + _EXPONENT
_COMMA_AND_NUMBER = frozenset(_NUMBER + b",")
_OTHERS = bytes(code for code in range(256) if code not in _COMMA_AND_NUMBER)
_IN_NUMBER = bytes(code in _NUMBER for code in range(256))
_TYPES = {int, float}


@dataclass(frozen=True, eq=False)
class UniformRows:
    """Rows with the same keys, whose values are numbers and lists of numbers."""

    places: dict[str, tuple[int, int | None]]
    """Key -> the first of its values in a row, and their number; None: it is one number, not in a list."""
    values: list[int | float]
    """All numbers, row after row."""
    width: int
    """Numbers of a row."""

    def __len__(self) -> int:
        return len(self.values) // self.width

    @property
    def keys(self) -> set[object]:
        """The keys of all rows."""
        return set(self.places)

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """(N, width) all numbers."""
        return np.fromiter(self.values, np.float64, len(self.values)).reshape(-1, self.width)

    def whole(self, key: str) -> list[int] | None:
        """The whole numbers of a key; None: not all are."""
        place, count = self.places.get(key, (0, 0))
        values: list[Any] = self.values[place :: self.width]
        return values if count is None and set(map(type, values)) <= {int} else None

    def numbers(self, key: str) -> NDArray[np.float64] | None:
        """(N,) the numbers of a key; None: they are lists."""
        place, count = self.places.get(key, (0, 0))
        return self.table[:, place] if count is None else None

    def boxes(self, key: str) -> NDArray[np.float64] | None:
        """(N, 4) the boxes of a key; None: they are something else."""
        place, count = self.places.get(key, (0, 0))
        return self.table[:, place : place + 4] if count == 4 else None


def uniform_rows(text: bytes) -> UniformRows | None:
    """Whole rows with commas between them; None: they are not alike, or something else.

    text: from the first brace of a row to the last of another.
    """
    import orjson

    length = text.find(b"}") + 1
    try:
        places, first = _layout(orjson.loads(text[:length]))
    except (ValueError, TypeError):
        return None
    if _EXPONENT in text:
        return None
    values = _values(text, length, len(first))
    if values is None and b"e-" in text:
        values = _values(text.replace(b"e-", _EXPONENT + b"-"), length, len(first))
    if values is None or values[: len(first)] != first:
        return None
    return UniformRows(places, values, len(first))


def _values(text: bytes, length: int, width: int) -> list[int | float] | None:
    """The numbers of rows that are alike; None: they are not.

    length: bytes of the first row · width: its numbers.
    """
    import orjson

    marks = np.frombuffer(text.translate(_IN_NUMBER), np.int8)
    edges = np.flatnonzero(marks[1:] != marks[:-1])
    if width == 0 or len(edges) % (2 * width):
        return None
    bounds = edges.reshape(-1, 2 * width) + 1  # where the numbers of a row begin and end, in turn
    gaps = bounds[:, 2::2] - bounds[:, 1:-1:2]
    between = bounds[1:, 0] - bounds[:-1, -1]
    tails = length - bounds[0, -1], len(text) - bounds[-1, -1]
    if (gaps != gaps[0]).any() or (between != between[:1]).any() or tails[0] != tails[1]:
        return None
    frame, frames = text[:length].translate(None, _NUMBER), text.translate(None, _NUMBER)
    count = len(bounds)
    space = (len(frames) - count * len(frame)) // max(count - 1, 1)
    separator = frames[len(frame) : len(frame) + space]
    if frames != separator.join([frame] * count) or (count > 1 and separator.strip() != b","):
        return None
    try:
        values: list[int | float] = orjson.loads(b"[%b]" % text.translate(None, _OTHERS).replace(_EXPONENT, b"e"))
    except ValueError:
        return None
    return values if len(values) == count * width else None


def _layout(row: object) -> tuple[dict[str, tuple[int, int | None]], list[int | float]]:
    """Where the values of each key are among the numbers of a row, and these.

    Raises:
        TypeError: there are other values, or a key looks like a number.
    """
    if not isinstance(row, dict):
        raise TypeError(row)
    places: dict[str, tuple[int, int | None]] = {}
    numbers: list[int | float] = []
    for key, value in row.items():
        listed = value if type(value) is list else [value]
        if not set(map(type, listed)) <= _TYPES or any(code in _NUMBER for code in key.encode()):
            raise TypeError(key)
        places[key] = (len(numbers), len(listed) if type(value) is list else None)
        numbers += listed
    return places, numbers
