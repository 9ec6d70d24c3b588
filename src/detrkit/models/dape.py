"""DAPE: "Harmonizing Content-Position Encoding for Versatile Dense Visual Prediction" (AAAI 2026).

**A reconstruction from the published description**: neither code nor checkpoints of the authors went into it,
their checkpoints are not claimed to load, and their figures are not claimed to be ours.

What changes against Relation-DETR, each behind a switch of its own; with all of them off it is Relation-DETR:

1. **Harmonised sampling** (``sampling``): deformable attention samples where a token's content comes from along with
   the content, and the next layer's position encoding is made from that: in the encoder
   (:class:`detrkit.nn.harmonized.HarmonizedEncoder`) and in the decoder (:class:`HarmonizedDecoder`).
2. **Low-rank relation** (``relation``, ``relation_rank``): the bias of self-attention is a product of factors of rank
   r, computed inside fused attention; nothing of size N² exists (:class:`detrkit.nn.relation.LowRankRelation`).
3. Two more readings of the description, off by default: queries whose content is sampled from the memory at their box
   (``query_content``, :meth:`DAPE.decode`), and positions that enter what attention mixes (``position_in_value``,
   :class:`detrkit.nn.harmonized.PositionedAttn`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig, check_choices
from detrkit.models.deformable_parts import build_neck, build_trunk, layer_options
from detrkit.models.detector import MaskHead
from detrkit.models.dino import Refinement, dino_heads, dino_start
from detrkit.models.relation_detr import (
    RelationArchitecture,
    RelationDecoder,
    RelationDETR,
    build_fusion,
    relation_parts,
    relation_start,
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
    PositionedAttn,
    PositionedCoSamplingAttn,
)
from detrkit.nn.queries import Decoded, Queries, attention_blocks
from detrkit.nn.tokens import Tokens, joined, on_levels
from detrkit.ops.ms_deform_attn import ms_deform_attn

__all__ = ["DAPE", "DAPEArchitecture", "HarmonizedDecoder", "build_dape"]

_CHOICES = {"sampling": ("standard", "harmonized"), "query_content": ("static", "sampled", "static+sampled")}


@dataclass(frozen=True, kw_only=True)
class DAPEArchitecture(RelationArchitecture):
    """Architecture of DAPE; the switches are described at the top of this file.

    Attributes:
        relation_rank: rank of the relation, per head.
        code_rank: numbers that tell where content comes from, rounded up to a multiple of the heads.
    """

    sampling: str = "harmonized"
    code_rank: int = 16
    relation: str = "low_rank"
    query_content: str = "static"
    position_in_value: bool = False

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        super().__post_init__()
        check_choices(self, _CHOICES)
        for name in ("relation_rank", "code_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def harmonized(self) -> bool:
        """Whether codes are sampled along with content."""
        return self.sampling == "harmonized"

    @property
    def attention(self) -> AttentionFactory:
        """The deformable attention of all layers."""
        if self.harmonized:
            return PositionedCoSamplingAttn if self.position_in_value else CoSamplingAttn
        return PositionedAttn if self.position_in_value else MSDeformAttn


class HarmonizedDecoder(RelationDecoder):
    """Relation-DETR's decoder in which the position of a query also says where what it read comes from."""

    def forward(
        self, queries: Sequence[Queries], memory: Tokens, class_embed: nn.ModuleList, bbox_embed: nn.ModuleList
    ) -> Decoded:
        """As DINO's, of a memory with codes."""
        assert isinstance(memory, CodedTokens)
        blocks = attention_blocks(queries)
        content = joined([one.content for one in queries])
        start = joined([one.start for one in queries])
        refined = Refinement(start, self.norm, class_embed, bbox_embed, twice=self.twice)
        code: Tensor | None = None
        for index, layer in enumerate(self.layers):
            boxes = on_levels(refined.reference, memory)
            position = self.position(refined.reference if self.valid_places else boxes[:, :, 0], content, index)
            if code is not None:
                position = position + memory.encoding(code)
            content, code = layer(content, position, boxes, memory, self.attention(blocks, refined.boxes))
            refined.step(content, last=index + 1 == len(self.layers))
        return refined.decoded(queries)


