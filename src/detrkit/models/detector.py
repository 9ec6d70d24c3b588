"""What every detector has in common besides its forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.nn.backbone import Backbone
from detrkit.structures import Categories, Predictions, Target

__all__ = ["Detector", "build_backbone", "class_slots"]


class Detector(nn.Module, ABC):
    """Base of all models: knows its registry name, its configuration and, once trained, its classes."""

    name: str = ""
    categories: Categories | None = None

    def __init__(self, *, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Target] | None = None
    ) -> Predictions:
        """Detects objects.

        Args:
            images: (B, 3, H, W) float32 RGB, already normalised, padded at the right and bottom.
            padding_mask: (B, H, W) bool, True = padding; None = no padding.
            targets: only models with denoising or one-to-many queries read them, in training.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        if padding_mask is None:
            padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        elif padding_mask.shape != images.shape[:1] + images.shape[2:] or padding_mask.dtype != torch.bool:
            raise ValueError(
                f"padding_mask must be bool {tuple(images.shape[:1] + images.shape[2:])}, "
                f"got {padding_mask.dtype} {tuple(padding_mask.shape)}"
            )
        return self.detect(images, padding_mask, targets)

    @abstractmethod
    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """The paper's forward pass; shapes as in :meth:`forward`."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by learning-rate group, each in exactly one.

        "backbone", "default", and where a model has any "sampling": what places sampling and reference points.
        """
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "default": [], "sampling": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                sampling = "sampling_offsets" in name or name.startswith("reference_points")
                backbone = name.startswith("backbone.") and not name.startswith("backbone.pyramid.")
                group = "backbone" if backbone else "sampling" if sampling else "default"
                groups[group].append(parameter)
        return {name: parameters for name, parameters in groups.items() if parameters or name != "sampling"}


def class_slots(config: DetectorConfig) -> int:
    """Logits a query has: one a class, and for softmax classification no-object as the last."""
    return config.num_classes + (config.classification == "softmax")


def build_backbone(config: DetectorConfig, num_levels: int) -> Backbone:
    """The backbone a configuration asks for, with ``num_levels`` levels."""
    return Backbone(
        name=config.backbone,
        num_levels=num_levels,
        dilation=config.dilation,
        frozen_batch_norm=config.frozen_batch_norm,
        frozen_stride=config.frozen_stride,
        mask_padding=config.mask_backbone_padding,
        level_norm=config.backbone_norm,
        drop_path=config.drop_path,
        checkpointing=config.backbone_checkpointing,
    )
