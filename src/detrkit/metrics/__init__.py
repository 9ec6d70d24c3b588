"""Evaluation protocols: from ground truth and predictions to named numbers. They do not depend on models.

Modules are imported on first use: boxes are scored without reading maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
    from detrkit.metrics.cityscapes import score_cityscapes
    from detrkit.metrics.coco import score_coco
    from detrkit.metrics.lvis import score_lvis
    from detrkit.metrics.panoptic import score_panoptic
    from detrkit.metrics.protocol import Metric
    from detrkit.metrics.protocols import PROTOCOLS, metric_for
    from detrkit.metrics.score import Score, ScoreJson
    from detrkit.metrics.semantic import score_semantic

__getattr__ = import_on_use(
    __name__,
    {
        "cityscapes": ["score_cityscapes"],
        "coco": ["score_coco"],
        "lvis": ["score_lvis"],
        "panoptic": ["score_panoptic"],
        "protocol": ["Metric"],
        "protocols": ["PROTOCOLS", "metric_for"],
        "score": ["Score", "ScoreJson"],
        "semantic": ["score_semantic"],
    },
)
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
