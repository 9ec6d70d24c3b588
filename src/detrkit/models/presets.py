"""The registered models: name, builder, and the settings that differ from the published default of the family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from detrkit.models.conditional_detr import build_conditional_detr, build_de_conditional_detr
from detrkit.models.config import Architecture, Input, Objective, Postprocessing, option_names
from detrkit.models.dape import DAPEArchitecture, build_dape
from detrkit.models.de_detr import DEDETRArchitecture, build_de_detr
from detrkit.models.deformable_detr import build_deformable_detr
from detrkit.models.deformable_detr_pp import DeformableDETRPPArchitecture, build_deformable_detr_pp
from detrkit.models.deformable_parts import DeformableArchitecture
from detrkit.models.detector import Detector, MaskHead
from detrkit.models.detr import DETRArchitecture, build_detr
from detrkit.models.detr_panoptic import DETRPanopticArchitecture, DETRPanopticObjective, build_detr_panoptic
from detrkit.models.dino import DINOArchitecture, build_dino
from detrkit.models.dino_pp import (
    DINOPPArchitecture,
    DINOWithRelationArchitecture,
    build_dino_pp,
    build_dino_with_relation,
)
from detrkit.models.lite import LITE
from detrkit.models.mask_branch import MaskObjective, build_mask_branch
from detrkit.models.relation_detr import RelationArchitecture, build_relation_detr
from detrkit.models.salience_detr import (
    SalienceArchitecture,
    SalienceObjective,
    SalienceWithRelationArchitecture,
    build_salience_detr,
    build_salience_detr_with_relation,
)

__all__ = ["ALIASES", "REGISTRY", "Builder", "Entry"]

Builder = Callable[..., Detector]
"""Builds a model from a configuration of its architecture, with an optional ``mask_head`` if it has none itself."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One registered model: its builder, family and settings."""

    build: Builder
    """Builds the model."""

    architecture: type[Architecture]
    """Type of its architecture."""

    family: str
    """Family of the layout of its official checkpoints."""

    settings: Mapping[str, object]
    """Flat keys that differ from the defaults of the four parts of the configuration."""

    summary: str
    """One line for lists of models."""

    objective: type[Objective] = Objective
    """Type of its objective."""

    with_relation: tuple[Builder, type[Architecture]] | None = None
    """Builder and architecture used instead if an option that only this architecture has, such as a relation, differs
    from its default."""
    mask_branch: Callable[..., MaskHead] | None = None
    """Builds the mask branch of an architecture, for tasks with masks; None: the model has no such tasks."""
    slow_sampling: bool = False
    """Whether sampling offsets and reference points learn at a lower rate, as in Deformable DETR."""

    @property
    def laptop(self) -> bool:
        """Whether the model has a laptop size: the backbone of a row of ``models/lite.py``."""
        return self.settings.get("backbone") in {size["backbone"] for size in LITE.values()}

    def options(self) -> set[str]:
        """Return the flat keys that the model accepts."""
        _, architecture = self.with_relation or (self.build, self.architecture)
        parts = (self.architecture, architecture, Input, self.objective, Postprocessing)
        return {name for part in parts for name in option_names(part)}

    def resolve(self, options: Mapping[str, object]) -> tuple[Builder, type[Architecture], dict[str, object]]:
        """Return builder, architecture and options; without a relation, the options of the relation are removed."""
        if self.with_relation is None:
            return self.build, self.architecture, dict(options)
        build, architecture = self.with_relation
        own = set(option_names(self.architecture))
        neutral = {entry.name: entry.default for entry in fields(architecture) if entry.name not in own}
        if any(options.get(key, value) != value for key, value in neutral.items()):
            return build, architecture, dict(options)
        return self.build, self.architecture, {key: value for key, value in options.items() if key not in neutral}


# DELA = DE-DETR + every label twice in training + soft NMS in inference.
_LABEL_AUGMENTATION = {"repeat_label": 2, "nms": 0.7, "nms_decay": 0.01}


def _detr(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_detr,
        architecture=DETRArchitecture,
        family="detr",
        settings=settings,
        summary=summary,
    )


def _detr_panoptic(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_detr_panoptic,
        architecture=DETRPanopticArchitecture,
        family="detr_panoptic",
        settings={"panoptic_threshold": 0.85, **settings},
        summary=summary,
        objective=DETRPanopticObjective,
    )


