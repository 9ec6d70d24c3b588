"""COCO average precision and recall of boxes and masks.

The numbers are those of pycocotools (spec: cocodataset.org/#detection-eval); hotcoco computes them, and this is the
only file that knows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import hotcoco
import numpy as np

from detrkit.metrics.coco_json import read_ground_truth, read_results
from detrkit.metrics.score import Score

__all__ = ["METRICS", "score_coco"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

# Positions on the axes of hotcoco's arrays: IoU thresholds .50, .55 … .95; areas all, small, medium, large;
# at most 1, 10, 100 detections an image and class.
_IOU50, _IOU75 = 0, 5
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
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
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type must be 'bbox' or 'segm', not {iou_type!r}")
    truth = read_ground_truth(ground_truth, iou_type=iou_type)
    rows = read_results(results, truth, iou_type=iou_type)

    gt = hotcoco.COCO(truth.dataset)
    unmeasured = [row["id"] for row in truth.dataset["annotations"] if "area" not in row]
    if unmeasured:
        masks = [gt.ann_to_rle(row) for row in gt.load_anns(unmeasured)]
        gt.update_anns(ids=unmeasured, area=[float(hotcoco.mask.area(mask)) for mask in masks])
    evaluation = hotcoco.COCOeval(gt, gt.load_res(rows), iou_type)
    # Unlike summarize(), these two print nothing: stdout belongs to the caller.
    if class_agnostic:
        evaluation.params.use_cats = False
    evaluation.evaluate()
    evaluation.accumulate()
    arrays = evaluation.eval
    if arrays is None:
        raise RuntimeError("hotcoco returned no evaluation")
    precision: FloatArray = arrays["precision"]  # (IoU, recall points, classes, areas, max detections); -1 undefined
    recall: FloatArray = arrays["recall"]  # (IoU, classes, areas, max detections)

    per_class = {}
    if not class_agnostic:
        for k, name in enumerate(truth.class_names):
            per_class[name] = _summary(precision[:, :, k : k + 1], recall[:, k : k + 1])
    return Score(protocol="coco", iou_type=iou_type, metrics=_summary(precision, recall), per_class=per_class)


def _summary(precision: FloatArray, recall: FloatArray) -> dict[str, float | None]:
    """The 12 COCO numbers over the classes in the arrays."""
    numbers: dict[str, float | None] = {
        "AP": _mean(precision[:, :, :, 0, 2]),
        "AP50": _mean(precision[_IOU50, :, :, 0, 2]),
        "AP75": _mean(precision[_IOU75, :, :, 0, 2]),
    }
    for suffix in "sml":
        numbers[f"AP{suffix}"] = _mean(precision[:, :, :, _AREAS[suffix], 2])
    for limit, position in _MAX_DETECTIONS.items():
        numbers[f"AR{limit}"] = _mean(recall[:, :, 0, position])
    for suffix in "sml":
        numbers[f"AR{suffix}"] = _mean(recall[:, :, _AREAS[suffix], 2])
    return numbers


def _mean(values: FloatArray) -> float | None:
    """Mean over the defined entries; None when the ground truth has nothing of the kind."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
