"""From the annotated segments of an image to the objects of a task.

All targets are made here, for training and for evaluation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from detrkit.data.geometry import Geometry
from detrkit.data.packed_masks import PackedMasks
from detrkit.data.rasterise import draw_masks, tight_boxes
from detrkit.data.segments import Segments, TaskRules, clipped, rules_of
from detrkit.structures import Objects

__all__ = ["objects_of"]


def objects_of(
    segments: Segments,
    *,
    size: tuple[int, int],
    task: str = "det",
    geometry: Geometry | None = None,
    segment_map: NDArray[np.integer] | None = None,
) -> Objects:
    """The objects of an image for a task: boxes (N, 4) float64 xyxy in pixels.

    Detection: the annotated boxes, clipped to the image. Other tasks: masks (N, H, W) bool that are not empty, the
    tight boxes around them, and ``is_thing``.

    Args:
        segments: the annotated regions of the image.
        size: (width, height) of the image.
        task: one of ``detrkit.data.segments.TASKS``.
        geometry: the transformed image on which the masks are drawn, such as a crop; None: the image as it is. It has
            no effect on detection.
        segment_map: (height, width) values of the image's pixels, where masks are values of it.

    Raises:
        ValueError: unknown task, or segments that were read without the masks that it needs.
    """
    rules = rules_of(task)
    kept = segments[(~segments.outside if rules.crowd else segments.single) & (segments.things | rules.stuff)]
    if not rules.masks:
        return Objects(
            labels=torch.from_numpy(kept.labels), boxes=torch.from_numpy(clipped(kept.boxes, np.asarray(size)))
        )
    if kept.masks is None and len(kept):
        raise ValueError(f"task '{task}' needs masks, but these segments were read without; load them for this task")
    groups, first = _groups(kept, rules)
    masks = draw_masks(kept.masks or PackedMasks.none(), groups, geometry or Geometry.whole(size), segment_map)
    seen = masks.any(axis=(1, 2))
    if not seen.all():  # else no copy, which takes longer than drawing
        masks, first = masks[seen], first[seen]
    return Objects(
        labels=torch.from_numpy(kept.labels[first]),
        boxes=torch.from_numpy(tight_boxes(masks)),
        masks=torch.from_numpy(masks),
        is_thing=torch.from_numpy(kept.things[first]),
    )


def _groups(segments: Segments, rules: TaskRules) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which segments make one object: the object of each segment (N,), and the first segment of each object (G,)."""
    merged = {"nothing": np.zeros(len(segments), bool), "stuff": ~segments.things, "everything": segments.labels >= 0}
    keys = np.where(merged[rules.merged], segments.labels, -1 - np.arange(len(segments)))
    _, first, groups = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)  # objects in the order of the file
    return np.argsort(order)[groups], first[order]
