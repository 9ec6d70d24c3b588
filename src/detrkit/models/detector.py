"""Base class of all detectors: input checks, predictions, parameter groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detrkit.models.compiled import CompiledNetwork
from detrkit.models.config import Architecture, DetectorConfig
from detrkit.nn.backbone import Backbone, FeatureMap
from detrkit.nn.queries import Decoded, Queries
from detrkit.nn.tokens import Tokens
from detrkit.structures import Categories, MaskView, Predictions, QueryGroup, Target, Thresholds

__all__ = ["Detector", "MaskHead", "build_backbone", "in_backbone"]


class MaskHead(Protocol):
    """A module that predicts a mask for every query; it fits every detector."""

    def __call__(self, hidden: Sequence[Tensor], memory: Tokens, maps: Sequence[FeatureMap]) -> list[MaskView]:
        """States of sets of queries (L, B, N, C), memory of the encoder, maps of the backbone -> masks of each set."""
        ...


class Detector(nn.Module):
    """Base of all models, with registry name, configuration and, once trained, class names and score thresholds."""

    name: str = ""
    categories: Categories | None = None
    thresholds: Thresholds | None = None
    canvas: tuple[int, int] | None = None
    """(height, width) of the only canvas that the model takes; None: any."""

    def __init__(self, *, config: DetectorConfig[Architecture], mask_head: MaskHead | None = None) -> None:
        super().__init__()
        self.config = config
        self.mask_head = mask_head
        self._compiled: CompiledNetwork | None = None

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Target] | None = None
    ) -> Predictions:
        """Detect objects.

        Args:
            images: (B, 3, H, W) float32 RGB, already normalised, padded at the right and bottom.
            padding_mask: (B, H, W) bool, True = padding; None = no padding.
            targets: used in training only, by models with denoising or one-to-many queries.

        Raises:
            ValueError: images or mask of another shape or type.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(
                f"images must be floats, normalised, got {images.dtype}; a Predictor takes images as they are"
            )
        if padding_mask is None:
            padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        elif padding_mask.shape != images.shape[:1] + images.shape[2:] or padding_mask.dtype != torch.bool:
            raise ValueError(
                f"padding_mask must be bool {tuple(images.shape[:1] + images.shape[2:])}, "
                f"got {padding_mask.dtype} {tuple(padding_mask.shape)}"
            )
        return self.detect(images, padding_mask, targets)

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Run :meth:`network`, in training compiled if :meth:`compile` was called; shapes as in :meth:`forward`."""
        network = self._compiled if self.training and self._compiled is not None else self.network
        return network(images, padding_mask, self.denoising_sets(targets))

    def denoising_sets(self, targets: list[Target] | None) -> list[Queries]:
        """Return sets of queries made of targets, in training; most models have none."""
        return []

    def network(self, images: Tensor, padding_mask: Tensor, denoising: Sequence[Queries]) -> Predictions:
        """Run the paper's forward pass; shapes as in :meth:`forward`.

        denoising: sets of queries made of targets (:meth:`denoising_sets`), to be decoded with the others.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither a network nor a detect of its own")

    def compile(self, **options: Any) -> None:
        """Compile :meth:`network` in place, for training, with the options of ``torch.compile``.

        Evaluation stays as it is, since its canvases differ from image to image. Copies are not compiled.
        """
        self._compiled = CompiledNetwork(self.network, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles consist of: graphs belong to one object."""
        return self.__dict__ | {"_compiled": None}

    def predictions(
        self,
        decoded: Decoded,
        memory: Tokens,
        maps: Sequence[FeatureMap],
        proposals: Mapping[str, QueryGroup] | None = None,
    ) -> Predictions:
        """Return predictions from decoded queries: with masks if there is a mask head, with groups in training."""
        groups = dict(proposals or {}) if self.training else {}
        if self.mask_head is not None:
            learned = {name: group.hidden for name, group in groups.items() if group.hidden is not None}
            masks, *of_groups = self.mask_head([decoded.hidden, *learned.values()], memory, maps)
            decoded = replace(decoded, masks=masks)
            groups |= {name: replace(groups[name], masks=found) for name, found in zip(learned, of_groups, strict=True)}
        return decoded.predictions(groups)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return trainable parameters by learning-rate group; each parameter is in exactly one group.

        The groups are "backbone", "default" and, for models that predict sampling or reference points, "sampling".
        """
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "default": [], "sampling": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                sampling = "sampling_offsets" in name or name.startswith("reference_points")
                group = "backbone" if in_backbone(name) else "sampling" if sampling else "default"
                groups[group].append(parameter)
        return {name: parameters for name, parameters in groups.items() if parameters or name != "sampling"}


def in_backbone(name: str) -> bool:
    """Whether a parameter or module of a detector learns at the rate of the backbone; its pyramid does not."""
    return name.startswith("backbone.") and not name.startswith("backbone.pyramid.")


def build_backbone(architecture: Architecture, num_levels: int) -> Backbone:
    """Build the backbone of an architecture.

    It returns the ``num_levels`` deepest levels, which the detector reads, and before them the finer maps that only
    the mask head of the architecture reads.
    """
    return Backbone(
        name=architecture.backbone,
        num_levels=num_levels + architecture.finer_maps,
        dilation=architecture.dilation,
        frozen_batch_norm=architecture.frozen_batch_norm,
        frozen_stride=architecture.frozen_stride,
        mask_padding=architecture.mask_backbone_padding,
        level_norm=architecture.backbone_norm,
        drop_path=architecture.drop_path,
        checkpointing=architecture.backbone_checkpointing,
    )
