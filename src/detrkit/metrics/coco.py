"""COCO average precision and recall of boxes and masks.

The numbers are those of pycocotools (spec: cocodataset.org/#detection-eval); hotcoco computes them, and this is the
only file that knows it. LVIS counts otherwise (``detrkit.metrics.lvis``) but matches and averages by the same means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import hotcoco
import numpy as np

from detrkit.metrics.coco_json import GroundTruth, read_ground_truth, read_results
from detrkit.metrics.score import Score

__all__ = ["METRICS", "FloatArray", "check_iou_type", "evaluate", "mean_defined", "score_coco"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

# Positions on the axes of hotcoco's arrays: IoU thresholds .50, .55 … .95; areas all, small, medium, large;
# at most 1, 10, 100 detections an image and class.
IOU50, IOU75 = 0, 5
AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
_MAX_DETECTIONS = {"1": 0, "10": 1, "100": 2}

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def score_coco(
    ground_truth: Mapping[str, Any] | str | Path,
    results: Sequence[Mapping[str, Any]] | Mapping[str, Any] | str | Path,
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
    class_agnostic: bool = False,
) -> Score:
    """COCO AP and AR of a results list against ground truth, overall and for each class.

    ground_truth: COCO annotations as a file or its content. results: the COCO results list, or a JSON object with
    ``images`` and ``annotations`` such as the ``predictions.json`` of ``detrkit predict``, whose images are matched by
    file name. iou_type: overlap of ``"bbox"`` or of ``"segm"`` masks. class_agnostic: boxes may match boxes of any
    class (pycocotools ``useCats=0``); there is then no per-class table.

    Results of a class that the ground truth does not list are left out with a warning, as in pycocotools.

    Raises:
        DataError: a file is missing or is not what it should be; the message names the file and the row.
    """
    check_iou_type(iou_type)
    truth = read_ground_truth(ground_truth, iou_type=iou_type)
    rows = read_results(results, truth, iou_type=iou_type)
    precision, recall = evaluate(truth, rows, iou_type=iou_type, class_agnostic=class_agnostic)

    per_class = {}
    if not class_agnostic:
        for k, name in enumerate(truth.class_names):
            per_class[name] = _summary(precision[:, :, k : k + 1], recall[:, k : k + 1])
    return Score(protocol="coco", iou_type=iou_type, metrics=_summary(precision, recall), per_class=per_class)


def check_iou_type(iou_type: str) -> None:
    """Raises ValueError for anything but "bbox" and "segm"."""
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type must be 'bbox' or 'segm', not {iou_type!r}")


def evaluate(
    truth: GroundTruth,
    rows: list[dict[str, Any]],
    *,
    iou_type: str,
    class_agnostic: bool = False,
    lvis_detections: int | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Precision (IoU, recall points, classes, areas, max detections) and recall (the same without recall points).

    -1 stands where there is no ground truth of the kind. lvis_detections: count as LVIS does, with at most so many
    detections an image over all classes; the last axis then has length 1.
    """
    gt = hotcoco.COCO(truth.dataset)
    unmeasured = [row["id"] for row in truth.dataset["annotations"] if "area" not in row]
    if unmeasured:
        masks = [gt.ann_to_rle(row) for row in gt.load_anns(unmeasured)]
        gt.update_anns(ids=unmeasured, area=[float(hotcoco.mask.area(mask)) for mask in masks])
    if lvis_detections is None:
        evaluation = hotcoco.COCOeval(gt, gt.load_res(rows), iou_type)
    else:
        evaluation = hotcoco.COCOeval(gt, hotcoco.LVISResults(gt, rows, lvis_detections), iou_type, lvis_style=True)
        evaluation.params.max_dets = [lvis_detections]
    if class_agnostic:
        evaluation.params.use_cats = False
    # Unlike summarize(), these two print nothing: stdout belongs to the caller.
    evaluation.evaluate()
    evaluation.accumulate()
    arrays = evaluation.eval
    if arrays is None:
        raise RuntimeError("hotcoco returned no evaluation")
    return arrays["precision"], arrays["recall"]


def _summary(precision: FloatArray, recall: FloatArray) -> dict[str, float | None]:
    """The 12 COCO numbers over the classes in the arrays."""
    numbers: dict[str, float | None] = {
        "AP": mean_defined(precision[:, :, :, 0, 2]),
        "AP50": mean_defined(precision[IOU50, :, :, 0, 2]),
        "AP75": mean_defined(precision[IOU75, :, :, 0, 2]),
    }
    for suffix in "sml":
        numbers[f"AP{suffix}"] = mean_defined(precision[:, :, :, AREAS[suffix], 2])
    for limit, position in _MAX_DETECTIONS.items():
        numbers[f"AR{limit}"] = mean_defined(recall[:, :, 0, position])
    for suffix in "sml":
        numbers[f"AR{suffix}"] = mean_defined(recall[:, :, AREAS[suffix], 2])
    return numbers


def mean_defined(values: FloatArray) -> float | None:
    """Mean over the defined entries; None when the ground truth has nothing of the kind."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
