"""Building models by name: what builds each kind, and the configuration of each preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import timm

from detrkit.errors import did_you_mean
from detrkit.models.conditional_detr import build_conditional_detr, build_de_conditional_detr
from detrkit.models.config import Architecture, DetectorConfig, Input, Objective, Postprocessing, option_names
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
from detrkit.models.mask_branch import MASK_SETTINGS, MaskObjective, build_mask_branch
from detrkit.models.presets import ALIASES, PRESETS
from detrkit.models.relation_detr import RelationArchitecture, build_relation_detr
from detrkit.models.salience_detr import (
    SalienceArchitecture,
    SalienceObjective,
    SalienceWithRelationArchitecture,
    build_salience_detr,
    build_salience_detr_with_relation,
)
from detrkit.nn.backbone.imagenet import load_backbone_weights

__all__ = ["KINDS", "REGISTRY", "Builder", "Entry", "Kind", "create_model", "entry", "model_config"]

Builder = Callable[..., Detector]
"""Builds a model from a configuration of its architecture, with an optional ``mask_head`` if it has none itself."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What builds the models of a kind."""

    build: Builder
    """Builds the model."""

    architecture: type[Architecture]
    """Type of its architecture."""

    objective: type[Objective] = Objective
    """Type of its objective."""

    with_relation: tuple[Builder, type[Architecture]] | None = None
    """Builder and architecture used instead if an option that only this architecture has, such as a relation, differs
    from its default."""
    mask_branch: Callable[..., MaskHead] | None = None
    """Builds the mask branch of an architecture, for tasks with masks; None: the model has no such tasks."""
    slow_sampling: bool = False
    """Whether sampling offsets and reference points learn at a lower rate, as in Deformable DETR."""


@dataclass(frozen=True, kw_only=True)
class Entry(Kind):
    """One registered model: its kind, family and settings."""

    family: str
    """Family of the layout of its official checkpoints."""

    settings: Mapping[str, object]
    """Flat keys that differ from the defaults of the four parts of the configuration."""

    summary: str
    """One line for lists of models."""

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


KINDS = {
    "detr": Kind(build=build_detr, architecture=DETRArchitecture),
    "detr_panoptic": Kind(
        build=build_detr_panoptic, architecture=DETRPanopticArchitecture, objective=DETRPanopticObjective
    ),
    "de_detr": Kind(build=build_de_detr, architecture=DEDETRArchitecture),
    "conditional_detr": Kind(build=build_conditional_detr, architecture=DETRArchitecture),
    "de_conditional_detr": Kind(build=build_de_conditional_detr, architecture=DEDETRArchitecture),
    "deformable_detr": Kind(
        build=build_deformable_detr,
        architecture=DeformableArchitecture,
        objective=MaskObjective,
        mask_branch=build_mask_branch,
        slow_sampling=True,
    ),
    "deformable_detr_pp": Kind(
        build=build_deformable_detr_pp, architecture=DeformableDETRPPArchitecture, slow_sampling=True
    ),
    "dino": Kind(
        build=build_dino,
        architecture=DINOArchitecture,
        objective=MaskObjective,
        mask_branch=build_mask_branch,
        with_relation=(build_dino_with_relation, DINOWithRelationArchitecture),
    ),
    "dino_pp": Kind(
        build=build_dino_pp, architecture=DINOPPArchitecture, objective=MaskObjective, mask_branch=build_mask_branch
    ),
    "relation_detr": Kind(
        build=build_relation_detr,
        architecture=RelationArchitecture,
        objective=MaskObjective,
        mask_branch=build_mask_branch,
    ),
    "dape": Kind(
        build=build_dape, architecture=DAPEArchitecture, objective=MaskObjective, mask_branch=build_mask_branch
    ),
    "salience_detr": Kind(
        build=build_salience_detr,
        architecture=SalienceArchitecture,
        objective=SalienceObjective,
        mask_branch=build_mask_branch,
        with_relation=(build_salience_detr_with_relation, SalienceWithRelationArchitecture),
    ),
}
"""The kinds of models by name."""

REGISTRY: dict[str, Entry] = {
    name: Entry(family=preset.family, settings=preset.settings, summary=preset.summary, **vars(KINDS[preset.kind]))
    for name, preset in PRESETS.items()
}


