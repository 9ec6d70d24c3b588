"""Names of the pictures and maps of images: ``photo.png`` for ``photo.jpg``, distinct, and short enough for a disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from detrkit.data.listing import IMAGE_SUFFIXES
from detrkit.files import short_name

__all__ = ["picture_names", "whole_name"]


def picture_names(file_names: Iterable[str]) -> dict[str, str]:
    """The picture of every image: ``.png`` in place of its ending, or after it where two would meet.

    Names that differ only in case meet too, since many file systems do not tell them apart.
    """
    listed = list(file_names)
    names = {name: _brief_name(name) for name in listed}
    while True:
        used = Counter(name.casefold() for name in names.values())
        meeting = [name for name in listed if used[names[name].casefold()] > 1 and names[name] != whole_name(name)]
        if not meeting:
            return names
        names |= {name: whole_name(name) for name in meeting}


def whole_name(file_name: str) -> str:
    """The name with its ending, and ``.png`` after it."""
    return _fitting(f"{file_name}.png")


def _brief_name(file_name: str) -> str:
    path = PurePosixPath(file_name)
    return _fitting(str(path.with_suffix(".png"))) if path.suffix.lower() in IMAGE_SUFFIXES else whole_name(file_name)


def _fitting(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(short_name(path.name)))
