"""Overrides that make any model, also the deepest published one, run in a second."""

from typing import Any

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
