"""Predictions on the images of a data set have its image ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from detrkit.inference.data_set_ids import data_set_ids
from detrkit.inference.sources import find_images
from detrkit.metrics import score_coco
from tests.data.trees import Change, coco_tree, edit, named_folders_tree, official_coco_tree, roboflow_tree, yolo_tree


def renumbered(content: dict[str, list[dict[str, int]]]) -> None:
    """Image ids 100, 90, 80 in place of 1, 2, 3."""
    for row in content["images"]:
        row["id"] = 110 - 10 * row["id"]
    for row in content["annotations"]:
        row["image_id"] = 110 - 10 * row["image_id"]


def ids(folder: Path) -> dict[str, int] | None:
    images = find_images([str(folder)])
    found = data_set_ids([folder], images)
    return None if found is None else found.of(images)


def label_studio_tree(root: Path) -> Path:
    """One COCO file of another name beside the images, with ids from 0 on."""
    coco_tree(root, splits=("train",))
    (root / "annotations" / "instances_train.json").rename(root / "result.json")
    (root / "annotations").rmdir()
    return root


@pytest.mark.parametrize(
    ("make", "file", "folder"),
    [
        (label_studio_tree, "result.json", "images/train"),
        (label_studio_tree, "result.json", "."),
        (coco_tree, "annotations/instances_train.json", "images/train"),
        (official_coco_tree, "annotations/instances_train2017.json", "train2017"),
        (named_folders_tree, "annotations/my_train_set.json", "pictures/train"),
        (roboflow_tree, "train/_annotations.coco.json", "train"),
    ],
)
def test_images_of_a_data_set(tmp_path: Path, make: Callable[[Path], Path], file: str, folder: str) -> None:
    edit(make(tmp_path) / file, renumbered)
    found = ids(tmp_path / folder)
    assert found is not None
    assert {Path(name).name: number for name, number in found.items()} == {"a.png": 100, "b.png": 90, "ü c.png": 80}


def test_images_that_the_file_does_not_list_have_other_ids(tmp_path: Path) -> None:
    edit(coco_tree(tmp_path) / "annotations" / "instances_train.json", renumbered)
    (tmp_path / "images" / "train" / "new.png").write_bytes((tmp_path / "images" / "train" / "a.png").read_bytes())
    assert ids(tmp_path / "images" / "train") == {"a.png": 100, "b.png": 90, "new.png": 101, "ü c.png": 80}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["images"].clear(),
        lambda content: content["images"].append({**content["images"][0], "id": 9}),
    ],
    ids=["lists no image", "lists an image twice"],
)
def test_files_that_do_not_say_the_ids(tmp_path: Path, change: Change) -> None:
    edit(coco_tree(tmp_path) / "annotations" / "instances_train.json", change)
    assert ids(tmp_path / "images" / "train") is None


def test_images_of_no_data_set_and_formats_without_ids(tmp_path: Path) -> None:
    assert ids(yolo_tree(tmp_path) / "images" / "train") is None


def test_results_beside_predictions_are_matched_by_name(tmp_path: Path) -> None:
    """``results.json`` has the ids 1, 2, … where the images are in no data set; the truth has others."""
    truth = coco_tree(tmp_path) / "annotations" / "instances_train.json"
    content = json.loads(truth.read_text())
    swapped = {1: 3, 3: 1, 2: 2}
    rows = [
        {"image_id": swapped[row["image_id"]], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.9}
        for row in content["annotations"]
    ]
    images = [{**row, "id": swapped[row["id"]]} for row in content["images"]]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    alone = score_coco(truth, tmp_path / "results.json").metrics["AP"]
    predictions = {"images": images, "categories": content["categories"], "annotations": rows}
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    assert score_coco(truth, tmp_path / "results.json").metrics["AP"] == pytest.approx(1.0)
    other = [{**row, "score": 0.5} for row in rows]
    (tmp_path / "results.json").write_text(json.dumps(other))
    assert score_coco(truth, tmp_path / "results.json").metrics["AP"] == alone != pytest.approx(1.0)
