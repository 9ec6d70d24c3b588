"""Laptop sizes (``*_lite0``) of all families: one table of width, depth, number of queries and image size."""

from __future__ import annotations

__all__ = ["LITE"]

LITE: dict[str, dict[str, object]] = {
    "lite0": {
        "backbone": "tf_efficientnet_lite0",
        "num_classes": 80,
        "num_queries": 100,
        "hidden_dim": 192,
        "num_heads": 6,
        "encoder_layers": 3,
        "decoder_layers": 4,
        "ffn_dim": 640,
        "dropout": 0.0,
        "mask_backbone_padding": True,
        "train_short_sides": (288, 320, 352),
        "train_max_side": 640,
        "eval_short_side": 320,
        "eval_max_side": 533,
    }
}
