"""What decides a detector, in four parts: architecture, input, objective, post-processing.

Recipes, checkpoints and ``create_model`` write them as one flat set of keys: every key belongs to exactly one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar

__all__ = [
    "COMMON_OPTIONS",
    "DETR_SHORT_SIDES",
    "Architecture",
    "DetectorConfig",
    "Input",
    "Objective",
    "Postprocessing",
    "check_choices",
    "option_names",
]

DETR_SHORT_SIDES = tuple(range(480, 801, 32))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What every detector is made of; each paper's architecture extends this.

    Attributes:
        num_classes: classes without no-object; official COCO presets keep 91 slots (label = raw COCO id).
        num_queries: object queries.
        classification: "softmax" (K + 1 logits, no-object last) or "focal" (K logits, each a sigmoid).
        backbone: timm name.
        dilation, frozen_stride, frozen_batch_norm, mask_backbone_padding, backbone_norm, backbone_checkpointing,
            drop_path: see :class:`detrkit.nn.backbone.Backbone` (dilation: "DC5"; backbone_norm: its level_norm).
        hidden_dim, num_heads, encoder_layers, decoder_layers, ffn_dim, dropout: of the transformer.
    """

    num_classes: int = 91
    num_queries: int = 100
    classification: Literal["softmax", "focal"] = "softmax"
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

    def __post_init__(self) -> None:
        """Checks what can be checked without building.

        Raises:
            ValueError: a value is out of range; the message names the field.
        """
        if self.classification not in ("softmax", "focal"):
            raise ValueError(f"classification must be 'softmax' or 'focal', got {self.classification!r}")
        for name in ("num_classes", "num_queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if self.hidden_dim % self.num_heads or self.hidden_dim % 32:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be divisible by 32 and by num_heads ({self.num_heads})"
            )
        if self.frozen_stride not in (0, 2, 4, 8, 16, 32):
            raise ValueError(f"frozen_stride must be 0, 2, 4, 8, 16 or 32, got {self.frozen_stride}")

    @property
    def class_slots(self) -> int:
        """Logits per query: one per class, and for softmax classification no-object as the last."""
        return self.num_classes + (self.classification == "softmax")

    @property
    def finer_maps(self) -> int:
        """How many maps finer than those of the detector its mask head reads; the backbone returns them too."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Input:
    """How images reach the model. Sizes in pixels.

    Attributes:
        image_mean, image_std: normalisation of RGB in [0, 1]; None = what the backbone was trained with.
        train_short_sides, train_max_side, eval_short_side, eval_max_side: resizing.
        eval_resize: how evaluation resizes: "round" as DETR, "float32_truncate" as the Relation-DETR repository.
        size_divisor: batches are padded to multiples of this.
    """

    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    train_short_sides: tuple[int, ...] = DETR_SHORT_SIDES
    train_max_side: int = 1333
    eval_short_side: int = 800
    eval_max_side: int = 1333
    eval_resize: Literal["round", "float32_truncate"] = "round"
    size_divisor: int = 1

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        if self.size_divisor < 1:
            raise ValueError(f"size_divisor must be at least 1, got {self.size_divisor}")
        if self.eval_resize not in ("round", "float32_truncate"):
            raise ValueError(f"eval_resize must be 'round' or 'float32_truncate', got {self.eval_resize!r}")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What training minimises.

    Attributes:
        class_loss: of "focal" classification: "focal", or "varifocal", which learns the IoU of the matched box.
        no_object_weight: weight of no-object in softmax classification.
        focal_alpha: weight of positives in focal classification.
        cost_class, cost_bbox, cost_giou: weights in the matcher.
        loss_class, loss_bbox, loss_giou: weights in the loss.
        repeat_label: every box is given this many times (label augmentation, DE-DETR paper, section 3.4).
        repeat_ratio: boxes are repeated up to this share of the queries; at most one of the two.
        two_stage_match: originals are matched first, copies with what is left.
    """

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

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field, or both where two exclude each other."""
        if self.class_loss not in ("focal", "varifocal"):
            raise ValueError(f"class_loss must be 'focal' or 'varifocal', got {self.class_loss!r}")
        if self.repeat_label is not None and self.repeat_ratio is not None:
            raise ValueError("repeat_label and repeat_ratio exclude each other: set one of them to None")
        if self.repeat_label is not None and self.repeat_label < 1:
            raise ValueError(f"repeat_label must be at least 1, got {self.repeat_label}")
        if self.repeat_ratio is not None and not 0 < self.repeat_ratio <= 1:
            raise ValueError(f"repeat_ratio must be in (0, 1], got {self.repeat_ratio}")
        if self.two_stage_match and self.repeat_label is None and self.repeat_ratio is None:
            raise ValueError("two_stage_match matches copies after originals: it needs repeat_label or repeat_ratio")


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """What becomes of the predictions of an image.

    Attributes:
        top_k: detections kept.
        nms: class-wise IoU threshold or None.
        nms_decay: None removes suppressed detections; a factor (published: 0.01) keeps them with a lower score.
    """

    top_k: int = 100
    nms: float | None = None
    nms_decay: float | None = None

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.nms is not None and not 0 <= self.nms <= 1:
            raise ValueError(f"nms is an IoU threshold in [0, 1], got {self.nms}")
        if self.nms_decay is not None and self.nms is None:
            raise ValueError("nms_decay lowers the scores that NMS suppresses: it needs nms, e.g. nms=0.7")


A = TypeVar("A", bound=Architecture, covariant=True)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(Generic[A]):
    """The four parts. Every key of theirs can also be read from here: ``config.nms`` is ``config.postprocess.nms``."""

    architecture: A
    input: Input = field(default_factory=Input)
    objective: Objective = field(default_factory=Objective)
    postprocess: Postprocessing = field(default_factory=Postprocessing)

    def __post_init__(self) -> None:
        """Checks what concerns two parts; raises ValueError naming both."""
        if self.objective.class_loss == "varifocal" and self.architecture.classification != "focal":
            raise ValueError(
                f"class_loss='varifocal' needs classification='focal', got {self.architecture.classification!r}"
            )

    @classmethod
    def from_flat(
        cls, architecture: type[A], options: Mapping[str, object], *, objective: type[Objective] = Objective
    ) -> Self:
        """Sorts flat keys into the parts; lists become tuples.

        Raises:
            TypeError: a key that no part has.
            ValueError: a value out of range.
        """
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        config = cls(
            architecture=_take(architecture, values),
            input=_take(Input, values),
            objective=_take(objective, values),
            postprocess=_take(Postprocessing, values),
        )
        if values:
            raise TypeError(f"no part of the configuration has {', '.join(map(repr, values))}")
        return config

    def flat(self) -> dict[str, object]:
        """All keys of all parts, as recipes and checkpoints have them."""
        return {key: getattr(part, key) for part in self._parts() for key in option_names(type(part))}

    def replace(self, **options: object) -> Self:
        """The same with other values of flat keys.

        Raises:
            TypeError: a key that no part has.
            ValueError: a value out of range.
        """
        unknown = options.keys() - self.flat().keys()
        if unknown:
            raise TypeError(f"no part of the configuration has {', '.join(map(repr, sorted(unknown)))}")
        parts = {
            name: replace(part, **{key: options[key] for key in option_names(type(part)) if key in options})
            for name, part in vars(self).items()
        }
        return replace(self, **parts)

    def _parts(self) -> Iterator[Architecture | Input | Objective | Postprocessing]:
        yield from vars(self).values()

    if not TYPE_CHECKING:  # our own code names the part, so that a reader sees which rooms depend on what

        def __getattr__(self, name):
            """A flat key of one of the parts."""
            for part in vars(self).values():
                if name in option_names(type(part)):
                    return getattr(part, name)
            raise AttributeError(f"'{type(self).__name__}' has no '{name}'")


P = TypeVar("P")


def _take(part: Callable[..., P], values: dict[str, object]) -> P:
    """A part with its values, which are taken out."""
    assert isinstance(part, type)
    return part(**{key: values.pop(key) for key in option_names(part) if key in values})


def option_names(part: type) -> tuple[str, ...]:
    """The keys of one part, in order."""
    return tuple(entry.name for entry in fields(part))


def check_choices(part: object, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError where a field has none of its values, naming it and them."""
    for name, known in choices.items():
        if getattr(part, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(part, name)!r}")


COMMON_OPTIONS = frozenset(
    name for part in (Architecture, Input, Objective, Postprocessing) for name in option_names(part)
)
"""Flat keys that every model has."""
