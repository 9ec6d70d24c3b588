"""DAPE: "Harmonizing Content-Position Encoding for Versatile Dense Visual Prediction" (AAAI 2026).

**A reconstruction from the published description**: it uses neither code nor checkpoints of the authors, does not claim
to load their checkpoints, and does not claim their figures.

What changes against Relation-DETR; each change has its own option, and with all of them off it is Relation-DETR:

1. **Harmonised sampling** (``sampling``; off by default, since it cost AP where it was measured, docs/results.md):
   together with the content, deformable attention samples a code of the place that the content comes from. The
   position encoding of the next layer is made from this code or corrected by it, in the encoder
   (:class:`detrkit.nn.harmonized.HarmonizedEncoder`), in the decoder (:class:`HarmonizedDecoder`) or both.
2. **Low-rank relation** (``relation``, ``relation_rank``): the bias of self-attention is a product of factors of rank
   r, computed inside fused attention; nothing of size N² exists (:class:`detrkit.nn.relation.LowRankRelation`).
3. Two further interpretations of the description, off by default: query content sampled from the memory at the query's
   box (``query_content``, :meth:`DAPE.decode`), and positions added to the values of attention
   (``position_in_value``, :class:`detrkit.nn.harmonized.PositionedAttn`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.deformable_parts import build_neck, build_trunk, layer_options
from detrkit.models.detector import MaskHead
from detrkit.models.dino import Refinement, dino_heads, dino_query_modules
from detrkit.models.relation_detr import (
    RelationArchitecture,
    RelationDecoder,
    RelationDETR,
    RelationKind,
    build_fusion,
    one_to_many_modules,
    relation_parts,
    xavier_heads_,
)
from detrkit.nn.deformable import (
    AttentionFactory,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    MSDeformAttn,
    deformable_xavier_,
)
from detrkit.nn.harmonized import (
    CodedTokens,
    CoSamplingAttn,
    HarmonizedDecoderLayer,
    HarmonizedEncoder,
    HarmonizedEncoderLayer,
    PositionCode,
    PositionCorrection,
    PositionedAttn,
    PositionedCoSamplingAttn,
)
from detrkit.nn.queries import Decoded, Queries, attention_blocks
from detrkit.nn.tokens import Tokens, joined, on_levels
from detrkit.ops.ms_deform_attn import ms_deform_attn
from detrkit.ops.zeroed import zeroed
from detrkit.ranges import Share, Width

__all__ = ["DAPE", "DAPEArchitecture", "HarmonizedDecoder", "build_dape"]


@dataclass(frozen=True, kw_only=True)
class DAPEArchitecture(RelationArchitecture):
    """Architecture of DAPE; the options are described at the top of this file.

    Attributes:
        relation_rank: rank of the relation, per head.
        sampling: "harmonized": position encodings are made from sampled codes; "corrected": those of the own place are
            corrected by sampled codes, and training starts as Relation-DETR; "standard": no codes.
        sampling_in: where codes are sampled.
        code_rank: channels of the code, rounded up to a multiple of the heads; also the rank of ``position_in_value``.
        code_residual: share of a token's code that an encoder layer keeps; the rest is sampled.
    """

    sampling: Literal["standard", "harmonized", "corrected"] = "standard"
    sampling_in: Literal["both", "encoder", "decoder"] = "both"
    code_rank: Width = 16
    code_residual: Share = 0.5
    relation: RelationKind = "low_rank"
    query_content: Literal["static", "sampled", "static+sampled"] = "static"
    position_in_value: bool = False

    def samples_codes(self, where: Literal["encoder", "decoder"]) -> bool:
        """Whether the encoder or the decoder samples codes together with content."""
        return self.sampling != "standard" and self.sampling_in in ("both", where)

    def attention(self, where: Literal["encoder", "decoder"]) -> AttentionFactory:
        """Type of the deformable attention of all layers of the encoder or the decoder."""
        if not self.position_in_value:
            return CoSamplingAttn if self.samples_codes(where) else MSDeformAttn
        return partial(PositionedCoSamplingAttn if self.samples_codes(where) else PositionedAttn, rank=self.code_rank)


class HarmonizedDecoder(RelationDecoder):
    """Relation-DETR's decoder; the position of a query also encodes the code sampled by the layer before."""

    def forward(
        self, queries: Sequence[Queries], memory: Tokens, class_embed: nn.ModuleList, bbox_embed: nn.ModuleList
    ) -> Decoded:
        """Decode as DINO does, from a memory with codes."""
        assert isinstance(memory, CodedTokens)
        blocks = attention_blocks(queries)
        content = joined([query_set.content for query_set in queries])
        reference = joined([query_set.required_reference for query_set in queries])
        refined = Refinement(reference, self.norm, class_embed, bbox_embed, look_forward_twice=self.look_forward_twice)
        code: Tensor | None = None
        for index, layer in enumerate(self.layers):
            boxes = on_levels(refined.reference, memory)
            position = self.position(
                refined.reference if self.positions_in_valid_area else boxes[:, :, 0], content, index
            )
            if code is not None:
                position = memory.encoding.query_positions(position, refined.reference, code)
            content, code = layer(content, position, boxes, memory, self.attention(blocks, refined.boxes))
            refined.step(content, last=index + 1 == len(self.layers))
        return refined.decoded(queries)


