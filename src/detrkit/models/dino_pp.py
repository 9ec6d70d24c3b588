"""DINO with the position relation of Relation-DETR, and the "++" detectors of its repository (Hou et al., ECCV 2024).

DINO++ adds the relation to DINO. DAB-Deformable-DETR++ and DN-Deformable-DETR++ are DINO++ without some of DINO's
ideas; their content also scales positions, as in DAB-DETR:

=====  =================  =================  ==========================================  ============
++ of  content            initial boxes      denoising                                   look forward
=====  =================  =================  ==========================================  ============
DINO   learned            proposals          contrastive                                 twice
DAB    token features     proposals          none                                        once
DN     learned            learned            plain (DN-DETR, Li et al., CVPR 2022)        once
=====  =================  =================  ==========================================  ============
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from detrkit.models.config import DetectorConfig
from detrkit.models.deformable_parts import build_neck, build_trunk, deformable_decoder_layers, deformable_encoder
from detrkit.models.detector import MaskHead
from detrkit.models.dino import DINO, DINOArchitecture, dino_heads, dino_query_modules, xavier_query_modules
from detrkit.models.relation_detr import (
    RelationDecoder,
    RelationKind,
    RelationOptions,
    relation_parts,
    xavier_heads_,
)
from detrkit.ranges import Number, Positive

__all__ = ["DINOPPArchitecture", "DINOWithRelationArchitecture", "build_dino_pp", "build_dino_with_relation"]


@dataclass(frozen=True, kw_only=True)
class DINOWithRelationArchitecture(RelationOptions, DINOArchitecture):
    """Architecture of DINO with a relation."""


@dataclass(frozen=True, kw_only=True)
class DINOPPArchitecture(DINOWithRelationArchitecture):
    """Architecture of DINO++: one pair of heads per layer, another position encoding and neck."""

    backbone: str = "resnet50.tv2_in1k"
    shared_heads: bool = False
    position_offset: Number = -0.5
    position_temperature: Positive = 10000.0
    projection_bias: bool = False
    denoising_extra_label: bool = False
    relation: RelationKind = "full"


def build_dino_with_relation(
    config: DetectorConfig[DINOWithRelationArchitecture], *, mask_head: MaskHead | None = None
) -> DINO:
    """Build DINO with a relation from a configuration, randomly initialised as DINO."""
    return _build(config, xavier_query_modules, mask_head)


def build_dino_pp(config: DetectorConfig[DINOPPArchitecture], *, mask_head: MaskHead | None = None) -> DINO:
    """Build DINO++ from a configuration, randomly initialised as in the repository."""
    model = _build(config, dino_query_modules, mask_head)
    xavier_heads_(model)
    return model


def _build(
    config: DetectorConfig[DINOWithRelationArchitecture],
    build_query_modules: Callable[[DINOArchitecture], dict[str, nn.Module]],
    mask_head: MaskHead | None,
) -> DINO:
    architecture = config.architecture
    layers = deformable_decoder_layers(architecture)
    trunk = build_trunk(architecture)
    encoder = deformable_encoder(architecture)
    neck = build_neck(architecture, trunk["backbone"])
    query_modules = build_query_modules(architecture)
    decoder = RelationDecoder(layers, **relation_parts(architecture, architecture))
    heads = dino_heads(architecture, query_modules)
    return DINO(
        config=config,
        **trunk,
        **neck,
        encoder=encoder,
        decoder=decoder,
        query_modules=query_modules,
        **heads,
        mask_head=mask_head,
    )
