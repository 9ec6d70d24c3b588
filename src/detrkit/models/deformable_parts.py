"""Builders shared by Deformable DETR and its descendants: layers, heads, trunk and neck, randomly initialised.

Models must call them in a fixed order, so that a seed always gives the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from detrkit.models.config import Architecture
from detrkit.models.detector import build_backbone
from detrkit.nn.backbone import Backbone
from detrkit.nn.deformable import (
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    LayerOptions,
    MemoryFusion,
    deformable_xavier_,
)
from detrkit.nn.heads import MLP
from detrkit.nn.position import SinePosition
from detrkit.nn.projection import LevelProjection
from detrkit.ranges import CountOrZero, Few, Layers, Number, Positive, Width

__all__ = [
    "DeformableArchitecture",
    "Heads",
    "Neck",
    "Trunk",
    "box_head",
    "build_heads",
    "build_neck",
    "build_trunk",
    "class_head",
    "deformable_decoder_layers",
    "encoder_layers",
    "layer_options",
    "proposal_heads",
]


@dataclass(frozen=True, kw_only=True)
class DeformableArchitecture(Architecture):
    """Architecture of Deformable DETR.

    Attributes:
        num_feature_levels: number of levels of the memory. The finest ``backbone_levels`` come from the backbone, each
            further one from a convolution of stride 2.
        num_points: sampling points per head and level.
        refine_boxes: every layer refines the box of the layer before and has its own heads.
        two_stage: queries start from the best encoder proposals (needs refine_boxes).
        proposal_class_agnostic: rank proposals by the logit of class 0 and train them with every label set to 0, as
            published; off: rank by the highest logit of any class and train with the real labels.
        position_offset, position_temperature: parameters of the sine encoding.
        projection_bias: bias in the convolutions that project the levels to ``hidden_dim``.
        encoder_checkpointing: keep only the tokens between encoder layers for the backward pass and compute the rest
            again: less memory, more time.
    """

    ffn_dim: Width = 1024
    num_feature_levels: Layers = 4
    backbone_levels: CountOrZero = 3
    num_points: Few = 4
    refine_boxes: bool = False
    two_stage: bool = False
    proposal_class_agnostic: bool = True
    position_offset: Number = -0.5
    position_temperature: Positive = 10000.0
    projection_bias: bool = True
    encoder_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Check values; raise ValueError naming the field."""
        super().__post_init__()
        if not 1 <= self.backbone_levels <= min(4, self.num_feature_levels):
            raise ValueError(
                f"backbone_levels must be in 1..4 and at most num_feature_levels ({self.num_feature_levels}), "
                f"got {self.backbone_levels}"
            )
        if self.two_stage and not self.refine_boxes:
            raise ValueError("two_stage refines the proposals: it needs refine_boxes=True")
        if self.two_stage and self.classification != "focal":
            raise ValueError(
                "two_stage ranks proposals by their class logits, which must not include no-object: "
                f"classification must be 'focal', got {self.classification!r}"
            )

    @property
    def finer_maps(self) -> int:
        """The map at 1/4, which the mask branch reads, where it is none of the detector's own levels."""
        return int(self.task != "det" and self.backbone_levels < 4)


def layer_options(architecture: DeformableArchitecture) -> LayerOptions:
    """Return the constructor arguments of the layers of an architecture."""
    return {
        "dim": architecture.hidden_dim,
        "num_heads": architecture.num_heads,
        "num_levels": architecture.num_feature_levels,
        "num_points": architecture.num_points,
        "ffn_dim": architecture.ffn_dim,
        "dropout": architecture.dropout,
    }


def encoder_layers(architecture: DeformableArchitecture) -> list[DeformableEncoderLayer]:
    """Build the layers of the encoder."""
    options = layer_options(architecture)
    layers = [DeformableEncoderLayer(**options) for _ in range(architecture.encoder_layers)]
    deformable_xavier_(nn.ModuleList(layers))
    return layers


def deformable_encoder(
    architecture: DeformableArchitecture, memory_fusion: MemoryFusion | None = None
) -> DeformableEncoder:
    """Build the encoder."""
    return DeformableEncoder(
        encoder_layers(architecture), memory_fusion, checkpointing=architecture.encoder_checkpointing
    )


