"""Evaluation of an exported model with its post-processing inside, which gives objects and no raw outputs."""

from __future__ import annotations

from detrkit.data import DetectionDataset
from detrkit.errors import CheckpointError
from detrkit.evaluation.class_ids import class_map
from detrkit.metrics import Score, metric_for
from detrkit.runtime.light_predictor import LightPredictor

__all__ = ["evaluate_finished"]


def evaluate_finished(predictor: LightPredictor, dataset: DetectionDataset) -> Score:
    """Score a file by its boxes; the data set is of task "det".

    Raises:
        CheckpointError: the file does not say how many classes it has.
        DataError: an image cannot be read, or the data set has classes that the model does not have.
    """
    number = predictor.info.config.get("num_classes")
    if not isinstance(number, int):
        raise CheckpointError(f"{predictor.info.name}: its metadata says no number of classes")
    classes, metric = class_map(predictor.info.categories, number, dataset), metric_for(dataset)
    for index, record in enumerate(dataset.records):
        (found,) = predictor.predict_all([dataset.read_image(index)], 0.0)
        metric.update(record.image_id, classes.in_data(found, image_id=record.image_id))
    return metric.compute()
