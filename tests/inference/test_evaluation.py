from __future__ import annotations

import json
import multiprocessing
import os
import socket
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.data import EvalTransform, load_dataset
from detrkit.errors import CheckpointError, DataError, RecipeError
from detrkit.inference.evaluate import evaluate
from detrkit.inference.evaluation import Results, detect, evaluate_model, label_categories
from detrkit.inference.predictor import Predictor
from detrkit.structures import Categories, Category
from tests.inference.color_detector import CATEGORIES, ColorDetector, coco_folder, picture

IMAGES = {
    "a.png": picture((96, 64), (0, (10, 20, 40, 50)), (2, (50, 8, 90, 28))),
    "b.png": picture((64, 80), (1, (5, 5, 30, 70))),
    "c.png": picture((128, 64)),
    "d.png": picture((64, 64), (0, (4, 4, 60, 60))),
}
BOXES = [
    ("a.png", 3, [10.0, 20.0, 30.0, 30.0]),
    ("a.png", 9, [50.0, 8.0, 40.0, 20.0]),
    ("b.png", 5, [5.0, 5.0, 25.0, 65.0]),
    ("d.png", 3, [4.0, 4.0, 56.0, 56.0]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "colors", IMAGES, BOXES)


def test_a_perfect_detector_scores_one(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = ColorDetector().train()
    model.shift.requires_grad_(False)
    model.dropout.eval()
    score = evaluate_model(
        model, load_dataset(folder, split="val"), progress=lambda done, total: seen.append((done, total))
    )
    assert score.metrics["AP"] == pytest.approx(1.0)
    assert list(score.per_class) == ["red", "green", "blue"]
    assert all(numbers["AP"] == pytest.approx(1.0) for numbers in score.per_class.values())
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert model.training
    assert not model.dropout.training, "a part that was in evaluation mode stays there"


def test_a_missed_object_lowers_the_score(folder: Path) -> None:
    path = folder / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"].append(
        {"id": 99, "image_id": 30, "category_id": 5, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    )
    path.write_text(json.dumps(content))
    score = evaluate_model(ColorDetector(), load_dataset(folder, split="val"))
    assert score.per_class["green"]["AR100"] == pytest.approx(0.5)
    assert score.per_class["red"]["AP"] == pytest.approx(1.0)


def test_every_top_k_detection_counts(folder: Path) -> None:
    results = detect(ColorDetector(), load_dataset(folder, split="val"))
    assert len(results.rows) == 4 * 5
    assert results.image_ids == {10, 20, 30, 40}
    assert {row["category_id"] for row in results.rows} <= {3, 5, 9}


def test_batches_and_workers_change_nothing(folder: Path) -> None:
    dataset = load_dataset(folder, split="val")
    one = detect(ColorDetector(), dataset)
    model = ColorDetector()
    many = detect(model, dataset, batch_size=3, workers=1)
    assert [shape[0] for shape in model.calls] == [3, 1]
    assert model.calls[1] == (1, 3, 64, 128), "images of like shape are together"

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["image_id"], row["category_id"], round(row["score"], 5), [round(value, 2) for value in row["bbox"]]

    assert sorted(map(key, one.rows)) == sorted(map(key, many.rows))


def test_the_transform_is_the_models_own_unless_given(folder: Path) -> None:
    dataset = load_dataset(folder, split="val")
    model = ColorDetector(eval_short_side=32)
    evaluate_model(model, dataset)
    assert model.calls[0] == (1, 3, 32, 48)
    model.calls.clear()
    evaluate_model(model, dataset, transform=EvalTransform(short_side=16, max_side=200, mean=(0,) * 3, std=(1,) * 3))
    assert model.calls[0] == (1, 3, 16, 24)
    assert isinstance(dataset.transform, EvalTransform)
    assert dataset.transform.short_side == 800, "the caller's data set keeps its transform"


def test_size_divisor_and_resizing_rule_are_the_models(folder: Path) -> None:
    """Evaluation and prediction resize and pad alike, as the configuration says."""
    image = picture((80, 50), (0, (20, 10, 60, 40)))
    for resize, size in (("round", (40, 64)), ("float32_truncate", (39, 63))):
        model = ColorDetector(eval_short_side=40, eval_resize=resize)
        Predictor(model).predict(image)
        assert model.calls == [(1, 3, *size)]
    model = ColorDetector(eval_short_side=40, eval_resize="float32_truncate", size_divisor=32)
    found = Predictor(model).predict(image)
    assert found.boxes[0].tolist() == pytest.approx([20, 10, 60, 40], abs=2.5)
    evaluate_model(model, load_dataset(folder, split="val"), batch_size=2)
    assert {side % 32 for call in model.calls for side in call[2:]} == {0}
    assert model.calls[0] == (1, 3, 64, 64)


def test_unreadable_images_count_neither_way(folder: Path) -> None:
    (folder / "images" / "val" / "b.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"b\.png"):
        evaluate_model(ColorDetector(), load_dataset(folder, split="val"))
    dataset = load_dataset(folder, split="val", on_error="skip")
    results = detect(ColorDetector(), dataset)
    assert results.image_ids == {10, 30, 40}
    assert len(results.rows) == 3 * 5, "the image that took its place is counted once"
    score = evaluate_model(ColorDetector(), load_dataset(folder, split="val", on_error="skip"))
    assert score.metrics["AP"] == pytest.approx(1.0)
    assert score.per_class["green"]["AP"] is None


def test_results_keep_the_first_of_two_equal_images() -> None:
    results = Results()
    results.add(1, [{"score": 0.5}])
    results.add(1, [{"score": 0.9}])
    assert results.rows == [{"score": 0.5}]


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name_where_ids_differ(folder: Path) -> None:
    other = Categories([Category(0, "blue"), Category(1, "red"), Category(2, "green"), Category(3, "pink")])
    ids = label_categories(ColorDetector(categories=other, num_classes=4), load_dataset(folder, split="val"))[1]
    assert ids == [9, 3, 5, None]


def test_a_model_without_names_takes_those_of_the_data(folder: Path) -> None:
    dataset = load_dataset(folder, split="val")
    categories, ids = label_categories(ColorDetector(categories=None), dataset)
    assert (categories, ids) == (CATEGORIES, [3, 5, 9])

    categories, ids = label_categories(ColorDetector(categories=None, num_classes=11), dataset)
    assert [label for label, category_id in enumerate(ids) if category_id is not None] == [3, 5, 9]
    assert [category.name for category in categories.named] == ["red", "green", "blue"]

    with pytest.raises(DataError, match="3 classes, but the model has 5"):
        label_categories(ColorDetector(categories=None, num_classes=5), dataset)


def test_a_class_the_model_does_not_know_is_an_error(folder: Path) -> None:
    other = Categories([Category(0, "blue"), Category(1, "red"), Category(2, "yellow")])
    with pytest.raises(DataError, match="the model does not know green; its classes: blue, red, yellow"):
        evaluate_model(ColorDetector(categories=other), load_dataset(folder, split="val"))


def test_a_class_without_boxes_may_be_unknown(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "data", {"d.png": IMAGES["d.png"]}, BOXES[-1:])
    red_only = Categories([Category(3, "red"), Category(1, "x"), Category(2, "y")])
    assert evaluate_model(ColorDetector(categories=red_only), load_dataset(folder, split="val")).metrics["AP50"] > 0.99


def test_only_detrkit_models(folder: Path) -> None:
    with pytest.raises(TypeError, match="needs a detrkit model, got Linear"):
        evaluate_model(torch.nn.Linear(1, 1), load_dataset(folder, split="val"))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate_model(ColorDetector(), load_dataset(folder, split="val"), batch_size=0)


# --- several processes ------------------------------------------------------------------------------------------------


def _rank(rank: int, world: int, port: int, folder: str) -> tuple[Any, ...]:
    """What one of several processes knows after an evaluation together."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = ColorDetector()
    dataset = load_dataset(folder, split="val")
    score = evaluate_model(model, dataset, accelerator=accelerator)
    results = detect(ColorDetector(), dataset, accelerator=accelerator)
    accelerator.end_training()
    return len(model.calls), score.to_json(), len(results.rows), sorted(results.image_ids)


def test_two_processes_share_the_images_and_both_know_the_score(folder: Path) -> None:
    # five images over two processes: one has three, the other two
    picture((64, 64), (1, (8, 8, 50, 50))).save(folder / "images" / "val" / "e.png")
    path = folder / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 50, "file_name": "e.png", "width": 64, "height": 64})
    path.write_text(json.dumps(content))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        answers = list(pool.map(_rank, range(2), [2] * 2, [port] * 2, [str(folder)] * 2))
    alone = evaluate_model(ColorDetector(), load_dataset(folder, split="val")).to_json()
    assert [answer[0] for answer in answers] == [3, 2]
    for _, score, rows, image_ids in answers:
        assert score == alone
        assert rows == 25
        assert image_ids == [10, 20, 30, 40, 50]


# --- detrkit.evaluate -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite() -> Any:
    torch.manual_seed(0)
    model = detrkit.create_model("dela_detr_lite0", num_classes=3, eval_short_side=64, eval_max_side=128)
    model.categories = CATEGORIES
    return model


def test_evaluate_gives_the_dictionary_of_score(folder: Path, lite: Any, tmp_path: Path) -> None:
    path = detrkit.save(lite, tmp_path / "run" / "best" / "model.safetensors")
    score = detrkit.evaluate(path, folder, device="cpu")
    assert list(score) == ["protocol", "iou_type", "metrics", "per_class"]
    assert score["protocol"] == "coco"
    assert set(score["per_class"]) == {"red", "green", "blue"}
    assert json.loads(json.dumps(score, allow_nan=False)) == score
    assert evaluate(tmp_path / "run", folder, device="cpu") == score
    assert evaluate(lite, str(folder), device="cpu") == score
    assert evaluate(path, {"data": {"root": str(folder)}}, device="cpu") == score
    assert evaluate(path, load_dataset(folder, split="val"), device="cpu") == score
    assert evaluate(path, folder, split="train", device="cpu") == score


def test_evaluate_applies_overrides_of_the_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import detrkit.inference.evaluate as module

    monkeypatch.setattr(module, "find_checkpoint", Path)
    monkeypatch.setattr(module, "load", lambda path: ColorDetector())
    used: list[Any] = []

    def spy(model: Any, dataset: Any, **settings: Any) -> Any:
        used.append((model.config, settings["transform"]))
        return evaluate_model(model, dataset, **settings)

    monkeypatch.setattr(module, "evaluate_model", spy)
    evaluate("x.safetensors", folder, overrides=["model.nms=0.4", "model.top_k=2", "data.eval_short_side=32"])
    config, transform = used[0]
    assert (config.nms, config.top_k, transform.short_side, transform.max_side) == (0.4, 2, 32, 200)
    with pytest.raises(CheckpointError, match=r"holds a 'color', but .* is for a 'detr_r50'"):
        evaluate("x.safetensors", {"model": {"name": "detr_r50"}, "data": {"root": str(folder)}})
    with pytest.raises(RecipeError, match="IoU threshold"):
        evaluate("x.safetensors", folder, overrides=["model.nms=4"])


@pytest.mark.parametrize("name", ["detr_lite0", "de_detr_lite0"])
def test_evaluate_official_checkpoint_with_a_recipe(folder: Path, tmp_path: Path, name: str) -> None:
    """Class and query count come from the file; labels are raw category ids, as in the COCO models."""
    model = detrkit.create_model(name, num_classes=10, num_queries=7)
    path = tmp_path / "official.pth"
    torch.save({"model": detrkit.to_official(model), "epoch": 3}, path)
    recipe = {"model": {"name": name}, "data": {"root": str(folder), "eval_short_side": 64}}
    score = evaluate(path, recipe, device="cpu")
    assert set(score["per_class"]) == {"red", "green", "blue"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that label augmentation would leave the same tensors
        recognised = evaluate(path, folder, overrides=["data.eval_short_side=64"], device="cpu")
    assert recognised == score, "the model is read off the tensors"
    with pytest.raises(CheckpointError, match="do not fit"):
        evaluate(path, {**recipe, "model": {"name": name, "num_classes": 12}}, device="cpu")


def test_evaluate_with_a_folder_that_is_not_there() -> None:
    with pytest.raises((RecipeError, DataError), match="nowhere"):
        evaluate(ColorDetector(), "nowhere/at/all")


def test_exif_rotated_images_are_scored_in_the_frame_of_their_boxes(tmp_path: Path) -> None:
    """A phone photo: the file lies on its side, the boxes were drawn on the upright image."""
    upright = picture((96, 64), (0, (10, 20, 40, 50)))
    folder = coco_folder(tmp_path / "phone", {"a.png": upright}, BOXES[:1])
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(folder / "images" / "val" / "a.png", exif=exif)
    results = detect(ColorDetector(), load_dataset(folder, split="val"))
    best = max(results.rows, key=lambda row: row["score"])
    np.testing.assert_allclose(best["bbox"], [10, 20, 30, 30], atol=1e-3)


def test_crowd_regions_swallow_detections(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "crowd", {"a.png": IMAGES["a.png"], "d.png": IMAGES["d.png"]}, [BOXES[0], BOXES[3]])
    path = folder / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    score = evaluate_model(ColorDetector(top_k=1), load_dataset(folder, split="val"))
    assert score.metrics["AP"] == pytest.approx(1.0)
