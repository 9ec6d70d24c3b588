"""Everything that a report and its pictures say about an evaluation, computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from detrkit.metrics.instances import InstanceMetric, Tide
from detrkit.metrics.object_table import ObjectTable
from detrkit.metrics.score import Score
from detrkit.report.best_threshold import best_threshold, class_thresholds
from detrkit.report.calibration import Calibration, calibration
from detrkit.report.confusion import Confusion, confusion_matrix
from detrkit.report.intervals import ClassIntervals, ap_intervals
from detrkit.report.matching import COCO_IOUS, ObjectMatches, match_objects
from detrkit.report.mistakes import Mistakes, WorstImage, find_mistakes, worst_images
from detrkit.report.precision_recall import ThresholdCurve, curve_of
from detrkit.report.scored_set import ScoredSet, scored_set
from detrkit.report.subset import above, threshold_of_each
from detrkit.structures.thresholds import DEFAULT_THRESHOLD

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """An evaluation, with what can be said about it; each part is computed when it is asked for.

    Attributes:
        data: detections and ground truth.
        score: AP and AR by the protocol.
        tide: what kinds of errors cost.
        limit: the most detections that count, per image and class, or with LVIS per image.
    """

    data: ScoredSet
    score: Score
    tide: Tide
    limit: int = 100

    @cached_property
    def matches(self) -> ObjectMatches:
        """ObjectMatches at IoU 0.5, 0.55 … 0.95."""
        return match_objects(self.data, ious=COCO_IOUS)

    @cached_property
    def curve(self) -> ThresholdCurve:
        """Precision and recall of all objects at IoU 0.5."""
        return curve_of(self.data, self.matches)

    @cached_property
    def class_curves(self) -> Sequence[ThresholdCurve]:
        """The same of each class."""
        return [curve_of(self.data, self.matches, label) for label in range(len(self.data.class_names))]

    @cached_property
    def threshold(self) -> float:
        """The score threshold of the highest F1 over all objects."""
        best = best_threshold(self.curve)
        return DEFAULT_THRESHOLD if best is None else best

    @cached_property
    def thresholds(self) -> NDArray[np.float64]:
        """(K,) the score threshold of each class: of its highest F1, or that of all where the class has few objects."""
        return threshold_of_each(self.threshold, class_thresholds(self.class_curves), default=DEFAULT_THRESHOLD)

    @cached_property
    def confusion(self) -> Confusion:
        """The confusion matrix at the thresholds."""
        return confusion_matrix(self.data, thresholds=self.thresholds)

    @cached_property
    def calibration(self) -> Calibration:
        """Scores against shares of right detections, at IoU 0.5."""
        return calibration(self.data, self.matches)

    @cached_property
    def intervals(self) -> ClassIntervals:
        """AP with bootstrap intervals."""
        return ap_intervals(self.data, self.matches)

    @cached_property
    def kept(self) -> ScoredSet:
        """The set with the detections that reach the thresholds."""
        return above(self.data, self.thresholds)

    @cached_property
    def mistakes(self) -> Mistakes:
        """Mistakes of :attr:`kept`."""
        return find_mistakes(self.kept)

    @cached_property
    def duplicate_rate(self) -> float:
        """Share of the kept detections that are duplicates of a better one."""
        return self.mistakes.count("duplicate") / max(1, len(self.kept.found))

    @cached_property
    def worst(self) -> tuple[WorstImage, ...]:
        """The 24 images whose mistakes cost most."""
        return worst_images(self.kept, self.mistakes)


def analyse(
    metric: InstanceMetric, results: ObjectTable, *, image_ids: Iterable[int] | None = None, score: Score | None = None
) -> Analysis:
    """Analyse an evaluation.

    Args:
        metric: the protocol with its ground truth.
        results: detections as ``read_results`` returns them for ``metric.truth``.
        image_ids: the images that were evaluated; None: all images.
        score: its score, if it is known.
    """
    ids = None if image_ids is None else list(image_ids)
    return Analysis(
        data=scored_set(metric, results, image_ids=ids),
        score=metric.score(results, image_ids=ids) if score is None else score,
        tide=metric.tide(results, ids),
        limit=metric.limit,
    )
