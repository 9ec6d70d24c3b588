"""Errors for users: what is wrong, where (file, key, value), what to do. The command line prints them in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "CheckpointError",
    "DataError",
    "DetrkitError",
    "MissingFilesError",
    "RecipeError",
    "RunError",
    "did_you_mean",
    "first_few",
    "first_line",
]


class DetrkitError(Exception):
    """Base of all errors that a user can fix. ``exit_code``: 2 unusable arguments or input, 1 failed at run time."""

    exit_code = 2


class DataError(DetrkitError, ValueError):
    """Images or annotations that cannot be used."""


class MissingFilesError(DataError):
    """Files of a data set that are not where it says; of a published one, its reader adds where to get them."""


class RecipeError(DetrkitError, ValueError):
    """A recipe or an override that does not fit the schema."""


class CheckpointError(DetrkitError, ValueError):
    """Weights that cannot be read or do not fit the model."""


class RunError(DetrkitError, RuntimeError):
    """A failure at run time: disk full, loss not finite."""

    exit_code = 1


_FEW = 12  # words that a message lists


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` with the nearest valid word, whatever its letter case; else the valid words, of many the
    nearest ones.
    """
    options = {option.casefold(): option for option in sorted(valid)}
    near = difflib.get_close_matches(word.casefold(), options, n=1, cutoff=0.5)
    if near:
        return f" Did you mean '{options[near[0]]}'?"
    if len(options) <= _FEW:
        return f" Valid: {', '.join(options.values())}." if options else ""
    nearest = difflib.get_close_matches(word.casefold(), options, n=3, cutoff=0.0)
    return f" The nearest of {len(options)}: {', '.join(options[one] for one in nearest)}."


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something; without one, the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def first_few(values: Sequence[object], most: int) -> str:
    """``a, b, c``; of more than ``most`` values the first, and ``…``."""
    return ", ".join(map(str, values[:most])) + (", …" if len(values) > most else "")
