"""pycocotools as the oracle: the same 12 numbers, overall and per class, None if undefined."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def pycocotools_score(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str = "bbox"
) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
    """(12 numbers, category id -> its AP, AP50, AP75, AR1, AR10, AR100)."""
    gt = COCO()
    gt.dataset = copy.deepcopy(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        if results:
            dt = gt.loadRes(copy.deepcopy(results))
        else:  # loadRes of pycocotools does not accept an empty list
            dt = COCO()
            dt.dataset = {**ground_truth, "annotations": []}
            dt.createIndex()
        evaluation = COCOeval(gt, dt, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    def defined(values: Any) -> float | None:
        values = np.asarray(values)
        values = values[values > -1]
        return float(values.mean()) if values.size else None

    totals = {name: None if value == -1 else float(value) for name, value in zip(NAMES, evaluation.stats, strict=True)}
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    per_class = {
        category_id: {
            "AP": defined(precision[:, :, k, 0, 2]),
            "AP50": defined(precision[0, :, k, 0, 2]),
            "AP75": defined(precision[5, :, k, 0, 2]),
            "APs": defined(precision[:, :, k, 1, 2]),
            "AR1": defined(recall[:, k, 0, 0]),
            "AR10": defined(recall[:, k, 0, 1]),
            "AR100": defined(recall[:, k, 0, 2]),
            "ARl": defined(recall[:, k, 3, 2]),
        }
        for k, category_id in enumerate(evaluation.params.catIds)
    }
    return totals, per_class
