"""The weights in the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from detrkit import Predictor, score_coco
from detrkit.models.presets import DEFAULT_MODEL
from detrkit.weights.find import ASSETS

WEIGHTS = ASSETS / f"{DEFAULT_MODEL}.safetensors"


def test_the_file_is_small_in_half_precision_and_describes_its_model() -> None:
    assert WEIGHTS.stat().st_size <= 14e6
    with safe_open(WEIGHTS, framework="pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
        info = json.loads(file.metadata()["detrkit"])
    assert "F32" not in kinds
    assert "F16" in kinds
    assert info["name"] == DEFAULT_MODEL
    assert [(row["id"], row["name"]) for row in info["categories"]] == [(1, "RBC"), (2, "WBC"), (3, "Platelets")]
    assert info["recipe"]["model"]["name"] == DEFAULT_MODEL


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
