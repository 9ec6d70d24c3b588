"""One reading of annotation values: what is read, repaired, refused or left out, and what a check says of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrkit.data import load_dataset
from detrkit.data.clean_rows import outline_area
from detrkit.data.convert import to_coco, usable_part
from detrkit.data.doctor import check
from detrkit.data.findings import Finding
from detrkit.data.formats import find_source, find_sources, read_source
from detrkit.data.values import as_box, box_problem, read_value, shown, size
from detrkit.errors import DataError
from detrkit.metrics import score_coco
from tests.data.trees import Change, coco_tree, dump, edit, roboflow_tree, write_image

FILE = "annotations/instances_train.json"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *[("image_id", value, 3) for value in (3, 3.0, "3", "3.0", " 3 ")],
        *[("iscrowd", value, 0) for value in (0, None, math.nan, "", "0", "false", False, 0.0, "null")],
        *[("iscrowd", value, 1) for value in (1, "1", "True", True, 1.0)],
        ("isthing", None, 1),
        ("isthing", "0", 0),
        *[("area", value, None) for value in (None, math.nan, "", "NaN")],
        *[("area", value, 7.5) for value in (7.5, "7.5")],
        ("score", "0.5", 0.5),
        ("name", "none", "none"),
        ("name", 7, "7"),
        ("name", None, None),
    ],
)
def test_values_that_are_read(key: str, value: object, expected: object) -> None:
    assert read_value({key: value}, key, "x.json") == expected
    if value is None:
        assert read_value({}, key, "x.json") == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_id", None, "image_id is missing; it must be a whole number"),
        ("image_id", "a1", "image_id must be a whole number, not 'a1'"),
        *[("id", value, "id must be a whole number") for value in (1.5, True, [1], {}, math.nan, 2**63, "9" * 5000)],
        *[("iscrowd", value, "iscrowd must be 0 or 1") for value in (2, -1, "no", [0], math.inf)],
        *[("area", value, "area must be a finite number") for value in ("big", [1], math.inf, 10**400, True)],
        ("score", math.nan, "score must be a finite number, not nan"),
        ("name", ["a"], r"name must be text, not \['a'\]"),
    ],
)
def test_values_that_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=f"x.json: {message}"):
        read_value({key: value}, key, "x.json")


def test_boxes_and_sides() -> None:
    assert as_box(["1", 2, "3.5", 4]) == [1, 2, 3.5, 4]
    for bbox in (
        [0, 0, 10**400, 3],
        [0, 0, 1e300, 3],
        [0, 0, math.nan, 3],
        ["1", 2, "x", 4],
        {"x": 1},
        [True, 0, 1, 1],
    ):
        assert box_problem(as_box(bbox)) is not None
    assert [size(value) for value in (80, 80.0, "80")] == [80] * 3
    assert {size(value) for value in (0, -1, 1.5, "wide", math.inf, 1e300, 10**400, None, [80], True)} == {None}
    assert len(shown([list(range(1000))] * 1000)) < 200


def rows(root: Path) -> list[dict[str, Any]]:
    """What ``data convert`` writes of the train split."""
    table, _ = usable_part(read_source(find_source(root, "train")))
    found: list[dict[str, Any]] = to_coco(table)["annotations"]
    return found


def found(root: Path, name: str, split: str = "train") -> Finding:
    return next(one for one in check(find_sources(root)).findings if (one.check, one.split) == (name, split))


def each(**values: object) -> Change:
    return lambda content: [row.update(values) for row in content["annotations"]]


@pytest.mark.parametrize("crowd", [None, "0", "", False, 0.0])
def test_crowds_that_are_none(tmp_path: Path, crowd: object) -> None:
    edit(coco_tree(tmp_path) / FILE, each(iscrowd=crowd))
    assert [row["iscrowd"] for row in rows(tmp_path)] == [0, 0, 0]
    assert sum(len(record.boxes) for record in load_dataset(tmp_path).records) == 3
    told = found(tmp_path, "values")
    assert (told.level, told.count) == (("warning", 3) if crowd == "0" else ("ok", 0))


def test_the_area_of_an_outline_is_not_that_of_its_box() -> None:
    triangle = [10.0, 10.0, 20.0, 10.0, 10.0, 30.0]
    assert outline_area([triangle]) == 100
    assert outline_area([triangle, [0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0]]) == 116
    assert outline_area({"size": [4, 5], "counts": [3, 7, 10]}) == 7


def test_areas_that_nobody_filled_in_are_those_of_the_boxes(tmp_path: Path) -> None:
    edit(coco_tree(tmp_path) / FILE, each(area=None))
    assert [row["area"] for row in rows(tmp_path)] == [120, 480, 48]
    edit(tmp_path / FILE, each(area=-5))
    assert [row["area"] for row in rows(tmp_path)] == [120, 480, 48]
    assert "area -5 is negative" in found(tmp_path, "values").examples[0]


def test_sizes_as_text_are_read_and_others_come_from_the_images(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for row, value in zip(content["images"], ("40", -1, "wide"), strict=True):
            row["width"] = value

    edit(coco_tree(tmp_path) / FILE, change)
    assert [record.width for record in load_dataset(tmp_path).records] == [40, 40, 40]
    told = found(tmp_path, "values")
    assert told.examples == (
        "image id 1: width '40' read as 40",
        "image id 2: width -1 is no number of pixels: read from the image",
        "image id 3: width 'wide' is no number of pixels: read from the image",
    )


def test_ids_as_text_and_names_as_ids(tmp_path: Path) -> None:
    def text(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            row["image_id"] = str(row["image_id"])

    def names(content: dict[str, Any]) -> None:
        for row in content["images"]:
            row["id"] = f"img_{row['id']}"
        for row in content["annotations"]:
            row["image_id"] = f"img_{row['image_id']}"

    expected = rows(coco_tree(tmp_path))
    edit(tmp_path / FILE, text)
    assert rows(tmp_path) == expected
    edit(tmp_path / FILE, names)
    assert rows(tmp_path) == expected
    edit(tmp_path / FILE, lambda content: content["images"][0].update(id=[1]))
    with pytest.raises(DataError, match=r"images\[0\]: id must be a whole number, not \[1\]"):
        rows(tmp_path)


def test_boxes_come_from_outlines(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            x, y, w, h = row.pop("bbox")
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        counts = [2 * 30 + 5, *[4, 26] * 2, 4, 30 * 40 - 2 * 30 - 5 - 64]  # columns 2, 3, 4 from row 5, 4 pixels each
        content["annotations"][2]["segmentation"] = {"size": [30, 40], "counts": counts}

    edit(coco_tree(tmp_path) / FILE, change)
    boxes = [[4, 3, 10, 12], [20, 6, 20, 24], [2, 5, 3, 4]]
    assert [row["bbox"] for row in rows(tmp_path)] == boxes
    for task in ("det", "inst"):
        records = load_dataset(tmp_path, task=task).records
        assert [box for record in records for box in record.segments.boxes.tolist()] == boxes
    assert (found(tmp_path, "boxes from outlines").level, found(tmp_path, "boxes from outlines").count) == ("info", 3)
    perfect = [
        {"image_id": image, "category_id": category, "bbox": box, "score": 1}
        for image, category, box in zip((1, 1, 3), (1, 2, 2), boxes, strict=True)
    ]
    assert score_coco(tmp_path / FILE, perfect).metrics["AP"] == pytest.approx(1)

    edit(tmp_path / FILE, each(segmentation=[[1, 2, 3]]))
    with pytest.raises(DataError, match="bbox is missing, and its segmentation has a polygon with an odd number"):
        rows(tmp_path)


def test_data_of_which_nothing_is_left_are_an_error(tmp_path: Path) -> None:
    edit(coco_tree(tmp_path) / FILE, each(bbox=None))
    with pytest.raises(DataError, match="all 3 annotations are unusable, so none is left"):
        usable_part(read_source(find_source(tmp_path, "train")), on_error="skip")


def photo_tree(root: Path, bbox: list[int], size: tuple[int, int]) -> None:
    """A photo of 40 x 30 pixels that EXIF turns to 30 x 40, listed with a size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root / "images" / "train" / "a.jpg")
    Image.open(root / "images" / "train" / "a.jpg").save(root / "images" / "train" / "a.jpg", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox, "area": 9, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "bolt"}],
    }
    dump(root / FILE, content)


