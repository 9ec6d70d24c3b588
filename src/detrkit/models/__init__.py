"""Registry: every model by name. A name stands for a family and what differs from the family's published default."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import timm

from detrkit.errors import did_you_mean
from detrkit.models.conditional_detr import ConditionalDETR, DEConditionalDETR
from detrkit.models.config import DetectorConfig
from detrkit.models.dape import DAPE, DAPEConfig
from detrkit.models.de_detr import DEDETR, DEDETRConfig
from detrkit.models.deformable_detr import DeformableDETR, DeformableDETRConfig
from detrkit.models.deformable_detr_pp import DeformableDETRPP, DeformableDETRPPConfig
from detrkit.models.detector import Detector
from detrkit.models.detr import DETR, DETRConfig
from detrkit.models.dino import DINO, DINOConfig, DINOPPConfig
from detrkit.models.lite import LITE
from detrkit.models.relation_detr import RelationDETR, RelationDETRConfig
from detrkit.models.salience_detr import SalienceDETR, SalienceDETRConfig
from detrkit.nn.backbone_weights import load_backbone_weights

__all__ = ["Detector", "DetectorConfig", "Entry", "create_model", "entry", "list_models", "model_config"]


class _Builder(Protocol):
    def from_config(self, config: Any) -> Detector: ...


@dataclass(frozen=True)
class Entry:
    """One registered model: its family, what it sets differently, and where it was published."""

    model: _Builder
    config: type[DetectorConfig]
    family: str
    settings: dict[str, Any]
    summary: str


# DELA = DE-DETR + every label twice in training + soft NMS at inference.
_LABEL_AUGMENTATION = {"repeat_label": 2, "nms": 0.7, "nms_decay": 0.01}


def _detr(summary: str, **settings: Any) -> Entry:
    return Entry(DETR, DETRConfig, "detr", settings, summary)


def _de_detr(summary: str, **settings: Any) -> Entry:
    return Entry(DEDETR, DEDETRConfig, "de_detr", settings, summary)


# Sigmoid focal classification without no-object, 300 queries.
_CONDITIONAL = {"num_queries": 300, "classification": "focal", "cost_class": 2.0, "loss_class": 2.0}
# DE-CondDETR removes what NMS suppresses.
_HARD_LABEL_AUGMENTATION = {"repeat_label": 2, "nms": 0.7}


def _conditional(summary: str, **settings: Any) -> Entry:
    return Entry(ConditionalDETR, DETRConfig, "conditional_detr", {**_CONDITIONAL, **settings}, summary)


def _de_conditional(summary: str, **settings: Any) -> Entry:
    return Entry(DEConditionalDETR, DEDETRConfig, "de_conditional_detr", {**_CONDITIONAL, **settings}, summary)


# Sigmoid focal classification, 300 queries; DINO weighs the class loss less.
_DEFORMABLE = {"num_queries": 300, "classification": "focal", "cost_class": 2.0, "loss_class": 2.0}
_DINO = {**_DEFORMABLE, "num_queries": 900, "loss_class": 1.0, "top_k": 300}
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


def _deformable(summary: str, **settings: Any) -> Entry:
    return Entry(DeformableDETR, DeformableDETRConfig, "deformable_detr", {**_DEFORMABLE, **settings}, summary)


def _dino(summary: str, **settings: Any) -> Entry:
    return Entry(DINO, DINOConfig, "dino", {**_DINO, **settings}, summary)


def _dino_pp(summary: str, **settings: Any) -> Entry:
    return Entry(DINO, DINOPPConfig, "dino", {**_DINO, "relation": "full", **settings}, summary)


def _relation(summary: str, **settings: Any) -> Entry:
    return Entry(RelationDETR, RelationDETRConfig, "relation_detr", {**_DINO, **settings}, summary)


# Its large backbones, each as its configuration trains it.
_RELATION_SWIN_L = {"backbone": "swin_large_patch4_window7_224.ms_in22k", "drop_path": 0.2}
_RELATION_CONVNEXT_L = {"backbone": "convnext_large.fb_in1k", "drop_path": 0.5}
_FOCALNET_L = {"backbone": "focalnet_large_fl4.ms_in22k", "backbone_norm": True, "drop_path": 0.5}
_RELATION_FOCALNET_L = {**_FOCALNET_L, "frozen_stride": 0, "num_feature_levels": 5, "backbone_levels": 4}


def _dape(summary: str, **settings: Any) -> Entry:
    return Entry(DAPE, DAPEConfig, "dape", {**_DINO, **settings}, summary)


def _salience(summary: str, **settings: Any) -> Entry:
    return Entry(SalienceDETR, SalienceDETRConfig, "salience_detr", {**_DINO, **settings}, summary)


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

_REGISTRY: dict[str, Entry] = {
    "detr_r50": _detr("DETR, ResNet-50"),
    "detr_r50_dc5": _detr("DETR, ResNet-50 with stride 16", dilation=True),
    "detr_r101": _detr("DETR, ResNet-101", **_R101),
    "detr_r101_dc5": _detr("DETR, ResNet-101 with stride 16", **_R101, dilation=True),
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
    "deformable_detr_lite0": _deformable(
        "Deformable DETR ++ two-stage, laptop size", **{**_TWO_STAGE, **LITE["lite0"]}
    ),
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
        DeformableDETRPP,
        DeformableDETRPPConfig,
        "deformable_detr_pp",
        {**_DEFORMABLE, "loss_class": 1.0, "top_k": 300},
        "Deformable DETR ++ two-stage, of the same repository",
    ),
    "dino_lite0": _dino("DINO, laptop size", **LITE["lite0"]),
    "relation_detr_r50": _relation("Relation-DETR, ResNet-50"),
    "relation_detr_swin_l": _relation("Relation-DETR, Swin-L", **_RELATION_SWIN_L),
    "relation_detr_convnext_l": _relation("Relation-DETR, ConvNeXt-L", **_RELATION_CONVNEXT_L),
    "relation_detr_focalnet_l": _relation("Relation-DETR, FocalNet-L, 5 levels", **_RELATION_FOCALNET_L),
    "dape_r50": _dape("DAPE, rank 16: a reconstruction from the published description"),
    "dape_r50_rank64": _dape("DAPE, rank 64 (reconstruction)", relation_rank=64, code_rank=64),
    "dape_r50_rank128": _dape("DAPE, rank 128 (reconstruction)", relation_rank=128, code_rank=128),
    "dape_lite0": _dape(
        "DAPE, laptop size (reconstruction): the embedded default", **LITE["lite0"], one_to_many_queries=150
    ),
    "relation_detr_lite0": _relation("Relation-DETR, laptop size", **LITE["lite0"], one_to_many_queries=150),
    "salience_detr_r50": _salience("Salience-DETR, ResNet-50"),
    # published under this name although there are four levels, of strides 4 to 32
    "salience_detr_r50_5scale": _salience(
        "Salience-DETR, ResNet-50, four levels from stride 4", backbone_levels=4, background_entries=500
    ),
    "salience_detr_swin_l": _salience("Salience-DETR, Swin-L", **_RELATION_SWIN_L),
    "salience_detr_convnext_l": _salience("Salience-DETR, ConvNeXt-L", **_RELATION_CONVNEXT_L),
    "salience_detr_focalnet_l": _salience("Salience-DETR, FocalNet-L", **_FOCALNET_L),
    "salience_detr_lite0": _salience("Salience-DETR, laptop size", **LITE["lite0"]),
    "de_detr_lite0": _de_detr("DE-DETR, laptop size", **LITE["lite0"]),
    "dela_detr_lite0": _de_detr("DELA-DETR, laptop size", **LITE["lite0"], **_LABEL_AUGMENTATION),
}
# The DE-DETRs repository carries DETR as its baseline branch; it is the same model.
_ALIASES = {"dedetrs_branch_detr_r50": "detr_r50"}


def list_models(filter: str = "*") -> list[str]:
    """Names of registered models that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_REGISTRY, filter))


