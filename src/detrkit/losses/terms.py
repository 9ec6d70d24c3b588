"""The terms of set prediction: each says what a query costs an object, and what is learned once they are matched.

Matcher and criterion take the same list, so what is minimised and what is matched by cannot drift apart, and something
new that queries predict is one class here and one entry in the list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from detrkit.losses.classes import ClassLoss
from detrkit.losses.federated import leave_out
from detrkit.losses.normalisers import Normalisers
from detrkit.losses.problem import Candidates, Matched
from detrkit.ops.boxes import cxcywh_to_xyxy, generalized_iou
from detrkit.structures import QueryGroup

__all__ = ["ClassTerm", "GIoUTerm", "L1Term", "Term"]


@dataclass(frozen=True, kw_only=True)
class Term(ABC):
    """One thing that queries predict of their object.

    Attributes:
        name: of the loss in the log.
        weight: of the loss.
        cost_weight: of the cost; 0: the term has no part in the matching, and its cost is never asked for.
    """

    name: ClassVar[str]
    weight: float
    cost_weight: float = 0.0

    @abstractmethod
    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        """The tensors of a group that the loss depends on.

        A group that has none of them is passed over, in the matching and in the loss. A process without objects adds
        a zero that depends on all of them, so that every parameter has a gradient there too.
        """

    def cost(self, candidates: Candidates) -> Tensor:
        """(L', G, Q) float32: what each object costs each query of its image, low where they fit.

        Raises:
            NotImplementedError: the term has none; its ``cost_weight`` must stay 0.
        """
        raise NotImplementedError(f"{type(self).__name__} has no cost: leave its cost_weight at 0")

    @abstractmethod
    def loss(self, matched: Matched, divisor: float) -> Tensor:
        """(L,) float32: the sum over each layer, divided by ``divisor``, which is the group's :meth:`normaliser`.

        A term that only the last layer has gives (1,).
        """

    def normaliser(self, counts: Normalisers) -> float:
        """Which of the counts the loss is divided by."""
        return counts.objects


@dataclass(frozen=True, kw_only=True)
class ClassTerm(Term):
    """The class; the only term in which queries without an object take part."""

    name: ClassVar[str] = "loss_class"
    classes: ClassLoss

    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        """The logits."""
        return (group.logits,)

    def cost(self, candidates: Candidates) -> Tensor:
        """Of the object's own class."""
        return self.classes.cost(candidates)

    def loss(self, matched: Matched, divisor: float) -> Tensor:
        """Of all queries but those that the group ignores, and all classes but those that do not count."""
        loss = self.classes.loss(matched)
        ignored = matched.problem.group.ignored
        if ignored is not None:
            loss = loss.masked_fill(ignored[..., None], 0.0)
        if matched.counted is not None:
            loss = leave_out(loss, matched.counted, matched)
        # the official order of operations: a mean over the queries, undone after the division
        return loss.mean(2).sum((1, 2)) / divisor * loss.shape[2]

    def normaliser(self, counts: Normalisers) -> float:
        """As the class loss has it."""
        return self.classes.normaliser(counts)


@dataclass(frozen=True, kw_only=True)
class L1Term(Term):
    """Absolute differences of centre and size."""

    name: ClassVar[str] = "loss_bbox"

    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        """The boxes."""
        return (group.boxes,)

    def cost(self, candidates: Candidates) -> Tensor:
        """Their sum over the four numbers."""
        return (candidates.boxes - candidates.goal).abs().sum(-1)

    def loss(self, matched: Matched, divisor: float) -> Tensor:
        """Of the matched queries."""
        return matched.per_layer((matched.boxes - matched.goal).abs().sum(-1)) / divisor


@dataclass(frozen=True, kw_only=True)
class GIoUTerm(Term):
    """Generalised IoU of the boxes."""

    name: ClassVar[str] = "loss_giou"

    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        """The boxes."""
        return (group.boxes,)

    def cost(self, candidates: Candidates) -> Tensor:
        """GIoU, negative."""
        return -generalized_iou(cxcywh_to_xyxy(candidates.boxes), cxcywh_to_xyxy(candidates.goal))

    def loss(self, matched: Matched, divisor: float) -> Tensor:
        """1 - GIoU of the matched queries."""
        return matched.per_layer(1 - generalized_iou(matched.corners, matched.goal_corners)) / divisor
