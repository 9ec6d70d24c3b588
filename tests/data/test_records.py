"""Annotations are kept, clipped, treated as crowd, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.data.build_records import build_records
from detrkit.data.formats.coco import parse_coco
from detrkit.data.records import ImageRecord
from detrkit.errors import DataError
from tests.data.trees import coco, write_images

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def records(tmp_path: Path) -> Callable[..., tuple[list[ImageRecord], Any, list[str]]]:
    write_images("train", tmp_path)

    def build(change: Change = lambda data: None, on_error: Any = "raise") -> tuple[list[ImageRecord], Any, list[str]]:
        data = coco("train", first_id=3)
        change(data)
        return build_records(parse_coco(data, tmp_path / "x.json", tmp_path), on_error=on_error)

    return build


def test_records_follow_image_ids_and_keep_category_ids(records: Any) -> None:
    def shuffle(data: dict[str, Any]) -> None:
        data["images"].reverse()
        data["annotations"].reverse()
        data["categories"].reverse()

    found, categories, notes = records(shuffle)
    assert [record.image_id for record in found] == [1, 2, 3]
    assert categories.ids == [3, 4]
    assert categories.names == ["bolt", "nut"]
    assert notes == []
    assert found[0].boxes.tolist() == [[20, 6, 40, 30], [4, 3, 14, 15]]
    assert found[0].labels.tolist() == [1, 0]
    assert found[1].boxes.shape == (0, 4)  # an image without boxes is kept
    assert found[1].labels.dtype == np.int64


def test_crowd_is_separate_and_areas_are_as_in_the_file(records: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["annotations"][0].update(iscrowd=1)
        data["annotations"][1].update(area=7.5)
        del data["annotations"][2]["area"]

    found, _, _ = records(change)
    assert found[0].boxes.tolist() == [[20, 6, 40, 30]]
    assert found[0].areas.tolist() == [7.5]
    assert found[0].crowd_boxes.tolist() == [[4, 3, 14, 15]]
    assert found[0].crowd_labels.tolist() == [0]
    assert found[2].areas.tolist() == [48]


def test_areas_that_are_null_or_not_a_number(records: Any) -> None:
    found, _, _ = records(lambda data: data["annotations"][0].update(area=None))
    assert found[0].areas.tolist() == [120, 480]
    with pytest.raises(DataError, match=r"annotation id 2 \(image 'a\.png'\): area must be a finite number, not 'big'"):
        records(lambda data: data["annotations"][1].update(area="big"))


def test_boxes_are_clipped_and_outside_boxes_dropped(records: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["annotations"][0]["bbox"] = [-5, -5, 10, 100]
        data["annotations"][1]["bbox"] = [40, 0, 5, 5]  # begins where the image ends

    found, _, notes = records(change)
    assert found[0].boxes.tolist() == [[0, 0, 5, 30]]
    assert len(notes) == 1
    assert "annotation id 2 (image 'a.png'): bbox [40, 0, 5, 5] lies outside" in notes[0]


@pytest.mark.parametrize(
    "bbox",
    [[1, 1, 0, 5], [1, 1, 5, -2], [math.nan, 1, 5, 5], [1, 1, math.inf, 5], [1, 1, 5], None, "box", [1, 1, "five", 5]],
)
def test_bad_boxes_are_an_error_or_are_counted(records: Any, bbox: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["annotations"][1]["bbox"] = bbox

    with pytest.raises(DataError, match=r"x\.json: annotation id 2 \(image 'a\.png'\): bbox .*on_error to skip"):
        records(change)
    found, _, notes = records(change, "skip")
    assert found[0].boxes.tolist() == [[4, 3, 14, 15]]
    assert len(notes) == 1


def test_duplicate_and_unknown_ids_are_always_an_error(records: Any) -> None:
    changes: list[tuple[Change, str]] = [
        (lambda data: data["images"][0].update(id=2), "image id 2 occurs twice"),
        (lambda data: data["categories"][0].update(id=4), "category id 4 occurs twice"),
        (lambda data: data["annotations"][0].update(category_id=5), r"annotation id 1: category id 5 .* \(3, 4\)"),
        (lambda data: data["categories"].clear(), "has no categories"),
        (lambda data: data["images"].clear(), "lists no images"),
    ]
    for change, message in changes:
        for on_error in ("raise", "skip"):
            with pytest.raises(DataError, match=message):
                records(change, on_error)


def test_missing_images_are_an_error_or_are_counted(records: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["images"][0]["file_name"] = "gone.png"

    with pytest.raises(DataError, match=r"gone\.png: image file missing, listed in .*x\.json"):
        records(change)
    found, _, notes = records(change, "skip")
    assert [record.image_id for record in found] == [2, 3]
    assert len(notes) == 1  # its annotations are not counted separately

    def all_gone(data: dict[str, Any]) -> None:
        for image in data["images"]:
            image["file_name"] = "gone.png"

    with pytest.raises(DataError, match=r"and 2 more of 3 images"):
        records(all_gone, "skip")


def test_annotations_of_unlisted_images_are_ignored(records: Any) -> None:
    found, _, notes = records(lambda data: data["images"].pop(0))
    assert [record.image_id for record in found] == [2, 3]
    assert "2 annotations of images that it does not list" in notes[0]


def test_missing_sizes_are_read_from_the_images(records: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        del data["images"][0]["width"]
        data["images"][2].update(width=40.0, height=30.0)

    found, _, _ = records(change)
    assert [(record.width, record.height) for record in found] == [(40, 30)] * 3


def test_errors_name_rows_that_are_not_coco(tmp_path: Path) -> None:
    good = coco("train")
    cases: list[tuple[Any, str]] = [
        ([], "is a list, which COCO uses for results"),
        ({"images": []}, "no list 'annotations'"),
        ("text", "no list 'images'"),
        ({**good, "images": [{"file_name": "a"}]}, r"images\[0\]: id is missing; it must be a whole number"),
        ({**good, "images": [{"id": 1}]}, r"images\[0\] \(id 1\) has no 'file_name'"),
        ({**good, "categories": [{"id": 1.5, "name": "a"}]}, r"categories\[0\]: id must be a whole number, not 1\.5"),
        ({**good, "annotations": [{"id": 1, "image_id": 1}]}, r"annotations\[0\]: category_id is missing; it must be"),
        ({**good, "annotations": [{"image_id": 1, "segments_info": []}]}, "panoptic segments"),
    ]
    for data, message in cases:
        with pytest.raises(DataError, match=message):
            parse_coco(data, tmp_path / "x.json", tmp_path)
