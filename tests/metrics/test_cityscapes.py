"""AP of Cityscapes' instances: recorded numbers of the official code, cases computed by hand, and bad files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detrkit.cli.main import run
from detrkit.errors import DataError
from detrkit.metrics import Score, score_cityscapes
from detrkit.metrics.cityscapes import CLASSES, CityscapesMetric
from detrkit.structures import Categories, Category, Detections, Masks

SIZE = (100, 160)
NAME = "aachen_000000_000019"
CAR, TRUCK = 26, 27
Box = tuple[int, int, int, int]
Found = tuple[Box, int, float]
# 20 x 20 pixels each; true objects A and C, a place without an object B
A, B, C = (10, 10, 20, 20), (60, 10, 20, 20), (110, 10, 20, 20)
ALMOST_A = (10, 10, 20, 19)  # IoU 0.95 with A, up to rounding


def filled(box: Box) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, dtype=bool)
    x, y, width, height = box
    mask[y : y + height, x : x + width] = True
    return mask


def label_image(objects: Sequence[tuple[Box, int]]) -> NDArray[np.int32]:
    ids = np.full(SIZE, 7, dtype=np.int32)
    for box, value in objects:
        ids[filled(box)] = value
    return ids


def write(
    root: Path, objects: Sequence[tuple[Box, int]], found: Sequence[Found], name: str = NAME
) -> tuple[Path, Path]:
    """Ground truth and results of one image."""
    truth, results = root / "gtFine" / "val" / "aachen", root / "results"
    truth.mkdir(parents=True, exist_ok=True)
    results.mkdir(exist_ok=True)
    Image.fromarray(label_image(objects).astype(np.uint16)).save(truth / f"{name}_gtFine_instanceIds.png")
    lines = []
    for number, (box, label, score) in enumerate(found):
        Image.fromarray(filled(box).astype(np.uint8) * 255).save(results / f"{name}_{number}.png")
        lines.append(f"{name}_{number}.png {label} {score}\n")
    (results / f"{name}_pred.txt").write_text("".join(lines), encoding="utf-8")
    return root / "gtFine", results


def car(root: Path, objects: Sequence[tuple[Box, int]], found: Sequence[Found]) -> float | None:
    return score_cityscapes(*write(root, objects, found)).per_class["car"]["AP"]


def test_agrees_with_the_official_code(shared: Path) -> None:
    folder = shared / "golden" / "eval_cityscapes"
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    score = score_cityscapes(folder / "gtFine", folder / "results")
    tolerance = expected["tolerance"]
    assert score.metrics["AP"] == pytest.approx(expected["averages"]["allAp"], abs=tolerance)
    assert score.metrics["AP50"] == pytest.approx(expected["averages"]["allAp50%"], abs=tolerance)
    assert list(score.per_class) == list(expected["averages"]["classes"]) == list(CLASSES.values())
    for name, numbers in expected["averages"]["classes"].items():
        for ours, theirs in (("AP", "ap"), ("AP50", "ap50%")):
            value = score.per_class[name][ours]
            assert value == (None if numbers[theirs] is None else pytest.approx(numbers[theirs], abs=tolerance))


TWO = [(A, 26_000), (C, 26_001)]


@pytest.mark.parametrize(
    ("objects", "found", "ap"),
    [
        (TWO[:1], [(A, CAR, 0.3)], 1.0),
        (TWO[:1], [], 0.0),
        (TWO[:1], [(B, CAR, 0.3)], 0.0),
        ([], [(B, CAR, 0.3)], None),
        (TWO, [(A, CAR, 0.9), (C, CAR, 0.5), (B, CAR, 0.7)], 19 / 24),
        (TWO, [(A, CAR, 0.5), (C, CAR, 0.5), (B, CAR, 0.5)], 5 / 6),
        (TWO[:1], [(A, CAR, 0.9), (ALMOST_A, CAR, 0.5)], 1.0),
        (TWO[:1], [(A, CAR, 0.5), (ALMOST_A, CAR, 0.9)], 0.925),
        (TWO, [(A, TRUCK, 0.9), (C, CAR, 0.9)], 0.5),
    ],
)
def test_cases_computed_by_hand(tmp_path: Path, objects: Any, found: list[Found], ap: float | None) -> None:
    assert car(tmp_path, objects, found) == (None if ap is None else pytest.approx(ap, abs=1e-12))


@pytest.mark.parametrize(
    ("region", "ap"),
    [
        (26, 1.0),  # a group of cars
        (4, 1.0),  # void
        (29, 1.0),  # a group of caravans is void
        (29_000, 0.5),  # a single caravan is not
        (27_000, 0.5),  # another class
    ],
)
def test_what_a_detection_may_lie_on(tmp_path: Path, region: int, ap: float) -> None:
    """One car is found; another detection, more certain, lies on a region."""
    found = [(A, CAR, 0.5), (C, CAR, 0.9)]
    assert car(tmp_path, [(A, 26_000), (C, region)], found) == pytest.approx(ap / 2 if ap < 1 else ap)


def test_objects_of_less_than_100_pixels_are_neither_found_nor_missed(tmp_path: Path) -> None:
    small = (110, 10, 9, 11)
    objects = [(A, 26_000), (small, 26_001)]
    assert car(tmp_path / "missed", objects, [(A, CAR, 0.5)]) == 1.0
    assert car(tmp_path / "found", objects, [(A, CAR, 0.5), (small, CAR, 0.9)]) == 1.0


def test_a_file_of_results_with_empty_masks_and_other_classes(tmp_path: Path) -> None:
    truth, results = write(tmp_path, TWO, [(A, CAR, 0.9), (C, CAR, 0.8), ((0, 0, 0, 0), CAR, 0.99), (B, 7, 0.99)])
    assert score_cityscapes(truth, results).metrics == {"AP": 1.0, "AP50": 1.0}
    with (results / f"{NAME}_pred.txt").open("a", encoding="utf-8") as file:
        file.write(f"{NAME}_0.png {TRUCK} 0.9\n")
    with pytest.warns(UserWarning, match=r"line 5: names .*_0\.png again; the last line counts"):
        assert score_cityscapes(truth, results).per_class["car"]["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mask.png 26", "line 1: has to be 'mask label score'"),
        ("mask.png car 0.5", "line 1: label and score have to be numbers"),
        ("mask.png 26 nan", "line 1: the score is nan"),
        ("mask.png 26 1e999", "line 1: the score is 1e999"),
        ("mask.png 99 0.5", "line 1: 99 is no label id of Cityscapes"),
        ("../mask.png 26 0.5", r"line 1: \.\./mask\.png leaves the folder"),
        ("/tmp/mask.png 26 0.5", r"line 1: /tmp/mask\.png leaves the folder"),
        ("gone.png 26 0.5", r"gone\.png: no such mask"),
        ("small.png 26 0.5", r"small\.png: the mask is 3x2 pixels, but its ground truth 160x100"),
        ("text.png 26 0.5", r"text\.png: the mask cannot be read"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    truth, results = write(tmp_path, TWO, [])
    Image.fromarray(np.zeros((2, 3), dtype=np.uint8)).save(results / "small.png")
    (results / "text.png").write_text("no picture")
    (results / f"{NAME}_pred.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match=message):
        score_cityscapes(truth, results)


def test_images_and_results_belong_together(tmp_path: Path) -> None:
    truth, results = write(tmp_path, TWO, [])
    (results / "other").mkdir()
    (results / "other" / f"{NAME}.txt").touch()
    with pytest.raises(DataError, match=f"{NAME} has 2 text files; every image"):
        score_cityscapes(truth, results)
    for path in results.rglob("*.txt"):
        path.unlink()
    with pytest.raises(DataError, match=f"{NAME} has no text file; every image"):
        score_cityscapes(truth, results)
    with pytest.raises(DataError, match="no such folder of results"):
        score_cityscapes(truth, tmp_path / "gone")
    with pytest.raises(DataError, match=r"no Cityscapes labels; looked for <city>/\*_gtFine_instanceIds\.png"):
        score_cityscapes(results, results)


def test_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    truth, results = write(tmp_path, TWO, [(A, CAR, 0.9)])
    for folder in (truth, truth / "val", tmp_path):
        assert run(["score", "cityscapes", "--gt", str(folder), "--results", str(results), "--json"]) == 0
        score = json.loads(capfd.readouterr().out)
        assert (score["protocol"], score["iou_type"]) == ("cityscapes", "segm")
        assert score["metrics"] == {"AP": pytest.approx(0.5), "AP50": pytest.approx(0.5)}
        assert score["per_class"]["bus"] == {"AP": None, "AP50": None}
    assert run(["score", "cityscapes", "--gt", str(truth), "--results", str(results)]) == 0
    assert "AP50" in capfd.readouterr().out


class Data:
    """Two images of the benchmark."""

    protocol, iou_type, max_detections = "cityscapes", "segm", None

    def coco_ground_truth(self) -> dict[str, object]:
        raise AssertionError("not read")

    def instance_ids(self, image_id: int) -> NDArray[np.int32]:
        return label_image(TWO if image_id == 1 else [(B, 27_000)])


def test_detections_of_a_model_score_as_their_files(tmp_path: Path) -> None:
    found = {1: [(A, CAR, 0.9), (B, CAR, 0.8), (C, CAR, 0.5)], 2: [(B, TRUCK, 0.5)]}
    classes = Categories([Category(1, "truck"), Category(2, "car"), Category(3, "caravan")])
    metric = CityscapesMetric.of(Data())
    for image_id, rows in found.items():
        masks = np.stack([filled(box) for box, _, _ in rows])
        metric.update(
            image_id,
            Detections(
                boxes=np.array([[x, y, x + w, y + h] for (x, y, w, h), _, _ in rows], dtype=np.float32),
                scores=np.array([score for _, _, score in rows], dtype=np.float32),
                labels=np.array([classes.names.index(CLASSES[label]) for _, label, _ in rows]),
                categories=classes,
                image_size=SIZE,
                masks=Masks.of(masks, SIZE),
            ),
        )
    score: Score = metric.compute()
    write(tmp_path, TWO, found[1])
    truth, results = write(tmp_path, [(B, 27_000)], found[2], "aachen_000001_000019")
    files = score_cityscapes(truth, results)
    assert score.metrics.keys() == files.metrics.keys()
    assert all(math.isclose(score.metrics[key] or 0, files.metrics[key] or 0) for key in score.metrics)
    assert score.per_class["truck"]["AP"] == 1.0
    assert score.per_class["car"]["AP"] == pytest.approx(19 / 24)
