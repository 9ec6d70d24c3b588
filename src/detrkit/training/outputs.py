"""What happens to a model's outputs between the model and the criterion."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from detrkit.structures import Predictions

__all__ = ["float_outputs", "zero_anchor"]

P = TypeVar("P", bound=Predictions)


def float_outputs(predictions: P) -> P:
    """Predictions with float32 tensors, groups included: losses are not computed in half precision."""
    return replace(
        predictions,
        logits=predictions.logits.float(),
        boxes=predictions.boxes.float(),
        groups={name: float_outputs(group) for name, group in predictions.groups.items()},
        heatmaps={name: replace(map_, logits=map_.logits.float()) for name, map_ in predictions.heatmaps.items()},
    )


def zero_anchor(predictions: Predictions) -> Tensor:
    """Zero that depends on every output: a process without boxes then still has a gradient for every parameter."""
    parts = [predictions.logits, predictions.boxes, *(heatmap.logits for heatmap in predictions.heatmaps.values())]
    zeros = [(part * 0).sum() for part in parts] + [zero_anchor(group) for group in predictions.groups.values()]
    return torch.stack(zeros).sum()
