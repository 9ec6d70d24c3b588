"""Overrides that make any model, also the deepest published one, run in a fraction of a second."""

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

# The smallest network of the family of each backbone in the registry.
_SMALL_BACKBONES = {
    "resnet": "test_resnet",  # timm's own, with basic and bottleneck blocks
    "tf_efficientnet_lite0": "tf_efficientnet_lite0",
    "swin_": TINY["swin"],
    "convnext_": TINY["convnext"],
    "focalnet_": TINY["focalnet"],
}
# Two encoder layers, so that a schedule over layers has two ends; nothing random, so that train can equal eval.
_SIZES = {**SMALL, "encoder_layers": 2, "dropout": 0.0, "drop_path": 0.0}
_WHERE_KNOWN = {"one_to_many_queries": 15, "denoising_queries": 20}


def small_options(name: str, **overrides: Any) -> dict[str, Any]:
    """What makes a registered model tiny and leaves all that its name stands for.

    Relation, denoising, one-to-many queries, groups, stages, levels, dilation and the family of the backbone stay.
    """
    backbone = model_config(name).architecture.backbone
    relative = next((small for start, small in _SMALL_BACKBONES.items() if backbone.startswith(start)), None)
    assert relative is not None, f"tests/small.py: name a small relative of '{backbone}'"
    known = {key: value for key, value in _WHERE_KNOWN.items() if key in entry(name).options()}
    return {**_SIZES, **known, "backbone": relative, **overrides}


def small_model(name: str, *, seed: int = 0, **overrides: Any) -> Detector:
    """A registered model with :func:`small_options`; ``seed``: of its random weights."""
    torch.manual_seed(seed)
    return create_model(name, **small_options(name, **overrides))
