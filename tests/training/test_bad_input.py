"""Unusual and damaged data through the real command line: a run with the right class ids, or a clear error."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import detrkit
from detrkit.cli.main import run
from detrkit.structures import Category
from detrkit.training.loggers import read_log
from tests.data.trees import TREES, coco_tree, dump, roboflow_tree, voc_tree, write_image, yolo_tree
from tests.workplace import TINY_MODEL

SMALL = {
    **{f"model.{key}": value for key, value in TINY_MODEL.items()},
    "model.pretrained_backbone": False,
    "training.iterations": 1,
    "training.batch_size": 2,
    "training.accumulate": 1,
    "training.workers": 0,
    "training.device": "cpu",
    "logging.plots": False,
    "logging.estimate": False,
    "data.repeat": 1,
    "data.short_sides": [64],
    "data.max_side": 96,
    "data.eval_short_side": 64,
    "data.eval_max_side": 96,
}
SMALL_WORDS = [f"{key}={json.dumps(value)}" for key, value in SMALL.items()]
SIZE = (48, 32)
Boxes = list[tuple[float, ...]]  # category id, x, y, width, height

RED: Boxes = [(0, 4, 4, 20, 20)]
BLUE: Boxes = [(1, 10, 6, 12, 9)]
CLASSES = {0: "red", 1: "blue"}


def coco(
    root: Path,
    train: dict[str, Boxes],
    val: dict[str, Boxes] | None = None,
    *,
    classes: dict[int, str] = CLASSES,
    size: dict[str, tuple[int, int]] | None = None,
) -> Path:
    """A COCO folder with images of noise; without ``val`` both splits are equal."""
    for split, images in (("train", train), ("val", train if val is None else val)):
        rows, annotations = [], []
        for number, (name, boxes) in enumerate(images.items(), start=1):
            width, height = (size or {}).get(name, SIZE)
            write_image(root / split / name, (width, height), seed=number)
            rows.append({"id": number, "file_name": name, "width": width, "height": height})
            for category, *bbox in boxes:
                one = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": bbox}
                annotations.append(one)
        table = {"images": rows, "annotations": annotations, "categories": categories(classes)}
        dump(root / "annotations" / f"instances_{split}.json", table)
    return root


def categories(classes: dict[int, str]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in classes.items()]


def train(root: Path, *words: str) -> int:
    """Exit code of ``detrkit train --data`` with a tiny model, one step and one evaluation."""
    return run(["train", "--data", str(root), "--output", str(root.parent / "run"), *SMALL_WORDS, *words])


def predictions(root: Path) -> dict[str, Any]:
    """Output of ``detrkit predict`` with the weights of the run on the first training image."""
    folder = root.parent / "run"
    weights = next(path for path in (folder / "best", folder / "last") if path.is_dir()) / "model.safetensors"
    image = next(path for path in sorted(root.rglob("*.*")) if path.suffix in (".png", ".jpg"))
    out = root.parent / "found"
    assert run(["predict", str(image), "--model", str(weights), "--threshold", "0", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    return found


def evaluations(root: Path) -> list[dict[str, Any]]:
    return [row for row in read_log(root.parent / "run" / "log.jsonl") if row["event"] == "eval"]


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr, an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("settings", "  "))]
    assert len(lines) == 1, lines
    assert lines[0].startswith("detrkit: error: ")
    return lines[0]


# ------------------------------------------------------------------------------------------------------- class ids


@pytest.mark.parametrize(
    "classes",
    [
        {0: "red", 1: "blue"},
        {3: "red", 900: "never", 2**40 + 3: "blue"},
        {-1: "red", 0: "blue"},
        {1: "red"},
        {5: "rot grün", 6: "日本"},
    ],
    ids=["from 0", "gaps, huge, unused", "negative", "one class", "unicode"],
)
def test_category_ids_are_kept(tmp_path: Path, classes: dict[int, str]) -> None:
    first, last = min(classes), max(classes)
    root = coco(tmp_path / "data", {"a.png": [(first, *RED[0][1:])], "b.png": [(last, *BLUE[0][1:])]}, classes=classes)
    assert train(root) == 0
    wanted = categories(dict(sorted(classes.items())))
    assert predictions(root)["categories"] == wanted
    found = {row["category_id"] for row in predictions(root)["annotations"]}
    assert found
    assert found <= set(classes)
    model = detrkit.load(tmp_path / "run" / "best" / "model.safetensors")
    assert model.categories == tuple(Category(row["id"], row["name"]) for row in wanted)
    assert set(evaluations(root)[0]["per_class"]) == set(classes.values())


@pytest.mark.parametrize(("layout", "ids"), [("yolo", [0, 1]), ("roboflow", [1, 2]), ("voc", [1, 2])])
def test_category_ids_of_other_formats(tmp_path: Path, layout: str, ids: list[int]) -> None:
    root = TREES[layout](tmp_path / "data")
    assert train(root) == 0
    found = predictions(root)
    assert [row["id"] for row in found["categories"]] == ids
    assert [row["name"] for row in found["categories"]] == ["bolt", "nut"]


def test_a_class_without_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", {"a.png": RED}, classes={**CLASSES, 2: "ghost"})
    assert train(root) == 0
    assert "no training image has a box of blue, ghost" in capsys.readouterr().err
    assert evaluations(root)[0]["per_class"]["ghost"] is None


def test_validation_has_classes_that_training_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", {"a.png": RED}, {"b.png": [(7, 1, 1, 9, 9)]}, classes={0: "red", 7: "green"})
    file = root / "annotations" / "instances_train.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    dump(file, {**table, "categories": table["categories"][:1]})
    assert train(root) == 2
    assert "validation images have boxes of green, which the training annotations do not list" in refused(capsys)


def test_no_classes_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(coco(tmp_path / "data", {"a.png": []}, classes={})) == 2
    assert "instances_train.json: has no categories" in refused(capsys)


# ------------------------------------------------------------------------------------------------------ few and many


def test_one_image_and_no_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", {"a.png": RED})
    (root / "annotations" / "instances_val.json").unlink()
    assert train(root, "training.iterations=3", "data.repeat=4", "training.batch_size=4") == 0
    captured = capsys.readouterr()
    assert "no validation images, so AP is not measured" in captured.err
    assert "1 images 4 times per epoch" in captured.err
    assert "not evaluated" in captured.out
    assert predictions(root)["annotations"]


def test_a_thousand_objects_on_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes: Boxes = [(k % 2, k % 40, k // 40, 4, 5) for k in range(1000)]
    root = coco(tmp_path / "data", {"a.png": boxes})
    model = ["--model", "dela_conditional_detr_lite0", "model.decoder_layers=1"]  # a model with label repeat and NMS
    assert train(root, *model, "training.evaluate_every=0") == 0
    captured = capsys.readouterr().err
    assert "queries 1,500: up to 1,000 objects per image" in captured
    assert "label repeat off" in captured
    assert "NMS off: one query learns each object" in captured
    assert "the surplus is not learned" not in captured
    assert len(predictions(root)["annotations"]) == 1500


def test_fewer_queries_than_objects_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", {"a.png": [(0, k, 0, 9, 9) for k in range(30)]})
    assert train(root, "model.num_queries=20", "training.evaluate_every=0") == 0
    assert "note: 20 queries find no more objects than that; an image has 30" in capsys.readouterr().err


EMPTY: dict[str, Callable[[Path], Path]] = {
    "coco": coco_tree,
    "roboflow": roboflow_tree,
    "yolo": yolo_tree,
    "voc": voc_tree,
}


def strip(root: Path) -> None:
    """Remove all boxes from a data set of any format."""
    for path in root.rglob("*.json"):
        dump(path, {**json.loads(path.read_text(encoding="utf-8")), "annotations": []})
    for path in root.rglob("*.xml"):
        text = path.read_text(encoding="utf-8")  # VOC names its classes only in objects: they become difficult
        path.write_text(text.replace("<difficult>0", "<difficult>1"), encoding="utf-8")
    shutil.rmtree(root / "labels", ignore_errors=True)


@pytest.mark.parametrize("layout", EMPTY)
def test_no_training_image_has_a_box(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = EMPTY[layout](tmp_path / "data")
    strip(root)
    assert train(root) == 2
    message = refused(capsys)
    assert "none of the 3 training images has a box" in message
    assert f"'detrkit data check {root}' looks" in message
    assert ("crowd or difficult" in message) == (layout == "voc")
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_boxes_is_refused_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", {"a.png": []})
    words = ["train", "dela_detr_lite0", "--data", str(root), "--output", str(tmp_path / "run"), *SMALL_WORDS]
    assert run(words) == 2
    assert "there is nothing to learn" in refused(capsys)


def test_no_validation_image_has_a_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", {"a.png": RED, "b.png": BLUE}, {"c.png": []})
    assert train(root, "training.iterations=2", "training.evaluate_every=1") == 0
    captured = capsys.readouterr()
    assert "AP is undefined, and the last weights count as the best" in captured.err
    assert "best: AP - " in captured.out
    assert [(row["AP"], row["best"]) for row in evaluations(root)] == [(None, True), (None, True)]
    files = [tmp_path / "run" / part / "model.safetensors" for part in ("best", "last")]
    best, last = (detrkit.load(file).state_dict() for file in files)
    assert all((best[name] == last[name]).all() for name in best)


def test_every_image_but_one_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", {"a.png": [], "b.png": [], "c.png": [], "d.png": BLUE})
    assert train(root, "training.iterations=3") == 0
    assert "training images 4 (3 without objects)" in capsys.readouterr().err
    losses = [row["loss"] for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "train"]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses


# --------------------------------------------------------------------------------------------------- unusual images


def test_images_of_one_pixel_and_long_images(tmp_path: Path) -> None:
    size = {"pixel.png": (1, 1), "long.png": (4000, 10), "tall.png": (10, 4000)}
    images: dict[str, Boxes] = {
        "pixel.png": [(0, 0, 0, 1, 1)],
        "long.png": [(1, 100, 2, 300, 6)],
        "tall.png": [(1, 2, 100, 6, 300)],
        "usual.png": RED,
    }
    root = coco(tmp_path / "data", images, size=size)
    assert train(root, "training.batch_size=4", "data.crop=true") == 0
    out = tmp_path / "found"
    weights = str(tmp_path / "run" / "best" / "model.safetensors")
    assert run(["predict", str(root / "train"), "--model", weights, "--threshold", "0", "--out", str(out)]) == 0
    found = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert {(row["width"], row["height"]) for row in found["images"]} == {SIZE, *size.values()}
    sizes = {row["id"]: (row["width"], row["height"]) for row in found["images"]}
    for row in found["annotations"]:
        (x, y, w, h), (width, height) = row["bbox"], sizes[row["image_id"]]
        assert min(x, y, w, h) >= 0
        assert x + w <= width + 1e-3
        assert y + h <= height + 1e-3


def test_file_names_with_spaces_and_other_scripts(tmp_path: Path) -> None:
    root = coco(tmp_path / "my data", {"grüße an alle.png": RED, "sub dir/日本 語#1%.png": BLUE})
    assert train(root) == 0
    assert predictions(root)["images"][0]["file_name"] == "grüße an alle.png"


def test_a_file_listed_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", {"a.png": RED, "b.png": BLUE})
    for file in (root / "annotations").iterdir():
        table = json.loads(file.read_text(encoding="utf-8"))
        table["images"][1]["file_name"] = "a.png"
        dump(file, table)
    assert train(root) == 0
    assert "files listed twice, a.png first" in capsys.readouterr().err
    assert evaluations(root)[0]["AP"] is not None


# --------------------------------------------------------------------------------------------------------- bad boxes


def test_boxes_outside_are_left_out_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside: Boxes = [(1, 200, 10, 20, 20), (0, -20, -20, 10, 10), (1, 40, 20, 500, 500)]  # the last is clamped
    root = coco(tmp_path / "data", {"a.png": RED, "b.png": outside})
    assert train(root) == 0
    captured = capsys.readouterr().err
    assert "classes 2, boxes 2" in captured
    assert "2 boxes or images left out of the training data" in captured
    assert "(image 'b.png'): bbox [200, 10, 20, 20] lies outside the image" in captured


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((0, 5, 5, 0, 9), "has no positive width and height"),
        ((0, 5, 5, 9, -3), "has no positive width and height"),
        ((0, math.nan, 5, 9, 9), "is not finite"),
        ((0, 5, 5, math.inf, 9), "is not finite"),
        ((0, 5, 5, 9), "is not a list of four numbers"),
    ],
)
def test_impossible_boxes_are_refused_or_skipped(
    tmp_path: Path, bad: tuple[float, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "data", {"a.png": RED, "b.png": [bad]})
    assert train(root) == 2
    error = refused(capsys)
    for part in ("instances_train.json: annotation id 2 (image 'b.png')", message, "data.on_error=skip"):
        assert part in error
    assert train(root, "data.on_error=skip", "training.evaluate_every=0") == 0
    assert "1 boxes or images left out of the training data" in capsys.readouterr().err


def test_impossible_boxes_of_yolo_name_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = yolo_tree(tmp_path / "data")
    label = root / "labels" / "train" / "a.txt"
    label.write_text("0 0.5 0.5 0.1 0.1\n1 0.5 0.5 nan 0.1\n", encoding="utf-8")
    assert train(root) == 2
    assert f"{label}: line 2" in refused(capsys)
    label.write_text("7 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    assert train(root) == 2
    assert f"{label}: line 1: category id 7 is not among the categories (0, 1)" in refused(capsys)


def test_impossible_boxes_of_voc_name_file_and_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc_tree(tmp_path / "data")
    path = root / "Annotations" / "a.xml"
    path.write_text(path.read_text(encoding="utf-8").replace("<xmin>21", "<xmin>nan"), encoding="utf-8")
    assert train(root) == 2
    assert f"{path}: object 2" in refused(capsys)


def test_only_bad_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", {"a.png": [(0, 5, 5, 0, 9)]})
    assert train(root, "data.on_error=skip") == 2
    error = refused(capsys)
    assert "all 1 annotations are unusable, so none is left. The first: " in error
    assert "has no positive width and height" in error
