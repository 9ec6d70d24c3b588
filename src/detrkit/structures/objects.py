"""Annotated objects of one image and the image they are on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Ground truth of one image.

    labels (N,) int64, 0..K-1 · boxes (N, 4) cxcywh in [0, 1] of the image's valid (unpadded) area ·
    image_id · original_size (height, width) in pixels of the upright file · size (height, width) of the valid area
    after the transforms · masks (N, H, W) bool on the padded canvas, or None · is_thing (N,) bool, or None ·
    is_copy (N,) bool, True for boxes that label augmentation repeated, or None when nothing was repeated ·
    negatives (K,) labels verified to be absent, not_exhaustive (E,) labels of which not every object is here (LVIS), or
    None.
    """

    labels: Tensor
    boxes: Tensor
    image_id: int = 0
    original_size: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    masks: Tensor | None = None
    is_thing: Tensor | None = None
    is_copy: Tensor | None = None
    negatives: Tensor | None = None
    not_exhaustive: Tensor | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def originals(self) -> Target:
        """The target without the copies that label augmentation added."""
        if self.is_copy is None:
            return self
        own = ~self.is_copy
        masks, is_thing = (None if value is None else value[own] for value in (self.masks, self.is_thing))
        return replace(
            self, labels=self.labels[own], boxes=self.boxes[own], masks=masks, is_thing=is_thing, is_copy=None
        )

    def to(self, device: torch.device | str) -> Target:
        """The same target with every tensor on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)
