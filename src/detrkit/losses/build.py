"""Build a criterion from a model's configuration. Apart from ``build_classes``, no other loss code reads one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from detrkit.losses.classes import ClassArchitecture, ClassObjective, build_classes
from detrkit.losses.criterion import Criterion
from detrkit.losses.dense_masks import DenseDiceTerm, FocalMaskTerm
from detrkit.losses.federated import FederatedClasses
from detrkit.losses.label_augmentation import LabelAugmentation
from detrkit.losses.mask_terms import DiceTerm, MaskTerm
from detrkit.losses.matcher import HungarianMatcher
from detrkit.losses.points import MaskPoints
from detrkit.losses.terms import ClassTerm, GIoUTerm, L1Term, Term

__all__ = ["CriterionOptions", "build_criterion", "build_terms"]


class ArchitectureOptions(ClassArchitecture, Protocol):
    """The fields of an architecture that a criterion reads."""

    @property
    def task(self) -> str: ...

    @property
    def num_queries(self) -> int: ...


class ObjectiveOptions(ClassObjective, Protocol):
    """The fields of an objective that a criterion reads; ``detrkit.models.config`` documents them."""

    @property
    def masks(self) -> str | None: ...

    @property
    def only_boxes_of_things(self) -> bool: ...

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


class PointMaskOptions(Protocol):
    """An objective with masks that are compared at points; :mod:`detrkit.models.mask_branch` documents the fields."""

    @property
    def cost_mask(self) -> float: ...

    @property
    def cost_dice(self) -> float: ...

    @property
    def loss_mask(self) -> float: ...

    @property
    def loss_dice(self) -> float: ...

    @property
    def mask_points(self) -> int: ...


class DenseMaskOptions(Protocol):
    """An objective with masks that are compared cell by cell, those of DETR; :mod:`detrkit.models.detr_panoptic`."""

    @property
    def loss_mask(self) -> float: ...

    @property
    def loss_dice(self) -> float: ...


class CriterionOptions(Protocol):
    """The parts of a model's configuration that a criterion reads."""

    @property
    def architecture(self) -> ArchitectureOptions: ...

    @property
    def objective(self) -> ObjectiveOptions: ...


def _point_terms(weights: PointMaskOptions) -> list[Term]:
    points = MaskPoints(number=weights.mask_points)
    return [
        MaskTerm(points=points, weight=weights.loss_mask, cost_weight=weights.cost_mask),
        DiceTerm(points=points, weight=weights.loss_dice, cost_weight=weights.cost_dice),
    ]


def _dense_terms(weights: DenseMaskOptions) -> list[Term]:
    if not (weights.loss_mask or weights.loss_dice):
        return []
    return [FocalMaskTerm(weight=weights.loss_mask), DenseDiceTerm(weight=weights.loss_dice)]


_MASK_TERMS: Mapping[str, Callable[[Any], list[Term]]] = {"points": _point_terms, "dense": _dense_terms}
"""The terms of masks, by how an objective compares them."""


def build_terms(config: CriterionOptions) -> list[Term]:
    """Class, L1 and GIoU terms, and those of masks for a task with masks, with the weights of a configuration."""
    weights, masked = config.objective, config.architecture.task != "det"
    masks = _MASK_TERMS[weights.masks](weights) if masked and weights.masks is not None else []
    things_only = masked and weights.only_boxes_of_things
    return [
        ClassTerm(classes=build_classes(config), weight=weights.loss_class, cost_weight=weights.cost_class),
        L1Term(weight=weights.loss_bbox, cost_weight=weights.cost_bbox, things_only=things_only),
        GIoUTerm(weight=weights.loss_giou, cost_weight=weights.cost_giou, things_only=things_only),
        *masks,
    ]


def build_criterion(
    config: CriterionOptions, *, federated: FederatedClasses | None = None, extra_terms: Sequence[Term] = ()
) -> Criterion:
    """The criterion for a model configuration.

    Args:
        config: configuration of the model.
        federated: selects the classes of the federated loss; needs a classification with one sigmoid per class.
        extra_terms: terms for predictions other than classes and boxes.

    Raises:
        ValueError: ``federated`` with softmax classification, which cannot leave out single classes.
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
