"""Values of options that several commands take."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["OnError", "Split", "TaskName", "name_pattern"]


def name_pattern(wanted: str | None) -> str:
    """The shell pattern of a filter of names, in small letters: a pattern, a part of a name, or None for all."""
    if wanted is None:
        return "*"
    return wanted.lower() if any(sign in wanted for sign in "*?[") else f"*{wanted.lower()}*"


class OnError(StrEnum):
    """What to do with images and annotations that cannot be used."""

    skip = "skip"
    stop = "raise"


class Split(StrEnum):
    """Split of the data."""

    train = "train"
    val = "val"
    test = "test"


class TaskName(StrEnum):
    """Detections, instances, classes of pixels, panoptic segments."""

    det = "det"
    inst = "inst"
    sem = "sem"
    pan = "pan"
