"""Relation-DETR: "Exploring Explicit Position Relation Prior for Object Detection" (Hou et al., ECCV 2024, arXiv
2407.11699).

What changes against DINO:

1. **Position relation** (section 4.1): from the second decoder layer on self-attention is biased by how the boxes of
   the layers before lie to each other (:meth:`RelationDecoder.attention`), recomputed row by row so that nothing of
   size N² is kept (:mod:`detrkit.nn.relation`).
2. **Contrastive relation pipeline** (section 4.2): in training further queries, without relation, are matched one to
   many (:meth:`RelationDETR.one_to_many`); they keep supervision dense where relation makes the others exclusive.
3. The content of a query scales its position (:meth:`RelationDecoder.position`); the memory is a fusion of all encoder
   layers (:class:`detrkit.nn.deformable.MemoryFusion`); classification learns the IoU of the box (varifocal loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from detrkit.models.config import DetectorConfig, check_choices
from detrkit.models.deformable_parts import (
    box_head,
    build_neck,
    build_trunk,
    class_head,
    deformable_decoder_layers,
    encoder_layers,
)
from detrkit.models.detector import MaskHead
from detrkit.models.dino import (
    DINO,
    DecoderParts,
    DINOArchitecture,
    DINODecoder,
    decoder_parts,
    dino_heads,
    dino_start,
    position_head,
)
from detrkit.nn.deformable import DeformableDecoderLayer, DeformableEncoder, MemoryFusion
from detrkit.nn.heads import MLP
from detrkit.nn.proposals import Proposals
from detrkit.nn.queries import MATCHING, Block, Queries
from detrkit.nn.relation import LowRankRelation, PositionRelation
from detrkit.nn.tokens import Tokens
from detrkit.structures import Predictions, QueryGroup, Target

__all__ = ["RelationArchitecture", "RelationDETR", "RelationDecoder", "RelationOptions", "build_relation_detr"]


@dataclass(frozen=True, kw_only=True)
class RelationOptions:
    """The relation of any detector with DINO's decoder.

    Attributes:
        relation: "full", "low_rank" (DAPE) or "none".
        relation_rank: of a low-rank relation, per head.
        query_scale: from the second layer on, the content of a query scales its position.
    """

    relation: str = "none"
    relation_rank: int = 16
    query_scale: bool = False


@dataclass(frozen=True, kw_only=True)
class RelationArchitecture(RelationOptions, DINOArchitecture):
    """Architecture of Relation-DETR.

    Attributes:
        memory_fusion: the memory mixes the outputs of all encoder layers, else it is the last.
        one_to_many_queries: queries of the one-to-many branch, 0 for none.
        one_to_many_repeat: how often each object is given to them.
    """

    backbone: str = "resnet50.tv2_in1k"
    shared_heads: bool = False
    position_offset: float = -0.5
    position_temperature: float = 10000.0
    projection_bias: bool = False
    denoising_extra_label: bool = False
    relation: str = "full"
    query_scale: bool = True
    memory_fusion: bool = True
    one_to_many_queries: int = 1500
    one_to_many_repeat: int = 6

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        super().__post_init__()
        check_relation(self)
        if self.query_selection != "mixed":
            raise ValueError(f"query_selection must be 'mixed' for Relation-DETR, got {self.query_selection!r}")
        if self.one_to_many_queries < 0:
            raise ValueError(f"one_to_many_queries must be at least 0, got {self.one_to_many_queries}")
        if self.one_to_many_repeat < 1:
            raise ValueError(f"one_to_many_repeat must be at least 1, got {self.one_to_many_repeat}")


def check_relation(options: RelationOptions) -> None:
    """Raises ValueError where the relation is none of those that exist."""
    check_choices(options, {"relation": ("none", "full", "low_rank")})


class RelationDecoder(DINODecoder):
    """DINO's decoder with a position relation, and positions that content scales; either may be None."""

    def __init__(
        self,
        layers: Sequence[DeformableDecoderLayer],
        *,
        query_scale: MLP | None,
        relation: PositionRelation | LowRankRelation | None,
        norm: nn.Module,
        ref_point_head: nn.Module,
        twice: bool,
        valid_places: bool,
    ) -> None:
        super().__init__(layers, norm=norm, ref_point_head=ref_point_head, twice=twice, valid_places=valid_places)
        self.query_scale = query_scale
        self.relation = relation

    def attention(self, blocks: Sequence[Block], boxes: Sequence[Tensor]) -> Sequence[Block]:
        """The matching queries, and what they share a block with, attend under the relation of the boxes (B, N, 4) of
        the last two layers: of the earlier ones to the later."""
        if self.relation is None or len(boxes) < 2:
            return blocks
        related, start = list(blocks), 0
        for index, block in enumerate(blocks):
            part = slice(start, start + block.size)
            if MATCHING in block.names:
                bias = self.relation.bias(boxes[-2][:, part], boxes[-1][:, part], block.blocked)
                related[index] = replace(block, relation=bias)
            start += block.size
        return related

    def position(self, boxes: Tensor, content: Tensor, layer: int) -> Tensor:
        """Position encoding (B, N, C) of boxes (B, N, 4), from the second layer on scaled by the content."""
        position = super().position(boxes, content, layer)
        return position * self.query_scale(content) if layer and self.query_scale is not None else position


