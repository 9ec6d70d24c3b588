"""Loss of a heatmap. A heatmap has no queries, layers or matching, so its loss is not a :class:`Term`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from detrkit.structures import Heatmap, Target

__all__ = ["heatmap_loss"]


def heatmap_loss(heatmap: Heatmap, targets: list[Target], *, alpha: float = 0.25) -> Tensor:
    """Focal loss summed over all cells, divided by the number of cells with a target above 0 in this batch.

    A target between 0 and 1 mixes the focal weights of a positive and a negative.
    """
    logits, target = heatmap.logits.float(), heatmap.make_target(targets)
    p = logits.sigmoid()
    weight = alpha * (1 - p) ** 2 * target + (1 - alpha) * p**2 * (1 - target)
    loss = weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return loss.sum() / (target > 0).sum().clamp(min=1)
