"""What happens to a model's outputs between the model and the criterion."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from detrkit.structures import Predictions, QueryGroup

__all__ = ["float_outputs", "zero_anchor"]

G = TypeVar("G", bound=QueryGroup)


def float_outputs(predictions: Predictions) -> Predictions:
    """Predictions with float32 tensors, groups included: losses are not computed in half precision."""
    return replace(
        _float(predictions),
        groups={name: _float(group) for name, group in predictions.groups.items()},
        heatmaps={name: replace(map_, logits=map_.logits.float()) for name, map_ in predictions.heatmaps.items()},
    )


def _float(group: G) -> G:
    return replace(group, logits=group.logits.float(), boxes=group.boxes.float())


def zero_anchor(predictions: Predictions) -> Tensor:
    """Zero that depends on every output: a process without boxes then still has a gradient for every parameter."""
    parts = [heatmap.logits for heatmap in predictions.heatmaps.values()]
    for group in (predictions, *predictions.groups.values()):
        parts += [group.logits, group.boxes]
    return torch.stack([(part * 0).sum() for part in parts]).sum()
