"""Cityscapes from gtFine as it is downloaded: the four tasks, what does not count, and perfect predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detrkit.data import DetectionDataset, EvalTransform, load_dataset
from detrkit.data.ground_truth import semantic_map
from detrkit.metrics import metric_for
from detrkit.metrics.cityscapes import CityscapesMetric
from detrkit.structures import Detections, Masks, PanopticMap
from detrkit.structures.segment_maps import Segment
from tests.data.test_gtfine import write
from tests.data.trees import write_image

THINGS = ["person", "car", "train", "rider", "truck", "motorcycle", "bicycle", "bus"]
STUFF = ["road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"]
STUFF += ["vegetation", "terrain", "sky"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, city in (("train", "aachen"), ("val", "munster")):
        for number in range(2):
            values = np.full((40, 60), 7)  # road
            values[:10] = 23  # sky
            values[:, 0] = 0  # unlabeled
            values[12:24, 4:16] = 26_000  # a car
            values[12:24, 20:32] = 26_001
            values[14:26, 36:48] = 24_000 + number
            values[30:38, 2:12] = 24  # a group of persons
            values[30:38, 20:32] = 29_000  # a single caravan
            values[30:38, 40:50] = 4  # static
            name = f"{city}_{number:06d}_000019"
            write(tmp_path, name, values, split=split, city=city)
            write_image(tmp_path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", (60, 40))
    return tmp_path


def load(root: Path, split: str, task: str) -> DetectionDataset:
    """The data set with images of their own size."""
    return load_dataset(root, split=split, task=task).with_transform(EvalTransform(short_side=40, max_side=60))


@pytest.mark.parametrize(
    ("task", "names", "labels"),
    [
        ("det", THINGS, ["car", "car", "person"]),
        ("inst", THINGS, ["car", "car", "person"]),
        ("sem", THINGS + STUFF, ["car", "person", "road", "sky"]),
        ("pan", THINGS + STUFF, ["car", "car", "person", "road", "sky"]),
    ],
)
def test_every_task(root: Path, task: str, names: list[str], labels: list[str]) -> None:
    dataset = load(root, "train", task)
    assert dataset.categories.names == names
    target = dataset[0].target
    assert sorted(names[label] for label in target.labels.tolist()) == labels
    if task == "det":
        assert target.masks is None
        return
    assert target.masks is not None
    assert not target.masks[:, :, 0].any(), "void belongs to nothing"
    areas = {names[label]: int(mask.sum()) for label, mask in zip(target.labels.tolist(), target.masks, strict=True)}
    assert areas["person"] == (144 + 80 if task == "sem" else 144), "a group belongs to its class, but is no object"
    assert areas["car"] == (288 if task == "sem" else 144)
    assert dataset.protocol == {"inst": "cityscapes", "sem": "semantic", "pan": "panoptic"}[task]


def test_labels_of_detection_are_those_of_the_conversion(root: Path) -> None:
    record = load_dataset(root).records[0]
    assert record.file_name == "aachen/aachen_000000_000019_leftImg8bit.png"
    assert record.boxes.tolist() == [[36, 14, 48, 26], [4, 12, 16, 24], [20, 12, 32, 24]]
    assert record.crowd_boxes.tolist() == [[2, 30, 12, 38]]


def true_instances(dataset: DetectionDataset, index: int) -> Detections:
    target = dataset[index].target
    assert target.masks is not None
    record, masks = dataset.records[index], target.masks.numpy()
    return Detections(
        boxes=record.boxes.astype(np.float32),
        scores=np.ones(len(masks), dtype=np.float32),
        labels=target.labels.numpy(),
        categories=dataset.categories,
        image_size=(record.height, record.width),
        masks=Masks.of(masks, (record.height, record.width)),
    )


def test_perfect_predictions_score_1_in_every_protocol(root: Path) -> None:
    instances = load(root, "val", "inst")
    metric = metric_for(instances)
    assert isinstance(metric, CityscapesMetric)
    for index, record in enumerate(instances.records):
        metric.update(record.image_id, true_instances(instances, index))
    score = metric.compute()
    assert score.metrics == {"AP": 1.0, "AP50": 1.0}
    assert score.per_class["rider"]["AP"] is None

    classes = load(root, "val", "sem")
    metric = metric_for(classes)
    for record in classes.records:
        metric.update(record.image_id, semantic_map(record, classes.categories))
    assert metric.compute().metrics["mIoU"] == 1.0

    segments = load(root, "val", "pan")
    metric = metric_for(segments)
    for index, record in enumerate(segments.records):
        target = segments[index].target
        assert target.masks is not None
        ids = (target.masks.numpy() * np.arange(1, len(target.labels) + 1)[:, None, None]).sum(axis=0)
        found = tuple(Segment(number, label) for number, label in enumerate(target.labels.tolist(), start=1))
        metric.update(record.image_id, PanopticMap(ids.astype(np.int32), found, segments.categories))
    assert metric.compute().metrics["PQ"] == 1.0
