"""Mean IoU: hand-made cases, hotcoco, a slow reference; and folders as people have them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotcoco.semantic import SemanticEval
from numpy.typing import NDArray
from PIL import Image

from detrkit.errors import DataError
from detrkit.metrics import Score, score_semantic
from detrkit.metrics.semantic import SemanticMetric
from detrkit.structures import Categories, Category, SemanticMap

CLASSES = ["road", "house", "tree", "water"]
Array = NDArray[np.integer]


def save(path: Path, values: Any, kind: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=kind)).save(path)


def scored(folder: Path, truth: Any, found: Any, *, classes: Any = CLASSES, **more: Any) -> Score:
    save(folder / "gt" / "a.png", truth)
    save(folder / "found" / "a.png", found)
    return score_semantic(folder / "gt", folder / "found", classes, **more)


# Hand-made cases.


def test_a_perfect_result_has_one(tmp_path: Path) -> None:
    truth = [[0, 1, 2], [3, 3, 255]]
    score = scored(tmp_path, truth, [[0, 1, 2], [3, 3, 0]])
    assert score.metrics == {"mIoU": 1.0, "fwIoU": 1.0, "mAcc": 1.0, "aAcc": 1.0}
    assert score.to_json()["per_class"]["tree"] == {"IoU": 1.0, "Acc": 1.0}
    assert (score.protocol, score.iou_type, score.value) == ("semantic", "segm", 1.0)


def test_hand_counted_numbers(tmp_path: Path) -> None:
    """Road: 3 of 4 found, and 1 house taken for it: IoU 3 / 5. House: 1 of 2, and 1 road: IoU 1 / 3."""
    score = scored(tmp_path, [[0, 0, 0], [0, 1, 1]], [[0, 0, 0], [1, 1, 0]])
    assert score.per_class["road"] == pytest.approx({"IoU": 3 / 5, "Acc": 3 / 4})
    assert score.per_class["house"] == pytest.approx({"IoU": 1 / 3, "Acc": 1 / 2})
    expected = {"mIoU": 7 / 15, "fwIoU": (4 * 3 / 5 + 2 / 3) / 6, "mAcc": 5 / 8, "aAcc": 4 / 6}
    assert score.metrics == pytest.approx(expected)


def test_a_class_in_no_ground_truth_is_left_out_of_the_mean(tmp_path: Path) -> None:
    """Where it is found it costs the class that is there, and has no score of its own."""
    score = scored(tmp_path, [[0, 0, 1, 1]], [[0, 2, 1, 1]])
    assert score.per_class["tree"] == {"IoU": None, "Acc": None}
    assert score.metrics["mIoU"] == pytest.approx((1 / 2 + 1) / 2)


def test_ignored_pixels_do_not_count_and_results_without_a_class_are_wrong(tmp_path: Path) -> None:
    score = scored(tmp_path, [[0, 0, 1, 255]], [[0, 255, 1, 3]])
    assert score.per_class["road"] == {"IoU": 0.5, "Acc": 0.5}
    assert score.metrics["mIoU"] == 0.75
    assert score.per_class["water"]["IoU"] is None


def test_another_value_to_ignore(tmp_path: Path) -> None:
    assert scored(tmp_path / "a", [[0, 1, 9]], [[0, 1, 2]], ignore=9).value == 1.0
    with pytest.warns(UserWarning, match="0 is the value of class 'road' and the value to ignore"):
        score = scored(tmp_path / "b", [[0, 1, 2]], [[1, 1, 0]], ignore=0)
    assert score.per_class == {
        "road": {"IoU": None, "Acc": None},
        "house": {"IoU": 1.0, "Acc": 1.0},
        "tree": {"IoU": 0.0, "Acc": 0.0},
        "water": {"IoU": None, "Acc": None},
    }


@pytest.mark.parametrize("classes", [CLASSES, ["nucleus"]])
def test_one_class_in_the_ground_truth_warns(tmp_path: Path, classes: list[str]) -> None:
    with pytest.warns(UserWarning, match=f"all counted pixels of the ground truth are '{classes[0]}'.* mIoU 1"):
        assert scored(tmp_path, [[0, 0, 255]], [[0, 0, 0]], classes=classes).value == 1.0


def test_a_map_without_a_counted_pixel(tmp_path: Path) -> None:
    score = scored(tmp_path / "a", [[255, 255]], [[0, 1]])
    assert set(score.metrics.values()) == {None}
    assert all(numbers == {"IoU": None, "Acc": None} for numbers in score.per_class.values())
    save(tmp_path / "a" / "gt" / "b.png", [[0, 1]])
    save(tmp_path / "a" / "found" / "b.png", [[0, 1]])
    assert score_semantic(tmp_path / "a" / "gt", tmp_path / "a" / "found", CLASSES).value == 1.0


# Against others.


def random_maps(seed: int, count: int = 30) -> list[tuple[Array, Array]]:
    random = np.random.default_rng(seed)
    maps = []
    for _ in range(count):
        truth = np.kron(random.integers(0, 4, (4, 5)), np.ones((5, 5), dtype=int))
        found = np.where(random.random(truth.shape) < 0.3, random.integers(0, 4, truth.shape), truth)
        maps.append((np.where(random.random(truth.shape) < 0.1, 255, truth), found))
    return maps


def test_random_maps_equal_a_slow_reference_and_hotcoco(tmp_path: Path) -> None:
    oracle = SemanticEval(CLASSES)
    hit, true, seen = ([0] * 4 for _ in range(3))
    pixels = np.zeros((4, 5), dtype=int)
    for number, (truth, found) in enumerate(random_maps(0)):
        save(tmp_path / "gt" / f"{number}.png", truth)
        save(tmp_path / "found" / f"{number}.png", found)
        oracle.update(truth, found)
        for one, other in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
            if one != 255:
                true[one] += 1
                seen[other] += 1
                hit[one] += one == other
                pixels[one, other] += 1
    score = score_semantic(tmp_path / "gt", tmp_path / "found", CLASSES)
    expected = oracle.results()
    assert score.metrics == pytest.approx({name: expected[name] for name in score.metrics}, abs=1e-12)
    for label, name in enumerate(CLASSES):
        iou = hit[label] / (true[label] + seen[label] - hit[label])
        assert score.per_class[name] == pytest.approx({"IoU": iou, "Acc": hit[label] / true[label]}, abs=1e-12)
    np.testing.assert_array_equal(score.pixels, pixels)


# The metric.

CATEGORIES = Categories(Category(label, name) for label, name in enumerate(CLASSES))


def as_map(values: Array) -> SemanticMap:
    return SemanticMap(values.astype(np.uint8), CATEGORIES)


def test_maps_in_memory_score_like_files(tmp_path: Path) -> None:
    maps = random_maps(1)
    metric = SemanticMetric(CATEGORIES, lambda number: as_map(maps[number][0]))
    for number, (truth, found) in enumerate(maps):
        metric.update(number, as_map(found))
        save(tmp_path / "gt" / f"{number}.png", truth)
        save(tmp_path / "found" / f"{number}.png", found)
    assert metric.compute() == score_semantic(tmp_path / "gt", tmp_path / "found", CLASSES)


def test_two_processes_score_like_one() -> None:
    """An image that both met counts once."""
    maps = random_maps(2, 6)
    ranks, one = (
        [SemanticMetric(CATEGORIES, lambda number: as_map(maps[number][0])) for _ in range(count)] for count in (2, 1)
    )
    for metric, numbers in ((ranks[0], (4, 1, 2)), (ranks[1], (5, 0, 3, 4)), (one[0], range(6))):
        for number in numbers:
            metric.update(number, as_map(maps[number][1]))
    states: list[Any] = [metric.extracts for metric in ranks]
    for metric in ranks:
        metric.merge(lambda state: states)
    assert [metric.compute() for metric in ranks] == [one[0].compute()] * 2
    one[0].reset()
    assert one[0].compute().value is None


def test_memory_stays_flat() -> None:
    truth = as_map(np.kron(np.arange(100).reshape(10, 10) % 4, np.ones((40, 40), dtype=int)))
    metric = SemanticMetric(CATEGORIES, lambda number: truth)
    metric.update(0, truth)
    tracemalloc.start()
    try:
        for number in range(1, 100):
            metric.update(number, truth)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100 * 1000, f"{kept} bytes for 99 images of {truth.labels.nbytes} bytes"


def test_many_classes_need_two_bytes(tmp_path: Path) -> None:
    """With 300 classes 255 is one of them, and 65535 stands for none."""
    classes = [f"class {number}" for number in range(300)]
    for folder in ("gt", "found"):
        save(tmp_path / folder / "a.png", [[0, 255, 299, 65535]], np.uint16)
    for ignore in (65535, None):
        score = score_semantic(tmp_path / "gt", tmp_path / "found", classes, ignore=ignore)
        assert score.value == 1.0
        assert sum(numbers["IoU"] is not None for numbers in score.per_class.values()) == 3
    with pytest.warns(UserWarning, match="255 is the value of class 'class 255'"):
        score_semantic(tmp_path / "gt", tmp_path / "found", classes, ignore=255)


def test_maps_that_do_not_fit_are_refused() -> None:
    metric = SemanticMetric(CATEGORIES, lambda number: as_map(np.zeros((4, 5), dtype=int)))
    with pytest.raises(DataError, match="image 3: is 5x6 pixels, but its ground truth is 5x4"):
        metric.update(3, as_map(np.zeros((6, 5), dtype=int)))
    with pytest.raises(ValueError, match="other classes"):
        metric.update(3, SemanticMap(np.zeros((4, 5), dtype=np.uint8), Categories(CATEGORIES[:1])))


# Classes.


@pytest.mark.parametrize(
    "content",
    [
        CLASSES,
        {"names": CLASSES},
        {"names": {str(label): name for label, name in enumerate(CLASSES)}},
        {str(label): name for label, name in reversed(list(enumerate(CLASSES)))},
        [{"id": label, "name": name, "supercategory": "x"} for label, name in enumerate(CLASSES)],
        {"classes": [{"id": label, "name": name} for label, name in enumerate(CLASSES)], "ignore_index": 255},
        {"categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES)], "images": []},
    ],
    ids=str,
)
def test_classes_as_people_write_them(tmp_path: Path, content: Any) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(content))
    score = scored(tmp_path, [[0, 1, 2]], [[0, 1, 1]], classes=tmp_path / "classes.json")
    assert {name: numbers["IoU"] for name, numbers in score.per_class.items()} == {
        "road": 1.0,
        "house": 0.5,
        "tree": 0.0,
        "water": None,
    }


def test_ids_are_the_values_in_the_files(tmp_path: Path) -> None:
    """As in label maps that hold COCO category ids."""
    classes = [{"id": 17, "name": "cat"}, {"id": 3, "name": "car"}]
    score = scored(tmp_path, [[3, 17, 0]], [[3, 17, 17]], classes=classes, ignore=0)
    assert score.per_class == {"car": {"IoU": 1.0, "Acc": 1.0}, "cat": {"IoU": 1.0, "Acc": 1.0}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "lists no classes; give a list of names"),
        ("{}", "lists no classes"),
        ("3", "lists no classes"),
        ('"road"', "lists no classes"),
        ('["road", 3]', "the name of class 1 is 3; names are texts"),
        ('{"road": 0}', "class 0 has value 'road', but values are whole numbers below 65536"),
        ('[{"name": "road"}]', "class 'road' has value None"),
        ('[{"id": true, "name": "road"}]', "class 'road' has value True"),
        ('[{"id": 1.5, "name": "road"}]', "class 'road' has value 1.5"),
        ('[{"id": -1, "name": "road"}]', "class 'road' has value -1"),
        ('[{"id": 1, "name": "road"}, {"id": 1, "name": "tree"}]', "the value 1 is used twice, by 'road' and 'tree'"),
        ("[", "is not JSON"),
        (None, "no such classes file"),
    ],
)
def test_classes_that_are_none(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "classes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        scored(tmp_path, [[0]], [[0]], classes=path)
    assert str(caught.value).startswith(str(path))


# Files.


def test_files_match_by_relative_path_without_ending(tmp_path: Path) -> None:
    """``detrkit predict`` keeps the ending of an image before its own where two would share a name."""
    for name in ("x/a.png", "x/b.PNG", "c.v2.png"):
        save(tmp_path / "gt" / name, [[0, 1]])
    for name in ("x/a.jpg.png", "x/b.png", "c.v2.png"):
        save(tmp_path / "found" / name, [[0, 1]])
    (tmp_path / "gt" / "README.txt").write_text("not a map")
    assert score_semantic(tmp_path / "gt", tmp_path / "found", CLASSES).value == 1.0
    save(tmp_path / "found" / "d.png", [[0, 1]])
    with pytest.warns(UserWarning, match=r"1 results have no ground truth and are left out, such as .*d\.png"):
        assert score_semantic(tmp_path / "gt", tmp_path / "found", CLASSES).value == 1.0


def test_palette_and_small_depths_are_read_as_numbers(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 1))
    palette.putdata([0, 1, 2, 3])
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    (tmp_path / "gt").mkdir()
    palette.save(tmp_path / "gt" / "a.png", bits=2)
    save(tmp_path / "found" / "a.png", [[0, 1, 2, 3]], np.uint16)
    assert score_semantic(tmp_path / "gt", tmp_path / "found", CLASSES).value == 1.0


Spoil = Callable[[Path], object]
FAULTS: dict[str, tuple[Spoil, str]] = {
    "no ground truth": (lambda folder: (folder / "gt").rename(folder / "x"), "gt: no such folder of ground truth"),
    "no results": (lambda folder: (folder / "found").rename(folder / "x"), "found: no such folder of results"),
    "empty": (lambda folder: (folder / "gt" / "a.png").unlink(), "gt: has no PNG files; the ground truth is one PNG"),
    "missing": (
        lambda folder: save(folder / "gt" / "b.png", [[0]]),
        r"found: 1 of 2 maps of .*gt have no result, such as b.png",
    ),
    "case": (
        lambda folder: (folder / "found" / "a.png").rename(folder / "found" / "A.png"),
        r"such as a.png; .*A.png is there, but names must be equal in case",
    ),
    "two endings": (
        lambda folder: save(folder / "gt" / "a.PNG", [[0]]),
        "a.png: a.PNG has the same name up to its ending",
    ),
    "two results": (
        lambda folder: [
            save(folder / "found" / "a.jpg.png", [[0]]),
            (folder / "found" / "a.png").rename(folder / "found" / "a.bmp.png"),
        ],
        "gt/a.png: has two results",
    ),
    "value of the truth": (
        lambda folder: save(folder / "gt" / "a.png", [[0, 1], [4, 77]]),
        r"gt/a.png: values 4, 77 \(2 pixels\): no class of classes \(0 to 3\) and not the value to ignore \(255\)",
    ),
    "value of a result": (
        lambda folder: save(folder / "found" / "a.png", [[0, 1], [4, 4]]),
        r"found/a.png: value 4 \(2 pixels\): no class",
    ),
    "size": (
        lambda folder: save(folder / "found" / "a.png", [[0, 1, 2]]),
        r"found/a.png: is 3x1 pixels, but its ground truth is 2x2 \(.*gt/a.png\)",
    ),
    "colours": (
        lambda folder: Image.new("RGB", (2, 2)).save(folder / "gt" / "a.png"),
        "gt/a.png: is a 8-bit RGB PNG, but class maps have one channel",
    ),
    "alpha": (lambda folder: Image.new("LA", (2, 2)).save(folder / "gt" / "a.png"), "is a 8-bit gray with alpha PNG"),
    "JPEG": (
        lambda folder: Image.new("L", (2, 2)).save(folder / "gt" / "a.png", format="JPEG"),
        "gt/a.png: is not a PNG file",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_folders(tmp_path: Path, fault: str) -> None:
    save(tmp_path / "gt" / "a.png", [[0, 1], [2, 255]])
    save(tmp_path / "found" / "a.png", [[0, 1], [2, 2]])
    spoil, message = FAULTS[fault]
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        score_semantic(tmp_path / "gt", tmp_path / "found", CLASSES)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_value_to_ignore_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the value to ignore must be between 0 and 65535, not -1"):
        scored(tmp_path, [[0]], [[0]], ignore=-1)


# Results of ``detrkit predict``, which come with a list of classes.


def test_classes_of_predictions_are_matched_by_name(tmp_path: Path) -> None:
    """ADE20K's values begin with 1 and 0 is void; predictions begin with 0, in an order of their own."""
    table = (
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t.5\t1\t1\t1\twall\n2\t.3\t1\t1\t1\tsky\n3\t.2\t1\t1\t0\tcar, auto\n"
    )
    (tmp_path / "objectInfo150.txt").write_text(table)
    save(tmp_path / "gt" / "a.png", [[0, 1, 2, 3], [3, 2, 1, 1]])
    names = ["sky", "car", "wall", "boat"]
    (tmp_path / "classes.json").write_text(json.dumps(names))
    save(tmp_path / "semantic" / "a.png", [[255, 2, 0, 1], [1, 0, 2, 3]])
    classes = tmp_path / "objectInfo150.txt"
    score = score_semantic(tmp_path / "gt", tmp_path / "semantic", classes, ignore=0)
    assert {name: numbers["IoU"] for name, numbers in score.per_class.items()} == pytest.approx(
        {"wall": 2 / 3, "sky": 1, "car": 1}
    )
    (tmp_path / "classes.json").write_text(json.dumps(["nut", "bolt"]))
    with pytest.raises(DataError, match=r"classes\.json: the classes of these results cannot be matched by name"):
        score_semantic(tmp_path / "gt", tmp_path / "semantic", classes, ignore=0)


def test_other_folders_have_the_values_of_the_ground_truth(tmp_path: Path) -> None:
    """A ``classes.json`` beside a folder of another name belongs to the data."""
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES[::-1]))
    assert scored(tmp_path, [[0, 1, 2, 3]], [[0, 1, 2, 3]]).value == 1