class RelationParts(DecoderParts):
    """What a decoder is made of beside its layers, see :class:`RelationDecoder`."""

    query_scale: MLP | None
    relation: PositionRelation | LowRankRelation | None


def relation_parts(options: RelationOptions, architecture: DINOArchitecture) -> RelationParts:
    """What the decoder is made of beside its layers, randomly initialised; in one layer nothing can be related."""
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
    """What mixes the outputs of all encoder layers, where that is asked for."""
    if not architecture.memory_fusion:
        return None
    return MemoryFusion(dim=architecture.hidden_dim, inputs=architecture.encoder_layers + 1)


def xavier_heads_(model: nn.Module) -> None:
    """How the Relation-DETR repository starts its models: Xavier-uniform weights and zero biases for the layers of
    every MLP; the last one of box heads stays at zero."""
    for name, module in model.named_modules():
        if isinstance(module, MLP):
            for layer in module.layers:
                nn.init.xavier_uniform_(layer.get_parameter("weight"))
                nn.init.zeros_(layer.get_parameter("bias"))
            if "bbox_embed" in name:
                nn.init.zeros_(module.layers[-1].get_parameter("weight"))


class RelationDETR(DINO):
    """Relation-DETR with modules passed in; :func:`build_relation_detr` makes the published ones."""

    config: DetectorConfig[RelationArchitecture]
    one_to_many_embed: nn.Embedding
    one_to_many_class_embed: nn.Linear
    one_to_many_bbox_embed: MLP

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Encoder; queries from its proposals; in training noised objects and the one-to-many queries too."""
        maps = self.backbone(images, padding_mask)
        memory: Tokens = self.encoder(self.tokens(maps, padding_mask))
        features, start = self.candidates(memory)
        proposals = Proposals.of(features, start, self.enc_class_embed, self.enc_bbox_embed)
        queries, encoder = self.select(proposals, memory, self.tgt_embed)
        sets, groups = [*self.noised(targets), queries], {"encoder": encoder}
        if self.training and self.config.architecture.one_to_many_queries:
            more, groups["one_to_many_encoder"] = self.one_to_many(features, start, memory)
            sets.append(more)
        # one pass of the decoder for all: values are projected once, only self-attention is separate
        return self.predictions(self.decode(sets, memory), memory, maps, groups)

    def one_to_many(self, features: Tensor, start: Tensor, memory: Tokens) -> tuple[Queries, QueryGroup]:
        """The one-to-many queries and the proposals they come from, by heads of their own."""
        heads = self.one_to_many_class_embed, self.one_to_many_bbox_embed
        repeat = self.config.architecture.one_to_many_repeat
        proposals = Proposals.of(features, start, *heads)
        return self.select(proposals, memory, self.one_to_many_embed, name="one_to_many", repeat=repeat)


def relation_start(architecture: RelationArchitecture) -> dict[str, nn.Module]:
    """What the one-to-many queries start from."""
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
    """Relation-DETR of a configuration, randomly initialised as in the repository."""
    architecture = config.architecture
    layers = deformable_decoder_layers(architecture)
    trunk = build_trunk(architecture)
    encoder = DeformableEncoder(encoder_layers(architecture), build_fusion(architecture))
    neck = build_neck(architecture, trunk["backbone"])
    start = dino_start(architecture)
    decoder = RelationDecoder(layers, **relation_parts(architecture, architecture))
    start |= relation_start(architecture)
    heads = dino_heads(architecture, start)
    model = RelationDETR(
        config=config, **trunk, **neck, encoder=encoder, decoder=decoder, start=start, **heads, mask_head=mask_head
    )
    xavier_heads_(model)
    return model
