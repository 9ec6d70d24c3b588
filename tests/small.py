"""Overrides that make every model, also the deepest published one, run in a fraction of a second."""

from __future__ import annotations

from typing import Any

import torch

from detrkit.models import Detector, create_model, entry, model_config
from tests.nn.tiny_backbones import TINY

SMALL: dict[str, Any] = {
    "backbone": "tf_efficientnet_lite0",
    "hidden_dim": 64,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_dim": 64,
    "num_queries": 12,
    "num_classes": 3,
}

# One small network per family of backbones in the registry.
_SMALL_BACKBONES = {
    "resnet": "test_resnet",  # from timm, with basic and bottleneck blocks
    "tf_efficientnet_lite0": "tf_efficientnet_lite0",
    "swin_": TINY["swin"],
    "convnext_": TINY["convnext"],
    "focalnet_": TINY["focalnet"],
}
# Two encoder layers, so that a schedule over layers has two ends; nothing random, so that training equals evaluation.
_SIZES = {**SMALL, "encoder_layers": 2, "dropout": 0.0, "drop_path": 0.0}
_OPTIONAL = {"one_to_many_queries": 15, "denoising_queries": 20}


def small_options(name: str, **overrides: Any) -> dict[str, Any]:
    """Return overrides that make a registered model tiny but keep its structure.

    Relation, denoising, one-to-many queries, groups, stages, levels, dilation and the family of the backbone stay.
    """
    backbone = model_config(name).architecture.backbone
    small_backbone = next((small for start, small in _SMALL_BACKBONES.items() if backbone.startswith(start)), None)
    assert small_backbone is not None, f"tests/small.py: add a small backbone of the family of '{backbone}'"
    known = {key: value for key, value in _OPTIONAL.items() if key in entry(name).options()}
    return {**_SIZES, **known, "backbone": small_backbone, **overrides}


def small_model(name: str, *, seed: int = 0, **overrides: Any) -> Detector:
    """Build a registered model with :func:`small_options`; ``seed`` sets its random weights."""
    torch.manual_seed(seed)
    return create_model(name, **small_options(name, **overrides))
