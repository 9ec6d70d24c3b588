"""The loss of a heatmap. It has no queries, no layers and nothing to match, so it is no term."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from detrkit.structures import Heatmap, Target

__all__ = ["heatmap_loss"]


def heatmap_loss(heatmap: Heatmap, targets: list[Target], *, alpha: float = 0.25) -> Tensor:
    """Focal loss of all cells over the number of those with a goal above 0, in this batch alone.

    A goal between 0 and 1 mixes the focal weights of a positive and a negative.
    """
    logits, goal = heatmap.logits.float(), heatmap.goal(targets)
    p = logits.sigmoid()
    weight = alpha * (1 - p) ** 2 * goal + (1 - alpha) * p**2 * (1 - goal)
    loss = weight * F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    return loss.sum() / (goal > 0).sum().clamp(min=1)
