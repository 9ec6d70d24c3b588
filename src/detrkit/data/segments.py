"""Annotated regions of images, and which of them each task uses. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detrkit.data.packed_masks import PackedMasks
from detrkit.errors import did_you_mean

__all__ = ["TASKS", "Segments", "TaskRules", "clipped", "rules_of"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """Annotated regions of one or several images: one row per region, in the order of the file.

    Attributes:
        boxes: (N, 4) float64 [x, y, width, height] in pixels, as in the file: they may extend beyond the image.
        labels: (N,) int64, 0..K-1.
        areas: (N,) float64, as in the file (the area of the mask where there is one).
        crowd: (N,) bool, groups of objects without individual annotations: training leaves them out, evaluation
            ignores them.
        outside: (N,) bool, the box lies completely outside the image: training leaves it out, evaluation counts it
            as a missed object.
        things: (N,) bool, False for stuff: regions that cannot be counted, such as sky.
        masks: the masks of the regions, or None where the task needs none.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    things: NDArray[np.bool_]
    masks: PackedMasks | None = None

    @classmethod
    def none(cls) -> Segments:
        """The segments of an image without annotations."""
        no = np.zeros(0, dtype=bool)
        return cls(
            boxes=np.zeros((0, 4)), labels=np.zeros(0, np.int64), areas=np.zeros(0), crowd=no, outside=no, things=no
        )

    @property
    def single(self) -> NDArray[np.bool_]:
        """(N,) bool, individual objects that are at least partly inside the image."""
        return ~(self.crowd | self.outside)

    @classmethod
    def cat(cls, parts: Sequence[Segments]) -> Segments:
        """Concatenate the regions of all parts, without their masks."""
        names = (item.name for item in fields(cls) if item.name != "masks")
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Segments:
        """Select regions by a mask, indices or a slice."""
        columns = ((item.name, getattr(self, item.name)) for item in fields(self))
        return Segments(**{name: column[index] for name, column in columns if column is not None})


@dataclass(frozen=True, kw_only=True)
class TaskRules:
    """How a task turns the segments of an image into objects.

    Attributes:
        stuff: whether to keep regions without instances, such as sky, in addition to things.
        crowd: whether to keep crowd regions.
        merged: which segments of the same class are merged into one.
        masks: whether objects have masks. If so, boxes are tight around the masks after the transforms; otherwise the
            annotated boxes are transformed.
    """

    stuff: bool
    crowd: bool
    merged: Literal["nothing", "stuff", "everything"]
    masks: bool


TASKS = {
    "det": TaskRules(stuff=False, crowd=False, merged="nothing", masks=False),
    "inst": TaskRules(stuff=False, crowd=False, merged="nothing", masks=True),
    "sem": TaskRules(stuff=True, crowd=True, merged="everything", masks=True),
    "pan": TaskRules(stuff=True, crowd=False, merged="stuff", masks=True),
}
"""The rules of each task: detection, instance, semantic and panoptic segmentation."""


def rules_of(task: str) -> TaskRules:
    """The rules of a task.

    Raises:
        ValueError: unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"task '{task}' is unknown.{did_you_mean(task, TASKS)}")
    return TASKS[task]


def clipped(boxes: NDArray[np.float64], size: NDArray[np.generic]) -> NDArray[np.float64]:
    """Convert boxes [x, y, width, height] to [x1, y1, x2, y2] and clip them to the image.

    boxes: (N, 4) · size: (width, height), one for all boxes or (N, 2) with one per box.
    """
    corners = boxes.copy()
    corners[:, 2:] += boxes[:, :2]
    np.maximum(corners, 0, out=corners)
    return np.minimum(corners, np.concatenate([size, size], axis=-1), out=corners)