class DAPE(RelationDETR):
    """DAPE with modules passed in; :func:`build_dape` makes the presets."""

    config: DetectorConfig[DAPEArchitecture]
    content_proj: nn.Linear
    content_norm: nn.LayerNorm

    def decode(self, queries: Sequence[Queries], memory: Tokens) -> Decoded:
        """As Relation-DETR; what queries contain may come from the memory where they are."""
        architecture = self.config.architecture
        if architecture.query_content != "static":
            keep = 1.0 if architecture.query_content == "static+sampled" else 0.0
            queries = [replace(one, content=self.content_at(one.start, memory) + keep * one.content) for one in queries]
        return super().decode(queries, memory)

    def content_at(self, reference: Tensor, memory: Tokens) -> Tensor:
        """What the memory holds at the centres of boxes (B, Q, 4), as content (B, Q, C)."""
        content: Tensor = self.content_norm(self.content_proj(at_centres(memory, reference)))
        return content


def at_centres(memory: Tokens, reference: Tensor) -> Tensor:
    """Mean over the levels of the memory at the centres of boxes (B, Q, 4) -> (B, Q, C)."""
    points = on_levels(reference[..., :2], memory)[:, :, None, :, None]
    value = memory.content.masked_fill(memory.padding_mask[..., None], 0.0)[:, :, None]
    weights = torch.full(points.shape[:-1], 1 / points.shape[3], device=points.device)
    return ms_deform_attn(value, memory.shapes, points.float(), weights)


def _draw_(layers: nn.ModuleList) -> None:
    """Weights as in Deformable DETR; what maps positions to values keeps those of a linear layer."""
    deformable_xavier_(layers)
    for module in layers.modules():
        if isinstance(module, PositionedAttn):
            module.value_position.reset_parameters()


def dape_encoder(architecture: DAPEArchitecture) -> DeformableEncoder:
    """The encoder with a fusion of its layers, and with codes where sampling is harmonised."""
    options, number = layer_options(architecture), architecture.encoder_layers
    attention = architecture.attention
    if not architecture.harmonized:
        layers = [DeformableEncoderLayer(**options, attention=attention) for _ in range(number)]
        _draw_(nn.ModuleList(layers))
        return DeformableEncoder(layers, build_fusion(architecture))
    coded = [HarmonizedEncoderLayer(**options, attention=attention) for _ in range(number)]
    _draw_(nn.ModuleList(coded))
    fusion = build_fusion(architecture)
    rank = -(-architecture.code_rank // architecture.num_heads) * architecture.num_heads
    return HarmonizedEncoder(coded, PositionCode(dim=architecture.hidden_dim, rank=rank), fusion)


def dape_layers(architecture: DAPEArchitecture) -> list[DeformableDecoderLayer]:
    """The decoder's layers, which pass codes on where sampling is harmonised."""
    layer = HarmonizedDecoderLayer if architecture.harmonized else DeformableDecoderLayer
    options, attention = layer_options(architecture), architecture.attention
    layers = [layer(**options, attention=attention) for _ in range(architecture.decoder_layers)]
    _draw_(nn.ModuleList(layers))
    return layers


def build_dape(config: DetectorConfig[DAPEArchitecture], *, mask_head: MaskHead | None = None) -> DAPE:
    """DAPE of a configuration, randomly initialised."""
    architecture = config.architecture
    dim = architecture.hidden_dim
    layers = dape_layers(architecture)
    trunk = build_trunk(architecture)
    encoder = dape_encoder(architecture)
    neck = build_neck(architecture, trunk["backbone"])
    start = dino_start(architecture)
    kind = HarmonizedDecoder if architecture.harmonized else RelationDecoder
    decoder = kind(layers, **relation_parts(architecture, architecture))
    start |= relation_start(architecture)
    if architecture.query_content != "static":
        start |= {"content_proj": nn.Linear(dim, dim), "content_norm": nn.LayerNorm(dim)}
    heads = dino_heads(architecture, start)
    model = DAPE(
        config=config, **trunk, **neck, encoder=encoder, decoder=decoder, start=start, **heads, mask_head=mask_head
    )
    xavier_heads_(model)
    return model
