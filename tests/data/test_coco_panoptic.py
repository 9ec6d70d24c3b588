"""COCO panoptic: every task from one file, PNG and JSON checked against each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.data import load_dataset
from detrkit.data.formats import find_source, recognise_format
from detrkit.errors import DataError
from detrkit.metrics import metric_for, score_panoptic
from detrkit.metrics.panoptic import PanopticMetric
from detrkit.metrics.semantic import SemanticMetric
from detrkit.structures.segment_maps import PanopticMap, Segment
from tests.data.trees import coco, dump, edit, panoptic, panoptic_tree, write_image, write_map

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return panoptic_tree(tmp_path / "data")


def change(root: Path, edit_first: Change) -> None:
    edit(root / "annotations" / "panoptic_train.json", lambda data: edit_first(data["annotations"][0]))


@pytest.mark.parametrize(
    ("task", "names", "labels"),
    [
        ("det", ["bolt", "nut"], [0, 1]),
        ("inst", ["bolt", "nut"], [0, 1]),
        ("sem", ["bolt", "nut", "ground", "sky"], [0, 1, 2, 3]),
        ("pan", ["bolt", "nut", "ground", "sky"], [0, 1, 2, 3]),
    ],
)
def test_every_task(root: Path, task: str, names: list[str], labels: list[int]) -> None:
    dataset = load_dataset(root, task=task)
    assert dataset.categories.names == names
    target = dataset[0].target
    assert sorted(target.labels.tolist()) == labels
    if task == "det":
        assert target.masks is None
        return
    assert target.masks is not None
    assert target.is_thing is not None
    assert target.is_thing.tolist() == [label < 2 for label in target.labels.tolist()]
    assert not target.masks[:, :, 0].any(), "void belongs to nothing"
    assert target.masks.sum(dim=0).max() == 1
    boxes = {label: box for label, box in zip(target.labels.tolist(), target.boxes.tolist(), strict=True)}
    assert boxes[0] == pytest.approx([9 / 40, 9 / 30, 10 / 40, 12 / 30], abs=1 / 800)


def test_classes_that_do_not_say_whether_they_are_things(root: Path) -> None:
    def unmark(data: dict[str, Any]) -> None:
        del data["categories"][2]["isthing"]
        data["categories"][3]["isthing"] = None

    edit(root / "annotations" / "panoptic_train.json", unmark)
    with pytest.warns(UserWarning, match=r"2 classes without isthing count as things, .*\(ground\)"):
        dataset = load_dataset(root, task="pan")
    assert all(category.is_thing for category in dataset.categories)


def test_names_of_png_files_may_have_backslashes(root: Path) -> None:
    folder = root / "annotations" / "panoptic_train"
    (folder / "sub").mkdir()
    (folder / "a.png").rename(folder / "sub" / "a.png")
    change(root, lambda row: row.update(file_name="sub\\a.png"))
    assert len(load_dataset(root, task="pan")[0].target) == 4
    path = root / "annotations" / "panoptic_train.json"
    assert score_panoptic(path, path).value == 1.0


def test_detection_needs_no_png_files(root: Path) -> None:
    shutil.rmtree(root / "annotations" / "panoptic_train")
    assert len(load_dataset(root)[0].target) == 2
    with pytest.raises(DataError, match=r"panoptic_train: no such folder .* unpack panoptic_train\.zip there"):
        load_dataset(root, task="pan")


def test_instances_and_panoptic_side_by_side(root: Path) -> None:
    dump(root / "annotations" / "instances_train.json", coco("train"))
    found = {task: recognise_format(root, task=task).name for task in ("det", "inst", "sem", "pan")}
    assert found == {"det": "coco", "inst": "coco", "sem": "coco_panoptic", "pan": "coco_panoptic"}
    assert recognise_format(root, "coco_panoptic").name == "coco_panoptic"
    assert load_dataset(root).categories.ids == [1, 2]
    file = Path("annotations/panoptic_train.json")
    assert find_source(root, "train", annotations=file).format == "coco_panoptic"


def test_ids_are_checked_when_an_image_is_read(root: Path) -> None:
    change(root, lambda row: row["segments_info"].pop())
    dataset = load_dataset(root, task="pan")
    with pytest.raises(
        DataError, match=r"a\.png: does not fit panoptic_train\.json: segment 301 is in the map but not"
    ):
        dataset[0]
    skipping = load_dataset(root, task="pan", on_error="skip")
    assert skipping[0].target.image_id == 2
    assert skipping.skipped_images == ["a.png"]


@pytest.mark.parametrize(
    ("edit_first", "message"),
    [
        (
            lambda row: row["segments_info"].append({**row["segments_info"][0], "id": 9}),
            "segment 9 is listed but not in the map",
        ),
        (lambda row: row["segments_info"][0].update(id=301), "two segments have the id 301; segments must not overlap"),
        (lambda row: row["segments_info"][0].update(id=2**24), "segment id 16777216 is not between 1 and 16777215"),
        (lambda row: row.update(image_id=77), r"image 'a\.png' \(id 1\) has no annotation"),
        (lambda row: row.update(file_name="gone.png"), r"gone\.png: no such PNG file"),
    ],
)
def test_bad_segments_are_an_error_or_are_counted(root: Path, edit_first: Any, message: str) -> None:
    change(root, edit_first)
    with pytest.raises(DataError, match=message):
        load_dataset(root, task="pan")[0]
    dataset = load_dataset(root, task="pan", on_error="skip")
    for index in range(len(dataset)):
        assert dataset[index].target.image_id in (2, 3)
    assert dataset.load_errors or dataset.skipped_images


@pytest.mark.parametrize(
    ("edit_first", "message"),
    [
        (lambda row: row.update(image_id=2), "image_id 2 has two annotations"),
        (lambda row: row.update(segments_info=None), "no list 'segments_info'"),
        (lambda row: row["segments_info"][0].update(category_id="x"), "category_id must be a whole number, not 'x'"),
        (lambda row: row["segments_info"][0].update(category_id=99), r"segment 70003 of a\.png: category id 99 is not"),
    ],
)
def test_broken_files(root: Path, edit_first: Any, message: str) -> None:
    change(root, edit_first)
    with pytest.raises(DataError, match=message):
        load_dataset(root, task="pan")


def test_files_that_are_not_panoptic(root: Path) -> None:
    path = dump(root / "annotations" / "panoptic_train.json", coco("train"))
    with pytest.raises(DataError, match=r"its annotations have no 'segments_info'; it is not a COCO panoptic file"):
        load_dataset(root)
    dump(path, panoptic("train")[0])
    with pytest.raises(DataError, match=r"read it as format 'coco_panoptic'"):
        load_dataset(root, format="coco", annotations=path)


def test_png_files_of_another_kind_or_size(root: Path) -> None:
    path = root / "annotations" / "panoptic_train" / "a.png"
    ids = panoptic("train")[1]["a.png"]
    write_map(path, ids)
    with pytest.raises(DataError, match="8-bit gray PNG, but COCO panoptic files are 8-bit RGB"):
        load_dataset(root, task="pan")[0]
    write_map(path, ids[:-1], rgb=True)
    with pytest.raises(DataError, match=r"a\.png: the mask is 40x29 pixels but the image 40x30"):
        load_dataset(root, task="pan")[0]
    path.write_bytes((root / "images" / "train" / "b.png").read_bytes()[:200])
    with pytest.raises(DataError, match="may be truncated"):
        load_dataset(root, task="pan")[0]


def test_boxes_and_areas_come_from_the_png_where_the_json_has_none(root: Path) -> None:
    expected = load_dataset(root, task="pan").records[0].segments

    def bare(data: dict[str, Any]) -> None:
        for row in data["annotations"]:
            for info in row["segments_info"]:
                del info["bbox"], info["area"]

    edit(root / "annotations" / "panoptic_train.json", bare)
    found = load_dataset(root, task="pan").records[0].segments
    assert found.boxes.tolist() == expected.boxes.tolist()
    assert found.areas.tolist() == expected.areas.tolist()


def test_ids_up_to_the_largest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    numbers = np.unique(np.append(random.integers(1, 2**24, 200), [1, 255, 256, 65535, 65536, 2**24 - 1]))
    ids = np.zeros((20, 20), np.int32)
    ids.ravel()[: len(numbers)] = numbers
    write_image(tmp_path / "images" / "train" / "a.png", (20, 20))
    info = [{"id": int(number), "category_id": 1, "bbox": [0, 0, 9, 9], "area": 1} for number in numbers]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": info}],
        "categories": [{"id": 1, "name": "dot"}],
    }
    dump(tmp_path / "annotations" / "panoptic_train.json", data)
    write_map(tmp_path / "annotations" / "panoptic_train" / "a.png", ids, rgb=True)
    dataset = load_dataset(tmp_path, task="pan")
    record = dataset.records[0]
    found = record.segment_map()
    assert found is not None
    assert np.array_equal(found, ids)
    assert len(dataset[0].target) == len(numbers)


def test_a_perfect_answer_scores_perfectly(root: Path) -> None:
    dataset = load_dataset(root, split="val", task="pan")
    metric = metric_for(dataset)
    assert isinstance(metric, PanopticMetric)
    content, read = dataset.panoptic_ground_truth()
    labels = {category.id: label for label, category in enumerate(dataset.categories)}
    for row in content["annotations"]:
        segments = tuple(Segment(info["id"], labels[info["category_id"]]) for info in row["segments_info"])
        metric.update(row["image_id"], PanopticMap(read(row["file_name"]), segments, dataset.categories))
    assert metric.compute().metrics["PQ"] == 1.0
    semantic = load_dataset(root, split="val", task="sem")
    metric = metric_for(semantic)
    assert isinstance(metric, SemanticMetric)
    _, read_map = semantic.semantic_ground_truth()
    for record in semantic.records:
        metric.update(record.image_id, read_map(record.image_id))
        assert read_map(record.image_id).labels[0, 0] == 255, "void"
    assert metric.compute().metrics["mIoU"] == 1.0


def test_instances_of_panoptic_files_have_rle(root: Path) -> None:
    truth = load_dataset(root, task="inst").coco_ground_truth()
    assert [row["category_id"] for row in truth["annotations"]] == [1, 2, 2]
    assert all(isinstance(row["segmentation"]["counts"], str) for row in truth["annotations"])


def test_real_panoptic_files(shared: Path) -> None:
    for name, counts in (("coco_open_panoptic", (133, 80)), ("nuclei_inst", (2, 1))):
        panoptic_set = load_dataset(shared / "data" / name, split="val", task="pan")
        instances = load_dataset(shared / "data" / name, split="val", task="inst")
        assert (len(panoptic_set.categories), len(instances.categories)) == counts
        target = panoptic_set[0].target
        assert target.masks is not None
        assert target.masks.any(dim=(1, 2)).all()
        content, read = panoptic_set.panoptic_ground_truth()
        row = content["annotations"][0]
        ids = read(row["file_name"])
        for info in row["segments_info"]:
            assert info["area"] == (ids == info["id"]).sum()
