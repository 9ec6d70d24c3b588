"""AdamW with one group a kind of parameter, and the rule that ties the learning rate to the total batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from detrkit.config import OptimizerSection
from detrkit.errors import RecipeError
from detrkit.models import Detector
from detrkit.nn.backbone import Backbone
from detrkit.training.layer_depths import layer_depths
from detrkit.weights.official.load import official_names

__all__ = ["ParameterGroup", "build_optimizer", "lr_factor", "parameter_groups", "set_learning_rate"]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate: ``name`` is "backbone" (with ``layer_decay`` once per layer, the last
    layer last), "sampling" or "default"."""

    name: str
    parameters: list[nn.Parameter]
    lr: float
    decayed: bool = True


def lr_factor(section: OptimizerSection, total_batch: int) -> float:
    """What all learning rates are multiplied by.

    total batch = images per process and micro-batch × accumulated micro-batches × processes. Without ``lr_batch_size``
    the rates are used as they stand; with it they are multiplied by f(total batch / lr_batch_size), f = square root
    (the rule for Adam-like optimizers), linear or none.
    """
    if section.lr_batch_size is None or section.lr_scaling == "none":
        return 1.0
    ratio = total_batch / section.lr_batch_size
    return math.sqrt(ratio) if section.lr_scaling == "sqrt" else ratio


def parameter_groups(model: Detector, section: OptimizerSection, *, total_batch: int = 1) -> list[ParameterGroup]:
    """The model's trainable parameters by learning rate; with ``lr_backbone`` 0 the backbone is frozen.

    Raises:
        RecipeError: nothing is left to train, or ``layer_decay`` is asked of a backbone without known layers.
    """
    factor = lr_factor(section, total_batch)
    groups = []
    for name, parameters in model.parameter_groups().items():
        lr = {"backbone": section.lr_backbone, "sampling": section.lr_sampling}.get(name, section.lr)
        lr = section.lr if lr is None else lr
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if lr == 0:
            for parameter in trainable:
                parameter.requires_grad_(False)
        elif name == "backbone" and section.layer_decay is not None:
            groups += _layer_groups(model, trainable, lr * factor, section.layer_decay)
        elif trainable:
            groups.append(ParameterGroup(name, trainable, lr * factor))
    if not groups:
        raise RecipeError("nothing to train: no parameter of the model has a learning rate above 0")
    return [part for group in groups for part in _by_decay(group, model, section.no_decay)]


def _by_decay(group: ParameterGroup, model: Detector, exempt: list[str] | str) -> list[ParameterGroup]:
    """A group in up to two: with weight decay and without."""
    if not exempt:
        return [group]
    free = _free_by_type(model) if isinstance(exempt, str) else _free_by_name(model, exempt)
    halves = (
        replace(group, parameters=[p for p in group.parameters if (id(p) in free) != decayed], decayed=decayed)
        for decayed in (True, False)
    )
    return [half for half in halves if half.parameters]


def _free_by_name(model: Detector, exempt: list[str]) -> set[int]:
    """Parameters whose official name contains one of ``exempt``, as the Relation-DETR repository groups them.

    That decays norms with other names: those of the neck, of the memory fusion, and of ConvNeXt's blocks.
    """
    official = official_names(model)
    return {
        id(parameter) for key, parameter in model.named_parameters() if any(part in official[key][0] for part in exempt)
    }


def _free_by_type(model: Detector) -> set[int]:
    """All parameters but matrices and kernels: weights of two or more dimensions that are no embedding's."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.Embedding) or parameter.dim() < 2 or "weight" not in name
    }


def _layer_groups(model: Detector, trainable: list[nn.Parameter], lr: float, decay: float) -> list[ParameterGroup]:
    """A group for every layer of the backbone: the last has ``lr``, each before it ``decay`` times the next one's."""
    backbone = model.get_submodule("backbone")
    try:
        depths = layer_depths(backbone) if isinstance(backbone, Backbone) else {}
    except ValueError as error:
        raise RecipeError(f"optimizer.layer_decay: {error}; leave it out (null)") from error
    wanted = {id(parameter) for parameter in trainable}
    layers: dict[int, list[nn.Parameter]] = {}
    for name, depth in depths.items():
        parameter = backbone.get_parameter(name)
        if id(parameter) in wanted:
            layers.setdefault(depth, []).append(parameter)
    last = max(depths.values(), default=0)
    return [ParameterGroup("backbone", layers[depth], lr * decay ** (last - depth)) for depth in sorted(layers)]


def build_optimizer(groups: list[ParameterGroup], section: OptimizerSection) -> torch.optim.AdamW:
    """AdamW over the groups. Weight decay on everything but ``no_decay``: biases and norms included where that is
    empty, as DETR and most that followed have it."""
    return torch.optim.AdamW(
        [
            {
                "params": group.parameters,
                "lr": group.lr,
                "initial_lr": group.lr,
                "name": group.name,
                "weight_decay": section.weight_decay * group.decayed,
            }
            for group in groups
        ],
        betas=section.betas,
        fused=groups[0].parameters[0].device.type in ("cpu", "cuda"),  # one pass over the memory instead of ten
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group to its initial rate × ``factor``; returns {group name: rate}, for layers that of the last."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
