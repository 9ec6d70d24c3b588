"""Signs of particular faults in the predictions: mixed-up classes, missing labels, duplicates, boxes that are off."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import hotcoco.mask
import numpy as np
from numpy.typing import NDArray

from detrkit.report.analysis import Analysis
from detrkit.report.best_threshold import best_threshold
from detrkit.report.confusion import Confusion, confusion_matrix
from detrkit.report.intervals import ap_intervals
from detrkit.report.matching import COCO_IOUS, match_objects
from detrkit.report.precision_recall import ThresholdCurve, curve_of
from detrkit.report.scored_set import ScoredSet, xywh
from detrkit.report.subset import with_found

__all__ = ["Shift", "Signs", "Unlabelled"]

_NMS = 0.7


class Unlabelled(NamedTuple):
    """Detections as sure as the right ones, of things that have no label."""

    without: int
    sure: int
    """All detections as sure."""

    threshold: float
    """The score from which they count: the median of the right ones."""

    @property
    def share(self) -> float:
        """The share of the sure detections that have no label."""
        return self.without / max(1, self.sure)


class Shift(NamedTuple):
    """How detections lie beside the labels that they find, in the median."""

    dx: float
    dy: float
    """Pixels from labels to detections."""

    same: float
    """The share of them that lie on that side."""

    share: float
    """The distance as a share of the side of an object."""


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Signs of faults; each is computed when it is asked for."""

    analysis: Analysis

    @cached_property
    def any_class(self) -> ThresholdCurve:
        """Precision and recall where classes do not count: whether objects are found at all."""
        data = self.analysis.data
        return curve_of(data, match_objects(data, any_class=True))

    @cached_property
    def mixed(self) -> Confusion:
        """The confusion matrix at the best threshold of :attr:`any_class`."""
        least = best_threshold(self.any_class)
        classes = len(self.analysis.data.class_names)
        return confusion_matrix(self.analysis.data, thresholds=np.full(classes, 1.0 if least is None else least))

    @cached_property
    def unlabelled(self) -> Unlabelled:
        """Detections of things that have no label, as sure as the surer half of the right ones."""
        kept, mistakes = self.analysis.kept, self.analysis.mistakes
        right = np.array([kind is None for kind in mistakes.found], dtype=bool) & (mistakes.object >= 0)
        if not right.any():
            return Unlabelled(0, 0, 1.0)
        least = float(np.median(kept.found.score[right]))
        sure = kept.found.score >= least
        false = np.array([kind == "false" for kind in mistakes.found], dtype=bool)
        return Unlabelled(int((sure & false).sum()), int(sure.sum()), least)

    @cached_property
    def nms_gain(self) -> float:
        """How much AP would gain from class-wise non-maximum suppression at IoU 0.7."""
        data = self.analysis.data
        before = self.analysis.intervals.overall
        fewer = without_overlaps(data)
        after = ap_intervals(fewer, match_objects(fewer, ious=COCO_IOUS), rounds=1).overall
        return 0.0 if before is None or after is None else after.value - before.value

    @cached_property
    def moved(self) -> Shift:
        """How detections lie beside the labels that they find."""
        kept, mistakes = self.analysis.kept, self.analysis.mistakes
        near = np.array([kind in (None, "loose box") for kind in mistakes.found], dtype=bool) & (mistakes.object >= 0)
        if near.sum() < 20:
            return Shift(0.0, 0.0, 0.0, 0.0)
        objects = kept.truth.boxes[mistakes.object[near]]
        between = _middles(kept.found.boxes[near]) - _middles(objects)
        dx, dy = np.median(between, axis=0).tolist()
        axis = int(abs(dy) > abs(dx))
        same = float((np.sign(between[:, axis]) == np.sign((dx, dy)[axis])).mean())
        side = float(np.median(np.sqrt(np.prod(objects[:, 2:] - objects[:, :2], axis=1))))
        return Shift(dx, dy, same, max(abs(dx), abs(dy)) / max(side, 1.0))


def without_overlaps(data: ScoredSet, *, iou: float = _NMS) -> ScoredSet:
    """The set without detections that overlap a better one of their class by more than ``iou``."""
    found, kept = data.found, np.ones(len(data.found), dtype=bool)
    for rows in data.found_slices:
        boxes, labels = found.boxes[rows], found.label[rows]
        if len(boxes) < 2:
            continue
        sides = xywh(boxes)
        overlap = hotcoco.mask.iou(sides, sides, [False] * len(sides))
        close = np.triu((overlap > iou) & (labels[:, None] == labels[None]), k=1)
        alive = kept[rows]
        for row in np.flatnonzero(close.any(axis=1)).tolist():
            if alive[row]:
                alive &= ~close[row]
        kept[rows] = alive
    return with_found(data, kept)


def _middles(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
