"""Configuration of a detector in four parts: architecture, input, objective, post-processing.

Recipes, checkpoints and ``create_model`` use one flat set of keys: every key belongs to exactly one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import Field

from detrkit.ranges import (
    Count,
    CountOrZero,
    Few,
    Layers,
    LayersOrZero,
    NonNegative,
    Number,
    PartBelowOne,
    Positive,
    Rows,
    Share,
    Side,
    Width,
    check_fields,
)

__all__ = [
    "COMMON_OPTIONS",
    "DETR_SHORT_SIDES",
    "Architecture",
    "DetectorConfig",
    "Input",
    "Objective",
    "Postprocessing",
    "option_names",
]

DETR_SHORT_SIDES = tuple(range(480, 801, 32))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Options that every architecture has; each paper extends this class."""

    task: Literal["det", "inst", "sem", "pan"] = "det"
    """Detection, or instance, semantic or panoptic segmentation, for which the model has a mask branch."""
    num_classes: Rows = 91
    """Classes without no-object. Official COCO models keep 91 slots: label = raw COCO id."""
    num_queries: Rows = 100
    """Object queries."""
    classification: Literal["softmax", "focal"] = "softmax"
    """``softmax``: K + 1 logits, no-object last. ``focal``: K logits, each a sigmoid."""
    backbone: str = "resnet50.tv_in1k"
    """A timm name."""
    dilation: bool = False
    """Stride 16 instead of 32 in the last stage of the backbone ("DC5")."""
    frozen_stride: CountOrZero = 4
    """Stages of the backbone up to this stride are not trained; 0 trains all, 32 none."""
    frozen_batch_norm: bool = True
    """Batch norm of the backbone as a fixed affine map."""
    mask_backbone_padding: bool = False
    """Keep the padding of a batch at zero inside the backbone, so that an image gives the same features alone and in a
    padded batch. The official models let it leak."""
    backbone_norm: bool = False
    """A layer norm over the channels of every level of the backbone."""
    backbone_checkpointing: bool = False
    """Compute activations of the backbone again in the backward pass: less memory, more time."""
    drop_path: PartBelowOne = 0.0
    """Rate of stochastic depth in the last block of the backbone; it grows from 0 in the first."""
    hidden_dim: Width = 256
    """Width of the transformer; divisible by 32 and by ``num_heads``."""
    num_heads: Width = 8
    """Heads of every attention."""
    encoder_layers: LayersOrZero = 6
    """Layers of the encoder."""
    decoder_layers: Layers = 6
    """Layers of the decoder."""
    ffn_dim: Width = 2048
    """Width of the feed-forward blocks."""
    dropout: PartBelowOne = 0.1
    """Dropout of the transformer."""

    def __post_init__(self) -> None:
        """Check the values that can be checked without building the model.

        Raises:
            ValueError: a value is out of range; the message names the field.
        """
        check_fields(self)
        if self.hidden_dim % self.num_heads or self.hidden_dim % 32:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be divisible by 32 and by num_heads ({self.num_heads})"
            )
        if self.frozen_stride not in (0, 2, 4, 8, 16, 32):
            raise ValueError(f"frozen_stride must be 0, 2, 4, 8, 16 or 32, got {self.frozen_stride}")

    @property
    def class_slots(self) -> int:
        """Number of logits per query: one per class, plus no-object as the last for softmax classification."""
        return self.num_classes + (self.classification == "softmax")

    @property
    def finer_maps(self) -> int:
        """How many maps finer than those of the detector its mask head reads; the backbone returns them too."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Input:
    """Normalisation, resizing and padding of images. Sizes in pixels."""

    image_mean: tuple[Number, Number, Number] | None = None
    """Subtracted from RGB in [0, 1]; None: what the backbone was trained with."""
    image_std: tuple[Positive, Positive, Positive] | None = None
    """Divisor after that; None: what the backbone was trained with."""
    train_short_sides: Annotated[tuple[Side, ...], Field(min_length=1)] = DETR_SHORT_SIDES
    """Shorter sides in training, one drawn per image."""
    train_max_side: Side = 1333
    """Largest longer side in training."""
    eval_short_side: Side = 800
    """Shorter side at evaluation and prediction."""
    eval_max_side: Side = 1333
    """Largest longer side at evaluation and prediction."""
    eval_resize: Literal["round", "float32_truncate"] = "round"
    """How evaluation resizes: ``round`` as DETR, ``float32_truncate`` as the Relation-DETR repository."""
    size_divisor: Side = 1
    """Batches are padded to multiples of this."""

    def __post_init__(self) -> None:
        """Check values; raise ValueError naming the field."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Losses, matching costs and label augmentation."""

    masks: ClassVar[Literal["points", "dense"] | None] = None
    """How masks are compared, in a task with masks: at points or cell by cell; None: the objective has none."""

    class_loss: Literal["focal", "varifocal"] = "focal"
    """Of ``focal`` classification: ``focal``, or ``varifocal``, which learns the IoU of the matched box."""
    no_object_weight: NonNegative = 0.1
    """Weight of no-object in ``softmax`` classification."""
    focal_alpha: Share = 0.25
    """Weight of positives in ``focal`` classification."""
    cost_class: NonNegative = 1.0
    """Weight of the class in the matching."""
    cost_bbox: NonNegative = 5.0
    """Weight of the L1 distance of boxes in the matching."""
    cost_giou: NonNegative = 2.0
    """Weight of GIoU in the matching."""
    loss_class: NonNegative = 1.0
    """Weight of the class loss."""
    loss_bbox: NonNegative = 5.0
    """Weight of the L1 loss of boxes."""
    loss_giou: NonNegative = 2.0
    """Weight of the GIoU loss."""
    repeat_label: Few | None = None
    """Every object is given this many times in training (label augmentation of the DE-DETR paper)."""
    repeat_ratio: Annotated[Share, Field(gt=0)] | None = None
    """Objects are repeated up to this share of the queries; excludes ``repeat_label``."""
    two_stage_match: bool = False
    """Originals are matched first, their copies with the queries that are left."""

    def __post_init__(self) -> None:
        """Check values; raise ValueError naming the field, or both fields if two exclude each other."""
        check_fields(self)
        if self.repeat_label is not None and self.repeat_ratio is not None:
            raise ValueError("repeat_label and repeat_ratio exclude each other: set one of them to None")
        if self.two_stage_match and self.repeat_label is None and self.repeat_ratio is None:
            raise ValueError("two_stage_match matches copies after originals: it needs repeat_label or repeat_ratio")

    @property
    def only_boxes_of_things(self) -> bool:
        """Whether boxes of stuff have no loss and no cost."""
        return False


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """Steps from the predictions of an image to its detections."""

    top_k: Count = 100
    """Detections kept per image."""
    nms: Share | None = None
    """IoU threshold of class-wise non-maximum suppression; None: no suppression."""
    nms_decay: Share | None = None
    """Factor on the score of suppressed detections, which then stay (published: 0.01); None: they are removed."""
    mask_quality: bool = True
    """Multiply the score of an instance by the mean probability of the pixels of its mask (Mask2Former, MaskDINO)."""
    mask_in_box: bool = False
    """Cut the mask of an object off at its box, for a model that was trained too briefly to tell apart objects that
    look alike; neither Mask2Former nor MaskDINO does. Not of DETR's own mask head."""
    panoptic_threshold: Share = 0.25
    """Class score that a query needs to become a panoptic segment."""
    panoptic_overlap: Share = 0.8
    """Share of the pixels of its mask that a query must win against the others to become a panoptic segment."""

    def __post_init__(self) -> None:
        """Check values; raise ValueError naming the field."""
        check_fields(self)
        if self.nms_decay is not None and self.nms is None:
            raise ValueError("nms_decay lowers the scores that NMS suppresses: it needs nms, e.g. nms=0.7")


