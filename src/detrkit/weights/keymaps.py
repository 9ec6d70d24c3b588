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

_PROJECTIONS = {
    "query_content": "qcontent",
    "query_position": "qpos",
    "query_sine": "qpos_sine",
    "key_content": "kcontent",
    "key_position": "kpos",
    "value": "v",
}
_CONDITIONAL = (
    *(
        (rf"(decoder\.layers\.\d+)\.{module}\.{ours}\.(.+)", (rf"transformer.\1.{prefix}_{theirs}_proj.\2",))
        for module, prefix in (("self_attn", "sa"), ("multihead_attn", "ca"))
        for ours, theirs in _PROJECTIONS.items()
    ),
    (r"(decoder\.layers\.\d+)\.multihead_attn\.out_proj\.(.+)", (r"transformer.\1.cross_attn.out_proj.\2",)),
)

_HEADS_OF_LAYERS = ((r"bbox_embed\.(\d+)\.(.+)", (r"bbox_embed.\1.\2", r"transformer.decoder.bbox_embed.\1.\2")),)

KEYMAPS: Mapping[str, KeyMap] = {
    "detr": KeyMap(_TRANSFORMER),
    "conditional_detr": KeyMap((*_CONDITIONAL, *_TRANSFORMER)),
    "de_detr": KeyMap((*_DE_DETR, *_HEADS_OF_LAYERS)),
    "de_conditional_detr": KeyMap((*_CONDITIONAL, *_DE_DETR, *_HEADS_OF_LAYERS)),
    **{
        # Without refinement all layers share one head.
        f"{family}_shared_heads": KeyMap(
            (
                *rules,
                *_DE_DETR,
                (r"class_embed\.0\.(.+)", (r"class_embed.{layers}.\1",)),
                (
                    r"bbox_embed\.0\.(.+)",
                    (r"bbox_embed.{layers}.\1", r"transformer.decoder.bbox_embed.{layers}.\1"),
                ),
            )
        )
        for family, rules in (("de_detr", ()), ("de_conditional_detr", _CONDITIONAL))
    },
}
