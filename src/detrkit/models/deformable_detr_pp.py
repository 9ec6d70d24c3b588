"""Deformable DETR++ of the Relation-DETR repository (Hou et al., ECCV 2024).

Two-stage Deformable DETR in which content and position of a query are made from its box, each by its own linear map
and norm. The repository also computes a position relation to bias self-attention, but never uses the result. The
relation's parameters exist only so that its checkpoints load: they have no effect and are not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.deformable_detr import DeformableDecoder, DeformableDETR
from detrkit.models.deformable_parts import (
    DeformableArchitecture,
    build_heads,
    build_neck,
    build_trunk,
    deformable_decoder_layers,
    deformable_encoder,
    proposal_heads,
)
from detrkit.models.detector import MaskHead
from detrkit.models.relation_detr import xavier_heads_
from detrkit.nn.deformable import DeformableDecoderLayer
from detrkit.nn.relation import PositionRelation
from detrkit.ranges import PartBelowOne, Width

__all__ = ["DeformableDETRPP", "DeformableDETRPPArchitecture", "build_deformable_detr_pp"]


@dataclass(frozen=True, kw_only=True)
class DeformableDETRPPArchitecture(DeformableArchitecture):
    """Architecture of Deformable DETR++; it is always two-stage."""

    ffn_dim: Width = 2048
    dropout: PartBelowOne = 0.0
    refine_boxes: bool = True
    two_stage: bool = True
    projection_bias: bool = False
    backbone: str = "resnet50.tv2_in1k"

    def __post_init__(self) -> None:
        """Check values; raise ValueError naming the field."""
        super().__post_init__()
        if not self.two_stage:
            raise ValueError("Deformable DETR++ starts from the proposals of its encoder: two_stage must be True")


class _Decoder(DeformableDecoder):
    """Deformable DETR's decoder with a content head and the unused relation."""

    def __init__(
        self, layers: Sequence[DeformableDecoderLayer], *, ref_point_head: nn.Module, relation: nn.Module
    ) -> None:
        super().__init__(layers, refine_boxes=True, eps=1e-3)
        self.ref_point_head = ref_point_head
        self.relation = relation


class DeformableDETRPP(DeformableDETR):
    """Deformable DETR++ with modules passed in; :func:`build_deformable_detr_pp` builds the published one."""

    decoder: _Decoder

    def from_boxes(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Make content and position (B, Q, C) of queries from the sine embedding (B, Q, 2C) of their boxes."""
        return self.pos_trans_norm(self.pos_trans(embedded)), self.decoder.ref_point_head(embedded)


def build_deformable_detr_pp(
    config: DetectorConfig[DeformableDETRPPArchitecture], *, mask_head: MaskHead | None = None
) -> DeformableDETRPP:
    """Build Deformable DETR++ from a configuration, randomly initialised as in the repository."""
    architecture = config.architecture
    dim = architecture.hidden_dim
    layers = deformable_decoder_layers(architecture)
    trunk = build_trunk(architecture)
    encoder = deformable_encoder(architecture)
    neck = build_neck(architecture, trunk["backbone"])
    proposals = proposal_heads(architecture)
    pos_trans, head = nn.Linear(2 * dim, dim), nn.Linear(2 * dim, dim)
    for linear in (pos_trans, head):
        nn.init.xavier_uniform_(linear.weight)
    relation = PositionRelation(num_heads=architecture.num_heads).requires_grad_(False)
    decoder = _Decoder(layers, ref_point_head=nn.Sequential(head, nn.LayerNorm(dim)), relation=relation)
    query_modules = {**proposals, "pos_trans": pos_trans, "pos_trans_norm": nn.LayerNorm(dim)}
    heads = build_heads(architecture, query_modules)
    model = DeformableDETRPP(
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
