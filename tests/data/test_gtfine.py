"""Conversion of Cityscapes label images to COCO, compared with the definition pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.data.formats.gtfine import convert_gtfine, gtfine_splits
from detrkit.data.gtfine_files import CITYSCAPES_CATEGORIES
from detrkit.errors import DataError

LABELS = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}


def write(folder: Path, name: str, values: Any, split: str = "train", city: str = "ulm") -> Path:
    path = folder / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint16)).save(path)
    return path


def test_classes_are_in_the_published_order() -> None:
    assert CITYSCAPES_CATEGORIES == ("person", "car", "train", "rider", "truck", "motorcycle", "bicycle", "bus")


def test_instances_groups_and_other_pixels(tmp_path: Path) -> None:
    values = np.full((20, 30), 7)  # road
    values[2:6, 3:9] = 26000  # a car
    values[10:12, 0:30] = 26001  # another, with a hole where a rider is
    values[11, 15] = 25003
    values[15:20, 20:30] = 24  # a group of persons
    values[15, 0] = 29000  # a caravan is not evaluated
    values[17, 0] = 30
    (file,) = gtfine_splits(write(tmp_path, "ulm_000001", values).parents[3])["train"]
    found = convert_gtfine([file])
    assert found["images"] == [{"id": 1, "file_name": "ulm/ulm_000001_leftImg8bit.png", "width": 30, "height": 20}]
    names = {row["id"]: row["name"] for row in found["categories"]}
    rows = {
        (names[row["category_id"]], row["iscrowd"], tuple(row["bbox"]), row["area"]) for row in found["annotations"]
    }
    assert rows == {
        ("car", 0, (3, 2, 6, 4), 24),
        ("car", 0, (0, 10, 30, 2), 59),
        ("rider", 0, (15, 11, 1, 1), 1),
        ("person", 1, (20, 15, 10, 5), 50),
    }
    objects = convert_gtfine([file], groups="object")
    assert [row["iscrowd"] for row in objects["annotations"]] == [0] * 4
    assert objects["info"]["groups"] == "object"


def test_ids_follow_the_sorted_files(tmp_path: Path) -> None:
    for city, name in (("zurich", "b"), ("aachen", "z"), ("aachen", "a")):
        write(tmp_path, f"{city}_{name}", [[26000]], city=city)
    write(tmp_path, "bonn_c", [[0]], split="val", city="bonn")
    splits = gtfine_splits(tmp_path)
    assert list(splits) == ["train", "val"]
    done: list[tuple[int, int]] = []
    found = convert_gtfine(splits["train"], progress=lambda *step: done.append(step))
    assert [image["file_name"].split("_left")[0] for image in found["images"]] == [
        "aachen/aachen_a",
        "aachen/aachen_z",
        "zurich/zurich_b",
    ]
    assert [row["id"] for row in found["annotations"]] == [row["image_id"] for row in found["annotations"]] == [1, 2, 3]
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert convert_gtfine(splits["val"])["annotations"] == []


def test_brute_force_on_the_evaluator_fixture(shared: Path) -> None:
    files = gtfine_splits(shared / "golden" / "eval_cityscapes")["val"]
    found = convert_gtfine(files)
    names = {row["id"]: row["name"] for row in found["categories"]}
    compared = 0
    for number, file in enumerate(files, start=1):
        with Image.open(file) as image:
            values = np.asarray(image).astype(int)
        expected = []
        for value in np.unique(values):
            label = LABELS.get(value // 1000 if value >= 1000 else value)
            if label is None:
                continue
            ys, xs = np.nonzero(values == value)
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            expected.append((label, box, len(ys), int(value < 1000)))
        rows = [row for row in found["annotations"] if row["image_id"] == number]
        assert [(names[row["category_id"]], row["bbox"], row["area"], row["iscrowd"]) for row in rows] == expected
        compared += len(rows)
    assert compared == 32
    assert {row["iscrowd"] for row in found["annotations"]} == {0, 1}


def test_files_that_are_not_gtfine(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Cityscapes labels; looked for"):
        gtfine_splits(tmp_path)
    file = write(tmp_path, "a", [[26000]])
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a_gtFine_instanceIds\.png: the label image cannot be read"):
        convert_gtfine([file])
    Image.new("RGB", (4, 4)).save(file)
    with pytest.raises(DataError, match="is not a label image"):
        convert_gtfine([file])
