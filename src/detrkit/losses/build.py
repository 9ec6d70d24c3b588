"""From a model's configuration to its criterion: the one place of this room that reads configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from detrkit.losses.classes import ClassOptions, build_classes
from detrkit.losses.criterion import Criterion
from detrkit.losses.federated import FederatedClasses
from detrkit.losses.label_augmentation import LabelAugmentation
from detrkit.losses.matcher import HungarianMatcher
from detrkit.losses.terms import ClassTerm, GIoUTerm, L1Term, Term

__all__ = ["CriterionOptions", "build_criterion", "build_terms"]


class CriterionOptions(ClassOptions, Protocol):
    """What a model's configuration says about its criterion; ``detrkit.models.config`` has the meaning."""

    @property
    def num_queries(self) -> int: ...

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


def build_terms(config: CriterionOptions) -> list[Term]:
    """Class, L1 and GIoU with the weights of a configuration."""
    return [
        ClassTerm(classes=build_classes(config), weight=config.loss_class, cost_weight=config.cost_class),
        L1Term(weight=config.loss_bbox, cost_weight=config.cost_bbox),
        GIoUTerm(weight=config.loss_giou, cost_weight=config.cost_giou),
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
    if federated is not None and build_classes(config).exclusive:
        raise ValueError(f"the federated loss needs classification 'focal', not '{config.classification}'")
    terms = [*build_terms(config), *extra_terms]
    return Criterion(
        terms=terms,
        matcher=HungarianMatcher(terms=terms, two_stage=config.two_stage_match),
        num_queries=config.num_queries,
        label_augmentation=LabelAugmentation(repeat=config.repeat_label, ratio=config.repeat_ratio),
        federated=federated,
    )
