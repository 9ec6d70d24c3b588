"""All evaluation protocols by name."""

from __future__ import annotations

from typing import Any

from detrkit.metrics.cityscapes import CityscapesMetric
from detrkit.metrics.coco import CocoMetric
from detrkit.metrics.lvis import LvisMetric
from detrkit.metrics.panoptic import PanopticMetric
from detrkit.metrics.protocol import AnnotatedData, Metric
from detrkit.metrics.semantic import SemanticMetric

__all__ = ["PROTOCOLS", "metric_for"]

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
