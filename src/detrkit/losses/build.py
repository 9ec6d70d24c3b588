"""From a model's configuration to its criterion: the one place of this room that reads configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from detrkit.losses.classes import Decides, Teaches, build_classes
from detrkit.losses.criterion import Criterion
from detrkit.losses.dense_masks import DenseDiceTerm, FocalMaskTerm
from detrkit.losses.federated import FederatedClasses
from detrkit.losses.label_augmentation import LabelAugmentation
from detrkit.losses.matcher import HungarianMatcher
from detrkit.losses.terms import ClassTerm, GIoUTerm, L1Term, Term

__all__ = ["CriterionOptions", "build_criterion", "build_terms"]


class Asks(Decides, Protocol):
    """The part of an architecture that says how many queries there are."""

    @property
    def num_queries(self) -> int: ...


class Weighs(Teaches, Protocol):
    """An objective; ``detrkit.models.config`` has the meaning."""

    @property
    def cost_class(self) -> float: ...

    @property
    def cost_bbox(self) -> float: ...

    @property
    def cost_giou(self) -> float: ...

    @property
    def loss_class(self) -> float: ...

    @property
    def loss_bbox(self) -> float: ...

    @property
    def loss_giou(self) -> float: ...

    @property
    def repeat_label(self) -> int | None: ...

    @property
    def repeat_ratio(self) -> float | None: ...

    @property
    def two_stage_match(self) -> bool: ...


@runtime_checkable
class WeighsMasks(Protocol):
    """An objective that has masks too; :mod:`detrkit.models.detr_panoptic` has the meaning."""

    @property
    def loss_mask(self) -> float: ...

    @property
    def loss_dice(self) -> float: ...


class CriterionOptions(Protocol):
    """What a model's configuration says about its criterion."""

    @property
    def architecture(self) -> Asks: ...

    @property
    def objective(self) -> Weighs: ...


def build_terms(config: CriterionOptions) -> list[Term]:
    """Class, L1, GIoU and, for a model with masks, focal loss and dice, with the weights of a configuration."""
    weights = config.objective
    masks: list[Term] = []
    if isinstance(weights, WeighsMasks) and (weights.loss_mask or weights.loss_dice):
        masks = [FocalMaskTerm(weight=weights.loss_mask), DenseDiceTerm(weight=weights.loss_dice)]
    return [
        ClassTerm(classes=build_classes(config), weight=weights.loss_class, cost_weight=weights.cost_class),
        L1Term(weight=weights.loss_bbox, cost_weight=weights.cost_bbox),
        GIoUTerm(weight=weights.loss_giou, cost_weight=weights.cost_giou),
        *masks,
    ]


def build_criterion(
    config: CriterionOptions, *, federated: FederatedClasses | None = None, extra_terms: Sequence[Term] = ()
) -> Criterion:
    """The criterion that a model configuration asks for.

    Args:
        config: of the model.
        federated: chooses the classes that count; classes must be decided one by one.
        extra_terms: of what the model predicts besides classes and boxes.

    Raises:
        ValueError: federated with classes that exclude each other, where none can be left out.
    """
    architecture, objective = config.architecture, config.objective
    if federated is not None and build_classes(config).exclusive:
        raise ValueError(f"the federated loss needs classification 'focal', not '{architecture.classification}'")
    terms = [*build_terms(config), *extra_terms]
    return Criterion(
        terms=terms,
        matcher=HungarianMatcher(terms=terms, two_stage=objective.two_stage_match),
        num_queries=architecture.num_queries,
        label_augmentation=LabelAugmentation(repeat=objective.repeat_label, ratio=objective.repeat_ratio),
        federated=federated,
    )
