"""DETR: "End-to-End Object Detection with Transformers" (Carion et al., ECCV 2020, arXiv 2005.12872).

An image becomes one feature map; an encoder mixes its tokens; a fixed set of learned queries reads the memory through
a decoder; every query predicts one box or "no object". A bipartite matching (:mod:`detrkit.losses.matcher`) says in
training which query answers for which object, so nothing needs anchors or NMS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.detector import Detector, build_backbone, class_slots
from detrkit.nn.backbone import Backbone
from detrkit.nn.heads import MLP
from detrkit.nn.position import LearnedPosition, SinePosition
from detrkit.nn.projection import to_tokens
from detrkit.nn.query_groups import learned_queries, split_groups
from detrkit.nn.transformer import DecoderLayer, Encoder, xavier_
from detrkit.structures import Predictions, Target

__all__ = ["DETR", "DETRConfig", "build_position"]


@dataclass(frozen=True, kw_only=True)
class DETRConfig(DetectorConfig):
    """Configuration of DETR; the defaults are the published ones.

    pre_norm: norms before instead of after the sub-blocks · groups: query groups in training (Group DETR,
    :mod:`detrkit.nn.query_groups`); inference uses the first.
    """

    position_embedding: Literal["sine", "learned"] = "sine"
    pre_norm: bool = False
    groups: int = 1

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        super().__post_init__()
        if self.position_embedding not in ("sine", "learned"):
            raise ValueError(f"position_embedding must be 'sine' or 'learned', got {self.position_embedding!r}")
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")


def build_position(config: DETRConfig) -> nn.Module:
    """The position encoding a configuration asks for."""
    encodings: dict[str, type[SinePosition] | type[LearnedPosition]] = {
        "sine": SinePosition,
        "learned": LearnedPosition,
    }
    return encodings[config.position_embedding](dim=config.hidden_dim)


def build_encoder(config: DETRConfig) -> Encoder:
    """The transformer encoder a configuration asks for."""
    encoder = Encoder(
        num_layers=config.encoder_layers,
        dim=config.hidden_dim,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
    )
    xavier_(encoder)
    return encoder


class Decoder(nn.Module):
    """A stack of decoder layers with one norm that the heads see; its layers say nothing about what they attend to."""

    def __init__(self, *, config: DETRConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                dim=config.hidden_dim,
                num_heads=config.num_heads,
                ffn_dim=config.ffn_dim,
                dropout=config.dropout,
                pre_norm=config.pre_norm,
                group_size=config.num_queries,
            )
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_dim)
        xavier_(self)


class DETR(Detector):
    """DETR with modules passed in; :meth:`from_config` builds the published ones."""

    config: DETRConfig
    decoder: Any  # DETR's own, or another paper's with the same parts
    decoder_type: ClassVar[type[nn.Module]] = Decoder

    def __init__(
        self, *, config: DETRConfig, backbone: Backbone, position: nn.Module, encoder: Encoder, decoder: nn.Module
    ) -> None:
        super().__init__(config=config)
        dim = config.hidden_dim
        self.backbone = backbone
        self.position = position
        self.input_proj = nn.Conv2d(backbone.channels[-1], dim, kernel_size=1)
        self.encoder = encoder
        self.decoder = decoder
        self.query_embed = nn.Embedding(config.groups * config.num_queries, dim)
        self.class_embed = nn.Linear(dim, class_slots(config))
        self.bbox_embed = MLP(dim, dim, 4, num_layers=3)

    @classmethod
    def from_config(cls, config: DETRConfig) -> Self:
        """The whole model of a configuration, randomly initialised."""
        return cls(
            config=config,
            backbone=build_backbone(config, num_levels=1),
            position=build_position(config),
            encoder=build_encoder(config),
            decoder=cls.decoder_type(config=config),
        )

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Backbone, encoder, decoder, heads."""
        (c5,) = self.backbone(images, padding_mask)
        mask = c5.padding_mask.flatten(1)
        position = self.position(c5.padding_mask).flatten(1, 2)
        memory = self.encoder(to_tokens(self.input_proj(c5.tensor)), position, mask)

        queries = learned_queries(self.query_embed, self.config.num_queries, len(images), training=self.training)
        content = torch.zeros_like(queries)
        hidden = []
        for layer in self.decoder.layers:
            attention = layer.multihead_attn
            content = layer(content, queries, lambda x, a=attention: a(x + queries, memory + position, memory, mask))
            hidden.append(self.decoder.norm(content))
        states = torch.stack(hidden)
        boxes = self.bbox_embed(states).float().sigmoid()
        return split_groups(self.class_embed(states), boxes, self.config.num_queries)
