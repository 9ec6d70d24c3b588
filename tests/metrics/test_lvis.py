"""LVIS scores: recorded numbers of lvis-api, hand-made cases of the rules, and pycocotools on equivalent COCO data."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detrkit.errors import DataError
from detrkit.metrics import score_lvis
from tests.metrics.coco_oracle import pycocotools_score
from tests.metrics.test_coco import HEIGHT, WIDTH, assert_same, ground_truth, result

BOX, OTHER = [10.0, 10.0, 30.0, 20.0], [60.0, 50.0, 30.0, 20.0]


def lvis_truth(
    *boxes: tuple[int, int, list[float]],
    negative: dict[int, list[int]] | None = None,
    not_exhaustive: dict[int, list[int]] | None = None,
    frequencies: str = "rcf",
) -> dict[str, Any]:
    """Two images, one class per frequency, boxes (image id, category id, bbox), class lists by image id."""
    truth = ground_truth(*boxes, classes=len(frequencies))
    for image in truth["images"]:
        image["neg_category_ids"] = (negative or {}).get(image["id"], [])
        image["not_exhaustive_category_ids"] = (not_exhaustive or {}).get(image["id"], [])
    for category, frequency in zip(truth["categories"], frequencies, strict=True):
        category["frequency"] = frequency
    return truth


# --- recorded numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_agrees_with_the_recorded_lvis_api_numbers(shared: Path, iou_type: Any) -> None:
    folder = shared / "golden" / "eval_lvis"
    expected = json.loads((folder / "expected.json").read_text())
    for limit, key in ((300, iou_type), (20, f"{iou_type}_max_dets_20")):
        score = score_lvis(folder / "gt.json", folder / f"dt_{iou_type}.json", iou_type=iou_type, max_detections=limit)
        assert (score.protocol, score.iou_type) == ("lvis", iou_type)
        assert score.metrics.keys() == expected[key].keys()
        for name, value in expected[key].items():
            assert score.metrics[name] == pytest.approx(value, abs=expected["tolerance"])
    assert len(score.per_class) == len(json.loads((folder / "gt.json").read_text())["categories"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_agrees_with_lvis_api_on_a_hundred_images_of_lvis_val(shared: Path, iou_type: Any) -> None:
    folder = shared / "data" / "eval_fixtures" / "lvis"
    expected = json.loads((folder / "expected.json").read_text())[iou_type]
    score = score_lvis(folder / "lvis_val_100.json", folder / f"lvis_fake{iou_type}_results.json", iou_type=iou_type)
    assert score.metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert score.metrics[name] == pytest.approx(value, abs=1e-9)


# --- hand-made cases --------------------------------------------------------------------------------------------------


def test_perfect_results_score_one() -> None:
    truth = lvis_truth((1, 1, BOX), (1, 2, OTHER), (2, 3, BOX))
    score = score_lvis(truth, [result(1, 1, BOX), result(1, 2, OTHER), result(2, 3, BOX)])
    for name in ("AP", "AP50", "AP75", "APr", "APc", "APf", "AR@300"):
        assert score.metrics[name] == pytest.approx(1.0)
    assert score.metrics["APl"] is None
    assert all(numbers["AP"] == pytest.approx(1.0) for numbers in score.per_class.values())


@pytest.mark.parametrize(
    ("settings", "ap"),
    [
        ({}, 1.0),  # image 2 was not annotated for class 3
        ({"negative": {2: [3]}}, 0.5),  # class 3 is verified to be absent
        ({"negative": {1: [3]}}, 1.0),  # verified in the other image
    ],
)
def test_a_false_positive_counts_only_in_images_annotated_for_its_class(settings: Any, ap: float) -> None:
    truth = lvis_truth((1, 3, BOX), **settings)
    score = score_lvis(truth, [result(1, 3, BOX, 0.5), result(2, 3, BOX, 0.9)])
    assert score.metrics["APf"] == score.per_class["class3"]["AP"] == pytest.approx(ap)
    assert score.metrics["APr"] is None


@pytest.mark.parametrize(("listed", "ap"), [({}, 0.5), ({1: [3]}, 1.0), ({2: [3]}, 0.5)])
def test_unmatched_detections_of_a_not_exhaustive_class_are_ignored(listed: Any, ap: float) -> None:
    truth = lvis_truth((1, 3, BOX), not_exhaustive=listed)
    score = score_lvis(truth, [result(1, 3, BOX, 0.5), result(1, 3, OTHER, 0.9)])
    assert score.metrics["APf"] == pytest.approx(ap)


def test_the_detection_limit_per_image_is_over_all_classes() -> None:
    truth = lvis_truth((1, 1, BOX), negative={1: [2]})
    noise = [result(1, 2, OTHER, 0.9) for _ in range(300)]
    for results, ap in (([*noise[1:], result(1, 1, BOX, 0.1)], 1.0), ([*noise, result(1, 1, BOX, 0.1)], 0.0)):
        assert score_lvis(truth, results).metrics["APr"] == pytest.approx(ap)


def test_no_results_and_no_boxes() -> None:
    assert score_lvis(lvis_truth((1, 1, BOX)), []).metrics["AP"] == 0.0
    assert set(score_lvis(lvis_truth(), [result(1, 1, BOX)]).metrics.values()) == {None}


def test_images_without_file_name_are_matched_by_their_url() -> None:
    truth = lvis_truth((1, 1, BOX))
    for image in truth["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    predictions = {
        "images": [{"id": 5, "file_name": "0.jpg"}],
        "categories": [{"id": 9, "name": "class1"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 9, "bbox": BOX, "score": 0.5}],
    }
    assert score_lvis(truth, predictions).metrics["AP"] == pytest.approx(1.0)


# --- pycocotools as the oracle ----------------------------------------------------------------------------------------


@st.composite
def lvis_sets(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """LVIS annotations of two images and three classes; results with ties, near duplicates and wrong boxes."""
    corner, size = st.integers(0, 5).map(lambda n: 10.0 * n), st.sampled_from([10.0, 20.0, 35.0])
    box = st.tuples(corner, corner, size, size)
    placed = st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2, 3]), box.map(list))
    boxes = draw(st.lists(placed, max_size=8))
    present = {(image, category) for image, category, _ in boxes}
    lists: dict[str, dict[int, list[int]]] = {"negative": {1: [], 2: []}, "not_exhaustive": {1: [], 2: []}}
    for image in (1, 2):
        for category in (1, 2, 3):
            kind = "not_exhaustive" if (image, category) in present else "negative"
            if draw(st.booleans()):
                lists[kind][image].append(category)
    truth = lvis_truth(*boxes, **lists, frequencies=draw(st.sampled_from(["rcf", "rrf"])))
    anything = st.one_of(placed, st.sampled_from(boxes)) if boxes else placed
    scored = st.tuples(anything, st.sampled_from([0.1, 0.5, 0.9]) | st.floats(0, 1))
    return truth, [result(*place, score) for place, score in draw(st.lists(scored, max_size=20))]


def as_coco(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO data with the same score.

    Detections of classes that an image was not annotated for are removed. A crowd region over the whole image absorbs
    unmatched detections of a class that is not exhaustive, since any box inside it has overlap 1.
    """
    truth = copy.deepcopy(truth)
    looked_for = {(row["image_id"], row["category_id"]) for row in truth["annotations"]}
    for image in truth["images"]:
        looked_for |= {(image["id"], category) for category in image["neg_category_ids"]}
        for category in image["not_exhaustive_category_ids"]:
            number = len(truth["annotations"]) + 1
            crowd = {"id": number, "bbox": [0.0, 0.0, WIDTH, HEIGHT], "area": WIDTH * HEIGHT, "iscrowd": 1}
            truth["annotations"].append(crowd | {"image_id": image["id"], "category_id": category})
    return truth, [row for row in results if (row["image_id"], row["category_id"]) in looked_for]


