"""Masks compared at points (PointRend, Kirillov et al., CVPR 2020; Mask2Former, section 3.3): memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from detrkit.errors import DataError
from detrkit.nn.masks import Border, positions_by_image, sample_points
from detrkit.structures import Target

__all__ = ["MaskPoints", "sample_masks", "target_masks"]

_AT_ONCE = 16  # masks that are converted to float at a time


def _uniform(*shape: int, device: torch.device) -> Tensor:
    return torch.rand(*shape, device=device)


def sample_masks(masks: Tensor, points: Tensor, *, border: Border = "border") -> Tensor:
    """Bilinear samples (N, P) of bool masks (N, H, W) at points (N or 1, P, 2); a few masks at a time become float."""
    points = points.expand(len(masks), -1, -1)
    parts = [
        sample_points(masks[start : start + _AT_ONCE, None].float(), points[start : start + _AT_ONCE], border=border)
        for start in range(0, len(masks), _AT_ONCE)
    ]
    return torch.cat(parts)[:, 0] if parts else points.new_zeros(0, points.shape[1])


def target_masks(targets: Sequence[Target]) -> list[Tensor]:
    """The masks (N, H, W) of every target.

    Raises:
        DataError: a target with objects has no masks.
    """
    masks: list[Tensor] = []
    for target in targets:
        if target.masks is None and not len(target):
            masks.append(torch.zeros(0, 1, 1, dtype=torch.bool, device=target.labels.device))
            continue
        if target.masks is None:
            raise DataError(
                f"image {target.image_id} has no masks to learn from: give Target.masks, or train boxes alone with "
                "task 'det' (of DETR with its own head with loss_mask=0 and loss_dice=0)"
            )
        masks.append(target.masks)
    return masks


@dataclass(frozen=True, kw_only=True)
class MaskPoints:
    """Where masks are compared.

    Attributes:
        number: points per mask, P (published: 112²).
        oversample: of so many times as many uniform points the least certain are kept ...
        importance: ... until they are this share of P; the rest are fresh uniform points.
        border: how maps go on beyond their outermost cells, see :func:`detrkit.nn.masks.sample_points`.
        uniform: draws numbers in [0, 1); replaceable for reproducing recorded runs.
    """

    number: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    border: Border = "border"
    uniform: Callable[..., Tensor] = _uniform

    def shared(self, images: int, device: torch.device) -> Tensor:
        """(B, P, 2) uniform points, the same for all masks of an image: for costs."""
        return torch.cat([self.uniform(1, self.number, 2, device=device) for _ in range(images)])

    def sample(self, logits: Tensor, points: Tensor) -> Tensor:
        """Logits (N, h, w) at points (N, P, 2): (N, P)."""
        return sample_points(logits[:, None], points, border=self.border)[:, 0]

    @torch.no_grad()
    def uncertain(self, logits: Tensor) -> Tensor:
        """(N, P, 2) points where masks with logits (N, h, w) are least certain (nearest to 0), and uniform ones.

        Certainty is taken from sampled logits: sampled certainty would see none where neighbours disagree.
        """
        count = len(logits)
        drawn = self.uniform(count, int(self.number * self.oversample), 2, device=logits.device)
        certainty = self.sample(logits, drawn).abs()
        kept = int(self.number * self.importance)
        index = certainty.topk(kept, dim=1, largest=False).indices
        best = drawn.gather(1, index[..., None].expand(-1, -1, 2))
        if kept == self.number:
            return best
        return torch.cat((best, self.uniform(count, self.number - kept, 2, device=logits.device)), dim=1)

    @torch.no_grad()
    def of_objects(self, targets: Sequence[Target], image: Tensor, index: Tensor, points: Tensor) -> Tensor:
        """(M, P) of the masks of objects ``index`` (M,), counted through the batch, at their own points (M, P, 2).

        image: (M,) the image that each is in, see :func:`detrkit.nn.masks.positions_by_image`.
        """
        sampled = points.new_zeros(points.shape[:2])
        masks = target_masks(targets)
        starts = list(accumulate((len(target) for target in targets), initial=0))
        for number, position in positions_by_image(image):
            chosen = masks[number][index[position] - starts[number]]
            sampled[position] = sample_masks(chosen, points[position], border=self.border)
        return sampled