A = TypeVar("A", bound=Architecture, covariant=True)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(Generic[A]):
    """The four parts. Their keys can also be read from here: ``config.nms`` is ``config.postprocess.nms``."""

    architecture: A
    input: Input = field(default_factory=Input)
    objective: Objective = field(default_factory=Objective)
    postprocess: Postprocessing = field(default_factory=Postprocessing)

    def __post_init__(self) -> None:
        """Check values that depend on two parts; raise ValueError naming both keys."""
        if self.objective.class_loss == "varifocal" and self.architecture.classification != "focal":
            raise ValueError(
                f"class_loss='varifocal' needs classification='focal', got {self.architecture.classification!r}"
            )

    @classmethod
    def from_flat(
        cls, architecture: type[A], options: Mapping[str, object], *, objective: type[Objective] = Objective
    ) -> Self:
        """Build the parts from flat keys; lists become tuples.

        Raises:
            TypeError: a key that no part has.
            ValueError: a value out of range.
        """
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        config = cls(
            architecture=_pop_part(architecture, values),
            input=_pop_part(Input, values),
            objective=_pop_part(objective, values),
            postprocess=_pop_part(Postprocessing, values),
        )
        if values:
            raise TypeError(f"no part of the configuration has {', '.join(map(repr, values))}")
        return config

    def flat(self) -> dict[str, object]:
        """Return the keys of all parts as one dict, as in recipes and checkpoints."""
        return {key: getattr(part, key) for part in self._parts() for key in option_names(type(part))}

    def replace(self, **options: object) -> Self:
        """Return a copy with new values for flat keys.

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

    if not TYPE_CHECKING:  # our own code names the part, so that dependencies stay visible

        def __getattr__(self, name):
            """Look up a flat key in the parts."""
            for part in vars(self).values():
                if name in option_names(type(part)):
                    return getattr(part, name)
            raise AttributeError(f"'{type(self).__name__}' has no '{name}'")


P = TypeVar("P")


def _pop_part(part: Callable[..., P], values: dict[str, object]) -> P:
    """Build a part from its keys and remove them from ``values``."""
    assert isinstance(part, type)
    return part(**{key: values.pop(key) for key in option_names(part) if key in values})


def option_names(part: type) -> tuple[str, ...]:
    """Return the keys of one part, in order."""
    return tuple(entry.name for entry in fields(part))


COMMON_OPTIONS = frozenset(
    name for part in (Architecture, Input, Objective, Postprocessing) for name in option_names(part)
)
"""Flat keys that every model has."""
