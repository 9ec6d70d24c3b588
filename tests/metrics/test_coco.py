from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from detrkit.errors import DataError
from detrkit.metrics.coco import METRICS, score_coco
from tests.metrics.coco_oracle import pycocotools_ap, pycocotools_score

HEIGHT, WIDTH = 90, 120


def ground_truth(*boxes: tuple[int, int, list[float]], images: int = 2, classes: int = 2) -> dict[str, Any]:
    """COCO ground truth with images 1.., categories 1.. and boxes (image id, category id, bbox)."""
    return {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(images)],
        "categories": [{"id": k + 1, "name": f"class{k + 1}"} for k in range(classes)],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for n, (i, c, b) in enumerate(boxes)
        ],
    }


def result(image: int, category: int, box: list[float], score: float = 0.9) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def assert_same(actual: float | None, expected: float | None) -> None:
    if expected is None or actual is None:
        assert actual is expected
    else:
        assert actual == pytest.approx(expected, abs=1e-9)


BOX = [10.0, 10.0, 30.0, 20.0]


# --- recorded numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_agrees_with_the_recorded_pycocotools_numbers(shared: Path, iou_type: str) -> None:
    folder = shared / "golden" / "eval_coco"
    expected = json.loads((folder / "expected.json").read_text())[iou_type]
    score = score_coco(folder / "gt.json", folder / f"dt_{iou_type}.json", iou_type=iou_type)

    assert score.protocol == "coco"
    assert score.iou_type == iou_type
    assert list(score.metrics) == expected["stats_names"] == list(METRICS)
    for name, value in zip(expected["stats_names"], expected["stats"], strict=True):
        assert_same(score.metrics[name], value)
    categories = {row["id"]: row["name"] for row in json.loads((folder / "gt.json").read_text())["categories"]}
    assert len(score.per_class) == len(categories)
    for category_id, name in categories.items():
        assert_same(score.per_class[name]["AP"], expected["per_category_AP"][str(category_id)])
        recall = expected["per_category_AR100"][str(category_id)]
        assert_same(score.per_class[name]["AR100"], None if recall == -1 else recall)

    merged = score_coco(folder / "gt.json", folder / f"dt_{iou_type}.json", iou_type=iou_type, class_agnostic=True)
    for name, value in zip(expected["stats_names"], expected["stats_without_categories"], strict=True):
        assert_same(merged.metrics[name], value)
    assert merged.per_class == {}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_agrees_with_the_numbers_published_for_coco_val_2014(shared: Path, iou_type: str) -> None:
    folder = shared / "data" / "eval_fixtures" / "coco_instances"
    expected = json.loads((folder / "expected.json").read_text())[iou_type]
    truth = folder / "instances_val2014_100.json"
    score = score_coco(truth, folder / f"instances_val2014_fake{iou_type}100_results.json", iou_type=iou_type)

    for name in METRICS:
        assert_same(score.metrics[name], expected[name])
    names = {str(row["id"]): row["name"] for row in json.loads(truth.read_text())["categories"]}
    assert len(names) == len(expected["per_class_AP"]) == 80
    for category_id, value in expected["per_class_AP"].items():
        assert_same(score.per_class[names[category_id]]["AP"], value)


# --- pycocotools as the oracle on generated sets ----------------------------------------------------------------------


