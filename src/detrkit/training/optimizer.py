"""AdamW with parameter groups, and the rule that scales the learning rate with the total batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from detrkit.config import OptimizerSection
from detrkit.errors import RecipeError
from detrkit.models import Detector
from detrkit.nn.backbone import Backbone
from detrkit.nn.lora import is_low_rank
from detrkit.training.layer_depths import layer_depths
from detrkit.weights.official.load import official_names

__all__ = [
    "ParameterGroup",
    "build_optimizer",
    "frozen_norms",
    "lr_factor",
    "parameter_groups",
    "set_learning_rate",
]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    name: str
    """"backbone" (with ``layer_decay`` one group per layer, the last layer last), "sampling" or "default"."""
    parameters: list[nn.Parameter]
    lr: float
    decayed: bool = True
    """Whether weight decay applies."""


def lr_factor(section: OptimizerSection, total_batch: int) -> float:
    """Factor on all learning rates.

    total batch = images per process and micro-batch × accumulated micro-batches × processes. Without ``lr_batch_size``
    the factor is 1; with it, f(total batch / lr_batch_size), where f is the square root (the rule for Adam-like
    optimizers), linear or none.
    """
    if section.lr_batch_size is None or section.lr_scaling == "none":
        return 1.0
    ratio = total_batch / section.lr_batch_size
    return math.sqrt(ratio) if section.lr_scaling == "sqrt" else ratio


def parameter_groups(model: Detector, section: OptimizerSection, *, total_batch: int = 1) -> list[ParameterGroup]:
    """Group the trainable parameters of a model by learning rate; ``lr_backbone`` 0 freezes the backbone.

    Raises:
        RecipeError: no parameter is trainable, or ``layer_decay`` is set for a backbone without known layers.
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
    return [part for group in groups for part in _split_by_decay(group, model, section.no_decay)]


def frozen_norms(model: Detector) -> list[nn.Module]:
    """Batch norms whose parameters are all frozen; they must stay in evaluation mode, or their statistics go on moving.

    Called after :func:`parameter_groups`, which freezes the backbone where its rate is 0.
    """
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and not any(parameter.requires_grad for parameter in module.parameters())
    ]


def _split_by_decay(group: ParameterGroup, model: Detector, exempt: list[str] | str) -> list[ParameterGroup]:
    """Split a group into parameters with and without weight decay; empty parts are left out."""
    if not exempt:
        return [group]
    undecayed = _undecayed_by_type(model) if isinstance(exempt, str) else _undecayed_by_name(model, exempt)
    halves = (
        replace(group, parameters=[p for p in group.parameters if (id(p) in undecayed) != decayed], decayed=decayed)
        for decayed in (True, False)
    )
    return [half for half in halves if half.parameters]


def _undecayed_by_name(model: Detector, exempt: list[str]) -> set[int]:
    """Ids of the parameters whose official name contains one of ``exempt``, as in the Relation-DETR repository.

    Norms with other names are decayed: in the neck, in the memory fusion, and in the blocks of ConvNeXt.
    """
    keys = [name for name, _ in model.named_parameters() if not is_low_rank(name)]
    official = official_names(model, [_plain_name(key) for key in keys])
    return {
        id(model.get_parameter(key)) for key in keys if any(part in official[_plain_name(key)][0] for part in exempt)
    }


def _plain_name(key: str) -> str:
    """The name of a parameter without the LoRA that it has."""
    return key.replace(".parametrizations.", ".").removesuffix(".original")


def _undecayed_by_type(model: Detector) -> set[int]:
    """Ids of all parameters except matrices and kernels, i.e. weights of two or more dimensions outside embeddings."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.Embedding) or parameter.dim() < 2 or "weight" not in name
    }


def _layer_groups(model: Detector, trainable: list[nn.Parameter], lr: float, decay: float) -> list[ParameterGroup]:
    """One group per backbone layer: the last layer has rate ``lr``, each earlier layer ``decay`` times the next one."""
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
    """AdamW over the groups. With an empty ``no_decay``, weight decay applies to biases and norms too, as in DETR and
    most later models."""
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
    """Set every group to its initial rate × ``factor``; returns {group name: rate} (of the last backbone layer)."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
