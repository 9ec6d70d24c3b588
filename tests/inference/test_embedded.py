"""The weights in the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from detrkit import Predictor, score_coco
from detrkit.models.presets import DEFAULT_MODEL
from detrkit.weights.find import ASSETS

CLASSES = {DEFAULT_MODEL: [(1, "RBC"), (2, "WBC"), (3, "Platelets")], "mask_dape_lite0": [(1, "nucleus")]}
MOST_BYTES = {DEFAULT_MODEL: 14e6, "mask_dape_lite0": 16e6}


def described(name: str) -> tuple[set[str], dict[str, Any]]:
    """Kinds of numbers, and what the file says of its model."""
    with safe_open(ASSETS / f"{name}.safetensors", framework="pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
        return kinds, json.loads(file.metadata()["detrkit"])


@pytest.mark.parametrize("name", CLASSES)
def test_a_file_is_small_in_half_precision_and_describes_its_model(name: str) -> None:
    assert (ASSETS / f"{name}.safetensors").stat().st_size <= MOST_BYTES[name]
    kinds, info = described(name)
    assert "F32" not in kinds
    assert "F16" in kinds
    assert info["name"] == name
    assert [(row["id"], row["name"]) for row in info["categories"]] == CLASSES[name]
    assert info["recipe"]["model"]["name"] == name


def test_the_model_of_nuclei_keeps_its_settings() -> None:
    """Other defaults would change neither how many it finds nor how it finds them."""
    _, info = described("mask_dape_lite0")
    found = info["config"]
    assert (found["task"], found["top_k"], found["num_queries"], found["nms"]) == ("inst", 500, 400, 0.7)
    assert (found["sampling"], found["relation"], found["relation_rank"]) == ("harmonized", "low_rank", 16)
    assert found["mask_in_box"]


def test_it_detects_the_cells_in_the_packaged_images() -> None:
    images: Path = ASSETS / "blood_cells"
    truth: dict[str, Any] = json.loads((images / "annotations.json").read_text())
    predictor = Predictor(device="cpu", threshold=0.0)
    rows = [
        row
        for image in truth["images"]
        for row in predictor.predict(images / "images" / image["file_name"]).to_coco(image["id"])
    ]
    score = score_coco(truth, rows)
    assert (score.metrics["AP50"] or 0) > 0.6
    assert (score.per_class["WBC"]["AP50"] or 0) > 0.8