@pytest.mark.filterwarnings("ignore:.*photos have width and height of the file as stored")
@pytest.mark.parametrize(
    ("bbox", "size", "frame", "level"),
    [
        ([5, 30, 10, 8], (40, 30), (30, 40), "error"),  # fits upright only
        ([32, 5, 6, 8], (40, 30), (40, 30), "ok"),  # fits as stored only
        ([5, 30, 10, 8], (30, 40), (30, 40), "ok"),  # as it should be
        ([35, 35, 9, 9], (40, 30), (40, 30), "ok"),  # fits neither
    ],
)
def test_frame_of_photos_on_their_side(
    tmp_path: Path, bbox: list[int], size: tuple[int, int], frame: tuple[int, int], level: str
) -> None:
    photo_tree(tmp_path, bbox, size)
    dataset = load_dataset(tmp_path)
    assert (dataset.records[0].width, dataset.records[0].height) == frame == dataset.read_image(0).size
    assert found(tmp_path, "image frame").level == level


def test_classes_of_crowds_alone_are_named(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0].update(iscrowd=1, segmentation={"size": [30, 40], "counts": [0, 1200]})

    edit(coco_tree(tmp_path) / FILE, change)
    told = found(tmp_path, "crowd classes")
    assert (told.level, told.examples) == ("warning", ("bolt: 1",))
    assert "CVAT writes iscrowd 1 for brush masks: set it to 0" in told.message
    assert found(tmp_path, "absent classes").level == "ok"


