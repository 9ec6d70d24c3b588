"""Terms of set prediction: each defines a matching cost and the loss of the matched pairs.

Matcher and criterion take the same list, so costs and losses cannot drift apart. A new kind of prediction needs one new
class and one entry in the list.
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

__all__ = ["BoxTerm", "ClassTerm", "GIoUTerm", "L1Term", "Term"]


@dataclass(frozen=True, kw_only=True)
class Term(ABC):
    """Cost and loss of one kind of prediction.

    Attributes:
        name: name of the loss in the log.
        weight: weight of the loss.
        cost_weight: weight of the cost; with 0 the matcher ignores the term and its cost is never computed.
    """

    name: ClassVar[str]
    weight: float
    cost_weight: float = 0.0

    @abstractmethod
    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        """The tensors of a group that the loss depends on.

        A group without them is skipped in matching and loss. A process without objects adds a zero that depends on all
        of them, so that every parameter has a gradient on every process.
        """

    def cost(self, candidates: Candidates) -> Tensor:
        """Cost of every object with every query of its image, lower for a better match: (L', G, Q) float32.

        Raises:
            NotImplementedError: the term has no cost; its ``cost_weight`` must stay 0.
        """
        raise NotImplementedError(f"{type(self).__name__} has no cost: leave its cost_weight at 0")

    @abstractmethod
    def loss(self, matched: Matched, divisor: float) -> Tensor:
        """Sum over each layer, divided by ``divisor``, the group's :meth:`normaliser`: (L,) float32.

        A term of the last layer alone returns (1,).
        """

    def normaliser(self, counts: Normalisers) -> float:
        """The count that the loss is divided by."""
        return counts.objects


@dataclass(frozen=True, kw_only=True)
class ClassTerm(Term):
    """Class of the object; the only term with a loss for unmatched queries."""

    name: ClassVar[str] = "loss_class"
    classes: ClassLoss

    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        """The logits."""
        return (group.logits,)

    def cost(self, candidates: Candidates) -> Tensor:
        """Cost of the object's own class."""
        return self.classes.cost(candidates)

    def loss(self, matched: Matched, divisor: float) -> Tensor:
        """Loss of all queries and classes, without ignored queries, regions and classes that do not count."""
        loss = self.classes.loss(matched)
        ignored = matched.problem.group.ignored
        if ignored is not None:
            loss = loss.masked_fill(ignored[..., None], 0.0)
        if matched.unjudged is not None:
            loss = loss.masked_fill(matched.unjudged[..., None], 0.0)
        if matched.counted is not None:
            loss = leave_out(loss, matched.counted, matched)
        # the official order of operations: a mean over the queries, undone after the division
        return loss.mean(2).sum((1, 2)) / divisor * loss.shape[2]

    def normaliser(self, counts: Normalisers) -> float:
        """The divisor of the class loss."""
        return self.classes.normaliser(counts)


@dataclass(frozen=True, kw_only=True)
class BoxTerm(Term, ABC):
    """A term of boxes."""

    things_only: bool = False
    """Whether boxes of stuff are left out (MaskDINO): their cost is 0, which shifts all queries alike and so leaves the
    assignment to the other terms."""

    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        """The boxes."""
        return (group.boxes,)

    def cost(self, candidates: Candidates) -> Tensor:
        """Cost of the boxes of every pair."""
        cost = self.of_pairs(candidates.boxes, candidates.target_boxes)
        return cost * candidates.problem.is_thing[:, None] if self.things_only else cost

    def loss(self, matched: Matched, divisor: float) -> Tensor:
        """Loss of the boxes of the matched pairs."""
        loss = self.of_matches(matched)
        if self.things_only:
            loss = loss * matched.problem.is_thing[matched.matches.target]
        return matched.per_layer(loss) / divisor

    def normaliser(self, counts: Normalisers) -> float:
        """Number of objects that have a box."""
        return counts.things if self.things_only else counts.objects

    @abstractmethod
    def of_pairs(self, boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Costs (L', G, Q) of boxes cxcywh (L', G, Q, 4) and (1, G, 1, 4)."""

    @abstractmethod
    def of_matches(self, matched: Matched) -> Tensor:
        """Losses (L·M,) of the matched pairs."""


@dataclass(frozen=True, kw_only=True)
class L1Term(BoxTerm):
    """L1 distance of boxes (cxcywh)."""

    name: ClassVar[str] = "loss_bbox"

    def of_pairs(self, boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Sum of the absolute differences of the four coordinates."""
        return (boxes - target_boxes).abs().sum(-1)

    def of_matches(self, matched: Matched) -> Tensor:
        """L1 distance."""
        return (matched.boxes - matched.target_boxes).abs().sum(-1)


@dataclass(frozen=True, kw_only=True)
class GIoUTerm(BoxTerm):
    """Generalised IoU of the boxes."""

    name: ClassVar[str] = "loss_giou"

    def of_pairs(self, boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Negative GIoU."""
        return -generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))

    def of_matches(self, matched: Matched) -> Tensor:
        """1 - GIoU."""
        return 1 - generalized_iou(matched.corners, matched.target_corners)
