"""``detrkit.Model``: one object through train, evaluate, predict and export, by the public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import detrkit
from detrkit.errors import CheckpointError, DataError, RecipeError
from tests.inference.color_detector import coco_folder, picture
from tests.workplace import SMALL_RUN, TINY_MODEL

PICTURE = picture((96, 64), (0, (10, 20, 40, 50)))


def test_a_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coco_folder(tmp_path / "data", {"a.png": PICTURE}, [("a.png", 3, [10, 20, 30, 30])])
    small = SMALL_RUN | {f"model.{key}": value for key, value in TINY_MODEL.items()} | {"model.num_queries": 5}
    model = detrkit.Model("de_detr_lite0")
    with pytest.raises(CheckpointError, match="'de_detr_lite0' has no trained weights in the package: train it first"):
        model.predict(PICTURE)
    with pytest.raises(DataError, match="evaluate needs data=DIR"):
        model.evaluate()
    with pytest.raises(RecipeError, match="train needs data=DIR or a recipe"):
        model.train()
    assert model.train(data=data, **small, **{"training.output": str(tmp_path / "run")}) is model
    assert model.run is not None
    assert model.weights == model.run.best == tmp_path / "run" / "best" / "model.safetensors"
    score = model.evaluate(device="cpu")
    assert score == detrkit.evaluate(model.weights, data, device="cpu")
    found = model.predict(PICTURE, threshold=0.0, max_detections=2)
    assert len(found) == 2
    assert [len(one) for one in model.stream([PICTURE] * 2, threshold=0.0)] == [len(model.predict(PICTURE, 0.0))] * 2

    called: dict[str, Any] = {}
    monkeypatch.setattr("detrkit.facade.export_model", lambda *given, **how: called.update(given=given, **how))
    model.export(format="openvino", batch=1)
    assert called == {"given": (model.weights, Path("de_detr_lite0.xml")), "format": "openvino", "batch": 1}

    again = detrkit.Model(tmp_path / "run")
    settings = SMALL_RUN | {"training.output": str(tmp_path / "tuned")}
    again.train(data, **settings)
    recipe = detrkit.load_recipe(tmp_path / "tuned")
    assert recipe.model.init == str(model.weights)
    assert recipe.model.name == "de_detr_lite0"


def test_names() -> None:
    assert detrkit.Model().weights is not None, "the embedded default"
    with pytest.raises(CheckpointError, match=r"no trained weights called 'dape_lite9'.*a model: 'dape_lite0'"):
        detrkit.Model("dape_lite9")
    with pytest.raises(DataError, match="format 'tflite': give one of onnx"):
        detrkit.Model().export(format="tflite")
