"""Classification losses of set prediction: softmax with no-object (DETR), sigmoid focal, varifocal (Relation-DETR)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from detrkit.structures import Heatmap, Target

__all__ = ["focal_loss", "heatmap_loss", "softmax_loss", "varifocal_loss"]


def softmax_loss(logits: Tensor, labels: Tensor, *, no_object_weight: float) -> Tensor:
    """Weighted cross entropy of logits (…, K + 1), no-object last, and labels (…), K = no object: (…, 1)."""
    weight = logits.new_ones(logits.shape[-1])
    weight[-1] = no_object_weight
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight, reduction="none")
    return loss.view(*labels.shape, 1)


def focal_loss(logits: Tensor, goal: Tensor, *, alpha: float) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), gamma 2, of logits and goals (0 or 1) of one shape; so shaped."""
    p = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    loss = loss * (1 - (p * goal + (1 - p) * (1 - goal))) ** 2
    return loss * (alpha * goal + (1 - alpha) * (1 - goal))


def varifocal_loss(logits: Tensor, goal: Tensor, quality: Tensor, *, alpha: float) -> Tensor:
    """Varifocal loss (Zhang et al., CVPR 2021), gamma 2: (…, K).

    logits and one-hot goal (…, K), quality (…) in [0, 1]: how well the query's box lies on its object. A positive
    learns its quality, weighted by it; a negative is weighted by (1 - alpha) p². The weights carry no gradient.
    """
    score = goal * quality.detach()[..., None]
    weight = (1 - alpha) * logits.detach().sigmoid() ** 2 * (1 - goal) + score
    return weight * F.binary_cross_entropy_with_logits(logits, score, reduction="none")


def heatmap_loss(heatmap: Heatmap, targets: list[Target], *, alpha: float = 0.25) -> Tensor:
    """Focal loss of all cells over the number of those with a goal above 0; of a batch, no other is asked.

    A goal between 0 and 1 mixes the focal weights of a positive and a negative.
    """
    logits, goal = heatmap.logits.float(), heatmap.goal(targets)
    p = logits.sigmoid()
    weight = alpha * (1 - p) ** 2 * goal + (1 - alpha) * p**2 * (1 - goal)
    loss = weight * F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    return loss.sum() / (goal > 0).sum().clamp(min=1)