def _de_detr(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_de_detr,
        architecture=DEDETRArchitecture,
        family="de_detr",
        settings=settings,
        summary=summary,
    )


# Sigmoid focal classification without no-object, 300 queries.
_CONDITIONAL = {"num_queries": 300, "classification": "focal", "cost_class": 2.0, "loss_class": 2.0}
# DE-CondDETR uses hard NMS: suppressed detections are removed.
_HARD_LABEL_AUGMENTATION = {"repeat_label": 2, "nms": 0.7}


def _conditional(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_conditional_detr,
        architecture=DETRArchitecture,
        family="conditional_detr",
        settings={**_CONDITIONAL, **settings},
        summary=summary,
    )


def _de_conditional(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_de_conditional_detr,
        architecture=DEDETRArchitecture,
        family="de_conditional_detr",
        settings={**_CONDITIONAL, **settings},
        summary=summary,
    )


# Sigmoid focal classification, 300 queries; DINO has a lower weight of the class loss.
_DEFORMABLE = {"num_queries": 300, "classification": "focal", "cost_class": 2.0, "loss_class": 2.0}
_DINO = {**_DEFORMABLE, "num_queries": 900, "loss_class": 1.0, "top_k": 300}
# Resizing and padding of the Relation-DETR repository.
_REPOSITORY = {"eval_resize": "float32_truncate", "size_divisor": 32}
_RELATION = {**_DINO, **_REPOSITORY, "class_loss": "varifocal"}
_TWO_STAGE = {"refine_boxes": True, "two_stage": True}
_ONE_LEVEL = {"num_feature_levels": 1, "backbone_levels": 1}
# The other "++" of the Relation-DETR repository: DINO without look forward twice, with DAB-DETR's scaled
# positions.
_DAB_PP = {
    "num_queries": 300,
    "query_selection": "pure",
    "query_scale": True,
    "look_forward_twice": False,
    "denoising": "none",
}
_DN_PP = {
    **_DAB_PP,
    "query_selection": "static",
    "two_stage": False,
    "denoising": "plain",
    "denoising_label_noise": 0.2,
    "denoising_box_noise": 0.4,
}


def _deformable(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_deformable_detr,
        architecture=DeformableArchitecture,
        family="deformable_detr",
        settings={**_DEFORMABLE, **settings},
        summary=summary,
        objective=MaskObjective,
        mask_branch=build_mask_branch,
        slow_sampling=True,
    )


def _dino(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_dino,
        architecture=DINOArchitecture,
        family="dino",
        settings={**_DINO, **settings},
        summary=summary,
        objective=MaskObjective,
        mask_branch=build_mask_branch,
        with_relation=(build_dino_with_relation, DINOWithRelationArchitecture),
    )


def _dino_pp(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_dino_pp,
        architecture=DINOPPArchitecture,
        family="dino",
        settings={**_DINO, **_REPOSITORY, **settings},
        summary=summary,
        objective=MaskObjective,
        mask_branch=build_mask_branch,
    )


def _relation(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_relation_detr,
        architecture=RelationArchitecture,
        family="relation_detr",
        settings={**_RELATION, **settings},
        summary=summary,
        objective=MaskObjective,
        mask_branch=build_mask_branch,
    )


# Large backbones of Relation-DETR, as in its configurations.
_RELATION_SWIN_L = {"backbone": "swin_large_patch4_window7_224.ms_in22k", "drop_path": 0.2}
_RELATION_CONVNEXT_L = {"backbone": "convnext_large.fb_in1k", "drop_path": 0.5}
_FOCALNET_L = {"backbone": "focalnet_large_fl4.ms_in22k", "backbone_norm": True, "drop_path": 0.5}
_RELATION_FOCALNET_L = {**_FOCALNET_L, "frozen_stride": 0, "num_feature_levels": 5, "backbone_levels": 4}


def _dape(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_dape,
        architecture=DAPEArchitecture,
        family="dape",
        settings={**_RELATION, **settings},
        summary=summary,
        objective=MaskObjective,
        mask_branch=build_mask_branch,
    )