def deformable_decoder_layers(architecture: DeformableArchitecture) -> list[DeformableDecoderLayer]:
    """Build the layers of the decoder."""
    options = layer_options(architecture)
    layers = [DeformableDecoderLayer(**options) for _ in range(architecture.decoder_layers)]
    deformable_xavier_(nn.ModuleList(layers))
    return layers


def box_head(dim: int) -> MLP:
    """Build an MLP whose last layer is zero: boxes start at their reference."""
    head = MLP(dim, dim, 4, num_layers=3)
    last = head.get_submodule("layers.2")
    nn.init.zeros_(last.get_parameter("weight"))
    nn.init.zeros_(last.get_parameter("bias"))
    return head


def class_head(architecture: Architecture) -> nn.Linear:
    """Build a linear layer with prior probability 0.01 for every class."""
    head = nn.Linear(architecture.hidden_dim, architecture.class_slots)
    nn.init.constant_(head.bias, -math.log(99))
    return head


class Trunk(TypedDict):
    """Modules before the neck, arguments of :class:`detrkit.models.deformable_detr.DeformableDETR`."""

    backbone: Backbone
    position: SinePosition


class Neck(TypedDict):
    """Projections of backbone maps to tokens, arguments of :class:`detrkit.models.deformable_detr.DeformableDETR`."""

    input_proj: list[LevelProjection]
    level_embed: Tensor


class Heads(TypedDict):
    """Prediction heads of the queries, arguments of :class:`detrkit.models.deformable_detr.DeformableDETR`."""

    class_embed: nn.ModuleList
    bbox_embed: nn.ModuleList


def build_trunk(architecture: DeformableArchitecture, position: type[SinePosition] = SinePosition) -> Trunk:
    """Build backbone and position encoding."""
    encoding = position(
        dim=architecture.hidden_dim,
        offset=architecture.position_offset,
        temperature=architecture.position_temperature,
    )
    return {"backbone": build_backbone(architecture, architecture.backbone_levels), "position": encoding}


def build_neck(architecture: DeformableArchitecture, backbone: Backbone) -> Neck:
    """Build a 1x1 convolution per backbone level; further levels have stride 2.

    The first further level reads the last backbone map, each other one reads the level before.
    """
    dim, bias = architecture.hidden_dim, architecture.projection_bias
    channels = backbone.channels[-architecture.backbone_levels :]
    projections = [LevelProjection(in_channels=width, dim=dim, bias=bias) for width in channels]
    for extra in range(architecture.num_feature_levels - len(channels)):
        width = dim if extra else channels[-1]
        projections.append(LevelProjection(in_channels=width, dim=dim, stride=2, bias=bias))
    for projection in projections:
        nn.init.xavier_uniform_(projection.conv.weight)
        if projection.conv.bias is not None:
            nn.init.zeros_(projection.conv.bias)
    return {"input_proj": projections, "level_embed": torch.randn(architecture.num_feature_levels, dim)}


def proposal_heads(architecture: DeformableArchitecture) -> dict[str, nn.Module]:
    """Build the heads that predict a proposal for every token of the memory."""
    dim = architecture.hidden_dim
    enc_output = nn.Linear(dim, dim)
    nn.init.xavier_uniform_(enc_output.weight)
    return {
        "enc_output": enc_output,
        "enc_output_norm": nn.LayerNorm(dim),
        "enc_class_embed": class_head(architecture),
        "enc_bbox_embed": box_head(dim),
    }


def build_heads(architecture: DeformableArchitecture, query_modules: Mapping[str, nn.Module]) -> Heads:
    """Build one class and one box head for all layers or, with box refinement, one of each per layer.

    Proposal heads in ``query_modules`` get the same initial weights.
    """
    count = architecture.decoder_layers if architecture.refine_boxes else 1
    class_embed = nn.ModuleList(class_head(architecture) for _ in range(count))
    bbox_embed = nn.ModuleList(box_head(architecture.hidden_dim) for _ in range(count))
    for heads in (class_embed, bbox_embed):
        for head in heads[1:]:
            head.load_state_dict(heads[0].state_dict())
    if architecture.two_stage:
        query_modules["enc_class_embed"].load_state_dict(class_embed[0].state_dict())
        query_modules["enc_bbox_embed"].load_state_dict(bbox_embed[0].state_dict())
    else:
        nn.init.constant_(bbox_embed[0].get_parameter("layers.2.bias")[2:], -2.0)
    return {"class_embed": class_embed, "bbox_embed": bbox_embed}
