"""Numbers that a call may be given: checked once, by one rule, for every predictor."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

__all__ = ["at_least_one", "checked_threshold", "yes_or_no"]


def at_least_one(name: str, value: Any) -> int:
    """A whole number from 1.

    Raises:
        ValueError: it is smaller.
        TypeError: it is no whole number.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return number


def yes_or_no(name: str, value: Any) -> bool:
    """True or False: any text, "no" too, would count as True.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


def checked_threshold(value: Any) -> float:
    """A score from 0 to 1.

    Raises:
        ValueError: it is outside.
        TypeError: it is no number.
    """
    try:
        score = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if 0 <= score <= 1:
        return score
    kind = ValueError if isinstance(value, int | float) else TypeError
    raise kind(f"threshold is a score between 0 and 1, got {value!r}")
