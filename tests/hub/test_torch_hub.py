"""``hubconf.py``: entry points of ``torch.hub``."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch

import detrkit

ROOT = Path(__file__).resolve().parents[2]


def hub_load(name: str, *arguments: object, **options: object) -> object:
    return torch.hub.load(str(ROOT), name, *arguments, source="local", **options)


def test_every_model_is_an_entry_point() -> None:
    module = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = {name for name, value in module.items() if callable(value) and not name.startswith("_")}
    assert set(detrkit.list_models()) | {"predictor", "from_pretrained"} <= entries
    assert all(importlib.util.find_spec(name) for name in module["dependencies"])


def test_models_by_name() -> None:
    model = hub_load("detr_lite0", num_classes=4)
    assert model.config.architecture.num_classes == 4
    trained = hub_load("dape_lite0", pretrained=True)
    assert [category.name for category in trained.categories] == ["RBC", "WBC", "Platelets"]
    with pytest.raises(TypeError, match="pretrained weights fix the options of a model; leave out num_classes"):
        hub_load("dape_lite0", pretrained=True, num_classes=4)


def test_a_predictor() -> None:
    assert isinstance(hub_load("predictor", device="cpu"), detrkit.Predictor)
