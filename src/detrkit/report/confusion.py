"""Confusion matrix: which class is taken for which, and what is missed or made up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detrkit.report.matching import match_objects
from detrkit.report.scored_set import ScoredSet
from detrkit.report.subset import above

__all__ = ["Confusion", "confusion_matrix", "short_count"]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A confusion matrix of K classes and background.

    Attributes:
        names: K class names and a name for the background.
        counts: (K + 1, K + 1), rows: labelled as, columns: found as; last row: found where nothing is labelled; last
            column: missed.
        of: what is counted. Pixels without a label do not count, so that the last row of pixels is empty.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    of: Literal["objects", "pixels"] = "objects"

    @property
    def shares(self) -> NDArray[np.float64]:
        """The counts as shares of their rows; 0 in empty rows."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)


def confusion_matrix(data: ScoredSet, *, thresholds: NDArray[np.float64], iou: float = 0.5) -> Confusion:
    """The confusion matrix of the detections that reach the threshold of their class.

    Detections are matched to objects of any class, the best score first; those inside a crowd do not count.

    Args:
        data: detections and ground truth.
        thresholds: (K,) least score for each class.
        iou: threshold of a match.
    """
    kept = above(data, thresholds)
    matches = match_objects(kept, ious=[iou], any_class=True)
    classes = len(data.class_names)
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    right, wrong = matches.right[0], matches.wrong[0]
    objects = matches.object[0][right]
    np.add.at(counts, (kept.truth.label[objects], kept.found.label[right]), 1)
    counts[classes, :classes] = np.bincount(kept.found.label[wrong], minlength=classes)
    missed = ~kept.truth.crowd
    missed[objects] = False
    counts[:classes, classes] = np.bincount(kept.truth.label[missed], minlength=classes)
    return Confusion(names=(*data.class_names, "background"), counts=counts)


def short_count(number: int) -> str:
    """A number as it fits into a cell: 812, 8,120, 81k, 8.1M."""
    if number < 10_000:
        return f"{number:,}"
    value, unit = (number / 1e3, "k") if number < 999_500 else (number / 1e6, "M")
    return f"{value:.1f}{unit}" if value < 10 else f"{value:,.0f}{unit}"
