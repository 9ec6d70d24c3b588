"""Bootstrap intervals of AP over images (Efron, 1979): how much AP would change with other images of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrkit.report.matching import ObjectMatches
from detrkit.report.scored_set import ScoredSet

__all__ = ["ClassIntervals", "Interval", "ap_intervals", "drawn_ap"]

FloatArray = NDArray[np.float64]

_EXCESS = 3.0
"""AP of few images is too high, since interpolation takes the luckiest precision; in simulations by about this many
times what drawing the images once more adds. Without it only 65 to 90 % of intervals hold the truth."""

_RECALLS = np.linspace(0, 1, 101)
_CELLS = 4_000_000  # weights of detections that are in memory at a time


class Interval(NamedTuple):
    """An AP, and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ClassIntervals:
    """AP over all classes and of each class, with intervals; None where a class has no objects.

    Attributes:
        confidence: share of data sets whose interval holds the truth.
        overall: mean over the classes.
        per_class: K intervals.
    """

    confidence: float
    overall: Interval | None
    per_class: tuple[Interval | None, ...]


def ap_intervals(
    data: ScoredSet, matches: ObjectMatches, *, rounds: int = 300, confidence: float = 0.95, seed: int = 0
) -> ClassIntervals:
    """AP, averaged over the IoU thresholds of ``matches``, with intervals.

    Images are drawn with replacement; the matches stay. An image that is drawn twice counts as two. The interval
    reaches as many standard deviations of the drawn APs to both sides as ``confidence`` asks for, and further down by
    the amount that AP of few images is too high.

    Args:
        data: detections and ground truth.
        matches: their matches, for COCO's AP with :data:`COCO_IOUS`.
        rounds: drawn sets.
        confidence: share of data sets whose interval holds the truth.
        seed: of the draws.
    """
    overall, per_class = drawn_ap(data, matches, rounds=rounds, seed=seed)
    return ClassIntervals(
        confidence=confidence,
        overall=_interval(overall, confidence),
        per_class=tuple(_interval(column, confidence) for column in per_class.T),
    )


def drawn_ap(
    data: ScoredSet, matches: ObjectMatches, *, rounds: int = 300, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """AP of the set itself and of ``rounds`` drawn sets: (1 + R,) over all classes and (1 + R, K) of each; NaN where
    there is no object. Sets of the same images and seed are drawn alike, so their APs can be compared draw by draw."""
    images = len(data.images)
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / max(1, images)), size=rounds)
    weights = np.concatenate([np.ones((1, images)), draws])  # first the set itself
    values = np.stack([_ap(data, matches, label, weights) for label in range(len(data.class_names))], axis=1)
    known = ~np.isnan(values)
    sums = np.where(known, values, 0).sum(axis=1)
    overall = np.where(known.any(axis=1), sums / np.maximum(known.sum(axis=1), 1), np.nan)
    return overall, values


def _ap(data: ScoredSet, matches: ObjectMatches, label: int, weights: FloatArray) -> FloatArray:
    """(R,) AP of a class for each row (R, images) of weights of images; NaN where no image has an object of it."""
    own = np.flatnonzero(data.found.label == label)
    own = own[np.argsort(-data.found.score[own], kind="stable")]
    labelled = data.truth.image[(data.truth.label == label) & ~data.truth.crowd]
    objects = weights @ np.bincount(labelled, minlength=weights.shape[1])
    total = np.zeros(len(weights))
    if matches.right[:, own].any():
        size = max(1, _CELLS // len(own))
        for start in range(0, len(weights), size):
            rows = slice(start, start + size)
            total[rows] = _sum_over_ious(weights[rows][:, data.found.image[own]], objects[rows], matches, own)
    return np.where(objects > 0, total / len(matches.ious), np.nan)


def _sum_over_ious(
    weights: FloatArray, objects: FloatArray, matches: ObjectMatches, own: NDArray[np.int64]
) -> FloatArray:
    """(R,) AP at each IoU threshold, summed, for weights (R, D) of the detections of a class, the best first."""
    total = np.zeros(len(weights))
    counted, before = None, weights
    for level in range(len(matches.ious)):
        counts = ~matches.ignored[level, own]
        if counted is None or (counts != counted).any():
            counted, before = counts, np.cumsum(weights * counts, axis=1)
        hits = np.flatnonzero(matches.right[level, own])
        right = np.cumsum(weights[:, hits], axis=1)
        precision = right / np.maximum(before[:, hits], 1)
        best_after = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # how many of the 101 recalls lie at or below the recall of each right detection
        reached = np.searchsorted(_RECALLS, right / np.maximum(objects, 1)[:, None], side="right")
        total += (best_after * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(_RECALLS)
    return total


def _interval(values: FloatArray, confidence: float) -> Interval | None:
    """The first value, and the interval that the others give it."""
    drawn = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(drawn):
        return None
    value = float(values[0])
    margin = NormalDist().inv_cdf((1 + confidence) / 2) * float(drawn.std())
    excess = _EXCESS * max(0.0, float(drawn.mean()) - value)
    return Interval(value, max(0.0, value - excess - margin), min(1.0, value + margin))
