"""Rules of every protocol: an image counts once, images without a result do not count, ranks are merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from detrkit.data.records import ScoreProtocol
from detrkit.errors import DataError
from detrkit.metrics import PROTOCOLS, Metric, Score, metric_for, score_coco, score_lvis
from detrkit.metrics.coco import CocoMetric
from detrkit.metrics.instances import InstanceMetric
from detrkit.metrics.lvis import LvisMetric
from detrkit.structures import Categories, Category, Detections, Masks, SemanticMap

CATEGORIES = Categories([Category(4, "cell"), Category(2, "debris"), Category(9, "ring")])
IMAGES = [11, 3, 25, 8, 40, 17]
SCORES = {CocoMetric: score_coco, LvisMetric: score_lvis}


def ground_truth(seed: int = 0) -> dict[str, Any]:
    """Six images with objects of three classes, with the keys of LVIS."""
    random = np.random.default_rng(seed)
    annotations = []
    for image_id in IMAGES:
        for x, y, width, height in random.uniform(5, 60, (5, 4)).tolist():
            box = [x, y, width, height]
            row = {"image_id": image_id, "category_id": int(random.choice(CATEGORIES.ids)), "bbox": box}
            annotations.append({**row, "id": len(annotations) + 1, "area": width * height, "iscrowd": 0})
    lvis = {"neg_category_ids": [], "not_exhaustive_category_ids": [9]}
    return {
        "images": [{"id": image_id, "file_name": f"{image_id}.png", **lvis} for image_id in IMAGES],
        "categories": [{**row, "frequency": "rcf"[k]} for k, row in enumerate(CATEGORIES.to_json())],
        "annotations": annotations,
    }


def detections(truth: dict[str, Any], image_id: int, *, noise: float = 8.0, seed: int = 1) -> Detections:
    """The objects of an image with shifted boxes, one of them with a wrong class."""
    random = np.random.default_rng(seed + image_id)
    rows = [row for row in truth["annotations"] if row["image_id"] == image_id]
    boxes = np.array([row["bbox"] for row in rows]) + random.uniform(0, noise, (len(rows), 4))
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([CATEGORIES.ids.index(row["category_id"]) for row in rows])
    labels[0] = (labels[0] + 1) % 3
    scores = np.sort(random.uniform(0, 1, len(rows)))[::-1]
    return Detections(
        boxes=boxes.astype(np.float32),
        scores=scores.astype(np.float32),
        labels=labels,
        categories=CATEGORIES,
        image_size=(200, 200),
    )


@pytest.fixture(params=[CocoMetric, LvisMetric])
def kind(request: pytest.FixtureRequest) -> type[CocoMetric] | type[LvisMetric]:
    chosen: type[CocoMetric] | type[LvisMetric] = request.param
    return chosen


def scored(kind: type[InstanceMetric], truth: dict[str, Any], image_ids: list[int]) -> Score:
    """The score of the detections in some images, on ground truth with only these images."""
    only = {
        **truth,
        "images": [row for row in truth["images"] if row["id"] in image_ids],
        "annotations": [row for row in truth["annotations"] if row["image_id"] in image_ids],
    }
    rows = [row for image_id in image_ids for row in detections(truth, image_id).to_coco(image_id)]
    return SCORES[kind](only, rows)


def test_detections_have_the_same_score_through_to_coco_and_a_metric(kind: type[CocoMetric] | type[LvisMetric]) -> None:
    truth = ground_truth()
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] == 3]
    found = detections(truth, 3, noise=0.0)
    found.labels[0] = (found.labels[0] + 2) % 3
    assert SCORES[kind](truth, found.to_coco(3)).value == pytest.approx(1.0)
    metric = kind(truth)
    for image_id in IMAGES:
        metric.update(image_id, found if image_id == 3 else found.keep(slice(0)))
    assert metric.compute().value == pytest.approx(1.0)


@pytest.mark.parametrize("count", range(len(IMAGES) + 1))
def test_images_without_a_result_do_not_count(kind: type[CocoMetric] | type[LvisMetric], count: int) -> None:
    truth = ground_truth()
    metric = kind(truth)
    for image_id in IMAGES[:count]:
        metric.update(image_id, detections(truth, image_id))
    score = metric.compute()
    assert score == scored(kind, truth, IMAGES[:count])
    assert (score.value is None) == (count == 0)


def test_an_image_counts_once(kind: type[CocoMetric] | type[LvisMetric]) -> None:
    truth = ground_truth()
    metric = kind(truth)
    for image_id in (*IMAGES, *IMAGES):
        metric.update(image_id, detections(truth, image_id))
    metric.update(IMAGES[0], detections(truth, IMAGES[0], noise=0.0))
    assert metric.compute() == scored(kind, truth, IMAGES)
    metric.reset()
    metric.update(IMAGES[1], detections(truth, IMAGES[1]))
    assert metric.compute() == scored(kind, truth, IMAGES[1:2])


def test_ranks_are_merged(kind: type[CocoMetric] | type[LvisMetric]) -> None:
    """Two ranks share the images; both have the third image, with different results."""
    truth = ground_truth()
    ranks = [kind(truth), kind(truth)]
    for metric, image_ids, noise in zip(ranks, (IMAGES[:3], IMAGES[2:]), (8.0, 0.0), strict=True):
        for image_id in image_ids:
            metric.update(image_id, detections(truth, image_id, noise=noise if image_id == IMAGES[2] else 8.0))
    states: list[Any] = [metric.extracts for metric in ranks]
    for metric in ranks:
        metric.merge(lambda state: states)
    assert [metric.compute() for metric in ranks] == [scored(kind, truth, IMAGES)] * 2


def test_all_protocols_are_registered() -> None:
    assert set(PROTOCOLS) == set(get_args(ScoreProtocol)), "every data set has a protocol"
    for name, kind in PROTOCOLS.items():
        assert issubclass(kind, Metric)
        assert kind.protocol == name
        metric = kind.of(Annotated(name))
        score = metric.compute()
        assert (score.protocol, score.headline, score.primary) == (name, metric.headline, metric.primary)
        assert set(metric.headline) <= set(score.metrics)
        assert all(set(metric.class_columns) <= set(numbers) for numbers in score.per_class.values())


class Annotated:
    """The minimal data set that a metric needs."""

    max_detections: int | None = None

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.iou_type = "bbox"

    def coco_ground_truth(self) -> dict[str, Any]:
        return ground_truth()

    def panoptic_ground_truth(self) -> tuple[dict[str, Any], Callable[[str], Any]]:
        rows = {"categories": [{**row, "isthing": 1} for row in CATEGORIES.to_json()]}
        annotation = {"image_id": 3, "file_name": "3.png", "segments_info": []}
        return {**rows, "images": [{"id": 3}], "annotations": [annotation]}, lambda name: np.zeros((2, 2), dtype=int)

    def semantic_ground_truth(self) -> tuple[Categories, Callable[[int], SemanticMap]]:
        return CATEGORIES, lambda image_id: SemanticMap(np.zeros((2, 2), dtype=np.uint8), CATEGORIES)

    def instance_ids(self, image_id: int) -> Any:
        return np.zeros((2, 2), dtype=np.int32)


class Boxes:
    """A data set that has no maps."""

    protocol = "panoptic"

    def coco_ground_truth(self) -> dict[str, Any]:
        return ground_truth()


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("panoptic", "panoptic ground truth"), ("semantic", "class maps"), ("cityscapes", "label images")],
)
def test_data_without_maps_are_refused(name: str, lacking: str) -> None:
    with pytest.raises(DataError, match=f"the data have no {lacking}"):
        PROTOCOLS[name].of(Boxes())


class MaskedData:
    """One image with a square of 10 pixels as an instance."""

    protocol, iou_type, max_detections = "coco", "segm", None
    categories = Categories([Category(4, "square")])

    def coco_ground_truth(self) -> dict[str, object]:
        square = [[5, 5, 15, 5, 15, 15, 5, 15]]
        row = {"id": 1, "image_id": 1, "category_id": 4, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0}
        return {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
            "annotations": [{**row, "segmentation": square}],
            "categories": self.categories.to_json(),
        }


def test_masks_and_their_boxes_are_scored_side_by_side() -> None:
    bitmap = np.zeros((1, 30, 40), dtype=bool)
    bitmap[0, 5:15, 5:15] = True
    found = Detections(
        boxes=np.array([[5, 5, 15, 21]], dtype=np.float32),  # IoU 0.625 with the true box
        scores=np.array([0.9], dtype=np.float32),
        labels=np.array([0]),
        categories=MaskedData.categories,
        image_size=(30, 40),
        masks=Masks.of(bitmap, (30, 40)),
    )
    metric = metric_for(MaskedData())
    metric.update(1, found)
    score = metric.compute()
    assert (score.iou_type, score.primary) == ("segm", "AP")
    assert score.metrics["AP"] == pytest.approx(1.0)
    assert score.metrics["box_AP50"] == pytest.approx(1.0)
    assert score.metrics["box_AP75"] == 0.0
    assert score.metrics["box_AP"] == pytest.approx(0.3)
