"""Models by name. Each name is a family with settings that differ from its published default."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import timm

from detrkit.errors import did_you_mean
from detrkit.models.config import Architecture, DetectorConfig
from detrkit.models.detector import Detector
from detrkit.models.mask_branch import MASK_SETTINGS
from detrkit.models.presets import ALIASES, REGISTRY, Entry
from detrkit.nn.backbone.imagenet import load_backbone_weights

__all__ = [
    "Architecture",
    "Detector",
    "DetectorConfig",
    "Entry",
    "create_model",
    "entry",
    "list_models",
    "model_config",
]


def list_models(filter: str = "*") -> list[str]:
    """Return the names of registered models that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(REGISTRY, filter))


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
