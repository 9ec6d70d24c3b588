"""DETR for panoptic segmentation (Carion et al., ECCV 2020, section 4.4): DETR with a mask head.

Trained in two steps, as published: DETR on the boxes of things and stuff, then the mask head alone
(``freeze_detector``, the official ``--frozen_weights``). Both at once works too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from detrkit.models.config import DetectorConfig, Objective
from detrkit.models.detr import DETR, DETRArchitecture, build_detr
from detrkit.nn.detr_masks import DETRMaskHead
from detrkit.ranges import NonNegative, Rows

__all__ = ["DETRPanopticArchitecture", "DETRPanopticObjective", "build_detr_panoptic"]


@dataclass(frozen=True, kw_only=True)
class DETRPanopticArchitecture(DETRArchitecture):
    """Architecture of DETR with masks; the defaults are the published ones.

    Attributes:
        freeze_detector: train the mask head alone. Dropout of the detector stays on in training, as published.
    """

    task: Literal["det", "inst", "sem", "pan"] = "pan"
    num_classes: Rows = 250
    freeze_detector: bool = False

    @property
    def finer_maps(self) -> int:
        """C2, C3 and C4: the head takes the maps of the last stage to 1/4."""
        return 3


@dataclass(frozen=True, kw_only=True)
class DETRPanopticObjective(Objective):
    """What training minimises.

    Attributes:
        loss_mask: weight of the focal loss of the masks of the last layer; 0 with ``loss_dice`` 0 trains boxes alone.
        loss_dice: weight of their dice loss.
    """

    masks: ClassVar[Literal["points", "dense"] | None] = "dense"
    loss_mask: NonNegative = 1.0
    loss_dice: NonNegative = 1.0


def build_detr_panoptic(config: DetectorConfig[DETRPanopticArchitecture]) -> DETR:
    """DETR with its mask head of a configuration, randomly initialised; the detector is drawn as without masks."""
    architecture = config.architecture
    model = build_detr(config)
    if architecture.freeze_detector:
        model.requires_grad_(False)
    model.mask_head = DETRMaskHead(
        dim=architecture.hidden_dim,
        num_heads=architecture.num_heads,
        channels=model.backbone.channels[-2::-1],
        mask_padding=architecture.mask_backbone_padding,
    )
    return model