class DAPE(RelationDETR):
    """DAPE with modules passed in; :func:`build_dape` builds the registered ones."""

    config: DetectorConfig[DAPEArchitecture]
    content_proj: nn.Linear
    content_norm: nn.LayerNorm

    def decode(self, queries: Sequence[Queries], memory: Tokens) -> Decoded:
        """Decode as Relation-DETR does; the content of queries can be sampled from the memory at their boxes."""
        architecture = self.config.architecture
        if architecture.query_content != "static":
            # learned content that is not used is multiplied by zero: all parameters stay in the graph (DDP needs that)
            keep = 1.0 if architecture.query_content == "static+sampled" else 0.0
            queries = [
                replace(
                    query_set,
                    content=self.content_at(query_set.required_reference, memory) + keep * query_set.content,
                )
                for query_set in queries
            ]
        return super().decode(queries, memory)

    def content_at(self, reference: Tensor, memory: Tokens) -> Tensor:
        """Sample content (B, Q, C) from the memory at the centres of boxes (B, Q, 4)."""
        content: Tensor = self.content_norm(self.content_proj(sample_at_centres(memory, reference)))
        return content


def sample_at_centres(memory: Tokens, reference: Tensor) -> Tensor:
    """Average the levels of the memory at the centres of boxes (B, Q, 4) -> (B, Q, C)."""
    points = on_levels(reference[..., :2], memory)[:, :, None, :, None]
    value = zeroed(memory.content, memory.padding_mask[..., None])[:, :, None]
    weights = torch.full(points.shape[:-1], 1 / points.shape[3], device=points.device)
    return ms_deform_attn(value, memory.shapes, points.float(), weights)


def _initialise_(layers: nn.ModuleList) -> None:
    """Initialise as Deformable DETR; the map from positions to values starts at zero."""
    deformable_xavier_(layers)
    for module in layers.modules():
        if isinstance(module, PositionedAttn):
            module.reset_value_position()


def dape_encoder(architecture: DAPEArchitecture) -> DeformableEncoder:
    """Build the encoder with fusion of its layers, and with codes if anything samples them."""
    options, attention = layer_options(architecture), architecture.attention("encoder")
    residual = architecture.code_residual
    layers = [
        HarmonizedEncoderLayer(**options, attention=attention, code_residual=residual)
        if architecture.samples_codes("encoder")
        else DeformableEncoderLayer(**options, attention=attention)
        for _ in range(architecture.encoder_layers)
    ]
    _initialise_(nn.ModuleList(layers))
    fusion = build_fusion(architecture)
    if architecture.sampling == "standard":
        return DeformableEncoder(layers, fusion, checkpointing=architecture.encoder_checkpointing)
    rank = -(-architecture.code_rank // architecture.num_heads) * architecture.num_heads
    code = PositionCode if architecture.sampling == "harmonized" else PositionCorrection
    return HarmonizedEncoder(
        layers,
        code(dim=architecture.hidden_dim, rank=rank),
        fusion,
        checkpointing=architecture.encoder_checkpointing,
    )


def dape_layers(architecture: DAPEArchitecture) -> list[DeformableDecoderLayer]:
    """Build the decoder's layers, which return codes if they sample them."""
    layer = HarmonizedDecoderLayer if architecture.samples_codes("decoder") else DeformableDecoderLayer
    options, attention = layer_options(architecture), architecture.attention("decoder")
    layers = [layer(**options, attention=attention) for _ in range(architecture.decoder_layers)]
    _initialise_(nn.ModuleList(layers))
    return layers


def build_dape(config: DetectorConfig[DAPEArchitecture], *, mask_head: MaskHead | None = None) -> DAPE:
    """Build DAPE from a configuration, randomly initialised."""
    architecture = config.architecture
    dim = architecture.hidden_dim
    layers = dape_layers(architecture)
    trunk = build_trunk(architecture)
    encoder = dape_encoder(architecture)
    neck = build_neck(architecture, trunk["backbone"])
    query_modules = dino_query_modules(architecture)
    decoder_type = HarmonizedDecoder if architecture.samples_codes("decoder") else RelationDecoder
    decoder = decoder_type(layers, **relation_parts(architecture, architecture))
    query_modules |= one_to_many_modules(architecture)
    if architecture.query_content != "static":
        query_modules |= {"content_proj": nn.Linear(dim, dim), "content_norm": nn.LayerNorm(dim)}
    heads = dino_heads(architecture, query_modules)
    model = DAPE(
        config=config,
        **trunk,
        **neck,
        encoder=encoder,
        decoder=decoder,
        query_modules=query_modules,
        **heads,
        mask_head=mask_head,
    )
    xavier_heads_(model)
    return model
