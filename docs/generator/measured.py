"""Measured figures that are recorded as JSON in ``docs/results``."""

from __future__ import annotations

import json
from typing import Any

from detrkit.models.registry import REGISTRY
from generator.headers import ROOT
from generator.tables import table

__all__ = ["SECTIONS"]

CLASSES = ("RBC", "WBC", "Platelets")


def grid() -> str:
    """Cells of ``benchmarks/data_efficiency.py``: the registered models, most images first."""
    lines = (ROOT / "docs/results/data_efficiency.jsonl").read_text(encoding="utf-8").splitlines()
    cells = [cell for cell in map(json.loads, lines) if cell["model"] in REGISTRY]
    cells.sort(key=lambda cell: (-cell["images"], cell["metrics"]["AP"]))
    rows = []
    for cell in cells:
        numbers = [cell["metrics"]["AP"], cell["metrics"]["AP50"], *(cell["per_class"][name] for name in CLASSES)]
        rows.append([f"`{cell['model']}`", str(cell["images"]), *(f"{number:.3f}" for number in numbers)])
    return table(["model", "training images", "AP", "AP50", *CLASSES], rows)


VARIANTS = {"det": "detection alone", "dense": "masks multiplied out", "lazy": "masks of detrkit"}
TASKS = {"inst": "instances", "pan": "panoptic segments", "sem": "classes of pixels", "det": "boxes alone"}


def training_masks() -> str:
    """What masks add to the peak of a training step (``benchmarks/mask_training.py``)."""
    rows = []
    for row in _recorded("mask_training_cpu"):
        added = ["–", "–"] if row["variant"] == "det" else [f"{row['added_MiB']:,.0f}", f"{row['of_dense']:.2g}"]
        rows.append([str(row["queries"]), VARIANTS[row["variant"]], f"{row['peak_MiB']:,.0f}", *added])
    return table(["queries", "step", "peak, MiB", "masks add, MiB", "of multiplied out"], rows)


def predicted_masks() -> str:
    """Peak of predicting a large image (``benchmarks/mask_prediction.py``)."""
    rows = [
        [TASKS[row["task"]], *(f"{row[key] / 1024:.2f}" for key in ("before_MiB", "peak_MiB", "dense_MiB"))]
        for row in _recorded("mask_prediction_cpu")
    ]
    return table(["answer", "process before, GiB", "peak, GiB", "all masks as float32, GiB"], rows)


def evaluated_masks() -> str:
    """The resident set during an evaluation (``benchmarks/mask_evaluation.py``)."""
    found = _recorded("mask_evaluation_cpu")
    rows = [
        [TASKS[row["task"]], *(f"{value:,.0f}" for value in (*row["resident_MiB"].values(), row["scored_MiB"]))]
        for row in found
    ]
    return table(["answer", *(f"{count} images" for count in found[0]["resident_MiB"]), "scored"], rows)


def read_masks() -> str:
    """Peak of reading a COCO file with masks (``benchmarks/mask_memory.py``)."""
    rows = [
        [TASKS[row["task"]], f"{row['before_gib']:.2f}", f"{row['peak_gib']:.2f}", f"{row['seconds']:.0f}"]
        for row in _recorded("mask_memory_cpu")
    ]
    return table(["read for", "process before, GiB", "peak, GiB", "seconds"], rows)


def _recorded(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8"))["rows"]
    return rows


SECTIONS = {
    "measured grid on blood cells": grid,
    "memory of a training step with masks": training_masks,
    "memory of a prediction with masks": predicted_masks,
    "memory of an evaluation with masks": evaluated_masks,
    "memory of a file with masks": read_masks,
}
