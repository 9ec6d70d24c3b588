"""Evaluation protocols: from ground truth and predictions to named numbers. They do not depend on models."""

from __future__ import annotations

from detrkit.metrics.coco import CocoMetric, score_coco
from detrkit.metrics.lvis import LvisMetric, score_lvis
from detrkit.metrics.protocol import AnnotatedData, Metric
from detrkit.metrics.score import Score, ScoreJson
from detrkit.structures import Detections

__all__ = ["PROTOCOLS", "Metric", "Score", "ScoreJson", "metric_for", "score_coco", "score_lvis"]

PROTOCOLS: dict[str, type[Metric[Detections]]] = {metric.protocol: metric for metric in (CocoMetric, LvisMetric)}
"""All protocols by name; a new one needs a file and an entry here."""


def metric_for(data: AnnotatedData) -> Metric[Detections]:
    """The metric of a data set's protocol, with its ground truth prepared.

    Raises:
        DataError: the data set lacks information that its protocol needs.
    """
    return PROTOCOLS[data.protocol].of(data)
