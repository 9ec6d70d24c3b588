"""DETR: "End-to-End Object Detection with Transformers" (Carion et al., ECCV 2020, arXiv 2005.12872).

An image becomes one feature map; an encoder mixes its tokens; a fixed set of learned queries reads the memory through
a decoder; every query predicts one box or "no object". In training, bipartite matching
(:mod:`detrkit.losses.matcher`) assigns objects to queries, so neither anchors nor NMS are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from detrkit.models.config import Architecture, DetectorConfig
from detrkit.models.detector import Detector, MaskHead, build_backbone
from detrkit.nn.backbone import Backbone
from detrkit.nn.heads import MLP
from detrkit.nn.position import LearnedPosition, SinePosition
from detrkit.nn.queries import Decoded, Queries, attention_blocks, query_groups
from detrkit.nn.tokens import Tokens, flatten_levels, joined
from detrkit.nn.transformer import DecoderLayer, Encoder, xavier_
from detrkit.ranges import Few
from detrkit.structures import Predictions

__all__ = ["DETR", "DETRArchitecture", "Decoder", "build_detr", "build_encoder", "build_position", "decoder_layers"]


@dataclass(frozen=True, kw_only=True)
class DETRArchitecture(Architecture):
    """Architecture of DETR; the defaults are the published ones.

    Attributes:
        position_embedding: "sine" or "learned".
        pre_norm: layer norm before instead of after the sub-blocks.
        groups: number of query groups in training (Group DETR, :func:`detrkit.nn.queries.query_groups`).
    """

    position_embedding: Literal["sine", "learned"] = "sine"
    pre_norm: bool = False
    groups: Few = 1


def build_position(architecture: DETRArchitecture) -> SinePosition | LearnedPosition:
    """Build the position encoding of an architecture."""
    encodings: dict[str, type[SinePosition] | type[LearnedPosition]] = {
        "sine": SinePosition,
        "learned": LearnedPosition,
    }
    return encodings[architecture.position_embedding](dim=architecture.hidden_dim)


def decoder_layers(architecture: DETRArchitecture) -> list[DecoderLayer]:
    """Build the decoder layers of an architecture."""
    return [
        DecoderLayer(
            dim=architecture.hidden_dim,
            num_heads=architecture.num_heads,
            ffn_dim=architecture.ffn_dim,
            dropout=architecture.dropout,
            pre_norm=architecture.pre_norm,
        )
        for _ in range(architecture.decoder_layers)
    ]


def build_encoder(architecture: DETRArchitecture) -> Encoder:
    """Build the transformer encoder of an architecture."""
    encoder = Encoder(
        num_layers=architecture.encoder_layers,
        dim=architecture.hidden_dim,
        num_heads=architecture.num_heads,
        ffn_dim=architecture.ffn_dim,
        dropout=architecture.dropout,
        pre_norm=architecture.pre_norm,
    )
    xavier_(encoder)
    return encoder


class Decoder(nn.Module):
    """Layers in which queries attend to each other and to the whole memory; a final norm before the heads."""

    def __init__(self, layers: Sequence[nn.Module], *, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, queries: Sequence[Queries], memory: Tokens, class_embed: nn.Module, bbox_embed: nn.Module
    ) -> Decoded:
        """Decode sets of queries with positions; boxes are predicted from the states alone."""
        blocks = attention_blocks(queries)
        content = joined([query_set.content for query_set in queries])
        position = joined([query_set.required_position for query_set in queries])
        hidden, keys = [], memory.content + memory.position
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            cross_attn = layer.multihead_attn
            content = layer(
                content,
                position,
                lambda x, cross_attn=cross_attn: cross_attn(x + position, keys, memory.content, memory.padding_mask),
                blocks,
            )
            hidden.append(self.norm(content))
        states = torch.stack(hidden)
        return Decoded(tuple(queries), states, class_embed(states), bbox_embed(states).float().sigmoid())


class DETR(Detector):
    """DETR with backbone, encoder and decoder passed in; :func:`build_detr` builds the published ones."""

    config: DetectorConfig[DETRArchitecture]

    def __init__(
        self,
        *,
        config: DetectorConfig[DETRArchitecture],
        backbone: Backbone,
        position: SinePosition | LearnedPosition,
        encoder: Encoder,
        decoder: nn.Module,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__(config=config, mask_head=mask_head)
        architecture = config.architecture
        dim = architecture.hidden_dim
        self.backbone = backbone
        self.position = position
        self.input_proj = nn.Conv2d(backbone.channels[-1], dim, kernel_size=1)
        self.encoder = encoder
        self.decoder = decoder
        self.query_embed = nn.Embedding(architecture.groups * architecture.num_queries, dim)
        self.class_embed = nn.Linear(dim, architecture.class_slots)
        self.bbox_embed = MLP(dim, dim, 4, num_layers=3)

    def network(self, images: Tensor, padding_mask: Tensor, denoising: Sequence[Queries]) -> Predictions:
        """Run backbone, encoder, decoder and heads."""
        maps = self.backbone(images, padding_mask)
        c5 = replace(maps[-1], tensor=self.input_proj(maps[-1].tensor))
        tokens = flatten_levels([c5], self.position)
        encoded = self.encoder(tokens.content, tokens.position, tokens.padding_mask)
        memory = replace(tokens, content=encoded, projected=tokens.content)
        number = self.config.architecture.num_queries
        queries = query_groups(self.query_embed, number, images.shape[0], training=self.training)
        decoded = self.decoder(queries, memory, self.class_embed, self.bbox_embed)
        return self.predictions(decoded, memory, maps)


def build_detr(config: DetectorConfig[DETRArchitecture], *, mask_head: MaskHead | None = None) -> DETR:
    """Build DETR from a configuration, randomly initialised."""
    architecture = config.architecture
    backbone, encoder = build_backbone(architecture, num_levels=1), build_encoder(architecture)
    decoder = Decoder(decoder_layers(architecture), dim=architecture.hidden_dim)
    xavier_(decoder)
    return DETR(
        config=config,
        backbone=backbone,
        position=build_position(architecture),
        encoder=encoder,
        decoder=decoder,
        mask_head=mask_head,
    )