def test_equal_names_files_listed_twice_and_other_classes_in_val(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"][1]["name"] = "Bolt "
        content["images"][2]["file_name"] = "a.png"

    edit(coco_tree(tmp_path) / FILE, change)
    assert found(tmp_path, "class names").examples == ("'bolt' (id 1) = 'Bolt ' (id 2)",)
    assert found(tmp_path, "files listed twice").examples == ("a.png: ids 1, 3",)
    across = found(tmp_path, "categories across splits", "train & val")
    assert across.examples == ("id 2 is 'Bolt ' in train and 'nut' in val",)


def test_results_by_name_are_refused_where_a_name_stands_twice(tmp_path: Path) -> None:
    edit(coco_tree(tmp_path) / FILE, lambda content: content["images"][2].update(file_name="a.png"))
    predictions = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
    with pytest.raises(DataError, match=r"image 'a\.png' occurs more than once among the images of .* \(ids 1 and 3\)"):
        score_coco(tmp_path / FILE, predictions)


def test_a_class_that_is_its_own_supercategory_is_no_placeholder(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for row in content["categories"]:
            row["supercategory"] = row["name"]

    roboflow_tree(tmp_path)
    assert load_dataset(tmp_path).categories.ids == [1, 2]
    edit(tmp_path / "train" / "_annotations.coco.json", change)
    assert load_dataset(tmp_path).categories.names == ["hardware", "bolt", "nut"]


def test_byte_order_mark_and_json_that_python_cannot_hold(tmp_path: Path) -> None:
    path = coco_tree(tmp_path) / FILE
    expected = rows(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert rows(tmp_path) == expected
    for text, message in (('{"images":' + "[" * 200000, "nested too deeply"), ('{"a": ' + "9" * 5000 + "}", "digits")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            rows(tmp_path)
    edit(
        path := coco_tree(tmp_path / "other") / FILE, lambda content: content["images"][0].update(file_name="a" * 5000)
    )
    with pytest.raises(DataError, match="image file missing"):
        rows(tmp_path / "other")
