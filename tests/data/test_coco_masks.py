"""COCO files with masks: read compactly, for tasks that need them, and checked in plain words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as oracle

from detrkit.data import load_dataset
from detrkit.data.convert import to_coco
from detrkit.data.formats import find_source, read_source
from detrkit.data.once import read_once
from detrkit.data.packed_masks import unpack
from detrkit.data.statistics import statistics
from detrkit.errors import DataError
from tests.data.trees import coco_tree, edit

Change = Callable[[dict[str, Any]], object]


def rectangle(bbox: list[int]) -> list[list[int]]:
    x, y, w, h = bbox
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def with_masks(data: dict[str, Any]) -> None:
    for row in data["annotations"]:
        row["segmentation"] = rectangle(row["bbox"])


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    def build(change: Change = lambda data: None) -> Path:
        root = coco_tree(tmp_path / "data")
        for split in ("train", "val"):
            edit(root / "annotations" / f"instances_{split}.json", with_masks)
        edit(root / "annotations" / "instances_train.json", change)
        return root

    return build


def test_masks_are_read_for_tasks_that_need_them(tree: Any) -> None:
    root = tree()
    detection, instances = load_dataset(root), load_dataset(root, task="inst")
    assert detection.records[0].segments.masks is None
    assert detection[0].target.masks is None
    assert (detection.task, instances.task) == ("det", "inst")
    for index in range(3):
        boxes, masks = detection[index].target, instances[index].target
        assert masks.masks is not None
        assert masks.is_thing is not None
        assert masks.labels.tolist() == boxes.labels.tolist()
        assert np.abs((masks.boxes - boxes.boxes).numpy()).max(initial=0) < 1 / 800
        assert masks.masks.shape == (len(masks), *masks.size)
        assert masks.is_thing.all()
    assert statistics(instances) == statistics(detection)


def test_masks_of_one_split_share_one_buffer(tree: Any) -> None:
    records = load_dataset(tree(), task="inst").records
    assert len({id(record.segments.masks.buffer) for record in records if record.segments.masks is not None}) == 1


def test_semantic_classes_are_united_with_crowds_and_panoptic_leaves_crowds_out(tree: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["annotations"][0].update(category_id=2)
        data["annotations"][1].update(iscrowd=1)

    root = tree(change)
    labels = {task: load_dataset(root, task=task)[0].target.labels.tolist() for task in ("det", "inst", "sem", "pan")}
    assert labels == {"det": [1], "inst": [1], "sem": [1], "pan": [1]}
    masks = {task: load_dataset(root, task=task)[0].target.masks for task in ("inst", "sem")}
    assert masks["sem"].sum() > 3 * masks["inst"].sum()


def test_stuff_belongs_to_semantic_and_panoptic_tasks(tree: Any) -> None:
    root = tree(lambda data: data["categories"][0].update(isthing=0))
    names = {task: load_dataset(root, task=task).categories.names for task in ("det", "inst", "sem", "pan")}
    assert names == {"det": ["nut"], "inst": ["nut"], "sem": ["bolt", "nut"], "pan": ["bolt", "nut"]}
    dataset = load_dataset(root, task="pan")
    assert [category.is_thing for category in dataset.categories] == [False, True]
    target = dataset[0].target
    assert target.is_thing is not None
    assert dict(zip(target.labels.tolist(), target.is_thing.tolist(), strict=True)) == {0: False, 1: True}
    assert load_dataset(root, task="det").records[0].labels.tolist() == [0]
    boxes = dataset.with_transform(dataset.transform, task="det")
    assert boxes[0].target.labels.tolist() == [1]
    assert boxes[0].target.masks is None


def test_no_class_for_the_task(tree: Any) -> None:
    root = tree(lambda data: [row.update(isthing=0) for row in data["categories"]])
    with pytest.raises(DataError, match=r"task 'det' needs classes of things .* all 2 classes are stuff"):
        load_dataset(root)


def test_boxes_alone_serve_no_task_with_masks(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    with pytest.raises(DataError, match=r"none of its 3 annotations has a segmentation, which task 'pan' needs"):
        load_dataset(root, task="pan")
    with pytest.raises(DataError, match=r"task 'inst_' is unknown\. Did you mean 'inst'"):
        load_dataset(root, task="inst_")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "segmentation is missing"),
        ([], "segmentation is empty"),
        ([[1, 1, 5, 1]], "has a polygon with 2 points"),
        ([[1, 1, 5, 1, 5, 5, 3]], "odd number of coordinates"),
        ({"size": [30, 40], "counts": [7, 3]}, "is an RLE of 10 pixels, but its size 30x40 has 1200"),
        ({"size": [40, 30], "counts": [1200]}, "is an RLE for 30x40 pixels, but the image is 40x30"),
    ],
)
def test_bad_masks_are_an_error_or_are_counted(tree: Any, segmentation: Any, message: str) -> None:
    root = tree(lambda data: data["annotations"][1].update(segmentation=segmentation))
    with pytest.raises(DataError, match=rf"annotation id 2 \(image 'a\.png'\): .*{message}.* on_error to skip"):
        load_dataset(root, task="inst")
    dataset = load_dataset(root, task="inst", on_error="skip")
    assert len(dataset.load_errors) == 1
    assert message in dataset.load_errors[0]
    assert dataset.records[0].labels.tolist() == [0]
    assert len(load_dataset(root).records[0].labels) == 2, "detection does not mind"


def test_ground_truth_has_the_masks_of_the_file(tree: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["annotations"][0].update(segmentation=[[4.13, 3.7, 13.9, 3.1, 9.55, 14.95]])
        mask = np.zeros((30, 40), np.uint8, order="F")
        mask[6:30, 20:40] = 1
        data["annotations"][1].update(iscrowd=1, segmentation={"size": [30, 40], "counts": [606, *[24, 6] * 19, 24]})

    root = tree(change)
    with read_once():
        truth = load_dataset(root, task="inst").coco_ground_truth()
    polygon = oracle.merge(oracle.frPyObjects([[4.13, 3.7, 13.9, 3.1, 9.55, 14.95]], 30, 40))
    rows = truth["annotations"]
    assert rows[0]["segmentation"] == {"size": [30, 40], "counts": polygon["counts"].decode()}
    assert oracle.decode(rows[1]["segmentation"])[6:30, 20:40].sum() == rows[1]["area"] == 480
    assert rows[1]["iscrowd"] == 1
    assert "segmentation" not in load_dataset(root).coco_ground_truth()["annotations"][0]


def test_areas_that_the_file_does_not_have_are_those_of_the_masks(tree: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        triangle = [20, 6, 40, 6, 20, 30]
        data["annotations"][1].update(segmentation=[triangle], area=None)

    root = tree(change)
    truth = load_dataset(root, task="inst").coco_ground_truth()
    for row in truth["annotations"]:
        assert row["area"] == oracle.area(row["segmentation"])
    assert 230 < truth["annotations"][1]["area"] < 250
    assert load_dataset(root).coco_ground_truth()["annotations"][1]["area"] == 20 * 24, "detection has the box alone"
    written = to_coco(read_source(find_source(root, "train")))
    assert [row["area"] for row in written["annotations"]] == [120, 240, 48]


def test_real_polygons_and_rle(shared: Path) -> None:
    nuts = load_dataset(shared / "data" / "nuts_inst", task="inst")
    masks = nuts.records[0].segments.masks
    assert masks is not None
    assert isinstance(unpack(masks.packed(0)), list)
    nuclei = load_dataset(shared / "data" / "nuclei_inst", split="val", task="inst")
    for dataset in (nuts, nuclei):
        target = dataset[0].target
        truth = dataset.records[0]
        assert target.masks is not None
        assert len(target) == len(truth.labels)
        areas = target.masks.sum(dim=(1, 2)).numpy() / np.prod(target.size) * truth.width * truth.height
        assert np.median(np.abs(areas / truth.areas - 1)) < 0.03