def _salience(summary: str, **settings: object) -> Entry:
    return Entry(
        build=build_salience_detr,
        architecture=SalienceArchitecture,
        family="salience_detr",
        settings={**_DINO, **_REPOSITORY, **settings},
        summary=summary,
        objective=SalienceObjective,
        mask_branch=build_mask_branch,
        with_relation=(build_salience_detr_with_relation, SalienceWithRelationArchitecture),
    )


# Maps of 80 x 80 cells need fewer points than those of 256 x 256.
_LITE = {**LITE["lite0"], "mask_points": 3136}
_R101 = {"backbone": "resnet101.tv_in1k"}
# Pre-trained at 384 pixels with windows of 12; nothing frozen, a norm on every level.
_SWIN_L = {
    "backbone": "swin_large_patch4_window12_384.ms_in22k",
    "frozen_stride": 0,
    "backbone_norm": True,
    "backbone_checkpointing": True,
    "drop_path": 0.2,
}
_SINGLE_SCALE = {"num_feature_levels": 1, "reference_dim": 4, "refine_boxes": False, "roi_resolution": 7}

DEFAULT_MODEL = "dape_lite0"
"""Model of training and prediction if none is given; its trained weights come with the package."""

REGISTRY: dict[str, Entry] = {
    "detr_r50": _detr("DETR, ResNet-50"),
    "detr_r50_dc5": _detr("DETR, ResNet-50 with stride 16", dilation=True),
    "detr_r101": _detr("DETR, ResNet-101", **_R101),
    "detr_r101_dc5": _detr("DETR, ResNet-101 with stride 16", **_R101, dilation=True),
    "detr_r50_panoptic": _detr_panoptic("DETR with a mask head, ResNet-50"),
    "detr_r50_dc5_panoptic": _detr_panoptic("DETR with a mask head, ResNet-50 with stride 16", dilation=True),
    "detr_r101_panoptic": _detr_panoptic("DETR with a mask head, ResNet-101", **_R101),
    "la_detr_r50": _detr("DETR with label augmentation", **_LABEL_AUGMENTATION),
    "detr_lite0": _detr("DETR, laptop size", **LITE["lite0"]),
    "de_detr_r50": _de_detr("DE-DETR, ResNet-50"),
    "de_detr_r50_single_scale": _de_detr("DE-DETR on one level, 7x7 RoI, no refinement", **_SINGLE_SCALE),
    "dela_detr_r50": _de_detr("DE-DETR with label augmentation", num_queries=300, **_LABEL_AUGMENTATION),
    "conditional_detr_r50": _conditional("Conditional DETR, ResNet-50"),
    "conditional_detr_r50_dc5": _conditional("Conditional DETR, ResNet-50 with stride 16", dilation=True),
    "conditional_detr_r101": _conditional("Conditional DETR, ResNet-101", **_R101),
    "conditional_detr_r101_dc5": _conditional("Conditional DETR, ResNet-101 with stride 16", **_R101, dilation=True),
    "group_conditional_detr_r50": _conditional("Conditional DETR with 11 query groups in training", groups=11),
    "la_conditional_detr_r50": _conditional("Conditional DETR with label augmentation", **_HARD_LABEL_AUGMENTATION),
    "conditional_detr_lite0": _conditional("Conditional DETR, laptop size", **LITE["lite0"]),
    "de_conditional_detr_r50": _de_conditional("DE-Conditional-DETR, ResNet-50"),
    "dela_conditional_detr_r50": _de_conditional(
        "DE-Conditional-DETR with label augmentation", **_HARD_LABEL_AUGMENTATION
    ),
    "de_conditional_detr_lite0": _de_conditional("DE-Conditional-DETR, laptop size", **LITE["lite0"]),
    "dela_conditional_detr_lite0": _de_conditional(
        "DELA-Conditional-DETR, laptop size", **LITE["lite0"], **_HARD_LABEL_AUGMENTATION
    ),
    "deformable_detr_r50": _deformable("Deformable DETR, ResNet-50"),
    "deformable_detr_r50_refine": _deformable("Deformable DETR + box refinement", refine_boxes=True),
    "deformable_detr_r50_two_stage": _deformable("Deformable DETR ++ two-stage", **_TWO_STAGE),
    "deformable_detr_r50_single_scale": _deformable("Deformable DETR on stride 32 only", **_ONE_LEVEL),
    "deformable_detr_r50_single_scale_dc5": _deformable(
        "Deformable DETR on one level of stride 16", **_ONE_LEVEL, dilation=True
    ),
    "deformable_detr_lite0": _deformable("Deformable DETR ++ two-stage, laptop size", **{**_TWO_STAGE, **_LITE}),
    "dino_r50_4scale": _dino("DINO, ResNet-50, 4 levels"),
    "dino_r50_5scale": _dino("DINO, ResNet-50, 5 levels", num_feature_levels=5, backbone_levels=4),
    "dino_swin_l_4scale": _dino("DINO, Swin-L, 4 levels", **_SWIN_L),
    "dino_swin_l_5scale": _dino("DINO, Swin-L, 5 levels", **_SWIN_L, num_feature_levels=5, backbone_levels=4),
    "dino_pp_r50": _dino_pp("DINO with position relation, of the Relation-DETR repository"),
    "dab_deformable_detr_pp_r50": _dino_pp(
        "DAB-Deformable DETR with position relation, of the same repository", **_DAB_PP
    ),
    "dn_deformable_detr_pp_r50": _dino_pp(
        "DN-Deformable DETR with position relation, of the same repository", **_DN_PP
    ),
    "deformable_detr_pp_r50": Entry(
        build=build_deformable_detr_pp,
        architecture=DeformableDETRPPArchitecture,
        family="deformable_detr_pp",
        settings={**_DEFORMABLE, **_REPOSITORY, "loss_class": 1.0, "top_k": 300},
        summary="Deformable DETR ++ two-stage, of the same repository",
        slow_sampling=True,
    ),
    "dino_lite0": _dino("DINO, laptop size", **_LITE),
    "relation_detr_r50": _relation("Relation-DETR, ResNet-50"),
    "relation_detr_swin_l": _relation("Relation-DETR, Swin-L", **_RELATION_SWIN_L),
    "relation_detr_convnext_l": _relation("Relation-DETR, ConvNeXt-L", **_RELATION_CONVNEXT_L),
    "relation_detr_focalnet_l": _relation("Relation-DETR, FocalNet-L, 5 levels", **_RELATION_FOCALNET_L),
    "dape_r50": _dape("DAPE, rank 16: a reconstruction from the published description"),
    "dape_r50_rank64": _dape("DAPE, rank 64 (reconstruction)", relation_rank=64, code_rank=64),
    "mask_dape_r50": _dape("Mask-DAPE, rank 16 (reconstruction); `task`: inst, sem or pan", task="inst"),
    "dape_r50_rank128": _dape("DAPE, rank 128 (reconstruction)", relation_rank=128, code_rank=128),
    "dape_lite0": _dape("DAPE, laptop size (reconstruction): the embedded default", **_LITE, one_to_many_queries=150),
    "mask_dape_lite0": _dape("Mask-DAPE, laptop size (reconstruction)", **_LITE, one_to_many_queries=150, task="inst"),
    "relation_detr_lite0": _relation("Relation-DETR, laptop size", **_LITE, one_to_many_queries=150),
    "salience_detr_r50": _salience("Salience-DETR, ResNet-50"),
    # published under this name, although it has four levels, of strides 4 to 32
    "salience_detr_r50_5scale": _salience(
        "Salience-DETR, ResNet-50, four levels from stride 4", backbone_levels=4, background_entries=500
    ),
    "salience_detr_swin_l": _salience("Salience-DETR, Swin-L", **_RELATION_SWIN_L),
    "salience_detr_convnext_l": _salience("Salience-DETR, ConvNeXt-L", **_RELATION_CONVNEXT_L),
    "salience_detr_focalnet_l": _salience("Salience-DETR, FocalNet-L", **_FOCALNET_L),
    "salience_detr_lite0": _salience("Salience-DETR, laptop size", **_LITE),
    "de_detr_lite0": _de_detr("DE-DETR, laptop size", **LITE["lite0"]),
    "dela_detr_lite0": _de_detr("DELA-DETR, laptop size", **LITE["lite0"], **_LABEL_AUGMENTATION),
}
# The DETR branch of the DE-DETRs repository is the same model.
ALIASES = {"dedetrs_branch_detr_r50": "detr_r50"}
