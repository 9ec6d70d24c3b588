"""Relation-DETR: "Exploring Explicit Position Relation Prior for Object Detection" (Hou et al., ECCV 2024, arXiv
2407.11699).

What changes against DINO:

1. **Position relation encoder** (section 4.1): offsets and size ratios of every pair of boxes become a bias of
   self-attention (:class:`detrkit.nn.relation.PositionRelation`). It is recomputed a few rows at a time, so that
   nothing of size N² is kept.
2. **Progressive attention refinement** (section 4.2): from the second decoder layer on, the relation is that between
   the boxes of the two layers before (:meth:`RelationDecoder.attention`).
3. **Contrast relation pipeline** (section 4.3): in training, further queries without relation (the paper's hybrid
   queries) are matched one to many (:meth:`RelationDETR.one_to_many`). They keep supervision dense, while the relation
   suppresses duplicates among the matching queries.
4. The content of a query scales its position (:meth:`RelationDecoder.position`); the memory is a fusion of all encoder
   layers (:class:`detrkit.nn.deformable.MemoryFusion`); class scores learn the IoU of the box (varifocal loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Unpack

from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.deformable_parts import (
    box_head,
    build_neck,
    build_trunk,
    class_head,
    deformable_decoder_layers,
    deformable_encoder,
)
from detrkit.models.detector import MaskHead
from detrkit.models.dino import (
    DINO,
    DecoderParts,
    DINOArchitecture,
    DINODecoder,
    decoder_parts,
    dino_heads,
    dino_query_modules,
    position_head,
)
from detrkit.nn.deformable import DeformableDecoderLayer, MemoryFusion
from detrkit.nn.heads import MLP
from detrkit.nn.proposals import Proposals
from detrkit.nn.queries import MATCHING, Block, Queries
from detrkit.nn.relation import LowRankRelation, PositionRelation
from detrkit.nn.tokens import Tokens
from detrkit.ranges import Few, Number, Positive, RowsOrZero, Width
from detrkit.structures import Predictions, QueryGroup

__all__ = [
    "RelationArchitecture",
    "RelationDETR",
    "RelationDecoder",
    "RelationKind",
    "RelationOptions",
    "build_relation_detr",
]

RelationKind = Literal["none", "full", "low_rank"]
"""Relation between the boxes of queries that biases their self-attention."""


@dataclass(frozen=True, kw_only=True)
class RelationOptions:
    """Options of the relation, for any detector with DINO's decoder.

    Attributes:
        relation: "full", "low_rank" (DAPE) or "none".
        relation_rank: rank of the low-rank relation, per head.
        query_scale: from the second layer on, the content of a query scales its position.
    """

    relation: RelationKind = "none"
    relation_rank: Width = 16
    query_scale: bool = False


@dataclass(frozen=True, kw_only=True)
class RelationArchitecture(RelationOptions, DINOArchitecture):
    """Architecture of Relation-DETR.

    Attributes:
        memory_fusion: the memory is a mix of the outputs of all encoder layers; off: the output of the last.
        one_to_many_queries: number of queries of the one-to-many branch; 0: no branch.
        one_to_many_repeat: number of copies of each object in that branch.
    """

    backbone: str = "resnet50.tv2_in1k"
    shared_heads: bool = False
    position_offset: Number = -0.5
    position_temperature: Positive = 10000.0
    projection_bias: bool = False
    denoising_extra_label: bool = False
    relation: RelationKind = "full"
    query_scale: bool = True
    memory_fusion: bool = True
    one_to_many_queries: RowsOrZero = 1500
    one_to_many_repeat: Few = 6

    def __post_init__(self) -> None:
        """Check values; raise ValueError naming the field."""
        super().__post_init__()
        if self.query_selection != "mixed":
            raise ValueError(f"query_selection must be 'mixed' for Relation-DETR, got {self.query_selection!r}")


class RelationDecoder(DINODecoder):
    """DINO's decoder with a position relation and with positions scaled by content; each can be None.

    parts: arguments of :class:`detrkit.models.dino.DINODecoder`.
    """

    def __init__(
        self,
        layers: Sequence[DeformableDecoderLayer],
        *,
        query_scale: MLP | None,
        relation: PositionRelation | LowRankRelation | None,
        **parts: Unpack[DecoderParts],
    ) -> None:
        super().__init__(layers, **parts)
        self.query_scale = query_scale
        self.relation = relation

    def attention(self, blocks: Sequence[Block], boxes: Sequence[Tensor]) -> Sequence[Block]:
        """Return the blocks, with the relation as bias for the block of the matching and denoising queries.

        The relation is that of the boxes (B, N, 4) of the last two layers, from the earlier to the later ones.
        """
        if self.relation is None or len(boxes) < 2:
            return blocks
        biased, start = list(blocks), 0
        for index, block in enumerate(blocks):
            part = slice(start, start + block.size)
            if MATCHING in block.names:
                bias = self.relation.bias(boxes[-2][:, part], boxes[-1][:, part], block.blocked)
                biased[index] = replace(block, relation=bias)
            start += block.size
        return biased

    def position(self, boxes: Tensor, content: Tensor, layer: int) -> Tensor:
        """Return the position encoding (B, N, C) of boxes (B, N, 4), scaled by content from the second layer on."""
        position = super().position(boxes, content, layer)
        return position * self.query_scale(content) if layer and self.query_scale is not None else position


class RelationParts(DecoderParts):
    """Arguments of :class:`RelationDecoder` besides its layers."""

    query_scale: MLP | None
    relation: PositionRelation | LowRankRelation | None


def relation_parts(options: RelationOptions, architecture: DINOArchitecture) -> RelationParts:
    """Build the arguments of :class:`RelationDecoder` besides its layers; a single layer has no relation.

    An architecture that is both is passed twice, since Python has no type for "both".
    """
    parts, dim, heads = decoder_parts(architecture), architecture.hidden_dim, architecture.num_heads
    several = architecture.decoder_layers > 1
    scale = position_head(dim, dim) if options.query_scale and several else None
    relation: PositionRelation | LowRankRelation | None = None
    if options.relation == "full" and several:
        relation = PositionRelation(num_heads=heads)
    elif options.relation == "low_rank" and several:
        relation = LowRankRelation(num_heads=heads, rank=options.relation_rank)
    return {**parts, "query_scale": scale, "relation": relation}


def build_fusion(architecture: RelationArchitecture) -> MemoryFusion | None:
    """Build the fusion of all encoder layers, if the architecture has one."""
    if not architecture.memory_fusion:
        return None
    return MemoryFusion(dim=architecture.hidden_dim, inputs=architecture.encoder_layers + 1)


def xavier_heads_(model: nn.Module) -> None:
    """Initialise every MLP as in the Relation-DETR repository: Xavier-uniform weights and zero biases.

    The last layer of box heads stays at zero.
    """
    for name, module in model.named_modules():
        if isinstance(module, MLP):
            for layer in module.layers:
                nn.init.xavier_uniform_(layer.get_parameter("weight"))
                nn.init.zeros_(layer.get_parameter("bias"))
            if "bbox_embed" in name:
                nn.init.zeros_(module.layers[-1].get_parameter("weight"))


class RelationDETR(DINO):
    """Relation-DETR with modules passed in; :func:`build_relation_detr` builds the published ones."""

    config: DetectorConfig[RelationArchitecture]
    one_to_many_embed: nn.Embedding
    one_to_many_class_embed: nn.Linear
    one_to_many_bbox_embed: MLP

    def network(self, images: Tensor, padding_mask: Tensor, denoising: Sequence[Queries]) -> Predictions:
        """Encode; take queries from proposals; add denoising and one-to-many queries in training; decode."""
        maps = self.backbone(images, padding_mask)
        memory: Tokens = self.encoder(self.tokens(maps, padding_mask))
        features, anchor = self.candidates(memory)
        proposals = Proposals.of(features, anchor, self.enc_class_embed, self.enc_bbox_embed)
        queries, encoder = self.select(proposals, memory, self.tgt_embed)
        sets, groups = [*denoising, queries], {"encoder": encoder}
        if self.training and self.config.architecture.one_to_many_queries:
            one_to_many, groups["one_to_many_encoder"] = self.one_to_many(features, anchor, memory)
            sets.append(one_to_many)
        # one pass of the decoder for all sets: values are projected once, only self-attention is separate
        return self.predictions(self.decode(sets, memory), memory, maps, groups)

    def one_to_many(self, features: Tensor, anchor: Tensor, memory: Tokens) -> tuple[Queries, QueryGroup]:
        """Return the one-to-many queries and their proposals, which have their own heads."""
        heads = self.one_to_many_class_embed, self.one_to_many_bbox_embed
        repeat = self.config.architecture.one_to_many_repeat
        proposals = Proposals.of(features, anchor, *heads)
        # every mask would be learned ``repeat`` times
        return self.select(proposals, memory, self.one_to_many_embed, name="one_to_many", repeat=repeat, masked=False)


def one_to_many_modules(architecture: RelationArchitecture) -> dict[str, nn.Module]:
    """Build the modules of the one-to-many branch: learned content and proposal heads."""
    if not architecture.one_to_many_queries:
        return {}
    embed = nn.Embedding(architecture.one_to_many_queries, architecture.hidden_dim - architecture.indicator)
    return {
        "one_to_many_embed": embed,
        "one_to_many_class_embed": class_head(architecture),
        "one_to_many_bbox_embed": box_head(architecture.hidden_dim),
    }


def build_relation_detr(
    config: DetectorConfig[RelationArchitecture], *, mask_head: MaskHead | None = None
) -> RelationDETR:
    """Build Relation-DETR from a configuration, randomly initialised as in the repository."""
    architecture = config.architecture
    layers = deformable_decoder_layers(architecture)
    trunk = build_trunk(architecture)
    encoder = deformable_encoder(architecture, build_fusion(architecture))
    neck = build_neck(architecture, trunk["backbone"])
    query_modules = dino_query_modules(architecture)
    decoder = RelationDecoder(layers, **relation_parts(architecture, architecture))
    query_modules |= one_to_many_modules(architecture)
    heads = dino_heads(architecture, query_modules)
    model = RelationDETR(
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
