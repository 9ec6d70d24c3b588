"""The number that the protocol of a data set is about (AP, PQ, mIoU), of models in memory and of files."""

from __future__ import annotations

from detrkit.data import DetectionDataset
from detrkit.errors import CheckpointError
from detrkit.evaluation.class_ids import class_map
from detrkit.evaluation.loop import evaluate_model
from detrkit.metrics import metric_for
from detrkit.models.detector import Detector
from detrkit.runtime.light_predictor import LightPredictor

__all__ = ["score_of", "score_of_finished"]


def score_of(model: Detector, dataset: DetectionDataset) -> float | None:
    """Score a checkpoint or an exported model; None: the number is not defined on these images."""
    return evaluate_model(model, dataset).value


def score_of_finished(predictor: LightPredictor, dataset: DetectionDataset) -> float | None:
    """Score a file with its post-processing inside, by boxes; ``dataset`` is of task "det".

    Raises:
        CheckpointError: the file does not say how many classes it has.
    """
    number = predictor.info.config.get("num_classes")
    if not isinstance(number, int):
        raise CheckpointError(f"{predictor.info.name}: its metadata says no number of classes")
    classes, metric = class_map(predictor.info.categories, number, dataset), metric_for(dataset)
    for index, record in enumerate(dataset.records):
        (found,) = predictor.predict_all([dataset.read_image(index)], 0.0)
        metric.update(record.image_id, classes.in_data(found, image_id=record.image_id))
    return metric.compute().value
