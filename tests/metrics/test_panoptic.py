"""Panoptic quality: hand-made cases, recorded numbers of panopticapi, hotcoco, and a slow reference."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotcoco.panoptic import PanopticEval

from detrkit.metrics import Score, score_panoptic
from detrkit.metrics.panoptic import PanopticMetric
from detrkit.structures import Categories, PanopticMap, Segment
from tests.metrics.maps import (
    CAR,
    CATEGORIES,
    DOG,
    ROAD,
    SKY,
    Side,
    case,
    moved,
    random_side,
    save_ids,
    slow_counts,
    truth_json,
)

NAMES = {row["id"]: row["name"] for row in CATEGORIES}


def half(left: int, right: int, *, at: int = 5, shape: tuple[int, int] = (10, 10)) -> np.ndarray[Any, Any]:
    """Two ids side by side."""
    ids = np.full(shape, right, dtype=np.int64)
    ids[:, :at] = left
    return ids


def scored(folder: Path, truth: Side, found: Side) -> dict[str, Any]:
    return dict(score_panoptic(**case(folder, [truth], [found])).to_json())


def as_map(found: Side) -> PanopticMap:
    categories = Categories.from_json(CATEGORIES)
    segments = tuple(Segment(key, categories.ids.index(kind)) for key, kind in found[1].items())
    return PanopticMap(found[0].astype(np.int64), segments, categories)


# What panopticapi recorded.


@pytest.mark.parametrize("name", ["synthetic", "coco_sample", "coco_open"])
def test_recorded_numbers(shared: Path, name: str, golden_count: dict[str, Any]) -> None:
    folder = shared / "golden" / "eval_panoptic"
    if name == "coco_open":
        truth = shared / "data" / "coco_open_panoptic" / "annotations" / "panoptic_val.json"
        found = shared / "data" / "eval_fixtures" / "coco_panoptic" / "pred.json"
        expected = json.loads((found.parent / "expected.json").read_text())
    else:
        truth, found = folder / name / "gt.json", folder / name / "pred.json"
        expected = json.loads((folder / "expected.json").read_text())[name]
        golden_count["cases"].add("eval_panoptic")
    score = score_panoptic(truth, found)
    content: dict[str, Any] = dict(score.to_json())
    for group in ("All", "Things", "Stuff"):
        numbers = {key.lower(): value for key, value in content["metrics"][group].items()}
        assert numbers == pytest.approx(expected[group], abs=1e-9)
    names = {str(row["id"]): row["name"] for row in json.loads(truth.read_text())["categories"]}
    assert set(content["per_class"]) == set(names.values())
    seen = set()
    for key, numbers in expected["per_class"].items():
        own = content["per_class"][names[key]]
        seen.add(names[key])
        if own["PQ"] is None:  # panopticapi says 0 of classes that occur nowhere, and leaves them out of the means
            assert set(numbers.values()) == {0.0}
        else:
            assert {name.lower(): value for name, value in own.items()} == pytest.approx(numbers, abs=1e-9)
    assert all(numbers["PQ"] is None for key, numbers in content["per_class"].items() if key not in seen)
    defined = [numbers["PQ"] for numbers in content["per_class"].values() if numbers["PQ"] is not None]
    assert len(defined) == expected["All"]["n"]


def test_real_ground_truth_is_its_own_perfect_result(shared: Path) -> None:
    """With void and a crowd."""
    truth = shared / "data" / "coco_open_panoptic" / "annotations" / "panoptic_val.json"
    score = score_panoptic(truth, truth)
    assert set(score.metrics.values()) == {1.0}
    assert score.num_classes["All"] == score.num_classes["Things"] + score.num_classes["Stuff"] > 50


# Hand-made cases: ids in the map, category of each id; a negative category is a crowd.


def test_a_perfect_result_has_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sides = [random_side(random, (30, 40), crowds=False) for _ in range(5)]
    score = score_panoptic(**case(tmp_path, sides, sides))
    assert set(score.metrics.values()) == {1.0}
    assert score.num_classes == {"All": 4, "Things": 2, "Stuff": 2}
    assert score.value == 1.0


def test_an_iou_of_one_half_is_no_match(tmp_path: Path) -> None:
    """A true segment of 50 pixels, of which the found one covers 25 and no others: IoU 0.5."""
    found = half(1, 0)
    found[:5] = 0
    numbers = scored(tmp_path, (half(1, 2), {1: CAR, 2: SKY}), (found, {1: CAR}))["per_class"]
    assert numbers["car"] == {"PQ": 0.0, "SQ": 0.0, "RQ": 0.0}, "one false and one missed"
    found[4, 0] = 1
    numbers = scored(tmp_path / "more", (half(1, 2), {1: CAR, 2: SKY}), (found, {1: CAR}))["per_class"]
    assert numbers["car"] == pytest.approx({"PQ": 0.52, "SQ": 0.52, "RQ": 1.0})


def test_hand_counted_quality(tmp_path: Path) -> None:
    """Cars: one match of IoU 0.8 and one false. Dogs: one missed."""
    truth, found = half(1, 2), half(3, 0, at=4)
    found[:, 8:] = 4  # 20 pixels of the sky
    content = scored(tmp_path, (truth, {1: CAR, 2: DOG}), (found, {3: CAR, 4: CAR}))
    assert content["per_class"]["car"] == pytest.approx({"PQ": 0.8 / 1.5, "SQ": 0.8, "RQ": 1 / 1.5})
    assert content["per_class"]["dog"] == {"PQ": 0.0, "SQ": 0.0, "RQ": 0.0}
    assert content["metrics"]["All"] == pytest.approx({"PQ": 0.8 / 3, "SQ": 0.4, "RQ": 1 / 3, "n": 2})
    assert content["metrics"]["Things"] == content["metrics"]["All"]
    assert content["metrics"]["Stuff"] == {"PQ": None, "SQ": None, "RQ": None, "n": 0}


def test_void_counts_for_nobody(tmp_path: Path) -> None:
    """The found car lies on 30 of 50 pixels of the true one and on 40 void pixels: IoU 30 / 50, not 30 / 90."""
    found = np.zeros((10, 10), dtype=np.int64)
    found[:6, :5] = 1
    found[:8, 5:] = 1
    numbers = scored(tmp_path, (half(1, 0), {1: CAR}), (found, {1: CAR}))["per_class"]["car"]
    assert numbers == pytest.approx({"PQ": 0.6, "SQ": 0.6, "RQ": 1.0})


def test_a_result_mainly_on_void_is_not_false(tmp_path: Path) -> None:
    truth = half(1, 0)
    found = half(1, 9, at=5)
    numbers = scored(tmp_path / "a", (truth, {1: CAR}), (found, {1: CAR, 9: CAR}))["per_class"]["car"]
    assert numbers == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0}
    other = truth.copy()
    other[:5, 5:] = 2  # now half of it is void, which is not more than half
    numbers = scored(tmp_path / "b", (other, {1: CAR, 2: SKY}), (found, {1: CAR, 9: CAR}))["per_class"]["car"]
    assert numbers == pytest.approx({"PQ": 1 / 1.5, "SQ": 1.0, "RQ": 1 / 1.5})


@pytest.mark.parametrize(("category", "false"), [(CAR, 0), (DOG, 1)])
def test_a_crowd_excuses_results_of_its_class(tmp_path: Path, category: int, false: int) -> None:
    content = scored(tmp_path, (half(1, 2), {1: -CAR, 2: SKY}), (half(1, 2), {1: category, 2: SKY}))
    assert content["per_class"]["car"] == {"PQ": None, "SQ": None, "RQ": None}, "crowds are not missed"
    assert content["per_class"]["dog"]["PQ"] == (0.0 if false else None)
    assert content["per_class"]["sky"]["PQ"] == 1.0


def test_the_last_crowd_of_a_class_is_the_one_that_excuses(tmp_path: Path) -> None:
    """As in panopticapi, which remembers one per class."""
    for name, order, false in (("a", {1: -CAR, 2: -CAR}, 1), ("b", {2: -CAR, 1: -CAR}, 0)):
        content = scored(tmp_path / name, (half(1, 2), order), (half(1, 0), {1: CAR}))
        assert content["per_class"]["car"]["PQ"] == (0.0 if false else None)


def test_the_wrong_class_is_false_and_missed(tmp_path: Path) -> None:
    content = scored(tmp_path, (half(1, 2), {1: CAR, 2: SKY}), (half(1, 2), {1: DOG, 2: SKY}))
    assert [content["per_class"][name]["PQ"] for name in ("car", "dog", "sky", "road")] == [0.0, 0.0, 1.0, None]
    assert content["metrics"]["All"]["n"] == 3


@pytest.mark.parametrize(("kinds", "empty"), [((CAR, DOG), "Stuff"), ((SKY, ROAD), "Things")])
def test_ground_truth_of_things_or_of_stuff_alone(tmp_path: Path, kinds: tuple[int, int], empty: str) -> None:
    one = (half(1, 2), dict(zip((1, 2), kinds, strict=True)))
    metrics = scored(tmp_path, one, one)["metrics"]
    assert metrics.pop(empty) == {"PQ": None, "SQ": None, "RQ": None, "n": 0}
    assert {numbers["PQ"] for numbers in metrics.values()} == {1.0}


def test_an_image_that_is_all_void_counts_nothing(tmp_path: Path) -> None:
    void, nothing = (half(0, 0), {}), (half(0, 0), {})
    good = (half(1, 2), {1: CAR, 2: SKY})
    alone = score_panoptic(**case(tmp_path / "a", [void], [good]))
    assert alone.value is None
    assert alone.num_classes["All"] == 0
    assert set(score_panoptic(**case(tmp_path / "b", [void, good], [good, good])).metrics.values()) == {1.0}
    assert score_panoptic(**case(tmp_path / "c", [good], [nothing])).value == 0.0


def test_stated_areas_count_as_in_panopticapi(tmp_path: Path) -> None:
    """The union uses the area that the JSON says; where it says none, that of the PNG."""
    files = case(tmp_path, [(half(1, 2), {1: CAR, 2: SKY})], [(half(1, 2), {1: CAR, 2: SKY})])
    content = json.loads(files["ground_truth"].read_text())
    info = content["annotations"][0]["segments_info"]
    info[0]["area"] = 62.5
    del info[1]["area"]
    files["ground_truth"].write_text(json.dumps(content))
    numbers = score_panoptic(**files).per_class
    assert numbers["car"]["SQ"] == pytest.approx(0.8)
    assert numbers["sky"]["SQ"] == 1.0


# Against others.


def test_random_cases_equal_a_slow_reference_and_hotcoco(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    truth = [random_side(random, (24, 32), crowds=True) for _ in range(50)]
    found = [moved(random, one) for one in truth]
    files = case(tmp_path, truth, found)
    score = score_panoptic(**files)

    sums = {category: np.zeros(4) for category in NAMES}
    kinds = list(NAMES)
    pixels = np.zeros((len(kinds), len(kinds) + 1), dtype=int)
    for one, other in zip(truth, found, strict=True):
        for first, second in zip(one[0].ravel().tolist(), other[0].ravel().tolist(), strict=True):
            if first and one[1][first] > 0:  # neither void nor a crowd
                pixels[kinds.index(one[1][first]), kinds.index(other[1][second]) if second else len(kinds)] += 1
        for category, counts in slow_counts(one, other).items():
            sums[category] += counts
    assert min(counts[1:].min() for counts in sums.values()) > 0, "the cases show matches, false and missed segments"
    for category, (iou, hit, false, missed) in sums.items():
        weight = hit + (false + missed) / 2
        expected = {"PQ": iou / weight, "SQ": iou / hit, "RQ": hit / weight}
        assert score.per_class[NAMES[category]] == pytest.approx(expected, abs=1e-12)

    assert list(score.per_class) == [NAMES[kind] for kind in kinds]
    np.testing.assert_array_equal(score.pixels, pixels)

    evaluation = PanopticEval(files["ground_truth"], files["results"])
    evaluation.evaluate()
    oracle = evaluation.results()
    metrics: dict[str, Any] = dict(score.metrics_json())
    for group, numbers in metrics.items():
        assert {key.lower(): value for key, value in numbers.items()} == pytest.approx(oracle[group], abs=1e-12)


def test_ids_up_to_the_largest(tmp_path: Path) -> None:
    """Products of bytes, and pairs of ids, overflow small integers."""
    largest = 2**24 - 1
    one = (half(largest, 65536), {largest: CAR, 65536: SKY})
    assert score_panoptic(**case(tmp_path, [one], [(half(255, largest), {255: CAR, largest: SKY})])).value == 1.0


# The metric.


@pytest.fixture
def sides() -> tuple[list[Side], list[Side]]:
    random = np.random.default_rng(5)
    truth = [random_side(random, (24, 32), crowds=True) for _ in range(6)]
    return truth, [moved(random, one) for one in truth]


def test_maps_in_memory_score_like_files(tmp_path: Path, sides: tuple[list[Side], list[Side]]) -> None:
    truth, found = sides
    files = case(tmp_path, truth, found)
    metric = PanopticMetric(files["ground_truth"])
    for number, one in enumerate(found, start=1):
        metric.update(number, as_map(one))
    assert metric.compute() == score_panoptic(**files)


def test_two_processes_score_like_one(tmp_path: Path, sides: tuple[list[Side], list[Side]]) -> None:
    """An image that both met counts once."""
    truth, found = sides
    content = truth_json(tmp_path, truth)
    ranks = [PanopticMetric(content, images=tmp_path / "gt") for _ in range(2)]
    one = PanopticMetric(content, images=tmp_path / "gt")
    for metric, numbers in ((ranks[0], (4, 1, 2)), (ranks[1], (5, 6, 3, 4)), (one, range(1, 7))):
        for number in numbers:
            metric.update(number, as_map(found[number - 1]))
    states: list[Any] = [metric.extracts for metric in ranks]
    for metric in ranks:
        metric.merge(lambda state: states)
    assert [metric.compute() for metric in ranks] == [one.compute()] * 2
    one.reset()
    assert one.compute().value is None


def test_memory_stays_flat(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    side = random_side(random, (300, 400), crowds=False)
    content = truth_json(tmp_path, [side] * 2)
    content["annotations"] = [{**content["annotations"][0], "image_id": number} for number in range(60)]
    content["images"] = [{**content["images"][0], "id": number} for number in range(60)]
    metric = PanopticMetric(content, images=tmp_path / "gt")
    found = as_map(side)
    metric.update(0, found)
    tracemalloc.start()
    try:
        for number in range(1, 60):
            metric.update(number, found)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 60 * 1200, f"{kept} bytes for 59 images of {found.ids.nbytes} bytes"


def test_a_map_of_other_classes_is_refused(tmp_path: Path) -> None:
    side = (half(1, 2), {1: CAR, 2: SKY})
    metric = PanopticMetric(truth_json(tmp_path, [side]), images=tmp_path / "gt")
    categories = Categories.from_json([{"id": 5, "name": "car"}])
    with pytest.raises(ValueError, match="other classes"):
        metric.update(1, PanopticMap(half(1, 1), (Segment(1, 0),), categories))
    with pytest.raises(ValueError, match="image 9 is not among"):
        metric.update(9, as_map(side))
    with pytest.raises(ValueError, match=r"the map of image 1: is 4x4 pixels, but .*1.png is 10x10"):
        metric.update(1, as_map((half(1, 2, at=2, shape=(4, 4)), {1: CAR, 2: SKY})))


# Results of ``detrkit predict``: their own image ids and class ids.


def test_results_that_list_images_are_matched_by_file_name(tmp_path: Path) -> None:
    one, two = (half(1, 2), {1: CAR, 2: SKY}), (half(1, 2, at=3), {1: DOG, 2: ROAD})
    files = case(tmp_path, [one, two], [one, two])
    content = json.loads(files["results"].read_text())
    content["annotations"] = [
        {**row, "image_id": number} for row, number in zip(content["annotations"], (2, 1), strict=True)
    ]
    content["images"] = [{"id": 2, "file_name": "some/folder/1.png"}, {"id": 1, "file_name": "2.jpg"}]
    content["categories"] = [{"id": 100 - row["id"], "name": row["name"]} for row in CATEGORIES]
    for row in content["annotations"]:
        for info in row["segments_info"]:
            info["category_id"] = 100 - info["category_id"]
    files["results"].write_text(json.dumps(content))
    score = score_panoptic(**files)
    assert set(score.metrics.values()) == {1.0}


def test_other_folders_and_content_in_memory(tmp_path: Path) -> None:
    side = (half(1, 2), {1: CAR, 2: SKY})
    files = case(tmp_path, [side], [side])
    contents = [json.loads(path.read_text()) for path in files.values()]
    (tmp_path / "gt").rename(tmp_path / "elsewhere")
    score: Score = score_panoptic(*contents, gt_images=tmp_path / "elsewhere", results_images=str(tmp_path / "found"))
    assert score.value == 1.0
    assert score_panoptic(*contents, gt_images=lambda name: side[0], results_images=lambda name: side[0]) == score
    with pytest.raises(ValueError, match="which folder holds the PNG files"):
        score_panoptic(*contents)


def test_image_ids_may_be_texts(tmp_path: Path) -> None:
    """As in Cityscapes."""
    side = (half(1, 2), {1: CAR, 2: SKY})
    files = case(tmp_path, [side], [side])
    for path in files.values():
        path.write_text(
            path.read_text()
            .replace('"image_id": 1', '"image_id": "a_000_19"')
            .replace('"id": 1, "file', '"id": "a_000_19", "file')
        )
    assert score_panoptic(**files).value == 1.0


def test_results_of_other_images_are_left_out_with_a_warning(tmp_path: Path) -> None:
    side = (half(1, 2), {1: CAR, 2: SKY})
    files = case(tmp_path, [side], [side, side])
    with pytest.warns(UserWarning, match="1 results are of images that are not there, such as 2.png; left out"):
        assert score_panoptic(**files).value == 1.0


def test_categories_without_isthing_count_as_things(tmp_path: Path) -> None:
    side = (half(1, 2), {1: CAR, 2: SKY})
    files = case(tmp_path, [side], [side])
    content = json.loads(files["ground_truth"].read_text())
    content["categories"] = [{"id": row["id"], "name": row["name"]} for row in CATEGORIES]
    files["ground_truth"].write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="4 of 4 categories have no 'isthing'"):
        score = score_panoptic(**files)
    assert score.num_classes == {"All": 2, "Things": 2, "Stuff": 0}


def test_save_ids_writes_what_a_map_writes(tmp_path: Path) -> None:
    side = (half(70000, 2), {70000: CAR, 2: SKY})
    save_ids(tmp_path / "a.png", side[0])
    as_map(side).to_png(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
