"""Matching some images at a time gives the numbers of matching all at once."""

from __future__ import annotations

from typing import Any

import hotcoco
import numpy as np
import pytest

from detrkit.metrics import instances
from detrkit.metrics.coco import CocoMetric
from detrkit.metrics.lvis import LvisMetric
from detrkit.metrics.result_files import read_results

IMAGES, CLASSES = 30, 9


def data(*, masks: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """LVIS ground truth, and results of which many have equal scores."""
    random = np.random.default_rng(1)
    truth: dict[str, Any] = {
        "images": [
            {
                "id": number,
                "width": 100,
                "height": 100,
                "neg_category_ids": sorted(set(random.integers(1, CLASSES + 1, 3).tolist())),
                "not_exhaustive_category_ids": random.integers(1, CLASSES + 1, 1).tolist(),
            }
            for number in range(1, IMAGES + 1)
        ],
        "categories": [{"id": number, "name": str(number), "frequency": "rcf"[number % 3]} for number in range(1, 10)],
        "annotations": [],
    }
    results = []
    for number, image in enumerate(random.integers(1, IMAGES + 1, 200).tolist(), start=1):
        x, y, w, h = [*random.uniform(0, 60, 2).tolist(), *random.uniform(5, 40, 2).tolist()]
        row = {"id": number, "image_id": image, "category_id": int(random.integers(1, CLASSES + 1)), "iscrowd": 0}
        truth["annotations"].append({**row, "bbox": [x, y, w, h], "segmentation": outline(x, y, w, h)})
        if not masks or number % 2:
            truth["annotations"][-1]["area"] = w * h
        for _ in range(3):
            box = [x + random.normal(0, 2), y + random.normal(0, 2), w, h]
            score = float(random.integers(0, 20)) / 20
            found = {"image_id": image, "category_id": row["category_id"], "score": score}
            results.append({**found, "segmentation": outline(*box)} if masks else {**found, "bbox": box})
    return truth, results


def outline(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("ids", [None, [3, 5, 9, 30, 77], []])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco_in_parts(monkeypatch: pytest.MonkeyPatch, iou_type: Any, ids: list[int] | None, agnostic: bool) -> None:
    monkeypatch.setattr(instances, "_OBJECTS", {"bbox": 50, "segm": 50})
    truth, results = data(masks=iou_type == "segm")
    metric = CocoMetric(truth, iou_type=iou_type)
    table = read_results(results, metric.truth, iou_type=iou_type)
    found = metric.curves(table, ids, class_agnostic=agnostic, max_detections=[1, 10, 100])
    whole = hotcoco.COCO(metric.truth.dataset)
    if iou_type == "segm":
        areas = [float(hotcoco.mask.area(whole.ann_to_rle(row))) for row in metric.truth.dataset["annotations"]]
        known = {row["id"]: row["area"] for row in metric.truth.dataset["annotations"] if "area" in row}
        assert 0 < len(known) < len(areas)
        whole.update_anns(
            ids=list(range(1, len(areas) + 1)), area=[known.get(n, area) for n, area in enumerate(areas, 1)]
        )
    loaded = whole.load_res(list(table.mask_results()) if iou_type == "segm" else table.numbers)
    evaluation = hotcoco.COCOeval(whole, loaded, iou_type)
    evaluation.params.use_cats = not agnostic
    if ids is not None:
        evaluation.params.img_ids = [number for number in ids if number <= IMAGES] or [0]
    evaluation.evaluate()
    evaluation.accumulate()
    assert found.precision.tolist() == evaluation.eval["precision"].tolist()
    assert found.recall.tolist() == evaluation.eval["recall"].tolist()
    assert ids == [] or (found.precision > 0).any()


@pytest.mark.parametrize("limit", [4, 300])
def test_lvis_in_parts(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(instances, "_OBJECTS", {"bbox": 50, "segm": 50})
    truth, results = data()
    metric = LvisMetric(truth, max_detections=limit)
    table = read_results(results, metric.truth, iou_type="bbox")
    found = metric.curves(table, None, max_detections=[limit], lvis=True)
    whole = hotcoco.COCO(metric.truth.dataset)
    evaluation = hotcoco.COCOeval(whole, hotcoco.LVISResults(whole, table.numbers, limit), "bbox", lvis_style=True)
    evaluation.params.max_dets = [limit]
    evaluation.evaluate()
    evaluation.accumulate()
    assert found.precision.tolist() == evaluation.eval["precision"].tolist()
    assert found.recall.tolist() == evaluation.eval["recall"].tolist()
