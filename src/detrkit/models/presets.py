"""The registered models as data: kind, settings that differ from the published default of the kind, and one line.

Needs no torch, so that lists of models appear at once; :mod:`detrkit.models.registry` has what builds the kinds.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from detrkit.models.lite import LITE

__all__ = ["ALIASES", "DEFAULT_MODEL", "PRESETS", "Preset", "list_models", "preset_task"]


@dataclass(frozen=True)
class Preset:
    """One registered model."""

    kind: str
    """Key of ``detrkit.models.registry.KINDS``: what builds it."""

    summary: str
    """One line for lists of models."""

    settings: Mapping[str, object] = field(default_factory=dict)
    """Flat keys that differ from the defaults of the four parts of the configuration."""

    @property
    def family(self) -> str:
        """Family of the layout of its official checkpoints."""
        return _FAMILIES.get(self.kind, self.kind)


_FAMILIES = {"dino_pp": "dino"}
"""Where the layout is that of another kind."""

# DELA = DE-DETR + every label twice in training + soft NMS in inference.
_LABEL_AUGMENTATION = {"repeat_label": 2, "nms": 0.7, "nms_decay": 0.01}

# Sigmoid focal classification without no-object, 300 queries.
_CONDITIONAL = {"num_queries": 300, "classification": "focal", "cost_class": 2.0, "loss_class": 2.0}
# DE-CondDETR uses hard NMS: suppressed detections are removed.
_HARD_LABEL_AUGMENTATION = {"repeat_label": 2, "nms": 0.7}

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

# Large backbones of Relation-DETR, as in its configurations.
_RELATION_SWIN_L = {"backbone": "swin_large_patch4_window7_224.ms_in22k", "drop_path": 0.2}
_RELATION_CONVNEXT_L = {"backbone": "convnext_large.fb_in1k", "drop_path": 0.5}
_FOCALNET_L = {"backbone": "focalnet_large_fl4.ms_in22k", "backbone_norm": True, "drop_path": 0.5}
_RELATION_FOCALNET_L = {**_FOCALNET_L, "frozen_stride": 0, "num_feature_levels": 5, "backbone_levels": 4}

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

_COMMON: dict[str, dict[str, object]] = {
    "detr_panoptic": {"panoptic_threshold": 0.85},
    "conditional_detr": _CONDITIONAL,
    "de_conditional_detr": _CONDITIONAL,
    "deformable_detr": _DEFORMABLE,
    "deformable_detr_pp": {**_DEFORMABLE, **_REPOSITORY, "loss_class": 1.0, "top_k": 300},
    "dino": _DINO,
    "dino_pp": {**_DINO, **_REPOSITORY},
    "relation_detr": _RELATION,
    "dape": _RELATION,
    "salience_detr": {**_DINO, **_REPOSITORY},
}
"""What all models of a kind have."""

DEFAULT_MODEL = "dape_lite0"
"""Model of training and prediction if none is given; its trained weights come with the package."""


def _preset(kind: str, summary: str, **settings: object) -> Preset:
    return Preset(kind, summary, {**_COMMON.get(kind, {}), **settings})


PRESETS: dict[str, Preset] = {
    "detr_r50": _preset("detr", "DETR, ResNet-50"),
    "detr_r50_dc5": _preset("detr", "DETR, ResNet-50 with stride 16", dilation=True),
    "detr_r101": _preset("detr", "DETR, ResNet-101", **_R101),
    "detr_r101_dc5": _preset("detr", "DETR, ResNet-101 with stride 16", **_R101, dilation=True),
    "detr_r50_panoptic": _preset("detr_panoptic", "DETR with a mask head, ResNet-50"),
    "detr_r50_dc5_panoptic": _preset("detr_panoptic", "DETR with a mask head, ResNet-50 with stride 16", dilation=True),
    "detr_r101_panoptic": _preset("detr_panoptic", "DETR with a mask head, ResNet-101", **_R101),
    "la_detr_r50": _preset("detr", "DETR with label augmentation", **_LABEL_AUGMENTATION),
    "detr_lite0": _preset("detr", "DETR, laptop size", **LITE["lite0"]),
    "de_detr_r50": _preset("de_detr", "DE-DETR, ResNet-50"),
    "de_detr_r50_single_scale": _preset("de_detr", "DE-DETR on one level, 7x7 RoI, no refinement", **_SINGLE_SCALE),
    "dela_detr_r50": _preset("de_detr", "DE-DETR with label augmentation", num_queries=300, **_LABEL_AUGMENTATION),
    "conditional_detr_r50": _preset("conditional_detr", "Conditional DETR, ResNet-50"),
    "conditional_detr_r50_dc5": _preset(
        "conditional_detr", "Conditional DETR, ResNet-50 with stride 16", dilation=True
    ),
    "conditional_detr_r101": _preset("conditional_detr", "Conditional DETR, ResNet-101", **_R101),
    "conditional_detr_r101_dc5": _preset(
        "conditional_detr", "Conditional DETR, ResNet-101 with stride 16", **_R101, dilation=True
    ),
    "group_conditional_detr_r50": _preset(
        "conditional_detr", "Conditional DETR with 11 query groups in training", groups=11
    ),
    "la_conditional_detr_r50": _preset(
        "conditional_detr", "Conditional DETR with label augmentation", **_HARD_LABEL_AUGMENTATION
    ),
    "conditional_detr_lite0": _preset("conditional_detr", "Conditional DETR, laptop size", **LITE["lite0"]),
    "de_conditional_detr_r50": _preset("de_conditional_detr", "DE-Conditional-DETR, ResNet-50"),
    "dela_conditional_detr_r50": _preset(
        "de_conditional_detr", "DE-Conditional-DETR with label augmentation", **_HARD_LABEL_AUGMENTATION
    ),
    "de_conditional_detr_lite0": _preset("de_conditional_detr", "DE-Conditional-DETR, laptop size", **LITE["lite0"]),
    "dela_conditional_detr_lite0": _preset(
        "de_conditional_detr", "DELA-Conditional-DETR, laptop size", **LITE["lite0"], **_HARD_LABEL_AUGMENTATION
    ),
    "deformable_detr_r50": _preset("deformable_detr", "Deformable DETR, ResNet-50"),
    "deformable_detr_r50_refine": _preset("deformable_detr", "Deformable DETR + box refinement", refine_boxes=True),
    "deformable_detr_r50_two_stage": _preset("deformable_detr", "Deformable DETR ++ two-stage", **_TWO_STAGE),
    "deformable_detr_r50_single_scale": _preset("deformable_detr", "Deformable DETR on stride 32 only", **_ONE_LEVEL),
    "deformable_detr_r50_single_scale_dc5": _preset(
        "deformable_detr", "Deformable DETR on one level of stride 16", **_ONE_LEVEL, dilation=True
    ),
    "deformable_detr_lite0": _preset(
        "deformable_detr", "Deformable DETR ++ two-stage, laptop size", **{**_TWO_STAGE, **_LITE}
    ),
    "dino_r50_4scale": _preset("dino", "DINO, ResNet-50, 4 levels"),
    "dino_r50_5scale": _preset("dino", "DINO, ResNet-50, 5 levels", num_feature_levels=5, backbone_levels=4),
    "dino_swin_l_4scale": _preset("dino", "DINO, Swin-L, 4 levels", **_SWIN_L),
    "dino_swin_l_5scale": _preset("dino", "DINO, Swin-L, 5 levels", **_SWIN_L, num_feature_levels=5, backbone_levels=4),
    "dino_pp_r50": _preset("dino_pp", "DINO with position relation, of the Relation-DETR repository"),
    "dab_deformable_detr_pp_r50": _preset(
        "dino_pp", "DAB-Deformable DETR with position relation, of the same repository", **_DAB_PP
    ),
    "dn_deformable_detr_pp_r50": _preset(
        "dino_pp", "DN-Deformable DETR with position relation, of the same repository", **_DN_PP
    ),
    "deformable_detr_pp_r50": _preset("deformable_detr_pp", "Deformable DETR ++ two-stage, of the same repository"),
    "dino_lite0": _preset("dino", "DINO, laptop size", **_LITE),
    "relation_detr_r50": _preset("relation_detr", "Relation-DETR, ResNet-50"),
    "relation_detr_swin_l": _preset("relation_detr", "Relation-DETR, Swin-L", **_RELATION_SWIN_L),
    "relation_detr_convnext_l": _preset("relation_detr", "Relation-DETR, ConvNeXt-L", **_RELATION_CONVNEXT_L),
    "relation_detr_focalnet_l": _preset("relation_detr", "Relation-DETR, FocalNet-L, 5 levels", **_RELATION_FOCALNET_L),
    "dape_r50": _preset("dape", "DAPE, rank 16 (reconstruction)"),
    "dape_r50_rank64": _preset("dape", "DAPE, rank 64 (reconstruction)", relation_rank=64, code_rank=64),
    "mask_dape_r50": _preset("dape", "Mask-DAPE, rank 16 (reconstruction); `task`: inst, sem or pan", task="inst"),
    "dape_r50_rank128": _preset("dape", "DAPE, rank 128 (reconstruction)", relation_rank=128, code_rank=128),
    "dape_lite0": _preset("dape", "DAPE, laptop size (reconstruction)", **_LITE, one_to_many_queries=150),
    "mask_dape_lite0": _preset(
        "dape", "Mask-DAPE, laptop size (reconstruction)", **_LITE, one_to_many_queries=150, task="inst"
    ),
    "relation_detr_lite0": _preset("relation_detr", "Relation-DETR, laptop size", **_LITE, one_to_many_queries=150),
    "salience_detr_r50": _preset("salience_detr", "Salience-DETR, ResNet-50"),
    # published under this name, although it has four levels, of strides 4 to 32
    "salience_detr_r50_5scale": _preset(
        "salience_detr",
        "Salience-DETR, ResNet-50, four levels from stride 4",
        backbone_levels=4,
        background_entries=500,
    ),
    "salience_detr_swin_l": _preset("salience_detr", "Salience-DETR, Swin-L", **_RELATION_SWIN_L),
    "salience_detr_convnext_l": _preset("salience_detr", "Salience-DETR, ConvNeXt-L", **_RELATION_CONVNEXT_L),
    "salience_detr_focalnet_l": _preset("salience_detr", "Salience-DETR, FocalNet-L", **_FOCALNET_L),
    "salience_detr_lite0": _preset("salience_detr", "Salience-DETR, laptop size", **_LITE),
    "de_detr_lite0": _preset("de_detr", "DE-DETR, laptop size", **LITE["lite0"]),
    "dela_detr_lite0": _preset("de_detr", "DELA-DETR, laptop size", **LITE["lite0"], **_LABEL_AUGMENTATION),
}
"""The registered models by name."""
# The DETR branch of the DE-DETRs repository is the same model.
ALIASES = {"dedetrs_branch_detr_r50": "detr_r50"}


def list_models(filter: str = "*") -> list[str]:
    """Return the names of registered models that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(PRESETS, filter))


def preset_task(name: str) -> str:
    """What a registered model is built for, unless its option ``task`` says otherwise; det for an unknown name."""
    preset = PRESETS.get(ALIASES.get(name, name))
    if preset is None:
        return "det"
    return str(preset.settings.get("task", "pan" if preset.kind == "detr_panoptic" else "det"))
