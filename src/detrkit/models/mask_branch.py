"""The mask branch: a detector with deformable attention becomes one for instances, classes of pixels, or both.

As in MaskDINO (Li et al., CVPR 2023, section 3): a mask is the product of a query's embedding and of an embedding of
every pixel, made of the backbone's map at 1/4 and the finest level of the memory (:mod:`detrkit.nn.masks`). The
detector does not change: **Mask-DAPE = DAPE + this branch**, read on the decoded states. Of Mask-DAPE only its
published description is known; that it is MaskDINO's branch is inferred, and its figures are not claimed to be ours.

The option ``task`` decides what is trained and predicted; the modules of all tasks with masks are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from detrkit.models.config import Objective
from detrkit.models.deformable_parts import DeformableArchitecture
from detrkit.models.detector import build_backbone
from detrkit.nn.heads import MLP
from detrkit.nn.masks import MaskBranch, PixelEmbedding
from detrkit.ranges import Count, NonNegative

__all__ = ["MASK_SETTINGS", "MaskObjective", "build_mask_branch"]

_WITH_MASKS: Mapping[str, object] = {"cost_class": 4.0, "loss_class": 4.0}
MASK_SETTINGS: Mapping[str, Mapping[str, object]] = {
    "det": {},
    "inst": _WITH_MASKS,
    "sem": _WITH_MASKS,
    "pan": _WITH_MASKS,
}
"""Options that a task sets differently from the detector (weights of MaskDINO); what a user gives stands."""


@dataclass(frozen=True, kw_only=True)
class MaskObjective(Objective):
    """Objective of a detector that may have masks; without them these keys have no effect."""

    masks: ClassVar[Literal["points", "dense"] | None] = "points"
    cost_mask: NonNegative = 5.0
    """Weight of the cross entropy of masks in the matching."""
    cost_dice: NonNegative = 5.0
    """Weight of dice in the matching."""
    loss_mask: NonNegative = 5.0
    """Weight of the cross entropy of masks."""
    loss_dice: NonNegative = 5.0
    """Weight of the dice loss of masks."""
    mask_points: Annotated[Count, Field(ge=4, le=10_000_000)] = 12544
    """Points at which a mask is compared, in the loss and in the matching (published: 112²)."""
    stuff_box: Literal["supervise", "ignore"] = "supervise"
    """Whether boxes of stuff, such as sky, are learned and matched by; ``ignore`` as MaskDINO's paper has it,
    ``supervise`` as its published models were trained."""

    @property
    def only_boxes_of_things(self) -> bool:
        """Whether boxes of stuff have no loss and no cost."""
        return self.stuff_box == "ignore"


def build_mask_branch(architecture: DeformableArchitecture) -> MaskBranch:
    """Build the branch, randomly initialised, for the width and the finest backbone map of an architecture."""
    with torch.device("meta"):  # only the number of channels is of interest
        channels = build_backbone(architecture, architecture.backbone_levels).channels[0]
    dim = architecture.hidden_dim
    return MaskBranch(pixels=PixelEmbedding(in_dim=channels, dim=dim), queries=MLP(dim, dim, dim, num_layers=3))
