"""Evaluation protocols: ground truth and results in, named numbers out. Knows no model."""

from __future__ import annotations

from detrkit.metrics.coco import score_coco
from detrkit.metrics.lvis import score_lvis
from detrkit.metrics.score import Score

__all__ = ["Score", "score_coco", "score_lvis"]
