"""Every override of an evaluation is applied or refused by name, for files and for models in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.data import load_dataset
from detrkit.errors import CheckpointError, RecipeError
from detrkit.evaluation.evaluate import evaluate
from tests.evaluation.colors import BOXES, IMAGES
from tests.inference.color_detector import CATEGORIES, coco_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_folder(tmp_path_factory.mktemp("colors"), IMAGES, BOXES)


@pytest.fixture(scope="module", params=["memory", "file"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    model = detrkit.create_model("detr_lite0", num_classes=3, eval_short_side=64, eval_max_side=128, num_queries=20)
    model.categories = CATEGORIES
    if request.param == "memory":
        return model
    return detrkit.save(model, tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.foo=1", r"override 'model\.foo': model 'detr_lite0' has no option 'foo'"),
        ("model.nsm=0.7", r"no option 'nsm'.* Did you mean 'nms'"),
        ("model.hidden_dim=64", r"override 'model\.hidden_dim': .* has hidden_dim = 192, not 64"),
        ("model.num_queries=5", r"has num_queries = 20, not 5"),
        ("model.loss_bbox=1", r"has loss_bbox = 5\.0, not 1"),
        ("model.train_max_side=99", r"override 'model\.train_max_side'"),
        ("model.init=x", r"override 'model\.init': it has no effect on an evaluation"),
        ("model.nms=7", r"nms must be in \[0, 1\], got 7"),
        ("training.epochs=3", r"override 'training\.epochs': it has no effect"),
        ("training.batch_size=3", r"override 'training\.batch_size': .* --batch-size"),
        ("optimizer.lr=3", r"override 'optimizer\.lr': it has no effect"),
        ("data.crop=false", r"override 'data\.crop': it has no effect"),
    ],
)
def test_overrides_that_cannot_be_applied(checkpoint: Any, folder: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        evaluate(checkpoint, folder, overrides=[override], device="cpu")


def test_another_model(checkpoint: Any, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds a 'detr_lite0', but .* is for a 'detr_r50'"):
        evaluate(checkpoint, folder, overrides=["model.name=detr_r50"], device="cpu")


def test_overrides_that_are_applied(checkpoint: Any, folder: Path) -> None:
    def score(*overrides: str, data: Any = folder) -> Any:
        return evaluate(checkpoint, data, overrides=overrides, device="cpu")

    plain, few = score(), score("model.top_k=1")
    assert few["metrics"]["AR100"] <= plain["metrics"]["AR1"] + 1e-9
    assert score("model.hidden_dim=192", "model.name=detr_lite0", "model.num_queries=20") == plain, "what it has"
    assert score("model.eval_short_side=32") == score("data.eval_short_side=32")
    loaded = load_dataset(folder, split="val")
    assert score("model.top_k=1", data=loaded) == few
    with pytest.raises(RecipeError, match=r"override 'data\.root': the data set is loaded already"):
        score("data.root=x", data=loaded)


def test_a_recipe_for_another_network_is_told(checkpoint: Any, folder: Path) -> None:
    recipe = {"model": {"name": "detr_lite0", "num_queries": 50}, "data": {"root": str(folder)}}
    with pytest.warns(UserWarning, match="the checkpoint has num_queries = 20, not 50"):
        evaluate(checkpoint, recipe, device="cpu")
