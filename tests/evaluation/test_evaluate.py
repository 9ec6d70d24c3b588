from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
import detrkit.evaluation.evaluate as module
from detrkit.data import load_dataset
from detrkit.errors import CheckpointError, DataError, RecipeError
from detrkit.evaluation.evaluate import evaluate
from detrkit.evaluation.loop import evaluate_model
from tests.evaluation.colors import BOXES, IMAGES
from tests.inference.color_detector import CATEGORIES, ColorDetector, coco_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "colors", IMAGES, BOXES)


@pytest.fixture(scope="module")
def lite() -> Any:
    torch.manual_seed(0)
    model = detrkit.create_model("dela_detr_lite0", num_classes=3, eval_short_side=64, eval_max_side=128)
    model.categories = CATEGORIES
    return model


def test_evaluate_returns_the_dictionary_of_score(folder: Path, lite: Any, tmp_path: Path) -> None:
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
    monkeypatch.setattr(module, "find_checkpoint", Path)
    monkeypatch.setattr(module, "load", lambda path: ColorDetector())
    used: list[Any] = []

    def spy(model: Any, dataset: Any, **settings: Any) -> Any:
        used.append(settings["config"])
        return evaluate_model(model, dataset, **settings)

    monkeypatch.setattr(module, "evaluate_model", spy)
    evaluate("x.safetensors", folder, overrides=["model.nms=0.4", "model.top_k=2", "data.eval_short_side=32"])
    (config,) = used
    assert (config.nms, config.top_k, config.eval_short_side, config.eval_max_side) == (0.4, 2, 32, 200)
    with pytest.raises(CheckpointError, match=r"holds a 'color', but .* is for a 'detr_r50'"):
        evaluate("x.safetensors", {"model": {"name": "detr_r50"}, "data": {"root": str(folder)}})
    with pytest.raises(RecipeError, match=r"nms must be in \[0, 1\], got 4"):
        evaluate("x.safetensors", folder, overrides=["model.nms=4"])


@pytest.mark.parametrize("name", ["detr_lite0", "de_detr_lite0"])
def test_evaluate_official_checkpoint_with_a_recipe(folder: Path, tmp_path: Path, name: str) -> None:
    """Numbers of classes and queries come from the file; labels are category ids, as in the COCO models."""
    model = detrkit.create_model(name, num_classes=10, num_queries=7)
    path = tmp_path / "official.pth"
    torch.save({"model": detrkit.to_official(model), "epoch": 3}, path)
    recipe = {"model": {"name": name}, "data": {"root": str(folder), "eval_short_side": 64}}
    score = evaluate(path, recipe, device="cpu")
    assert set(score["per_class"]) == {"red", "green", "blue"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tensors do not show label augmentation
        recognised = evaluate(path, folder, overrides=["data.eval_short_side=64"], device="cpu")
    assert recognised == score, "the model is recognised from its tensors"
    with pytest.raises(CheckpointError, match="do not fit"):
        evaluate(path, {**recipe, "model": {"name": name, "num_classes": 12}}, device="cpu")


def test_evaluate_with_a_missing_folder() -> None:
    with pytest.raises(DataError, match="nowhere/at/all: no such data folder; no recipe 'nowhere/at/all'"):
        evaluate(ColorDetector(), "nowhere/at/all")
    with pytest.raises(DataError, match=r"gone: no such data folder; data\.root=DIR says where"):
        evaluate(ColorDetector(), {"data": {"root": "gone"}})
    with pytest.raises(DataError, match=r"gone: no such data folder; data\.root=DIR says where"):
        detrkit.train({"model": {"name": "detr_lite0"}, "data": {"root": "gone"}}, epochs=1)


def test_a_recipe_that_names_its_files_needs_no_data_folder(folder: Path) -> None:
    files = {
        "annotations": str(folder / "annotations" / "instances_val.json"),
        "images": str(folder / "images" / "val"),
    }
    score = evaluate(ColorDetector(), {"data": {"root": "gone", "val": files}}, device="cpu")
    assert score == evaluate(ColorDetector(), folder, device="cpu")
