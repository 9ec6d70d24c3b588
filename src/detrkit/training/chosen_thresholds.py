"""The score thresholds of a model, chosen on the validation images of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detrkit.data import DetectionDataset
from detrkit.evaluation.class_ids import match_classes
from detrkit.metrics import Metric
from detrkit.metrics.instances import InstanceMetric
from detrkit.metrics.result_files import read_results
from detrkit.models import Detector
from detrkit.report.best_threshold import best_threshold, class_thresholds
from detrkit.report.matching import match_objects
from detrkit.report.precision_recall import all_curves
from detrkit.report.scored_set import ScoredSet, scored_set
from detrkit.structures import Detections, Thresholds
from detrkit.structures.detections import result_rows

__all__ = ["choose_thresholds", "scored_answers"]


def scored_answers(metric: Metric[Any], answers: Mapping[int, object]) -> ScoredSet | None:
    """The detections of an evaluation with the ground truth; None where the protocol is not one of objects.

    Args:
        metric: the protocol with its ground truth.
        answers: detections by image id, with the categories of the data set.
    """
    if not isinstance(metric, InstanceMetric):
        return None
    found = {image_id: one for image_id, one in answers.items() if isinstance(one, Detections)}
    return scored_set(
        metric, read_results(result_rows(found), metric.truth, iou_type=metric.iou_type), image_ids=list(found)
    )


def choose_thresholds(model: Detector, dataset: DetectionDataset, data: ScoredSet | None) -> Thresholds | None:
    """The thresholds of the highest F1 at IoU 0.5, over all classes and for each class of the model.

    Args:
        model: the model that was evaluated.
        dataset: the images on which it was.
        data: what it found there.

    Returns:
        None where nothing can be chosen: no objects, no right detection, or maps instead of objects.
    """
    if data is None:
        return None
    curve, of_classes = all_curves(data, match_objects(data))
    overall = best_threshold(curve)
    if overall is None:
        return None
    classes = match_classes(model, dataset)
    place = {category_id: number for number, category_id in enumerate(sorted(classes.data.ids))}
    own = class_thresholds(of_classes)
    labels = (None if label is None else place[classes.data[label].id] for label in classes.labels)
    return Thresholds(overall=overall, per_class=tuple(None if label is None else own[label] for label in labels))
