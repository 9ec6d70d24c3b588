"""Which detection finds which object: greedy by score, as COCO's protocol says (cocodataset.org/#detection-eval)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detrkit.report.scored_set import ScoredSet

__all__ = ["COCO_IOUS", "ObjectMatches", "match_objects"]

COCO_IOUS = tuple(0.5 + 0.05 * step for step in range(10))
"""The IoU thresholds over which COCO's AP is averaged."""

_ALMOST_ONE = 1 - 1e-10
_NONE = -1


@dataclass(frozen=True, kw_only=True)
class ObjectMatches:
    """Objects that detections are matched to, for T IoU thresholds.

    Attributes:
        ious: T thresholds.
        object: (T, D) position of the object of the ground truth; -1: none.
        ignored: (T, D) detections that are neither right nor wrong: inside a crowd, or not judged.
        objects: number of objects of each class, without crowds.
    """

    ious: tuple[float, ...]
    object: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    objects: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(T, D) true positives."""
        return (self.object >= 0) & ~self.ignored

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """(T, D) false positives."""
        return (self.object < 0) & ~self.ignored


def match_objects(data: ScoredSet, *, ious: Sequence[float] = (0.5,), any_class: bool = False) -> ObjectMatches:
    """Match the detections of each image to its objects, the best score first, each to the free object of most IoU.

    An object is found at most once; a crowd takes any number of detections that match nothing else.

    Args:
        data: detections and ground truth.
        ious: thresholds that the IoU must reach.
        any_class: whether classes may differ, as in a confusion matrix.
    """
    least = np.minimum(np.asarray(ious, dtype=np.float64), _ALMOST_ONE)
    truth, found = data.truth, data.found
    matched = np.full((len(least), len(found)), _NONE, dtype=np.int64)
    for overlap, of_found, of_truth in zip(data.overlaps, data.found_slices, data.truth_slices, strict=True):
        candidates = overlap >= least.min(initial=1.0)
        if not any_class:
            candidates &= found.label[of_found, None] == truth.label[None, of_truth]
        crowd = truth.crowd[of_truth]
        free = np.ones((len(least), len(crowd)), dtype=bool)
        for row in np.flatnonzero(candidates.any(axis=1)).tolist():
            columns = np.flatnonzero(candidates[row])[::-1]  # of equal IoU, the last one, as in COCO's own code
            reached = (overlap[row, columns] >= least[:, None]) & free[:, columns]
            order = np.where(reached, overlap[row, columns] - 2.0 * crowd[columns], -9.0)  # objects before crowds
            best = order.argmax(axis=1)
            for level in np.flatnonzero(reached.any(axis=1)).tolist():
                column = int(columns[best[level]])
                matched[level, of_found.start + row] = of_truth.start + column
                free[level, column] = bool(crowd[column])
    in_crowd = (matched >= 0) & truth.crowd[matched] if len(truth) else matched >= 0
    return ObjectMatches(
        ious=tuple(float(value) for value in ious),
        object=matched,
        ignored=in_crowd | ((matched < 0) & found.lenient),
        objects=np.bincount(truth.label[~truth.crowd], minlength=len(data.class_names)),
    )
