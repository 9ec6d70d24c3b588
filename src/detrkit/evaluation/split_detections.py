"""Detections of a checkpoint in the validation images of a recipe, for those who want more than a score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit.config import Recipe
from detrkit.data import DetectionDataset
from detrkit.devices import resolve_device
from detrkit.evaluation.loop import Progress, predict_dataset
from detrkit.evaluation.recipe_data import load_recipe_data
from detrkit.metrics import Metric, Score, metric_for
from detrkit.metrics.instances import InstanceMetric
from detrkit.runtime.info import is_artefact
from detrkit.structures import Detections
from detrkit.structures.detections import ResultRow
from detrkit.weights import load
from detrkit.weights.artefact import open_artefact

__all__ = ["SplitDetections", "detect_split"]


@dataclass(frozen=True, kw_only=True)
class SplitDetections:
    """What a checkpoint finds: COCO results rows, ids of the images, the images and their protocol; of maps the score
    and no rows."""

    rows: list[ResultRow]
    image_ids: list[int]
    data: DetectionDataset
    metric: Metric[Any]
    score: Score | None = None


def detect_split(
    checkpoint: Path, recipe: Recipe, *, device: str = "auto", progress: Progress | None = None
) -> SplitDetections:
    """Detect objects in the validation images of a recipe, with our checkpoint or an exported model.

    Raises:
        DataError, CheckpointError: the images or the checkpoint cannot be used.
    """
    opened = open_artefact(checkpoint) if is_artefact(checkpoint) else load(checkpoint)
    model = opened.to(resolve_device(device))
    data = load_recipe_data(recipe, "val", model.config.architecture.task)
    metric = metric_for(data)
    rows: list[ResultRow] = []
    image_ids = []
    for image_id, found in predict_dataset(model, data, progress=progress):
        image_ids.append(image_id)
        if isinstance(found, Detections):
            rows += found.to_coco(image_id)
        else:
            metric.update(image_id, found)
    score = None if isinstance(metric, InstanceMetric) else metric.compute()
    return SplitDetections(rows=rows, image_ids=image_ids, data=data, metric=metric, score=score)
