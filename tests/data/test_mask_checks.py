"""``data check`` finds what is wrong with masks, and nothing in correct ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.data import load_dataset
from detrkit.data.mask_checks import crosses_itself
from detrkit.errors import DataError
from tests.data.test_coco_masks import with_masks
from tests.data.test_doctor import faults
from tests.data.trees import SIZE, coco_tree, edit, instance_files_tree, masks_tree, panoptic, panoptic_tree, write_map
from tests.workplace import detrkit_cli


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree = coco_tree(tmp_path / "data")
    for split in ("train", "val"):
        edit(tree / "annotations" / f"instances_{split}.json", with_masks)
    return tree


@pytest.mark.parametrize("make", [panoptic_tree, masks_tree, instance_files_tree])
@pytest.mark.parametrize("quick", [False, True])
def test_correct_masks_have_no_faults(tmp_path: Path, make: Any, quick: bool) -> None:
    found = faults(make(tmp_path / "data"), quick=quick)
    assert {key for key in found if key[0] != "info"} == set()


def test_correct_polygons_have_no_faults(root: Path) -> None:
    assert set(faults(root)) == {("info", "empty images", "train")}


@pytest.mark.parametrize(
    ("segmentation", "level", "name", "example"),
    [
        (None, "warning", "missing masks", "annotation 1"),
        ([[1, 1, 5, 1]], "error", "mask values", "annotation 1: segmentation has a polygon with 2 points"),
        ({"size": [30, 40], "counts": [5]}, "error", "mask values", "an RLE of 5 pixels"),
        ({"size": [10, 10], "counts": [100]}, "error", "mask values", "for 10x10 pixels, but the image is 40x30"),
        ([[50, 50, 60, 50, 60, 60]], "warning", "empty masks", "annotation 1"),
        ([[4, 3, 6, 3, 6, 5, 4, 5]], "warning", "tiny masks", "annotation 1: 4 pixels"),
        ([[4, 3, 14, 3, 14, 25, 4, 25]], "warning", "masks and boxes", "box [4, 3, 10, 12], mask"),
        ([[4, -9, 14, -9, 14, 15, 4, 15]], "warning", "masks beyond border", "annotation 1"),
        ([[4, 3, 14, 15, 14, 3, 4, 15]], "warning", "crossing outlines", "annotation 1"),
        ([[4, 3, 14, 3, 14, 15, 4, 15], [9, 9]], "info", "points and lines", "annotation 1"),
        ([[4, 3, 14, 3, 14, 15, 4, 15], [6, 5, 12, 5, 12, 12]], "warning", "filled holes", "annotation 1"),
    ],
)
def test_faults_of_segmentations(root: Path, segmentation: Any, level: str, name: str, example: str) -> None:
    path = root / "annotations" / "instances_train.json"
    edit(path, lambda data: data["annotations"][0].update(segmentation=segmentation))
    finding = faults(root)[level, name, "train"]
    assert finding.count == 1
    assert example in finding.examples[0]
    quick = (level, name, "train") in faults(root, quick=True)
    assert quick is (name in ("missing masks", "mask values"))


READINGS: dict[str, Callable[[float, int, list[float]], float]] = {
    "fractions of the image": lambda value, axis, box: value / SIZE[axis],
    "percent of the image": lambda value, axis, box: 100 * value / SIZE[axis],
    "pixels from the corner of the box": lambda value, axis, box: value - box[axis],
    "pixels of pictures of 0.50 times the size": lambda value, axis, box: value / 2,
    "[y1, x1, y2, x2, …]": lambda value, axis, box: box[1 - axis] + (value > box[axis]) * box[3 - axis],
}


@pytest.mark.parametrize("how", READINGS)
def test_masks_that_were_not_written_for_these_pictures(root: Path, how: str) -> None:
    """They lie elsewhere than their boxes, which training of masks would follow in silence."""

    def write(data: dict[str, Any], share: int) -> None:
        rng = np.random.default_rng(0)
        data["annotations"] = []
        for number in range(40):
            x, y, w, h = box = [int(value) for value in (*rng.integers(0, 20, 2), *rng.integers(4, 10, 2))]
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            if number % 10 < share:
                outline = [READINGS[how](value, place % 2, box) for place, value in enumerate(outline)]
            row = {"id": number + 1, "image_id": 1 + number % 3, "category_id": 1 + number % 2, "iscrowd": 0}
            data["annotations"].append(row | {"bbox": box, "area": w * h, "segmentation": [outline]})

    path = root / "annotations" / "instances_train.json"
    edit(path, lambda data: write(data, 10))
    found = faults(root, quick=True)["error", "mask frame", "train"]
    assert f"fit when read as {how}" in found.examples[0]
    assert "not ready to train masks" in detrkit_cli(["data", "check", str(root), "--quick"])[1]
    edit(path, lambda data: write(data, 4))
    assert ("error", "mask frame", "train") not in faults(root, quick=True)


def test_what_the_set_is_ready_for(root: Path) -> None:
    code, out = detrkit_cli(["data", "check", str(root), "--quick"])
    assert code == 0
    assert "ready for boxes and masks" in out.splitlines()

    path = root / "annotations" / "instances_train.json"
    edit(path, lambda data: data["annotations"][0].update(segmentation=[]))
    code, out = detrkit_cli(["data", "check", str(root), "--quick"])
    assert code == 0
    line = "ready for boxes; masks only with data.on_error=skip, which leaves out the rows without an outline: 1 of 3"
    assert f"{line} in train" in out.splitlines()
    with pytest.raises(DataError, match=r"segmentation .*data\.on_error=skip"):
        load_dataset(root, task="inst")
    assert len(load_dataset(root, task="inst", on_error="skip").load_errors) == 1

    edit(path, lambda data: data["annotations"][0].update(segmentation=[[1, 1, 5, 1]]))
    code, out = detrkit_cli(["data", "check", str(root), "--quick"])
    assert (code, "ready for boxes, not ready to train masks" in out) == (1, True)

    for split in ("train", "val"):
        edit(
            root / "annotations" / f"instances_{split}.json",
            lambda data: [row.pop("segmentation", None) for row in data["annotations"]],
        )
    code, out = detrkit_cli(["data", "check", str(root), "--quick"])
    assert code == 0
    assert "ready for boxes; masks: no row has an outline" in out.splitlines()


def test_segments_that_overlap(root: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["categories"][0].update(isthing=0)
        data["annotations"][1].update(bbox=[10, 6, 20, 24], segmentation=[[10, 6, 30, 6, 30, 30, 10, 30]])

    edit(root / "annotations" / "instances_train.json", change)
    finding = faults(root)["warning", "overlapping masks", "train"]
    assert finding.examples == ("a.png: 36 pixels",)


def test_faults_of_panoptic_files(tmp_path: Path) -> None:
    root = panoptic_tree(tmp_path / "data")

    def change(data: dict[str, Any]) -> None:
        data["annotations"][0]["segments_info"].pop()
        data["annotations"][1]["segments_info"][0].update(area=3, bbox=[0, 0, 3, 3])
        data["annotations"][2].update(image_id=77)

    edit(root / "annotations" / "panoptic_train.json", change)
    found = faults(root)
    assert "segment 301 is in the map but not" in found["error", "segment maps", "train"].examples[0]
    assert "of b.png: 3 listed" in found["warning", "masks and areas", "train"].examples[0]
    assert ("warning", "masks and boxes", "train") in found
    assert "'ü c.png' (id 3) has no annotation" in found["error", "mask files", "train"].examples[0]
    ids = panoptic("val")[1]["d.png"]
    ids[29, 39] = 17
    write_map(root / "annotations" / "panoptic_val" / "d.png", ids, rgb=True)

    def tiny(data: dict[str, Any]) -> None:
        row = {"id": 17, "category_id": 1, "bbox": [39, 29, 1, 1], "area": 1, "iscrowd": 0}
        data["annotations"][0]["segments_info"].append(row)

    edit(root / "annotations" / "panoptic_val.json", tiny)
    assert "segment 17 of d.png: 1 pixels" in faults(root)["warning", "tiny masks", "val"].examples[0]


def test_faults_of_class_maps(tmp_path: Path) -> None:
    root = masks_tree(tmp_path / "data")
    write_map(root / "masks" / "train" / "a.png", np.full((30, 40), 9))
    (root / "masks" / "val" / "e.png").unlink()
    found = faults(root)
    assert "a.png: value 9 (1200 pixels) is no class" in found["error", "mask files", "train"].examples[0]
    assert "e.png: has no mask" in found["error", "mask files", "val"].examples[0]


def test_outlines_that_cross() -> None:
    random = np.random.default_rng(0)
    angles = np.sort(random.uniform(0, 2 * np.pi, 1200))
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert not crosses_itself(circle)
    swapped = circle.copy()
    swapped[[1000, 1005]] = swapped[[1005, 1000]]
    assert crosses_itself(swapped)
    assert not crosses_itself(np.array([[0, 0], [4, 0], [4, 4], [4, 0.0]])), "touching is not crossing"
