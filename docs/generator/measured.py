"""Measured figures that are recorded as JSON in ``docs/results``."""

from __future__ import annotations

import json

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


SECTIONS = {"measured grid on blood cells": grid}
