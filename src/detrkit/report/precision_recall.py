"""Precision, recall and F1 by score threshold, for a class or for all objects together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrkit.report.matching import ObjectMatches
from detrkit.report.scored_set import ScoredSet

__all__ = ["Quality", "ThresholdCurve", "all_curves", "curve_of"]

FloatArray = NDArray[np.float64]


class Quality(NamedTuple):
    """Precision, recall and F1 at a threshold; precision is 1 where nothing is found, F1 is 0 where it is undefined."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class ThresholdCurve:
    """What detections with at least a score find; the thresholds are the n scores that occur.

    Attributes:
        name: class name; ``"all"``: all objects together, each counted once (micro average).
        objects: number of objects to be found.
        score: (n,) descending.
        right: (n,) number of right detections with at least this score.
        wrong: (n,) number of wrong ones.
    """

    name: str
    objects: int
    score: FloatArray
    right: FloatArray
    wrong: FloatArray

    @property
    def precision(self) -> FloatArray:
        """(n,) right / (right + wrong)."""
        return self.right / np.maximum(self.right + self.wrong, 1)

    @property
    def recall(self) -> FloatArray:
        """(n,) right / objects."""
        return self.right / max(self.objects, 1)

    @property
    def f1(self) -> FloatArray:
        """(n,) harmonic mean of the two, 2 right / (right + wrong + objects)."""
        return 2 * self.right / np.maximum(self.right + self.wrong + self.objects, 1)

    def at(self, threshold: float) -> Quality:
        """The quality of detections with at least this score."""
        count = int(np.searchsorted(-self.score, -threshold, side="right"))
        if count == 0:
            return Quality(1.0, 0.0, 0.0)
        return Quality(*(float(values[count - 1]) for values in (self.precision, self.recall, self.f1)))

    def on_grid(self, thresholds: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Precision, recall and F1 at each of these thresholds, for drawing."""
        rows = np.array([self.at(float(threshold)) for threshold in thresholds]).reshape(-1, 3)
        return rows[:, 0], rows[:, 1], rows[:, 2]

    def interpolated(self, recalls: FloatArray) -> FloatArray:
        """Precision at recalls as COCO draws it: the best at that or a higher recall; 0 where none reaches it."""
        envelope = np.append(np.maximum.accumulate(self.precision[::-1])[::-1], 0.0)
        return envelope[np.searchsorted(self.recall, recalls, side="left")]


def curve_of(data: ScoredSet, matches: ObjectMatches, label: int | None = None, *, level: int = 0) -> ThresholdCurve:
    """The curve of a class; None: of all objects.

    Args:
        data: detections and ground truth.
        matches: their matches.
        label: 0..K-1.
        level: position among the IoU thresholds of ``matches``.
    """
    counts = ~matches.ignored[level]
    if label is not None:
        counts = counts & (data.found.label == label)
    score, right = data.found.score[counts], matches.right[level][counts]
    order = np.argsort(-score, kind="stable")
    score, right = score[order], right[order]
    last = np.append(score[1:] != score[:-1], True)[: len(score)]  # of equal scores all count, or none
    objects = matches.objects.sum() if label is None else matches.objects[label]
    return ThresholdCurve(
        name="all" if label is None else data.class_names[label],
        objects=int(objects),
        score=score[last],
        right=np.cumsum(right)[last].astype(np.float64),
        wrong=np.cumsum(~right)[last].astype(np.float64),
    )


def all_curves(data: ScoredSet, matches: ObjectMatches) -> tuple[ThresholdCurve, Sequence[ThresholdCurve]]:
    """The curve of all objects and that of each class."""
    classes = [curve_of(data, matches, label) for label in range(len(data.class_names))]
    return curve_of(data, matches), classes