@st.composite
def evaluation_sets(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth with crowd boxes and given areas; results with tied scores, near duplicates and wrong boxes."""
    image_ids = draw(st.lists(st.integers(0, 30), min_size=1, max_size=3, unique=True))
    category_ids = draw(st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True))
    step = draw(st.sampled_from([1, 5, 10]))  # a coarse grid makes exact overlaps and ties common
    number = st.integers(0, 50 // step).map(lambda n: float(n * step))
    size = st.integers(1, 40 // step).map(lambda n: float(n * step))
    box = st.tuples(number, number, size, size).map(list)
    area = st.sampled_from([None, 500.0, 1024.0, 5000.0, 9216.0, 20000.0])

    truth = ground_truth(images=0, classes=0)
    truth["images"] = [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in image_ids]
    truth["categories"] = [{"id": c, "name": f"class{c}"} for c in category_ids]
    for number_of in range(draw(st.integers(0, 12))):
        bbox = draw(box)
        truth["annotations"].append(
            {
                "id": number_of + 1,
                "image_id": draw(st.sampled_from(image_ids)),
                "category_id": draw(st.sampled_from(category_ids)),
                "bbox": bbox,
                "area": draw(area) or bbox[2] * bbox[3],
                "iscrowd": draw(st.sampled_from([0, 0, 0, 1])),
            }
        )
    boxes = [row["bbox"] for row in truth["annotations"]]
    any_box = st.one_of(box, st.sampled_from(boxes)) if boxes else box
    results = [
        result(
            draw(st.sampled_from(image_ids)),
            draw(st.sampled_from(category_ids)),
            draw(any_box),
            draw(st.sampled_from([0.1, 0.5, 0.5, 0.9]) | st.floats(0, 1)),
        )
        for _ in range(draw(st.integers(0, 25)))
    ]
    return truth, results


@settings(max_examples=150)
@given(evaluation_sets())
def test_boxes_agree_with_pycocotools(case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    truth, results = case
    totals, per_class = pycocotools_score(truth, results)
    score = score_coco(truth, results)
    for name, value in totals.items():
        assert_same(score.metrics[name], value)
    for category_id, numbers in per_class.items():
        for name, value in numbers.items():
            assert_same(score.per_class[f"class{category_id}"][name], value)


def mask_of(box: list[float]) -> dict[str, Any]:
    """An L-shaped mask inside the box, as a compressed run-length encoding."""
    x, y, w, h = (int(value) for value in box)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    mask[y : y + h // 2, x : x + w // 2] = 0
    code = rle.encode(mask)
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


@settings(max_examples=60)
@given(evaluation_sets())
def test_masks_agree_with_pycocotools(case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    truth, results = case
    for row in truth["annotations"]:
        x, y, w, h = row["bbox"]
        triangle = [[x, y, x + w, y, x + w, y + h]]
        row["segmentation"] = triangle if row["id"] % 3 == 0 and not row["iscrowd"] else mask_of(row["bbox"])
    masks = [{**row, "segmentation": mask_of(row["bbox"])} for row in results]
    for row in masks:
        del row["bbox"]
    totals, per_class = pycocotools_score(truth, masks, "segm")
    score = score_coco(truth, masks, iou_type="segm")
    for name, value in totals.items():
        assert_same(score.metrics[name], value)
    for category_id, numbers in per_class.items():
        for name, value in numbers.items():
            assert_same(score.per_class[f"class{category_id}"][name], value)


def test_only_the_100_best_detections_per_image_and_class_count() -> None:
    truth = ground_truth((1, 1, BOX))
    wrong = [result(1, 1, [60.0, 50.0, 10.0, 10.0], 0.9) for _ in range(100)]
    hit = result(1, 1, BOX, 0.1)
    for results, recall in (([*wrong[:99], hit], 1.0), ([*wrong, hit], 0.0)):
        score = score_coco(truth, results)
        assert score.metrics["AR100"] == recall
        assert_same(score.metrics["AP"], pycocotools_score(truth, results)[0]["AP"])


@pytest.mark.parametrize("limit", [1, 5, 10, 101, 500])
def test_another_limit_of_detections_counts_as_in_pycocotools(limit: int) -> None:
    truth = ground_truth((1, 1, BOX), (1, 1, [40.0, 10.0, 20.0, 20.0]))
    wrong = [result(1, 1, [60.0, 50.0, 10.0, 10.0], 0.9 - i / 1000) for i in range(100)]
    results = [result(1, 1, BOX, 0.95), *wrong, result(1, 1, [40.0, 10.0, 20.0, 20.0], 0.1)]
    score = score_coco(truth, results, max_detections=limit)
    largest = f"AR{limit}"
    assert list(score.metrics)[6:-3] == [f"AR{n}" for n in (1, 10) if n < limit] + [largest]
    assert score.metrics[largest] == (1.0 if limit > 101 else 0.5)
    assert_same(score.metrics["AP"], pycocotools_ap(truth, results, limit))


def test_a_limit_of_no_detections_is_refused() -> None:
    with pytest.raises(ValueError, match="max_detections must be at least 1, not 0"):
        score_coco(ground_truth((1, 1, BOX)), [], max_detections=0)


# --- empty input ------------------------------------------------------------------------------------------------------


def test_no_results_score_zero_with_ground_truth_and_none_without() -> None:
    score = score_coco(ground_truth((1, 1, BOX)), [])
    assert score.metrics["AP"] == score.metrics["AR100"] == score.metrics["APs"] == 0.0
    assert score.metrics["APm"] is None
    assert score.per_class["class1"]["AP"] == 0.0
    assert set(score.per_class["class2"].values()) == {None}


@pytest.mark.parametrize("results", [[], [result(1, 1, BOX)]])
def test_no_ground_truth_boxes_leaves_everything_undefined(results: list[dict[str, Any]]) -> None:
    score = score_coco(ground_truth(), results)
    assert set(score.metrics.values()) == {None}
    assert list(score.per_class) == ["class1", "class2"]


def test_no_images_and_no_categories() -> None:
    score = score_coco(ground_truth(images=0, classes=0), [])
    assert set(score.metrics.values()) == {None}
    assert score.per_class == {}


def test_detections_on_images_without_boxes_are_false_positives() -> None:
    truth = ground_truth((1, 1, BOX), images=3)
    clean = score_coco(truth, [result(1, 1, BOX, 0.5)])
    noisy = score_coco(truth, [result(1, 1, BOX, 0.5), result(3, 1, BOX, 0.9)])
    assert clean.metrics["AP"] == pytest.approx(1.0)
    assert noisy.metrics["AP"] == pytest.approx(0.5)


# --- real files -------------------------------------------------------------------------------------------------------


def test_annotations_without_id_iscrowd_and_area_are_completed() -> None:
    full = ground_truth((1, 1, BOX), (2, 1, [0.0, 0.0, 50.0, 50.0]), (2, 2, BOX))
    bare = {**full, "annotations": [dict(row) for row in full["annotations"]]}
    for row in bare["annotations"]:
        del row["id"], row["iscrowd"], row["area"]
    results = [result(1, 1, BOX), result(2, 1, [0.0, 0.0, 45.0, 50.0])]
    assert score_coco(bare, results) == score_coco(full, results)


def test_missing_area_of_a_mask_is_measured_on_the_mask() -> None:
    box = [10.0, 10.0, 40.0, 40.0]  # box area 1600 is medium; the L covers 1200, medium too
    small = [50.0, 40.0, 33.0, 33.0]  # box area 1089 is medium; its L covers 833, small
    truth = ground_truth((1, 1, box), (1, 1, small))
    for row in truth["annotations"]:
        del row["area"]
        row["segmentation"] = mask_of(row["bbox"])
    results = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": mask_of(box)}]
    score = score_coco(truth, results, iou_type="segm")
    assert score.metrics["ARm"] == pytest.approx(1.0)
    assert score.metrics["ARs"] == pytest.approx(0.0)


def test_an_annotation_id_of_zero_counts_like_any_other() -> None:
    """pycocotools takes a match with id 0 for no match, a known problem with files that number from 0."""
    truth = ground_truth((1, 1, BOX))
    truth["annotations"][0]["id"] = 0
    assert score_coco(truth, [result(1, 1, BOX)]).metrics["AP"] == pytest.approx(1.0)


def test_duplicate_annotation_ids_and_string_image_ids_are_accepted() -> None:
    truth = ground_truth((1, 1, BOX), (2, 2, BOX))
    for row in truth["annotations"]:
        row["id"] = 7
        row["image_id"] = f"img{row['image_id']}"
    for row in truth["images"]:
        row["id"] = f"img{row['id']}"
    rows = [{**result(1, 1, BOX), "image_id": "img1"}, {**result(2, 2, BOX), "image_id": "img2"}]
    assert score_coco(truth, rows).metrics["AP"] == pytest.approx(1.0)


def test_mask_area_is_used_when_a_result_has_a_box_and_a_mask() -> None:
    """Like Detectron2; pycocotools itself would use the area of the box."""
    box = [10.0, 10.0, 36.0, 36.0]
    truth = ground_truth((1, 1, box))
    truth["annotations"][0].update(segmentation=mask_of(box), area=972.0)
    mask_only = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": mask_of(box)}]
    both = [{**mask_only[0], "bbox": box}]
    assert score_coco(truth, both, iou_type="segm") == score_coco(truth, mask_only, iou_type="segm")


def test_annotations_of_unlisted_images_are_ignored_with_a_warning() -> None:
    """As training does; the published COCO subsets have them."""
    truth = ground_truth((1, 1, BOX), (2, 1, BOX))
    truth["annotations"][1]["image_id"] = 9
    with pytest.warns(UserWarning, match="ground truth: 1 annotations of images that it does not list are ignored"):
        assert score_coco(truth, [result(1, 1, BOX)]).metrics["AP"] == pytest.approx(1.0)


def test_classes_with_the_same_name_stay_separate() -> None:
    truth = ground_truth((1, 1, BOX))
    truth["categories"] = [{"id": 1, "name": "cell"}, {"id": 2, "name": "cell"}, {"id": 3}]
    assert list(score_coco(truth, []).per_class) == ["cell (id 1)", "cell (id 2)", "3"]


def test_predictions_json_is_matched_by_file_and_class_name() -> None:
    truth = ground_truth((1, 1, BOX), (2, 2, BOX))
    predictions = {
        "images": [{"id": 1, "file_name": "val/1.jpg"}, {"id": 2, "file_name": "val/0.jpg"}],
        "categories": [{"id": 10, "name": "class2"}, {"id": 20, "name": "class1"}],
        "annotations": [
            {"image_id": 1, "category_id": 10, "bbox": BOX, "score": 0.9},
            {"image_id": 2, "category_id": 20, "bbox": BOX, "score": 0.8},
        ],
    }
    assert score_coco(truth, predictions).metrics["AP"] == pytest.approx(1.0)

    predictions["images"][0]["file_name"] = "val/other.jpg"
    with pytest.raises(DataError, match=r"image 'val/other\.jpg' is not among the images"):
        score_coco(truth, predictions)


def test_results_of_unknown_classes_are_ignored_with_a_warning() -> None:
    truth = ground_truth((1, 1, BOX))
    with pytest.warns(UserWarning, match=r"category ids 91 \(1 rows\)"):
        score = score_coco(truth, [result(1, 1, BOX), result(1, 91, BOX)])
    assert score.metrics["AP"] == pytest.approx(1.0)
    with pytest.raises(DataError, match="no row is left"):
        score_coco(truth, [result(1, 91, BOX)])


# --- invalid input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, r"results: row 1: image_id 9 is not among the 2 images"),
        ({"image_id": None}, "row 1: image_id is missing"),
        ({"category_id": None}, "row 1: category_id is missing"),
        ({"score": float("nan")}, "row 1: score must be a finite number"),
        ({"score": "high"}, "row 1: score must be a finite number"),
        ({"bbox": [1, 2, 3]}, r"row 1: bbox \[1, 2, 3\] is not a list of four numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"row 1: bbox \[1, 2, nan, 4\] is not finite"),
        ({"bbox": [10, 10, -5, 4]}, r"row 1: bbox \[10, 10, -5, 4\] has a negative width or height"),
        ({"bbox": None}, "row 1: bbox None is not a list of four numbers"),
    ],
)
def test_bad_results_row_is_named(change: dict[str, Any], message: str) -> None:
    rows = [result(1, 1, BOX), {**result(1, 1, BOX), **change}]
    with pytest.raises(DataError, match=message):
        score_coco(ground_truth((1, 1, BOX)), rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 9}, r"annotations\[0\]: category_id 9 is not among the categories"),
        ({"bbox": [0, 0, float("inf"), 1]}, r"annotations\[0\]: bbox .* is not finite"),
        ({"area": "big"}, r"annotations\[0\]: area must be a finite number"),
    ],
)
def test_bad_ground_truth_row_is_named(change: dict[str, Any], message: str) -> None:
    truth = ground_truth((1, 1, BOX))
    truth["annotations"][0].update(change)
    with pytest.raises(DataError, match=message):
        score_coco(truth, [])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ({"size": [HEIGHT, WIDTH]}, "an RLE whose counts are missing"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, "an RLE for 90x120 pixels, but the image is 120x90"),
        ([[1, 2, 3, 4]], "with 2 points; it needs at least 3"),
        ([[1, 2, 3, 4, 5]], "odd number of coordinates"),
        ([[1, 2, 3, 4, 5, float("nan")]], "a coordinate that is not finite"),
    ],
)
def test_bad_mask_is_named(segmentation: Any, message: str) -> None:
    row = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": segmentation}
    with pytest.raises(DataError, match=f"row 0: .*{message}"):
        score_coco(ground_truth(), [row], iou_type="segm")


def test_polygons_need_image_sizes() -> None:
    truth = ground_truth((1, 1, BOX))
    del truth["images"][0]["height"]
    truth["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    with pytest.raises(DataError, match="polygons need the image's height and width"):
        score_coco(truth, [], iou_type="segm")
    assert score_coco(truth, []).metrics["AP"] == 0.0


def test_files_that_are_not_coco(tmp_path: Path) -> None:
    good = tmp_path / "gt.json"
    good.write_text(json.dumps(ground_truth((1, 1, BOX))))
    with pytest.raises(DataError, match=r"none\.json: no such ground truth file"):
        score_coco(tmp_path / "none.json", [])
    with pytest.raises(DataError, match="this is a folder"):
        score_coco(tmp_path, [])
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(DataError, match=r"broken\.json: is not JSON: .* in line 1"):
        score_coco(broken, [])
    broken.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(DataError, match=r"broken\.json: cannot be read"):
        score_coco(broken, [])
    broken.write_text("[1, 2]")
    with pytest.raises(DataError, match=r"broken\.json: is a list, which COCO uses for results"):
        score_coco(broken, [])
    with pytest.raises(DataError, match=r"row 0 is not an object but int"):
        score_coco(good, broken)
    broken.write_text('{"images": [], "categories": []}')
    with pytest.raises(DataError, match="is not COCO JSON: it has no list 'annotations'"):
        score_coco(broken, [])
    with pytest.raises(DataError, match="no 'annotations' here"):
        score_coco(good, broken)
    broken.write_text('"text"')
    with pytest.raises(DataError, match="COCO results are a JSON list"):
        score_coco(good, broken)


def test_an_image_id_used_twice_is_an_error() -> None:
    truth = ground_truth((1, 1, BOX))
    truth["images"].append({**truth["images"][0], "file_name": "another.jpg"})
    with pytest.raises(DataError, match=r"images\[2\]: id 1 is used twice"):
        score_coco(truth, [])


def test_ground_truth_given_as_results_is_recognised() -> None:
    truth = ground_truth((1, 1, BOX))
    with pytest.raises(DataError, match="is this a ground-truth file"):
        score_coco(truth, truth["annotations"])


def test_unknown_iou_type() -> None:
    with pytest.raises(ValueError, match="iou_type must be"):
        score_coco(ground_truth(), [], iou_type="keypoints")  # type: ignore[arg-type]  # the error under test
