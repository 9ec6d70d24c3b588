"""What every detector is configured by; each paper's configuration extends this and nothing else decides a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["DETR_SHORT_SIDES", "DetectorConfig", "check_choices"]

DETR_SHORT_SIDES = tuple(range(480, 801, 32))


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Fields shared by all detectors: backbone, input, matching, loss, label augmentation, post-processing.

    Architecture
        num_classes: classes without no-object; official COCO presets keep 91 slots (label = raw COCO id).
        num_queries: object queries.
        backbone: timm name.
        dilation ("DC5"), frozen_stride, frozen_batch_norm, mask_backbone_padding, backbone_norm (its level_norm),
        backbone_checkpointing, drop_path: see :class:`detrkit.nn.backbone.Backbone`.
        hidden_dim, num_heads, encoder_layers, decoder_layers, ffn_dim, dropout: of the transformer.

    Input
        image_mean, image_std: normalisation of RGB in [0, 1]; None = what the backbone was trained with.
        train_short_sides, train_max_side, eval_short_side, eval_max_side: resizing, in pixels.
        eval_resize: how evaluation resizes: "round" as DETR, "float32_truncate" as the Relation-DETR repository.
        size_divisor: batches are padded to multiples of this.

    Matching and loss
        classification: "softmax" (K + 1 logits, no-object weighted ``no_object_weight``) or "focal" (K logits).
        class_loss: of "focal" classification: "focal", or "varifocal", which learns the IoU of the matched box.
        cost_*: matcher weights; loss_*: loss weights.

    Label augmentation (DE-DETR paper, section 3.4)
        repeat_label: every box is given this many times. repeat_ratio: boxes are repeated up to this share of the
        queries. At most one of them. two_stage_match: originals are matched first, copies with what is left.

    Post-processing
        top_k: detections kept of an image. nms: class-wise IoU threshold or None. nms_decay: None removes suppressed
        detections; a factor (published: 0.01) keeps them with a lower score.
    """

    num_classes: int = 91
    num_queries: int = 100
    backbone: str = "resnet50.tv_in1k"
    dilation: bool = False
    frozen_stride: int = 4
    frozen_batch_norm: bool = True
    mask_backbone_padding: bool = False
    backbone_norm: bool = False
    backbone_checkpointing: bool = False
    drop_path: float = 0.0
    hidden_dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_dim: int = 2048
    dropout: float = 0.1

    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    train_short_sides: tuple[int, ...] = DETR_SHORT_SIDES
    train_max_side: int = 1333
    eval_short_side: int = 800
    eval_max_side: int = 1333
    eval_resize: Literal["round", "float32_truncate"] = "round"
    size_divisor: int = 1

    classification: Literal["softmax", "focal"] = "softmax"
    class_loss: Literal["focal", "varifocal"] = "focal"
    no_object_weight: float = 0.1
    focal_alpha: float = 0.25
    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    loss_class: float = 1.0
    loss_bbox: float = 5.0
    loss_giou: float = 2.0

    repeat_label: int | None = None
    repeat_ratio: float | None = None
    two_stage_match: bool = False

    top_k: int = 100
    nms: float | None = None
    nms_decay: float | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without building.

        Raises:
            ValueError: a value is out of range or two options exclude each other; the message names both.
        """
        for name in ("num_classes", "num_queries", "top_k", "size_divisor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.eval_resize not in ("round", "float32_truncate"):
            raise ValueError(f"eval_resize must be 'round' or 'float32_truncate', got {self.eval_resize!r}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if self.hidden_dim % self.num_heads or self.hidden_dim % 32:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be divisible by 32 and by num_heads ({self.num_heads})"
            )
        if self.classification not in ("softmax", "focal"):
            raise ValueError(f"classification must be 'softmax' or 'focal', got {self.classification!r}")
        if self.class_loss not in ("focal", "varifocal"):
            raise ValueError(f"class_loss must be 'focal' or 'varifocal', got {self.class_loss!r}")
        if self.class_loss == "varifocal" and self.classification != "focal":
            raise ValueError(f"class_loss='varifocal' needs classification='focal', got {self.classification!r}")
        if self.repeat_label is not None and self.repeat_ratio is not None:
            raise ValueError("repeat_label and repeat_ratio exclude each other: set one of them to None")
        if self.repeat_label is not None and self.repeat_label < 1:
            raise ValueError(f"repeat_label must be at least 1, got {self.repeat_label}")
        if self.repeat_ratio is not None and not 0 < self.repeat_ratio <= 1:
            raise ValueError(f"repeat_ratio must be in (0, 1], got {self.repeat_ratio}")
        if self.two_stage_match and self.repeat_label is None and self.repeat_ratio is None:
            raise ValueError("two_stage_match matches copies after originals: it needs repeat_label or repeat_ratio")
        if self.nms is not None and not 0 <= self.nms <= 1:
            raise ValueError(f"nms is an IoU threshold in [0, 1], got {self.nms}")
        if self.nms_decay is not None and self.nms is None:
            raise ValueError("nms_decay lowers the scores that NMS suppresses: it needs nms, e.g. nms=0.7")
        if self.frozen_stride not in (0, 2, 4, 8, 16, 32):
            raise ValueError(f"frozen_stride must be 0, 2, 4, 8, 16 or 32, got {self.frozen_stride}")


def check_choices(config: DetectorConfig, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError where a field has none of its values, naming it and them."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(config, name)!r}")
