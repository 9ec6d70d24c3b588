"""Images with their targets: a sample, and a batch padded to one canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detrkit.structures.objects import Target

__all__ = ["Batch", "Sample", "pad_images", "pad_masks"]


@dataclass(frozen=True)
class Sample:
    """One transformed image (3, H, W) float32, normalised, with its target."""

    image: Tensor
    target: Target


@dataclass(frozen=True)
class Batch:
    """Images padded at the right and bottom to one canvas.

    Attributes:
        images: (B, 3, H, W) float32.
        padding_mask: (B, H, W) bool, True = padding.
        targets: one per image.
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.padding_mask.to(device, non_blocking=True),
            [target.to(device) for target in self.targets],
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; a DataLoader calls this before copies to a GPU."""
        targets = [target.pin_memory() for target in self.targets]
        return Batch(self.images.pin_memory(), self.padding_mask.pin_memory(), targets)


def pad_images(images: Sequence[Tensor], size_divisor: int = 1) -> tuple[Tensor, Tensor]:
    """Pad images (3, H_i, W_i) with zeros at the right and bottom to one canvas.

    Returns:
        Images (B, 3, H, W) and padding mask (B, H, W), True = padding. H and W are the largest in the batch, rounded up
        to a multiple of ``size_divisor`` (DETR: 1, no rounding).
    """
    height = max(image.shape[-2] for image in images)
    width = max(image.shape[-1] for image in images)
    height = -(-height // size_divisor) * size_divisor
    width = -(-width // size_divisor) * size_divisor
    canvas = images[0].new_zeros((len(images), 3, height, width))
    mask = torch.ones((len(images), height, width), dtype=torch.bool)
    for index, image in enumerate(images):
        h, w = image.shape[-2:]
        canvas[index, :, :h, :w] = image
        mask[index, :h, :w] = False
    return canvas, mask


def pad_masks(target: Target, canvas: Tensor) -> Target:
    """The target with its masks zero-padded at the right and bottom to the size of a canvas (…, H, W)."""
    if target.masks is None or target.masks.shape[-2:] == canvas.shape[-2:]:
        return target
    masks = target.masks.new_zeros((len(target), *canvas.shape[-2:]))
    height, width = target.masks.shape[-2:]
    masks[:, :height, :width] = target.masks
    return replace(target, masks=masks)
