"""Official parameter names of each family, as rules over ours. One of our tensors may stand under several names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["KEYMAPS", "KeyMap"]


@dataclass(frozen=True)
class KeyMap:
    """Rules (pattern over our name, templates of the official names); the first that matches the whole name counts.

    ``{layers}`` in a template stands for every decoder layer: heads that layers share stand there once for us and
    once a layer in official files.
    """

    rules: tuple[tuple[str, tuple[str, ...]], ...]

    def official(self, key: str, layers: int) -> list[str]:
        """Every official name of our tensor ``key``; the first is the one to write gradients and errors under."""
        for pattern, templates in self.rules:
            match = re.fullmatch(pattern, key)
            if match:
                names = [match.expand(template) for template in templates]
                return [
                    name.replace("{layers}", str(layer))
                    for name in names
                    for layer in (range(layers) if "{layers}" in name else (0,))
                ]
        return [key]


_TRANSFORMER = (
    (r"backbone\.body\.(.+)", (r"backbone.0.body.\1",)),
    (r"position\.(.+)", (r"backbone.1.\1",)),
    (r"((?:en|de)coder\..+)", (r"transformer.\1",)),
)

_DE_DETR = (
    *_TRANSFORMER,
    (r"input_proj\.(\d+)\.conv\.(.+)", (r"input_proj.\1.0.\2",)),
    (r"input_proj\.(\d+)\.norm\.(.+)", (r"input_proj.\1.1.\2",)),
    (r"ref_point_head\.(.+)", (r"ref_point_head.\1", r"transformer.decoder.ref_point_head.\1")),
)

KEYMAPS: Mapping[str, KeyMap] = {
    "detr": KeyMap(_TRANSFORMER),
    "de_detr": KeyMap(
        (
            *_DE_DETR,
            (r"bbox_embed\.(\d+)\.(.+)", (r"bbox_embed.\1.\2", r"transformer.decoder.bbox_embed.\1.\2")),
        )
    ),
    # Without refinement all layers share one head.
    "de_detr_shared_heads": KeyMap(
        (
            *_DE_DETR,
            (r"class_embed\.0\.(.+)", (r"class_embed.{layers}.\1",)),
            (
                r"bbox_embed\.0\.(.+)",
                (r"bbox_embed.{layers}.\1", r"transformer.decoder.bbox_embed.{layers}.\1"),
            ),
        )
    ),
}
