"""Training and evaluation on LVIS: recipe parts, repeat factor sampling, federated loss, exact resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import detrkit
from detrkit.config import load_recipe
from detrkit.errors import DataError, RecipeError
from detrkit.losses import FederatedClasses
from detrkit.structures import Target
from detrkit.training import train
from detrkit.training.task import build_task
from detrkit.training.trainer import Trainer
from tests.data.trees import dump, lvis, lvis_tree
from tests.training.fakes import last_state, same_state
from tests.workplace import ROOT, TINY_MODEL, detrkit_cli

MODEL = TINY_MODEL | {
    "name": "conditional_detr_lite0",
    "pretrained_backbone": False,
    "num_queries": 10,
    "train_short_sides": [48],
    "train_max_side": 64,
    "eval_short_side": 48,
    "eval_max_side": 64,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tiny LVIS data set without negative classes for its training images."""
    root = lvis_tree(tmp_path / "data" / "lvis")
    table = lvis("train")
    for image in table["images"]:
        image["neg_category_ids"] = []
    dump(root / "annotations" / "lvis_v1_train.json", table)
    return root


def recipe(root: Path, output: Path, **training: Any) -> dict[str, Any]:
    """Both long-tail keys; at this threshold the class in one of three images is sampled 1.6 times as often."""
    return {
        "model": MODEL,
        "data": {"root": str(root), "crop": False, "sampling": "repeat_factor", "sampling_threshold": 0.9},
        "training": {"epochs": 2, "batch_size": 1, "workers": 0, "device": "cpu", "output": str(output)}
        | {"federated_classes": 1, "evaluate_every": 2}
        | training,
        "logging": {"every": 1, "plots": False},
    }


def test_a_run_resumes_exactly_and_is_scored_by_lvis(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(recipe(root, tmp_path / "whole"))
    # factors 1.64, 1 and 1.16: 3.8 images per epoch
    assert "3 images (4 per epoch, those of rare classes several times), 8 optimizer steps" in capsys.readouterr().err
    original = Trainer.train_step

    def train_step(self: Trainer, group: list[Any]) -> None:
        original(self, group)
        if self.step == 5:
            self.save()
            raise SystemExit

    with mock.patch.object(Trainer, "train_step", train_step), pytest.raises(SystemExit):
        train(recipe(root, tmp_path / "broken"))
    train(tmp_path / "broken", resume=True)
    assert same_state(last_state(tmp_path / "whole"), last_state(tmp_path / "broken")) == []

    assert {"AP", "APr", "APc", "APf", "AR@300"} <= set(whole.metrics)
    assert whole.metrics["APc"] is None
    score = detrkit.evaluate(whole.best, root)
    assert (score["protocol"], score["metrics"]["APr"]) == ("lvis", pytest.approx(whole.metrics["APr"]))
    code, out = detrkit_cli(["eval", "--data", str(root), "--checkpoint", str(whole.best), "--device", "cpu"])
    assert code == 0
    assert out.startswith("LVIS bbox")


def test_both_keys_change_the_run(root: Path, tmp_path: Path) -> None:
    states = []
    for classes in (1, None):
        settings = recipe(root, tmp_path / f"run{classes}", epochs=1, evaluate_every=0, federated_classes=classes)
        train(settings)
        states.append(last_state(tmp_path / f"run{classes}"))
    assert states[0]["batches"] == states[1]["batches"] == 4
    assert same_state(states[0]["model"], states[1]["model"]) != []
    settings["data"]["sampling"] = "uniform"
    with pytest.raises(RecipeError, match=r"data\.sampling: repeat_factor there, uniform here"):
        train(settings, resume=True)


def test_the_federated_loss_counts_images_of_each_class_once(root: Path, tmp_path: Path) -> None:
    """Bolts are in one training image, nuts in two; repeated images do not change this."""
    criterion = build_task(load_recipe(recipe(root, tmp_path / "run"))).criterion
    assert criterion.federated is not None
    empty = [Target(labels=torch.zeros(0, dtype=torch.long), boxes=torch.zeros(0, 4))]
    expected = FederatedClasses(image_counts=[1, 2], number=1)
    for seed in range(30):
        torch.manual_seed(seed)
        drawn = criterion.federated(empty)
        torch.manual_seed(seed)
        assert torch.equal(drawn, expected(empty))


def test_federated_loss_needs_sigmoid_classification(root: Path, tmp_path: Path) -> None:
    settings = recipe(root, tmp_path / "run")
    settings["model"] = {"name": "detr_lite0", "pretrained_backbone": False}
    with pytest.raises(RecipeError, match=r"federated_classes needs .*classification=focal, but detr_lite0 has 'soft"):
        train(settings)
    assert not (tmp_path / "run").exists()


def test_annotations_without_frequency_stop_before_the_first_step(root: Path, tmp_path: Path) -> None:
    table = lvis("val")
    del table["categories"][0]["frequency"]
    dump(root / "annotations" / "lvis_v1_val.json", table)
    with pytest.raises(DataError, match=r"lvis_v1_val\.json: category id 4: frequency is None"):
        train(recipe(root, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["lvis", "lvis_minival"])
@pytest.mark.parametrize("beside", [False, True])
def test_the_recipe_parts(part: str, beside: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if beside:
        for folder in ("train2017", "val2017"):
            (tmp_path / "data" / "coco").mkdir(exist_ok=True)
            shutil.move(root / folder, tmp_path / "data" / "coco" / folder)
    monkeypatch.chdir(tmp_path)
    base = ROOT / "recipes" / "dape" / "_base"
    (tmp_path / "run.yaml").write_text(f"extends: [{base / f'{part}.yaml'}, {base / 'lvis_long_tail.yaml'}]\n")
    loaded = load_recipe(tmp_path / "run.yaml", {f"model.{key}": value for key, value in MODEL.items()})
    assert (loaded.data.sampling_threshold, loaded.training.federated_classes) == (0.001, 50)
    task = build_task(loaded)
    assert task.model.config.top_k == 300
    assert task.validation is not None
    assert (task.train_data.protocol, task.validation.data.protocol) == ("lvis", "lvis")
    assert (len(task.train_data), len(task.validation.data)) == (3, 2 if part == "lvis" else 1)
    assert task.train_data.chances is not None
    assert task.train_data.chances.tolist() == [1.0] * 3, "three images have no class below 0.1 %"
