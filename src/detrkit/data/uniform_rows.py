"""Rows of JSON that are alike but for their numbers, as columns: no Python object is made of a row.

Programs write the rows of results alike: the same keys in the same order, the same spaces. Then what is left of the
text without its numbers is the same row again and again, and with spaces in place of all else the commas and numbers
are a flat JSON list, which orjson checks and reads. That each number stands where a value belongs follows from its
neighbours: in the first row the signs around its numbers are side by side nowhere else. Of exponents only ``e-`` is
known, which low scores have. Any other text is no such rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXACT", "SPACE", "UniformRows", "uniform_rows"]

_EXPONENT = b"\1"
"""Stands for the e of an exponent, which is a letter of keys too; JSON has no such byte."""
_NUMBER = b"0123456789.-" + _EXPONENT
SPACE = b" \t\r\n"
"""White space of JSON."""
_LISTED = bytes(code if code in _NUMBER + b"," else ord(" ") for code in range(256))
_INSIDE, _BEFORE, _BEHIND = 1, 2, 4
"""Bits of a sign: belongs to a number; stands before numbers, behind them."""
_TYPES = {int, float}

EXACT = 2.0**53
"""Whole numbers below are floats, too."""


@dataclass(frozen=True, eq=False)
class UniformRows:
    """Rows with the same keys, whose values are numbers and lists of numbers."""

    places: dict[str, tuple[int, int | None]]
    """Key -> the first of its values in a row, and their number; None: it is one number, not in a list."""
    table: NDArray[np.float64]
    """(N, numbers of a row)."""
    of_integers: frozenset[int]
    """The columns of the table whose numbers have neither point nor exponent."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def keys(self) -> set[object]:
        """The keys of all rows."""
        return set(self.places)

    def whole(self, key: str) -> NDArray[np.int64] | None:
        """(N,) the whole numbers of a key, which floats hold too; None: not all are."""
        place, count = self.places.get(key, (-1, None))
        if count is not None or place not in self.of_integers:
            return None
        numbers = self.table[:, place]
        return numbers.astype(np.int64) if (np.abs(numbers) < EXACT).all() else None

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

    text: from a row to the last brace of another; there may be space before.
    """
    import orjson

    text = text.lstrip(SPACE)
    length = text.find(b"}") + 1
    try:
        places, first = _layout(orjson.loads(text[:length]))
    except (ValueError, TypeError):
        return None
    if _EXPONENT in text or not text.endswith(b"}"):
        return None
    values = _values(text, length, len(first))
    if values is None and b"e-" in text:
        values = _values(text.replace(b"e-", _EXPONENT + b"-"), length, len(first))
    if values is None or values[: len(first)] != first:
        return None
    width = len(first)
    integers = {
        place for place, one in enumerate(first) if type(one) is int and set(map(type, values[place::width])) == {int}
    }
    return UniformRows(places, np.fromiter(values, np.float64, len(values)).reshape(-1, width), frozenset(integers))


def _values(text: bytes, length: int, width: int) -> list[int | float] | None:
    """The numbers of rows that are alike; None: they are not.

    length: bytes of the first row · width: its numbers.
    """
    import orjson

    row = text[:length]
    frame, frames = row.translate(None, _NUMBER), text.translate(None, _NUMBER)
    separator = frames[len(frame) : frames.find(frame, len(frame))]
    count = 1 + (len(frames) - len(frame)) // (len(frame) + len(separator))
    if frames != separator.join([frame] * count) or (count > 1 and separator.strip(SPACE) != b","):
        return None
    signs = _signs(row)
    around = np.frombuffer((frame + separator + frame).translate(signs), np.uint8)
    if width == 0 or np.count_nonzero(around[:-1] & _BEFORE & (around[1:] >> 1)) != 2 * width:
        return None
    codes = np.frombuffer(text.translate(signs), np.uint8)
    if ((codes[1:-1] & _INSIDE) > ((codes[:-2] >> 1) & (codes[2:] >> 2))).any():
        return None
    try:
        values: list[int | float] = orjson.loads(b"[%b]" % text.translate(_LISTED).replace(_EXPONENT, b"e"))
    except ValueError:
        return None
    return values if len(values) == count * width else None


def _signs(row: bytes) -> bytes:
    """The bits of every byte, from the numbers of a row and what stands around them."""
    bits = bytearray(256)
    for before, sign in pairwise(row):
        if sign in _NUMBER:
            bits[before] |= _BEFORE
        if before in _NUMBER:
            bits[sign] |= _BEHIND
    for sign in _NUMBER:
        bits[sign] = _INSIDE | _BEFORE | _BEHIND
    return bytes(bits)


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
