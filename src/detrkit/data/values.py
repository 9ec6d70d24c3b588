"""One reading of the values of annotation files, for checks, training, conversion, views and scores.

=====================  ===================  ==========================  =====================================
key                    null, NaN, missing   text of a number, 3.0       anything else
=====================  ===================  ==========================  =====================================
id, image_id,          refused              the whole number            refused; ids that are all names are
category_id                                                             numbered
score                  refused              the number                  refused
iscrowd, isthing       0, 1                 0 or 1                      the row is refused or left out
area                   of the mask, or box  the number                  the row is refused or left out;
                                                                        negative: that of the box
width, height          from the image file  the whole number            from the image file
bbox                   from the outline     the four numbers            the row is refused or left out
name                   the id               as it is; of a number: text  refused
=====================  ===================  ==========================  =====================================

NaN is what pandas writes for an empty cell, and text what is left of numbers on the way through CSV files and forms.
"Refused or left out": ``on_error`` decides. Numbers too large for what they stand for count as anything else.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from detrkit.errors import DataError

__all__ = [
    "LARGEST",
    "RULES",
    "Rule",
    "as_box",
    "box_problem",
    "flag",
    "is_absent",
    "is_name",
    "name",
    "number",
    "read_value",
    "shown",
    "size",
    "whole",
]

LARGEST = 1_000_000
"""Pixels: no image side and no coordinate is beyond."""

_LARGEST_ID = 2**63 - 1
_PLAIN = frozenset({int, float})
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "0.0": 0, "1.0": 1}

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 60
_brief.maxlist = _brief.maxtuple = 6


def shown(value: object) -> str:
    """The value in messages: as in Python, but not longer than a line."""
    try:
        return _brief.repr(value)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        return "a number of thousands of digits"


def is_absent(value: object) -> bool:
    """Whether nobody filled in the value: null or NaN, also as text, or the empty cell of a table."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan", "null", "none")
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: object) -> float | None:
    """The value as a finite number, also from text; None: it is none."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def whole(value: object) -> int | None:
    """The value as a whole number that fits into 64 bits, also from 3.0, "3" and "3.0"; None: it is none."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, Integral):
        found = int(value)
    else:
        try:
            found = int(value) if isinstance(value, str) else _whole_float(value)
        except ValueError:
            found = _whole_float(value)
    return found if abs(found) <= _LARGEST_ID else None


def _whole_float(value: object) -> int:
    """The float as a whole number; one that is too large stands for none."""
    found = number(value)
    return _LARGEST_ID + 1 if found is None or not found.is_integer() else int(found)


def flag(value: object) -> int | None:
    """0 or 1, also from text and from true and false; None: neither."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return int(value == 1) if isinstance(value, Real | np.bool_) and value in (0, 1) else None


def size(value: object) -> int | None:
    """Pixels of an image side; None: none that an image can have."""
    found = whole(value)
    return found if found is not None and 0 < found <= LARGEST else None


def name(value: object) -> str | None:
    """Text as it is, or a number as text; None: neither."""
    if isinstance(value, str):
        return value
    return None if isinstance(value, bool) or not isinstance(value, Real) else str(value)


def is_name(value: object) -> bool:
    """Whether an id is a name such as "img_01": text that is no number."""
    return isinstance(value, str) and not is_absent(value) and number(value) is None


def _area(value: object) -> float | None:
    if type(value) is int and abs(value) <= LARGEST**2:
        return value  # as it is in the file
    found = number(value)
    return found if found is not None and found <= LARGEST**2 else None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the value of a key is read.

    Attributes:
        read: gives the value, or None where there is no reading of it.
        wanted: what it must be, for messages.
        absent: what null, NaN and a missing key stand for, if anything.
        optional: whether the value may be absent.
        is_absent: whether nobody filled in the value.
    """

    read: Callable[[object], Any]
    wanted: str
    absent: object = None
    optional: bool = True
    is_absent: Callable[[object], bool] = is_absent


_ID = Rule(read=whole, wanted="a whole number", optional=False)
RULES = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "score": Rule(read=number, wanted="a finite number", optional=False),
    "iscrowd": Rule(read=flag, wanted="0 or 1", absent=0),
    "isthing": Rule(read=flag, wanted="0 or 1", absent=1),
    "area": Rule(read=_area, wanted="a finite number"),
    "name": Rule(read=name, wanted="text", is_absent=lambda value: not isinstance(value, str) and is_absent(value)),
}
"""The rule of each key. ``bbox`` and sides have :func:`as_box`, :func:`box_problem` and :func:`size`."""


def read_value(row: Mapping[str, object], key: str, where: str) -> Any:
    """The value of a key, as its rule reads it.

    Raises:
        DataError: it is missing or cannot be read; the message begins with ``where``, if that is not empty.
    """
    rule, value = RULES[key], row.get(key)
    before = f"{where}: " if where else ""
    if rule.optional and rule.is_absent(value):
        return rule.absent
    if value is None:
        raise DataError(f"{before}{key} is missing; it must be {rule.wanted}")
    found = rule.read(value)
    if found is None:
        raise DataError(f"{before}{key} must be {rule.wanted}, not {shown(value)}")
    return found


def as_box(bbox: object) -> object:
    """The box with numbers in place of their text; anything else as it is, for :func:`box_problem`."""
    if not isinstance(bbox, list | tuple) or not any(isinstance(value, str) for value in bbox):
        return bbox
    numbers = [number(value) if isinstance(value, str) else value for value in bbox]
    return bbox if None in numbers else numbers


def box_problem(bbox: object, *, flat: bool = False, signed: bool = False) -> str | None:
    """What is wrong with a box ``[x, y, width, height]``, or None. flat: allow a width or height of 0; signed: any."""
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not _are_numbers(bbox):
        return "is not a list of four numbers [x, y, width, height]"
    x, y, width, height = bbox  # without loops, since large files have a million boxes
    low, high = -LARGEST, LARGEST
    if not (low <= x <= high and low <= y <= high and low <= width <= high and low <= height <= high):
        finite = all(isinstance(value, int) or math.isfinite(value) for value in bbox)
        return f"has a number beyond {LARGEST:,} pixels" if finite else "is not finite"
    if signed:
        return None
    if flat and min(width, height) < 0:
        return "has a negative width or height"
    if not flat and min(width, height) <= 0:
        return "has no positive width and height"
    return None


def _are_numbers(values: Sequence[object]) -> bool:
    return _PLAIN.issuperset(map(type, values)) or all(map(_is_number, values))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
