"""``detrkit demo`` and its embedded images."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.cli import demo
from detrkit.cli.main import run
from detrkit.models import model_config
from detrkit.models.presets import DEFAULT_MODEL
from detrkit.structures import Categories
from detrkit.weights import find

IMAGES = Path(detrkit.__file__).parent / "assets" / "blood_cells"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ground_truth() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((IMAGES / "annotations.json").read_text())
    return table


# --- the images -------------------------------------------------------------------------------------------------------


def test_a_dozen_images_with_every_class_at_least_five_times() -> None:
    table = ground_truth()
    assert len(table["images"]) == 12
    names = {row["id"]: row["name"] for row in table["categories"]}
    counts = Counter(names[row["category_id"]] for row in table["annotations"])
    assert set(counts) == {"RBC", "WBC", "Platelets"}
    assert min(counts.values()) >= 5
    assert {row["file_name"] for row in table["images"]} == {path.name for path in (IMAGES / "images").iterdir()}


def test_manifest_and_licence() -> None:
    lines = [line.split("  ") for line in (IMAGES / "MANIFEST.sha256").read_text().splitlines()]
    assert len(lines) == 13
    for digest, name in lines:
        assert sha256(IMAGES / name) == digest, name
    assert "MIT License" in (IMAGES / "LICENSE").read_text()


def test_images_are_the_first_of_val_by_hash_and_not_in_train(shared: Path) -> None:
    data = shared / "data" / "blood_cells_det"
    val = json.loads((data / "annotations" / "instances_val.json").read_text())
    files = {row["file_name"]: data / "images" / "val" / row["file_name"] for row in val["images"]}
    expected = sorted(files, key=lambda name: sha256(files[name]))[:12]
    assert {row["file_name"] for row in ground_truth()["images"]} == set(expected)
    for name in expected:
        assert sha256(IMAGES / "images" / name) == sha256(files[name]), "original bytes"
    ids = {row["id"] for row in ground_truth()["images"]}
    assert ground_truth()["annotations"] == [row for row in val["annotations"] if row["image_id"] in ids]

    train = {sha256(path) for path in (data / "images" / "train").iterdir()}
    assert len(train) == 205
    assert not train & {sha256(path) for path in (IMAGES / "images").iterdir()}


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Assets with the labelled images and an untrained model, independent of the embedded weights."""
    assets = tmp_path / "assets"
    shutil.copytree(IMAGES, assets / "blood_cells")
    torch.manual_seed(0)
    model = detrkit.create_model(DEFAULT_MODEL, num_classes=3, eval_short_side=64, eval_max_side=128)
    model.categories = Categories.from_json(ground_truth()["categories"])
    detrkit.save(model, assets / f"{DEFAULT_MODEL}.safetensors")
    monkeypatch.setattr(find, "ASSETS", assets)
    monkeypatch.setattr(demo, "_COUNTED", 0.0)
    return assets


def test_demo_writes_pictures_and_json_and_prints_their_paths(
    untrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    assert run(["demo", "--out", str(out), "--device", "cpu"]) == 0
    pictures = sorted(path.name for path in (out / "images").iterdir())
    assert pictures == sorted(Path(row["file_name"]).stem + ".png" for row in ground_truth()["images"])
    predictions = json.loads((out / "predictions.json").read_text())
    assert [row["file_name"] for row in predictions["images"]] == [row["file_name"] for row in ground_truth()["images"]]
    assert len(predictions["annotations"]) == 12 * model_config(DEFAULT_MODEL).top_k

    text = capfd.readouterr().out
    for name, labelled in (("RBC", 156), ("WBC", 12), ("Platelets", 18)):
        line = next(line for line in text.splitlines() if name in line)
        found = sum(
            row["category_id"] == {"RBC": 1, "WBC": 2, "Platelets": 3}[name] for row in predictions["annotations"]
        )
        cells = [cell.strip() for cell in line.replace("│", "|").strip("| ").split("|")]
        assert cells[0] == name
        assert cells[3:] == [str(labelled), str(found)]
    assert str(out / "images") in text
    assert str(out / "predictions.json") in text
    assert text.splitlines()[-1] == f"detrkit train {demo.RECIPE} --data DIR"


def test_the_recipe_of_the_embedded_model_exists() -> None:
    assert detrkit.load_recipe(demo.RECIPE).model.name == DEFAULT_MODEL


def test_demo_without_weights_is_a_clear_error(
    untrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (untrained / f"{DEFAULT_MODEL}.safetensors").unlink()
    assert run(["demo", "--out", str(tmp_path / "out")]) == 2
    expected = f"no trained weights called '{DEFAULT_MODEL}' in the package (it has: none)"
    assert expected in capfd.readouterr().err
