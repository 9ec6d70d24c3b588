"""Evaluation protocols: from ground truth and predictions to named numbers. They do not depend on models."""

from __future__ import annotations

from typing import Any

from detrkit.metrics.cityscapes import CityscapesMetric, score_cityscapes
from detrkit.metrics.coco import CocoMetric, score_coco
from detrkit.metrics.lvis import LvisMetric, score_lvis
from detrkit.metrics.panoptic import PanopticMetric, score_panoptic
from detrkit.metrics.protocol import AnnotatedData, Metric
from detrkit.metrics.score import Score, ScoreJson
from detrkit.metrics.semantic import SemanticMetric, score_semantic

__all__ = [
    "PROTOCOLS",
    "Metric",
    "Score",
    "ScoreJson",
    "metric_for",
    "score_cityscapes",
    "score_coco",
    "score_lvis",
    "score_panoptic",
    "score_semantic",
]

PROTOCOLS: dict[str, type[Metric[Any]]] = {
    metric.protocol: metric for metric in (CityscapesMetric, CocoMetric, LvisMetric, PanopticMetric, SemanticMetric)
}
"""All protocols by name; a new one needs a file and an entry here."""


def metric_for(data: AnnotatedData) -> Metric[Any]:
    """The metric of a data set's protocol, with its ground truth prepared.

    Raises:
        DataError: the data set lacks information that its protocol needs.
    """
    return PROTOCOLS[data.protocol].of(data)