@given(lvis_sets())
def test_agrees_with_pycocotools_on_equivalent_coco_data(case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    truth, results = case
    score = score_lvis(truth, results)
    totals, per_class = pycocotools_score(*as_coco(truth, results))
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert_same(score.metrics[name], totals[name])
    for name in ("", "s", "m", "l"):
        assert_same(score.metrics[f"AR{name}@300"], totals[f"AR{name}" if name else "AR100"])
    for category in truth["categories"]:
        for name in ("AP", "AP50", "APs"):
            assert_same(score.per_class[category["name"]][name], per_class[category["id"]][name])
    for letter in "rcf":
        of_letter = [per_class[row["id"]]["AP"] for row in truth["categories"] if row["frequency"] == letter]
        defined = [value for value in of_letter if value is not None]
        assert_same(score.metrics[f"AP{letter}"], sum(defined) / len(defined) if defined else None)


# --- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "key", "value", "message"),
    [
        ("images", "neg_category_ids", None, r"image id 1 has no list 'neg_category_ids'.*detrkit score coco"),
        ("images", "not_exhaustive_category_ids", 3, r"image id 1 has no list 'not_exhaustive_category_ids'"),
        (
            "images",
            "neg_category_ids",
            [1, 77],
            r"image id 1: neg_category_ids has 77, which the categories do not have",
        ),
        ("images", "neg_category_ids", [[1]], r"image id 1: neg_category_ids has \[1\]"),
        ("categories", "frequency", None, r"category id 1: frequency is None, but LVIS has 'r', 'c' or 'f'"),
        ("categories", "frequency", "rare", r"category id 1: frequency is 'rare'"),
    ],
)
def test_annotations_that_are_not_lvis_are_named(tmp_path: Path, rows: str, key: str, value: Any, message: str) -> None:
    truth = lvis_truth((1, 1, BOX))
    truth[rows][0][key] = value
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    with pytest.raises(DataError, match=rf"truth\.json: {message}"):
        score_lvis(path, [])


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="iou_type"):
        score_lvis(lvis_truth(), [], iou_type="keypoints")  # type: ignore[arg-type]  # the error under test
    with pytest.raises(ValueError, match="max_detections must be at least 1, not 0"):
        score_lvis(lvis_truth(), [], max_detections=0)
