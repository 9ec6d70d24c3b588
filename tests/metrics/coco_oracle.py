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
    evaluation = _evaluation(ground_truth, results, iou_type, limits=[1, 10, 100])
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    totals = {name: None if value == -1 else float(value) for name, value in zip(NAMES, evaluation.stats, strict=True)}
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    per_class = {
        category_id: {
            "AP": _mean(precision[:, :, k, 0, 2]),
            "AP50": _mean(precision[0, :, k, 0, 2]),
            "AP75": _mean(precision[5, :, k, 0, 2]),
            "APs": _mean(precision[:, :, k, 1, 2]),
            "AR1": _mean(recall[:, k, 0, 0]),
            "AR10": _mean(recall[:, k, 0, 1]),
            "AR100": _mean(recall[:, k, 0, 2]),
            "ARl": _mean(recall[:, k, 3, 2]),
        }
        for k, category_id in enumerate(evaluation.params.catIds)
    }
    return totals, per_class


def pycocotools_ap(ground_truth: dict[str, Any], results: list[dict[str, Any]], limit: int) -> float | None:
    """AP of the ``limit`` best boxes per image and class."""
    evaluation = _evaluation(ground_truth, results, "bbox", limits=[limit])
    return _mean(evaluation.eval["precision"][:, :, :, 0, 0])


def _evaluation(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str, *, limits: list[int]
) -> COCOeval:
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
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _mean(values: Any) -> float | None:
    values = np.asarray(values)
    values = values[values > -1]
    return float(values.mean()) if values.size else None
