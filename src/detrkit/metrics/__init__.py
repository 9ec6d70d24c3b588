"""Evaluation protocols: ground truth and what was found in, named numbers out. Knows no model."""

from __future__ import annotations

from detrkit.metrics.coco import CocoMetric, score_coco
from detrkit.metrics.lvis import LvisMetric, score_lvis
from detrkit.metrics.protocol import AnnotatedData, Metric
from detrkit.metrics.score import Score, ScoreJson
from detrkit.structures import Detections

__all__ = ["PROTOCOLS", "Metric", "Score", "ScoreJson", "metric_for", "score_coco", "score_lvis"]

PROTOCOLS: dict[str, type[Metric[Detections]]] = {metric.protocol: metric for metric in (CocoMetric, LvisMetric)}
"""Every protocol by its name; a new one is a file and an entry here."""


def metric_for(data: AnnotatedData) -> Metric[Detections]:
    """The metric that a data set is scored by, its ground truth prepared.

    Raises:
        DataError: the data set lacks what its protocol needs.
    """
    return PROTOCOLS[data.protocol].of(data)
