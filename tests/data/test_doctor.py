"""The checks of a data set find every fault and its severity; a correct data set has none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrkit.data.doctor import Finding, check
from detrkit.data.formats import find_sources
from tests.data.trees import TREES, Change, coco_tree, edit, write_image, yolo_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_tree(tmp_path / "data")


def faults(root: Path, *, quick: bool = False) -> dict[tuple[str, str, str], Finding]:
    """The findings that are not ok, by level, check and split."""
    report = check(find_sources(root), quick=quick)
    found = {(f.level, f.check, f.split): f for f in report.findings if f.level != "ok"}
    assert report.failed == any(level == "error" for level, _, _ in found)
    assert all(finding.count and finding.message for finding in found.values())
    return found


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("quick", [False, True])
def test_correct_data_have_no_faults(tmp_path: Path, kind: str, quick: bool) -> None:
    found = faults(TREES[kind](tmp_path / "data"), quick=quick)
    assert set(found) == {("info", "empty images", "train")}


@pytest.mark.parametrize(
    ("change", "level", "name", "example"),
    [
        (
            lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 5]),
            "error",
            "box values",
            "annotation 1: bbox [1, 1, 0, 5]",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, float("nan"), 3, 5]), "error", "box values", "is not finite"),
        (lambda c: c["annotations"][0].update(bbox=[50, 1, 5, 5]), "error", "boxes outside", "in 40x30"),
        (lambda c: c["annotations"][0].update(bbox=[30, 1, 15, 5]), "warning", "boxes beyond border", "in 40x30"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, 9, 9], area=0), "warning", "areas", "area 0, box"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, 9, 9], area=810), "warning", "areas", "area 810, box"),
        (lambda c: c["annotations"][0].update(category_id=9), "error", "category ids", "annotation 1: 9"),
        (lambda c: c["annotations"][0].update(image_id=9), "warning", "annotation images", "annotation 1"),
        (lambda c: c["annotations"][0].update(id=2), "warning", "annotation ids", "2"),
        (lambda c: c["images"][1].update(id=1), "error", "image ids", "1"),
        (lambda c: c["categories"].append({"id": 2, "name": "x"}), "error", "category list", "2"),
        (lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}), "warning", "duplicate boxes", "9"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "error", "image files", "gone.png"),
        (lambda c: c["images"][0].update(width=30, height=40), "error", "image sizes", "40x30, annotations say 30x40"),
        (lambda c: c["annotations"].clear(), "warning", "empty labels", "a.png"),
        (lambda c: c["annotations"].clear(), "warning", "absent classes", "bolt"),
    ],
)
def test_faults_in_annotations(root: Path, change: Change, level: str, name: str, example: str) -> None:
    edit(root / "annotations" / "instances_train.json", change)
    found = faults(root)
    assert (level, name, "train") in found
    assert any(example in text for text in found[level, name, "train"].examples)


@pytest.mark.parametrize("shift", [1, -1])
def test_ids_off_by_one_are_recognised(root: Path, shift: int) -> None:
    def move(data: dict[str, Any]) -> None:
        for row in data["annotations"]:
            row["category_id"] -= shift

    edit(root / "annotations" / "instances_train.json", move)
    finding = faults(root)["error", "category ids", "train"]
    assert f"off by one: annotations use {1 - shift} to {2 - shift}, categories have 1 to 2" in finding.message
    assert f"add {shift} to every category_id" in finding.message


def test_damaged_images_are_found_only_by_the_full_check(root: Path) -> None:
    path = root / "images" / "train" / "a.png"
    path.write_bytes(path.read_bytes()[:500])
    finding = faults(root)["error", "image data", "train"]
    assert str(path) in finding.examples[0]
    assert set(faults(root, quick=True)) == {("info", "empty images", "train")}
    path.write_bytes(b"nothing")
    assert ("error", "image data", "train") in faults(root, quick=True)


def test_the_same_image_twice(root: Path) -> None:
    images = root / "images"
    shutil.copy(images / "train" / "a.png", images / "val" / "d.png")
    shutil.copy(images / "train" / "a.png", images / "train" / "b.png")
    found = faults(root)
    assert found["error", "images across splits", "train & val"].examples == (
        "train: a.png = train: b.png = val: d.png",
    )
    assert found["warning", "duplicate images", "train"].examples == ("train: a.png = train: b.png",)


def test_splits_must_agree(root: Path) -> None:
    edit(root / "annotations" / "instances_val.json", lambda data: data["categories"][0].update(name="screw"))
    assert ("error", "categories across splits", "train & val") in faults(root)


def test_untrained_and_rare_classes(root: Path) -> None:
    def only_nuts(data: dict[str, Any]) -> None:
        data["annotations"] = [row for row in data["annotations"] if row["category_id"] == 2]

    edit(root / "annotations" / "instances_train.json", only_nuts)
    found = faults(root)
    assert found["warning", "untrained classes", "val"].examples == ("bolt",)
    assert found["warning", "absent classes", "train"].examples == ("bolt",)

    def many(data: dict[str, Any]) -> None:
        data["annotations"] = [
            {"id": n + 1, "image_id": 1, "category_id": 1 + (n == 0), "bbox": [1, 1, 2 + n / 9, 2]} for n in range(22)
        ]

    edit(root / "annotations" / "instances_train.json", many)
    finding = faults(root)["warning", "class balance", "train"]
    assert finding.examples == ("nut: 1",)
    assert "bolt has 21" in finding.message
    edit(root / "annotations" / "instances_train.json", lambda data: data["categories"][1].update(isthing=0))
    assert ("warning", "class balance", "train") not in faults(root), "stuff is one area of an image"


def test_a_missing_val_split(tmp_path: Path) -> None:
    found = faults(coco_tree(tmp_path / "data", splits=("train",)))
    assert "data split" in found["warning", "splits", "train"].message


def test_a_split_that_is_named_but_does_not_exist(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    with (root / "data.yaml").open("a") as file:
        file.write("test: ../test/images\n")
    found = faults(root)
    assert set(found) == {("info", "empty images", "train"), ("warning", "splits", "test")}
    assert found["warning", "splits", "test"].examples == ("../test/images",)


def test_annotations_without_exif_rotation_are_reported(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / "images" / "train" / "a.png"
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    assert ("info", "image rotation", "train") in faults(root)
    write_image(path)
    assert ("info", "image rotation", "train") not in faults(root)
