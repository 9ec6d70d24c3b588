"""From the annotated segments of an image to the objects of a task: the one way from annotations to a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from detrkit.errors import did_you_mean
from detrkit.structures import Objects

__all__ = ["TASKS", "Segments", "TaskRules", "clipped", "objects_of"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """Annotated regions of one image or of many: one row of every column per region, in the order of the file.

    Attributes:
        boxes: (N, 4) float64 [x, y, width, height] in pixels, as in the file: they may pass the image's border.
        labels: (N,) int64, 0..K-1.
        areas: (N,) float64 as in the file (of the mask where there is one).
        crowd: (N,) bool, objects that are not told apart: training leaves them out, evaluation ignores them.
        outside: (N,) bool, nothing of the box lies in the image: only evaluation counts it, as not found.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    outside: NDArray[np.bool_]

    @classmethod
    def none(cls) -> Segments:
        """Those of an image without annotations."""
        no = np.zeros(0, dtype=bool)
        return cls(boxes=np.zeros((0, 4)), labels=np.zeros(0, np.int64), areas=np.zeros(0), crowd=no, outside=no)

    @property
    def single(self) -> NDArray[np.bool_]:
        """(N,) the regions that are one object, of which something is in the image."""
        return ~(self.crowd | self.outside)

    @classmethod
    def cat(cls, parts: Sequence[Segments]) -> Segments:
        """The regions of all parts, one after the other."""
        return cls(**{item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)})

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Segments:
        """The regions that a mask, positions or a slice select, in that order."""
        return Segments(**{item.name: getattr(self, item.name)[index] for item in fields(self)})


@dataclass(frozen=True, kw_only=True)
class TaskRules:
    """What a task makes of an image's segments.

    Attributes:
        stuff: regions without instances, such as sky, are kept beside things.
        crowd: crowd regions are kept.
        merged: which segments become one where they are of one class.
        masks: objects have masks, and boxes tight around what a transform leaves of them; else the annotated boxes.
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
"""The rules by task: detection, instance, semantic and panoptic segmentation."""


def objects_of(segments: Segments, *, size: tuple[int, int], task: str = "det") -> Objects:
    """The objects of an image of ``size`` (width, height) for a task: boxes (N, 4) float64 xyxy in pixels, inside it.

    Raises:
        ValueError: there is no such task.
        NotImplementedError: the task needs masks.
    """
    if task not in TASKS:
        raise ValueError(f"task '{task}' is unknown.{did_you_mean(task, TASKS)}")
    rules = TASKS[task]
    if rules.masks:
        raise NotImplementedError(f"task '{task}' needs masks, which annotations do not give yet; 'det' works")
    kept = ~segments.outside if rules.crowd else segments.single
    return Objects(
        labels=torch.from_numpy(segments.labels[kept]),
        boxes=torch.from_numpy(clipped(segments.boxes[kept], np.asarray(size))),
    )


def clipped(boxes: NDArray[np.float64], size: NDArray[np.generic]) -> NDArray[np.float64]:
    """Boxes [x, y, width, height] as [x1, y1, x2, y2] inside their image; size: (width, height) of it, or (N, 2)."""
    corners = boxes.copy()
    corners[:, 2:] += boxes[:, :2]
    np.maximum(corners, 0, out=corners)
    return np.minimum(corners, np.concatenate([size, size], axis=-1), out=corners)
