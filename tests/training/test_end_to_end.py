"""A real model on a few generated images, from files to a resumed run and a prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.errors import DataError
from detrkit.models.de_detr import DEDETR
from detrkit.training import train
from detrkit.training.loggers import read_log
from detrkit.training.trainer import Trainer
from tests.training.fakes import last_state, same_state

MODEL = {
    "name": "dela_detr_lite0",
    "pretrained_backbone": False,
    "num_queries": 10,
    "hidden_dim": 96,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "ffn_dim": 64,
    "dropout": 0.1,
    "train_short_sides": [64, 80],
    "train_max_side": 112,
    "eval_short_side": 72,
    "eval_max_side": 112,
}
CLASSES = [{"id": 3, "name": "bright"}, {"id": 11, "name": "dark"}]


def make_coco(root: Path) -> Path:
    """Six images of three shapes; the fourth has no object."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        (root / f"{split}2017").mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            height, width = [(80, 96), (96, 80), (88, 88)][index % 3]
            pixels = random.integers(110, 140, (height, width, 3), dtype=np.uint8)
            for number in range(0 if index == 3 else 1 + index % 3):
                x, y = (int(random.integers(0, side - 30)) for side in (width, height))
                pixels[y : y + 28, x : x + 28] = 240 if number % 2 == 0 else 15
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": CLASSES[number % 2]["id"],
                        "bbox": [x, y, 28, 28],
                        "area": 784,
                        "iscrowd": 0,
                    }
                )
            name = f"{index}.png"
            Image.fromarray(pixels).save(root / f"{split}2017" / name)
            images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        (root / "annotations").mkdir(exist_ok=True)
        table = {"images": images, "annotations": annotations, "categories": CLASSES}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(table), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set on disk."""
    return make_coco(tmp_path_factory.mktemp("coco"))


def recipe(coco: Path, output: Path, **training: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "data": {"root": str(coco), "crop": False},
        "training": {"epochs": 3, "batch_size": 2, "workers": 0, "ema": 0.9, "device": "cpu", "output": str(output)}
        | training,
        "optimizer": {"lr": 3e-4, "lr_backbone": 3e-5},
        "logging": {"every": 1, "plots": False},
    }


def test_files_to_resumed_run_to_prediction(coco: Path, tmp_path: Path) -> None:
    settings = {"checkpoint_every": 2, "evaluate_every": 2, "accumulate": 2, "workers": 2, "epochs": 2}
    whole = train(recipe(coco, tmp_path / "whole", **settings))
    original = Trainer.train_step

    def train_step(self: Trainer, group: list[Any]) -> None:
        original(self, group)
        if self.step == 3:
            raise SystemExit

    with mock.patch.object(Trainer, "train_step", train_step), pytest.raises(SystemExit):
        train(recipe(coco, tmp_path / "broken", **settings))
    resumed = train(tmp_path / "broken", resume=True)
    assert same_state(last_state(tmp_path / "whole"), last_state(tmp_path / "broken")) == []
    assert resumed.metrics == whole.metrics
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"} <= set(whole.metrics)

    model = detrkit.load(whole.best)
    assert model.categories is not None
    assert [(category.id, category.name) for category in model.categories] == [(3, "bright"), (11, "dark")]
    assert detrkit.evaluate(whole.best, coco)["metrics"]["AP"] == pytest.approx(whole.metrics["AP"], abs=1e-3)
    detections = detrkit.Predictor(whole.best, device="cpu").predict(coco / "val2017" / "0.png", threshold=0.0)
    assert 0 < len(detections) <= 10
    assert set(detections.category_ids) <= {3, 11}


def test_training_and_evaluation_see_the_sizes_of_the_recipe(coco: Path, tmp_path: Path) -> None:
    shorter: dict[bool, set[int]] = {True: set(), False: set()}
    means = []
    original = DEDETR.detect

    def detect(self: DEDETR, images: torch.Tensor, mask: torch.Tensor, targets: Any) -> Any:
        sides = [min(int(a.any(1).sum()), int(a.any(0).sum())) for a in ~mask]
        shorter[self.training].update(sides)
        means.append(float(images.mean()))
        return original(self, images, mask, targets)

    settings = recipe(coco, tmp_path / "run", epochs=2)
    settings["data"] = settings["data"] | {"short_sides": [40, 56], "eval_short_side": 48}
    with mock.patch.object(DEDETR, "detect", detect):
        result = train(settings)
    assert shorter == {True: {40, 56}, False: {48}}
    assert max(map(abs, means)) < 0.5, "normalised as in the model configuration"
    config = detrkit.load(result.best).config
    assert (config.train_short_sides, config.eval_short_side) == ((40, 56), 48)


def test_classes_only_in_the_validation_data(coco: Path, tmp_path: Path) -> None:
    root = tmp_path / "odd"
    shutil.copytree(coco, root)
    file = root / "annotations" / "instances_val2017.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    table["categories"].append({"id": 12, "name": "striped"})
    table["annotations"][0]["category_id"] = 12
    file.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(DataError, match=r"boxes of striped, .* \(they list bright, dark\)"):
        train(recipe(root, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_no_validation_images(coco: Path, tmp_path: Path) -> None:
    root = tmp_path / "odd"
    shutil.copytree(coco, root)
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(DataError, match=r"training\.evaluate_every=0 trains without validation images"):
        train(recipe(root, tmp_path / "run"))
    result = train(recipe(root, tmp_path / "run", epochs=1, evaluate_every=0))
    assert result.best == tmp_path / "run" / "last" / "model.safetensors"


def broken_copy(coco: Path, root: Path, name: str) -> Path:
    """Copy the data set and damage one training image; returns its path."""
    shutil.copytree(coco, root)
    image = root / "train2017" / name
    image.write_bytes(image.read_bytes()[:600])
    return image


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_stops_the_run_without_loss(coco: Path, tmp_path: Path, workers: int) -> None:
    settings = {"workers": workers, "evaluate_every": 0, "epochs": 1, "batch_size": 1}
    whole = train(recipe(coco, tmp_path / "whole", **settings)).folder
    image = broken_copy(coco, tmp_path / "odd", "4.png")
    broken = recipe(tmp_path / "odd", tmp_path / "run", **settings)
    with pytest.raises(DataError, match=r"4\.png.*Step \d is saved: mend it, then continue with --resume") as caught:
        train(broken)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)
    steps = last_state(tmp_path / "run")["position"]["step"]
    assert 0 <= steps < 6
    shutil.copy(coco / "train2017" / "4.png", image)
    train(broken, resume=True)
    wanted, got = last_state(whole), last_state(tmp_path / "run")
    assert same_state(wanted["model"], got["model"]) == []
    assert same_state(wanted["optimizer"], got["optimizer"]) == []


def test_skipped_annotations_are_counted_in_log_and_console(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "odd"
    shutil.copytree(coco, root)
    for split, count in (("train", 2), ("val", 1)):
        file = root / "annotations" / f"instances_{split}2017.json"
        table = json.loads(file.read_text(encoding="utf-8"))
        for row in table["annotations"][:count]:
            row["bbox"][2] = 0
        file.write_text(json.dumps(table), encoding="utf-8")
    settings = recipe(root, tmp_path / "run", epochs=1, evaluate_every=1)
    settings["data"] = settings["data"] | {"on_error": "skip"}
    train(settings)
    start = read_log(tmp_path / "run" / "log.jsonl")[0]
    assert (start["event"], start["left_out"], start["left_out_val"]) == ("start", 2, 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert [line.split(", the first: ")[0] for line in lines] == [
        "2 boxes or images left out of the training data",
        "1 boxes or images left out of the validation data",
    ]
    assert all(line.endswith("has no positive width and height") for line in lines)


def test_damaged_images_are_skipped_and_counted_on_request(coco: Path, tmp_path: Path) -> None:
    broken_copy(coco, tmp_path / "odd", "4.png")
    settings = recipe(tmp_path / "odd", tmp_path / "run", epochs=2, workers=1, evaluate_every=0)
    settings["data"] = settings["data"] | {"on_error": "skip"}
    train(settings)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["skipped_images"] for row in rows if row["event"] == "data"] == [["4.png"]]
    assert [row["step"] for row in rows if row["event"] == "train"] == list(range(1, 7))


@pytest.mark.slow
def test_it_learns(coco: Path, tmp_path: Path) -> None:
    """Twenty steps on six images reduce the loss clearly."""
    train(recipe(coco, tmp_path / "run", iterations=20, epochs=None, batch_size=6, evaluate_every=0))
    rows = [row for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "train"]
    losses = [row["loss"] for row in rows]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.87 * np.mean(losses[:3])
    assert all(np.isfinite(losses))


def test_frozen_parts_do_not_change(coco: Path, tmp_path: Path) -> None:
    train(recipe(coco, tmp_path / "run", epochs=1, evaluate_every=0, ema=None) | {"optimizer": {"lr_backbone": 0}})
    torch.manual_seed(0)
    first = last_state(tmp_path / "run")
    train(
        recipe(coco, tmp_path / "more", epochs=1, evaluate_every=0, ema=None)
        | {"optimizer": {"lr": 1e-2, "lr_backbone": 0}}
    )
    second = last_state(tmp_path / "more")
    backbone = [name for name in first["model"] if name.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in backbone)
    assert same_state(first["model"], second["model"]) != []
