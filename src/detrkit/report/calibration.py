"""Calibration: whether a share of s of the detections with score s is right (Guo et al., ICML 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detrkit.report.matching import ObjectMatches
from detrkit.report.scored_set import ScoredSet

__all__ = ["Calibration", "calibration"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scores and shares of right detections in B bins of equal width.

    Attributes:
        edges: (B + 1,) from 0 to 1.
        count: (B,) detections.
        score: (B,) their mean score; NaN in an empty bin.
        right: (B,) share of right ones; NaN in an empty bin.
    """

    edges: FloatArray
    count: NDArray[np.int64]
    score: FloatArray
    right: FloatArray

    @property
    def error(self) -> float:
        """Expected calibration error: mean over detections of the difference between the two; 0 without detections."""
        gaps = np.nan_to_num(np.abs(self.score - self.right))
        return float((self.count * gaps).sum() / max(1, self.count.sum()))


def calibration(data: ScoredSet, matches: ObjectMatches, *, bins: int = 10) -> Calibration:
    """The calibration of detections that are right or wrong at the first IoU threshold of ``matches``."""
    counts = ~matches.ignored[0]
    score, right = data.found.score[counts], matches.right[0][counts]
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, bins - 1)
    number = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=values, minlength=bins) / number for values in (score, right)]
    return Calibration(edges=edges, count=number, score=means[0], right=means[1])
