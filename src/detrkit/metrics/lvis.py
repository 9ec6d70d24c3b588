"""LVIS average precision of boxes and masks (Gupta et al., LVIS, section 4).

LVIS annotates each image for a part of its 1203 classes: those that occur (``annotations``) and those verified to be
absent (``neg_category_ids``). A detection of any other class is neither right nor wrong and is left out. Where a class
occurs but not every object of it is annotated (``not_exhaustive_category_ids``), detections that match nothing are left
out too. Of an image the 300 best detections over all classes count.

The numbers are those of lvis-api and bear its names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from detrkit.data.coco_json import annotation_lists, lvis_problems, read_json
from detrkit.errors import DataError
from detrkit.metrics.coco import AREAS, IOU50, IOU75, FloatArray, check_iou_type, evaluate, mean_defined
from detrkit.metrics.coco_json import GroundTruth, read_ground_truth, read_results
from detrkit.metrics.score import Score
from detrkit.structures import FREQUENCIES, NEGATIVES, NOT_EXHAUSTIVE

__all__ = ["score_lvis"]


def score_lvis(
    ground_truth: Mapping[str, Any] | str | Path,
    results: Sequence[Mapping[str, Any]] | Mapping[str, Any] | str | Path,
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
    max_detections: int = 300,
) -> Score:
    """LVIS AP and AR of a results list against LVIS annotations, overall and for each class.

    Arguments as for ``score_coco``; every image needs ``neg_category_ids`` and ``not_exhaustive_category_ids``, every
    category ``frequency``. max_detections: how many detections of an image count, best first.

    metrics: ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``APr``, ``APc``, ``APf`` (rare, common and frequent
    classes), ``AR@300``, ``ARs@300``, ``ARm@300``, ``ARl@300``.

    Raises:
        DataError: a file is missing or is not what it should be; the message names the file and the row.
    """
    check_iou_type(iou_type)
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, not {max_detections}")
    content, name = read_json(ground_truth, "ground truth")
    truth = read_ground_truth(content, iou_type=iou_type, name=name)
    frequencies = _add_lvis(truth, content)
    rows = read_results(results, truth, iou_type=iou_type)
    precision, recall = evaluate(truth, rows, iou_type=iou_type, lvis_detections=max_detections)
    precision, recall = precision[..., 0], recall[..., 0]

    classes_of = {letter: [k for k, other in enumerate(frequencies) if other == letter] for letter in FREQUENCIES}
    by_frequency = {f"AP{letter}": mean_defined(precision[:, :, k, 0]) for letter, k in classes_of.items()}
    return Score(
        protocol="lvis",
        iou_type=iou_type,
        metrics=_precisions(precision) | by_frequency | _recalls(recall, max_detections),
        per_class={
            class_name: _precisions(precision[:, :, k : k + 1]) | _recalls(recall[:, k : k + 1], max_detections)
            for k, class_name in enumerate(truth.class_names)
        },
    )


def _precisions(precision: FloatArray) -> dict[str, float | None]:
    """The APs over the classes in precision (IoU, recall points, classes, areas)."""
    numbers = {
        "AP": mean_defined(precision[..., 0]),
        "AP50": mean_defined(precision[IOU50, ..., 0]),
        "AP75": mean_defined(precision[IOU75, ..., 0]),
    }
    return numbers | {f"AP{size}": mean_defined(precision[..., area]) for size, area in AREAS.items() if size}


def _recalls(recall: FloatArray, limit: int) -> dict[str, float | None]:
    """The ARs over the classes in recall (IoU, classes, areas)."""
    return {f"AR{size}@{limit}": mean_defined(recall[..., area]) for size, area in AREAS.items()}


def _add_lvis(truth: GroundTruth, content: object) -> list[str]:
    """Gives the images of ``truth`` their lists of classes; returns the frequency of every class."""
    images, _, categories = annotation_lists(content, truth.source)
    for problem in lvis_problems(images, categories):
        raise DataError(f"{truth.source}: {problem} (plain COCO annotations: detrkit score coco)")
    numbers = truth.category_numbers
    for row in images:
        image = truth.image(truth.image_numbers[row["id"]])
        image |= {key: [numbers[category_id] for category_id in row[key]] for key in (NEGATIVES, NOT_EXHAUSTIVE)}
    frequencies = {numbers[row["id"]]: row["frequency"] for row in categories}
    return [frequencies[number] for number in range(len(truth.class_names))]
