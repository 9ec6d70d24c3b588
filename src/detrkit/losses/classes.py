"""Classification losses: softmax with no-object (DETR), sigmoid focal, varifocal (Relation-DETR).

All differences between them are methods and attributes of these classes; no other code compares their names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn import functional as F

from detrkit.losses.normalisers import Normalisers
from detrkit.losses.problem import Candidates, Matched
from detrkit.ops.boxes import iou

__all__ = [
    "ClassLoss",
    "ClassOptions",
    "Focal",
    "Softmax",
    "Varifocal",
    "build_classes",
    "focal_loss",
    "softmax_loss",
    "varifocal_loss",
]


class ClassLoss(ABC):
    """Cost, loss and scores of the class logits (…, C) of queries, for K classes."""

    exclusive: ClassVar[bool]
    """Whether classes exclude each other (softmax): a query then detects one object, and the loss needs all classes.
    Otherwise every class has its own sigmoid."""

    no_object: ClassVar[int]
    """Number of no-object logits, which come last: C = K + no_object."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Logits (…, C) -> scores (…, K) in [0, 1]."""

    def ranked(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Highest class score and its label (Q,) of queries (Q, C); 0 for queries whose highest logit is no-object."""
        score, label = self.scores(logits).max(-1)
        return score, label

    @abstractmethod
    def sharpened(self, logits: Tensor) -> Tensor:
        """Logits (…, C) -> weights (…, K) of a query's mask for each class, in semantic and panoptic inference."""

    @abstractmethod
    def cost(self, candidates: Candidates) -> Tensor:
        """Class cost of every pair of object and query: (L', G, Q)."""

    @abstractmethod
    def loss(self, matched: Matched) -> Tensor:
        """Loss of all queries, matched or not: (L, B, Q, 1 or K)."""

    @abstractmethod
    def normaliser(self, counts: Normalisers) -> float:
        """The divisor of the summed loss."""


@dataclass(frozen=True, kw_only=True)
class Softmax(ClassLoss):
    """Cross entropy over the classes and no-object. No-object has a lower weight, since most queries match nothing."""

    no_object_weight: float = 0.1
    exclusive: ClassVar[bool] = True
    no_object: ClassVar[int] = 1

    def scores(self, logits: Tensor) -> Tensor:
        """Softmax probabilities without no-object."""
        return logits.softmax(-1)[..., :-1]

    def ranked(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Highest softmax probability and its label."""
        score, label = logits.softmax(-1).max(-1)
        nothing = label == logits.shape[-1] - 1
        return score.masked_fill(nothing, 0.0), label.masked_fill(nothing, 0)

    def sharpened(self, logits: Tensor) -> Tensor:
        """Softmax probabilities without no-object."""
        return self.scores(logits)

    def cost(self, candidates: Candidates) -> Tensor:
        """Negative probability of the object's class."""
        problem = candidates.problem
        return -candidates.logits.softmax(-1)[:, problem.image, :, problem.labels].transpose(0, 1)

    def loss(self, matched: Matched) -> Tensor:
        """(L, B, Q, 1)."""
        labels = matched.class_targets(matched.logits.shape[-1] - 1)
        return softmax_loss(matched.logits, labels, no_object_weight=self.no_object_weight)

    def normaliser(self, counts: Normalisers) -> float:
        """Sum of the class weights of all queries."""
        return counts.matched + self.no_object_weight * counts.unmatched


@dataclass(frozen=True, kw_only=True)
class Focal(ClassLoss):
    """One sigmoid per class, with focal loss; gamma is 2."""

    alpha: float = 0.25
    """Weight of positives against negatives."""

    temperature: float | None = 0.06
    """Temperature of :meth:`sharpened`, as published; None: scores count as they are."""

    exclusive: ClassVar[bool] = False
    no_object: ClassVar[int] = 0

    def scores(self, logits: Tensor) -> Tensor:
        """Sigmoid of every logit."""
        return logits.sigmoid()

    def sharpened(self, logits: Tensor) -> Tensor:
        """Softmax of the scores at a low temperature, since sigmoid scores do not exclude each other (MaskDINO)."""
        scores = self.scores(logits)
        return scores if self.temperature is None else (scores / self.temperature).softmax(-1)

    def cost(self, candidates: Candidates) -> Tensor:
        """Focal loss of the object's class as a positive, minus its loss as a negative."""
        problem, alpha = candidates.problem, self.alpha
        # only the logits of the object's own class are read: (L', B, Q, C) -> (L', G, Q)
        p = candidates.logits[:, problem.image, :, problem.labels].transpose(0, 1).sigmoid()
        positive = alpha * (1 - p) ** 2 * -(p + 1e-8).log()
        negative = (1 - alpha) * p**2 * -(1 - p + 1e-8).log()
        return positive - negative

    def loss(self, matched: Matched) -> Tensor:
        """(L, B, Q, K)."""
        return focal_loss(matched.logits, self.one_hot(matched), alpha=self.alpha)

    def normaliser(self, counts: Normalisers) -> float:
        """The number of objects."""
        return counts.objects

    def one_hot(self, matched: Matched) -> Tensor:
        """(L, B, Q, K): 1 for the class of the matched object, 0 elsewhere."""
        classes = matched.logits.shape[-1]
        return F.one_hot(matched.class_targets(classes), classes + 1)[..., :-1].to(matched.logits.dtype)


@dataclass(frozen=True, kw_only=True)
class Varifocal(Focal):
    """Focal cost; the loss target of a matched query is the IoU of its box and the object."""

    def loss(self, matched: Matched) -> Tensor:
        """(L, B, Q, K)."""
        logits, target = matched.logits, self.one_hot(matched)
        overlap = iou(matched.corners.detach(), matched.target_corners)
        quality = logits.new_zeros(logits.shape[:3]).index_put(matched.query_index, overlap)
        return varifocal_loss(logits, target, quality, alpha=self.alpha)


class ClassArchitecture(Protocol):
    """The field of an architecture that selects the classification; see ``detrkit.models.config``."""

    @property
    def classification(self) -> str: ...


class ClassObjective(Protocol):
    """The fields of an objective that set the classification loss; see ``detrkit.models.config``."""

    @property
    def class_loss(self) -> str: ...

    @property
    def no_object_weight(self) -> float: ...

    @property
    def focal_alpha(self) -> float: ...


class ClassOptions(Protocol):
    """The parts of a model's configuration that a classification loss reads."""

    @property
    def architecture(self) -> ClassArchitecture: ...

    @property
    def objective(self) -> ClassObjective: ...


def build_classes(config: ClassOptions) -> ClassLoss:
    """The classification loss of a configuration, which has validated its values already."""
    objective = config.objective
    if config.architecture.classification == "softmax":
        return Softmax(no_object_weight=objective.no_object_weight)
    kind = Varifocal if objective.class_loss == "varifocal" else Focal
    return kind(alpha=objective.focal_alpha)


def softmax_loss(logits: Tensor, labels: Tensor, *, no_object_weight: float) -> Tensor:
    """Weighted cross entropy of logits (…, K + 1), no-object last, and labels (…), K = no-object: (…, 1)."""
    weight = logits.new_ones(logits.shape[-1])
    weight[-1] = no_object_weight
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight, reduction="none")
    return loss.view(*labels.shape, 1)


def focal_loss(logits: Tensor, target: Tensor, *, alpha: float) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), gamma 2, per logit; ``target`` has the shape of ``logits``."""
    p = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = loss * (1 - (p * target + (1 - p) * (1 - target))) ** 2
    return loss * (alpha * target + (1 - alpha) * (1 - target))


def varifocal_loss(logits: Tensor, target: Tensor, quality: Tensor, *, alpha: float) -> Tensor:
    """Varifocal loss (Zhang et al., CVPR 2021), gamma 2: (…, K).

    A positive has its quality as target and as weight; a negative has the weight (1 - alpha) p². No gradient flows
    through the weights.

    Args:
        logits: (…, K).
        target: (…, K) one-hot classes.
        quality: (…) in [0, 1], IoU of the query's box and its object.
        alpha: balance between positives and negatives.
    """
    score = target * quality.detach()[..., None]
    weight = (1 - alpha) * logits.detach().sigmoid() ** 2 * (1 - target) + score
    return weight * F.binary_cross_entropy_with_logits(logits, score, reduction="none")
