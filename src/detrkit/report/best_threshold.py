"""The score threshold of the highest F1, over all classes and for each."""

from __future__ import annotations

from collections.abc import Sequence

from detrkit.report.precision_recall import ThresholdCurve

__all__ = ["FEWEST_OBJECTS", "best_threshold", "class_thresholds"]

FEWEST_OBJECTS = 20
"""A class with fewer objects takes the threshold of all classes: its own would follow single objects."""


def best_threshold(curve: ThresholdCurve) -> float | None:
    """The threshold of the highest F1, the highest one of several; None where no detection is right.

    It lies half-way to the next lower score, so that rounding a score does not change what is found.
    """
    f1 = curve.f1
    if not len(f1) or f1.max() == 0:
        return None
    best = int(f1.argmax())
    score = float(curve.score[best])
    lower = float(curve.score[best + 1]) if best + 1 < len(curve.score) else score
    return max(0.0, min((score + lower) / 2, score))


def class_thresholds(curves: Sequence[ThresholdCurve]) -> list[float | None]:
    """The threshold of each class; None for a class with fewer than :data:`FEWEST_OBJECTS` objects."""
    return [best_threshold(curve) if curve.objects >= FEWEST_OBJECTS else None for curve in curves]