def entry(name: str) -> Entry:
    """Return the registry entry of a name; a trailing query count such as ``_q50`` is accepted.

    Raises:
        ValueError: no such model; the message names the nearest.
    """
    name = ALIASES.get(name, name)
    if name in REGISTRY:
        return REGISTRY[name]
    base, _, queries = name.rpartition("_q")
    if queries.isdigit() and base in REGISTRY:
        found = REGISTRY[base]
        return replace(found, settings={**found.settings, "num_queries": int(queries)})
    raise ValueError(f"there is no model '{name}'.{did_you_mean(name, REGISTRY)}")


def _without_disabled(settings: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of a preset without the label augmentation or NMS decay that an override disables."""
    disabled = set()
    if overrides.get("repeat_ratio") is not None:
        disabled.add("repeat_label")
    if "nms" in overrides and overrides["nms"] is None:
        disabled.add("nms_decay")
    return {key: value for key, value in settings.items() if key not in disabled}


def model_config(name: str, **overrides: object) -> DetectorConfig[Architecture]:
    """Return the configuration of a registered model with overrides; missing normalisation is filled in from timm.

    Raises:
        TypeError: an override that the model does not have; the message names the nearest.
        ValueError: unknown model, or a value out of range.
    """
    found = entry(name)
    valid = found.options()
    for key in overrides:
        if key not in valid:
            raise TypeError(f"model '{name}' has no option '{key}'.{did_you_mean(key, valid)}")
    _, architecture, options = found.resolve(overrides)
    own = found.settings.get("task", architecture.task)
    task = str(options.get("task", own))
    if found.mask_branch is None and (task == "det") != (own == "det"):
        what = "no mask branch" if own == "det" else "always masks"
        raise ValueError(
            f"model '{name}' has {what}: task cannot be '{task}'; Deformable DETR, DINO, Relation-DETR, DAPE and "
            "Salience-DETR take every task"
        )
    of_task = {} if found.mask_branch is None else MASK_SETTINGS.get(task, {})
    settings = {**_without_disabled(found.settings, options), **of_task, **options}
    config = DetectorConfig.from_flat(architecture, settings, objective=found.objective)
    given = config.input
    if given.image_mean is None or given.image_std is None:
        pretrained = timm.get_pretrained_cfg(config.architecture.backbone)
        red, green, blue = pretrained.mean if pretrained else (0.485, 0.456, 0.406)
        mean = given.image_mean or (red, green, blue)
        red, green, blue = pretrained.std if pretrained else (0.229, 0.224, 0.225)
        given = replace(given, image_mean=mean, image_std=given.image_std or (red, green, blue))
    return replace(config, input=given)


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    num_queries: int | None = None,
    one_to_many_queries: int | None = None,
    backbone: str | None = None,
    pretrained_backbone: bool | str | Path = False,
    **overrides: object,
) -> Detector:
    """Build a registered model; without overrides the official full-size configuration.

    Args:
        name: see :func:`list_models`.
        num_classes: number of classes, without no-object.
        num_queries: number of object queries.
        one_to_many_queries: only for models with a one-to-many branch.
        backbone: timm name.
        pretrained_backbone: True loads ImageNet weights (an installed weight package, else download), a path loads
            that file. Otherwise nothing touches the network.
        overrides: any field of the model's configuration.

    Raises:
        TypeError: an override that the model does not have; the message names the nearest.
        ValueError: unknown model or backbone, or a value out of range.
        CheckpointError: the backbone weights cannot be found or downloaded.
    """
    named = {
        "num_classes": num_classes,
        "num_queries": num_queries,
        "one_to_many_queries": one_to_many_queries,
        "backbone": backbone,
    }
    overrides = {**{key: value for key, value in named.items() if value is not None}, **overrides}
    config, found = model_config(name, **overrides), entry(name)
    build, _, _ = found.resolve(overrides)
    branch = found.mask_branch if config.architecture.task != "det" else None
    model = build(config) if branch is None else build(config, mask_head=branch(config.architecture))
    model.name = ALIASES.get(name, name)
    if pretrained_backbone:
        body = model.get_submodule("backbone.body")
        load_backbone_weights(body, config.architecture.backbone, pretrained_backbone)
    return model
