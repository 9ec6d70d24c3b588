"""The analysis of an evaluation against hotcoco, and against counts by hand."""

from __future__ import annotations

from typing import Any

import hotcoco
import numpy as np
import pytest

from detrkit.metrics.coco import CocoMetric
from detrkit.metrics.lvis import LvisMetric
from detrkit.metrics.result_files import read_results
from detrkit.report import Analysis, analyse, scored_set
from detrkit.report.best_threshold import FEWEST_OBJECTS
from detrkit.report.confusion import confusion_matrix
from detrkit.report.intervals import ap_intervals
from detrkit.report.matching import match_objects
from detrkit.report.mistakes import MISTAKES, find_mistakes, worst_images
from detrkit.report.subset import above
from tests.report.sets import Rows, simulated


def analysed(truth: dict[str, Any], results: Rows) -> Analysis:
    metric = CocoMetric(truth)
    return analyse(metric, read_results(results, metric.truth, iou_type="bbox"))


def judged(truth: dict[str, Any], results: Rows) -> Any:
    """hotcoco's evaluation of the same files."""
    coco = hotcoco.COCO(truth)
    evaluation = hotcoco.COCOeval(coco, coco.load_res(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize(("seed", "crowds"), [(0, False), (1, True), (2, True)])
def test_numbers_equal_hotcoco(seed: int, crowds: bool) -> None:
    """AP of the intervals, confusion, calibration and TIDE."""
    truth, results = simulated(seed=seed, crowds=crowds)
    found, other = analysed(truth, results), judged(truth, results)
    assert len(found.data.found) == len(results)
    assert found.intervals.overall is not None
    assert found.intervals.overall.value == pytest.approx(found.score.value, abs=1e-12)
    for name, interval in zip(found.data.class_names, found.intervals.per_class, strict=True):
        assert interval is not None
        assert interval.value == pytest.approx(found.score.per_class[name]["AP"], abs=1e-12)
    tide = other.tide_errors()
    assert found.tide.cost == tide["delta_ap"]
    assert found.tide.counts == tide["counts"]
    assert found.tide.ap50 == pytest.approx(found.score.metrics["AP50"])
    if not crowds:
        theirs = other.calibration()
        assert found.calibration.error == pytest.approx(theirs["ece"])
        assert found.calibration.count.tolist() == [row["count"] for row in theirs["bins"]]


def test_confusion_equals_hotcoco() -> None:
    """All detections, and those above a threshold; rows are the ground truth."""
    truth, results = simulated(seed=3)
    found, other = analysed(truth, results), judged(truth, results)
    for least in (0.0, 0.5):
        ours = confusion_matrix(found.data, thresholds=np.full(3, least))
        theirs = other.confusion_matrix(min_score=least)
        assert ours.counts.tolist() == theirs["matrix"].tolist()
        assert ours.shares == pytest.approx(theirs["normalized"])
    assert ours.names == ("class 0", "class 1", "class 2", "background")


def test_masks_are_matched_by_their_pixels() -> None:
    """A mask over half of its box: boxes agree, masks do not."""
    truth, _ = simulated(images=1, seed=0)
    half = np.zeros((120, 120), dtype=np.uint8)
    half[10:30, 10:20] = 1
    whole = half.copy()
    whole[10:30, 10:30] = 1
    encode = hotcoco.mask.encode
    truth["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 10, "bbox": [10, 10, 20, 20], "segmentation": _text(encode(whole))}
    ]
    results = [
        {"image_id": 1, "category_id": 10, "score": 0.9, "segmentation": _text(encode(half))},
        {"image_id": 1, "category_id": 10, "score": 0.8, "segmentation": _text(encode(whole))},
    ]
    metric = CocoMetric(truth, iou_type="segm")
    found = analyse(metric, read_results(results, metric.truth, iou_type="segm"))
    assert found.data.overlaps[0].ravel().tolist() == [0.5, 1.0]
    assert found.matches.object[:, 0].tolist() == [0] + [-1] * 9
    assert found.intervals.overall is not None
    assert found.intervals.overall.value == pytest.approx(found.score.value)


def _text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def test_lvis_leaves_out_what_is_not_judged() -> None:
    truth, results = simulated(images=30, seed=5)
    for number, image in enumerate(truth["images"]):
        image["neg_category_ids"] = [10] if number % 2 else []
        image["not_exhaustive_category_ids"] = [20] if number % 3 else []
    for category in truth["categories"]:
        category["frequency"] = "f"
    metric = LvisMetric(truth)
    found = analyse(metric, read_results(results, metric.truth, iou_type="bbox"))
    assert 0 < len(found.data.found) < len(results)
    assert found.matches.ignored.any()
    assert found.intervals.overall is not None
    assert found.intervals.overall.value == pytest.approx(found.score.value, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_has_the_highest_f1(seed: int) -> None:
    """F1 counted anew for every score that occurs."""
    found = analysed(*simulated(images=40, seed=seed))
    data, objects = found.data, len(found.data.truth)
    best = 0.0
    for least in np.unique(data.found.score):
        kept = above(data, np.full(3, least))
        right = int(match_objects(kept).right.sum())
        f1 = 2 * right / (len(kept.found) + objects)
        best = max(best, f1)
        assert found.curve.at(float(least)).f1 == pytest.approx(f1)
    assert found.curve.at(found.threshold).f1 == pytest.approx(best)
    for curve, threshold in zip(found.class_curves, found.thresholds, strict=True):
        if curve.objects >= FEWEST_OBJECTS:
            assert curve.at(float(threshold)).f1 == pytest.approx(curve.f1.max())
        else:
            assert threshold == found.threshold


def test_a_curve_without_detections() -> None:
    truth, _ = simulated(seed=0)
    metric = CocoMetric(truth)
    found = analyse(metric, read_results([], metric.truth, iou_type="bbox"), image_ids=list(metric.truth.image_numbers))
    assert found.threshold == 0.3
    assert found.curve.at(0.5) == (1.0, 0.0, 0.0)
    assert found.confusion.counts[:3, 3].sum() == len(truth["annotations"])
    assert found.calibration.error == 0.0
    assert {image.reason for image in found.worst} == {"missed"}


def test_mistakes_by_name() -> None:
    """One image with one mistake of each kind."""
    boxes = {"right": [0, 0, 20, 20], "other": [40, 0, 20, 20], "far": [80, 80, 20, 20], "loose": [0, 80, 20, 20]}
    truth, _ = simulated(images=2, seed=0)
    truth["annotations"] = [
        {"id": n, "image_id": 1, "category_id": 10, "bbox": box, "area": 400, "iscrowd": 0}
        for n, box in enumerate(boxes.values(), start=1)
    ]
    found = [
        (10, boxes["right"], 0.9, None),
        (10, [1, 0, 20, 20], 0.8, "duplicate"),
        (20, boxes["other"], 0.7, "wrong class"),
        (10, [0, 92, 20, 20], 0.6, "loose box"),
        (10, [40, 40, 10, 10], 0.5, "false"),
    ]
    results = [{"image_id": 1, "category_id": c, "bbox": box, "score": score} for c, box, score, _ in found]
    metric = CocoMetric(truth)
    data = scored_set(metric, read_results(results, metric.truth, iou_type="bbox"))
    mistakes = find_mistakes(data)
    assert list(mistakes.found) == [kind for *_, kind in found]
    assert mistakes.missed.tolist() == [False, False, True, False]
    (worst,) = worst_images(data, mistakes)
    assert (worst.position, worst.reason) == (0, "missed")
    assert worst.counts == dict.fromkeys(MISTAKES, 1)
    assert worst.cost == pytest.approx(1 + 0.8 + 0.7 + 0.6 + 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "classes", "quality"), [(60, 2, 0.8), (40, 3, 0.5)])
def test_intervals_hold_the_truth(images: int, classes: int, quality: float) -> None:
    """200 sets drawn from many images whose AP is known: 90 to 99 % of the intervals hold it."""
    population = analysed(*simulated(images=2000, seed=7, classes=classes, quality=quality))
    truth = population.score.value
    assert truth is not None
    inside = 0
    for seed in range(1, 201):
        small = analysed(*simulated(images=images, seed=1000 + seed, classes=classes, quality=quality))
        interval = ap_intervals(small.data, small.matches, rounds=100, seed=seed).overall
        assert interval is not None
        inside += interval.low <= truth <= interval.high
    assert 180 <= inside <= 198