def entry(name: str) -> Entry:
    """What the registry knows of a name (a trailing ``_q50`` style query count is understood).

    Raises:
        ValueError: no such model; the message names the nearest.
    """
    name = _ALIASES.get(name, name)
    if name in _REGISTRY:
        return _REGISTRY[name]
    base, _, queries = name.rpartition("_q")
    if queries.isdigit() and base in _REGISTRY:
        found = _REGISTRY[base]
        return replace(found, settings={**found.settings, "num_queries": int(queries)})
    raise ValueError(f"there is no model '{name}'.{did_you_mean(name, _REGISTRY)}")


def _yielding(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A preset's label augmentation and NMS without what an override makes pointless."""
    dropped = set()
    if overrides.get("repeat_ratio") is not None:
        dropped.add("repeat_label")
    if "nms" in overrides and overrides["nms"] is None:
        dropped.add("nms_decay")
    return {key: value for key, value in settings.items() if key not in dropped}


def model_config(name: str, **overrides: Any) -> DetectorConfig:
    """The configuration of a registered model with overrides; ``None`` in the normalisation is filled from timm.

    Raises:
        TypeError: an override that the model does not have; the message names the nearest.
        ValueError: unknown model, or a value out of range.
    """
    found = entry(name)
    valid = {field.name for field in fields(found.config)}
    for key in overrides:
        if key not in valid:
            raise TypeError(f"model '{name}' has no option '{key}'.{did_you_mean(key, valid)}")
    chosen = {**_yielding(found.settings, overrides), **overrides}
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()
    }
    config = found.config(**settings)
    if config.image_mean is None or config.image_std is None:
        pretrained = timm.get_pretrained_cfg(config.backbone)
        mean: Any = pretrained.mean if pretrained else (0.485, 0.456, 0.406)
        std: Any = pretrained.std if pretrained else (0.229, 0.224, 0.225)
        config = replace(config, image_mean=config.image_mean or mean, image_std=config.image_std or std)
    return config


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    num_queries: int | None = None,
    one_to_many_queries: int | None = None,
    backbone: str | None = None,
    pretrained_backbone: bool | str | Path = False,
    **overrides: Any,
) -> Detector:
    """Builds a registered model; without overrides the official full-size configuration.

    Args:
        name: see :func:`list_models`.
        num_classes: classes without no-object.
        num_queries: object queries.
        one_to_many_queries: only for models with a one-to-many branch.
        backbone: timm name.
        pretrained_backbone: True loads ImageNet weights (an installed weight package, else download), a path loads
            that file. Otherwise nothing touches the network.
        overrides: any field of the model's configuration.

    Raises:
        TypeError: an override that the model does not have; the message names the nearest.
        ValueError: unknown model or backbone, or a value out of range.
        CheckpointError: backbone weights cannot be had.
    """
    named = {
        "num_classes": num_classes,
        "num_queries": num_queries,
        "one_to_many_queries": one_to_many_queries,
        "backbone": backbone,
    }
    config = model_config(name, **{key: value for key, value in named.items() if value is not None}, **overrides)
    model = entry(name).model.from_config(config)
    model.name = _ALIASES.get(name, name)
    if pretrained_backbone:
        body = model.get_submodule("backbone.body")
        load_backbone_weights(body, config.backbone, pretrained_backbone)
    return model
