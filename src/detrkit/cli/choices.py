"""Values of options that several commands take."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["OnError", "Split", "TaskName"]


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
