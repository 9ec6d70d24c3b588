"""How classes are learned and read: softmax with no-object (DETR), sigmoid focal, varifocal (Relation-DETR).

Everything that differs between them is a method or an attribute here; nobody else asks which one a model has.
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
    """One way to learn K classes from the logits (…, C) of queries.

    Attributes:
        exclusive: a query decides between the classes, so it stands for one object only, and no class can be left out
            alone. Otherwise every class is a decision of its own.
        no_object: logits after those of the K classes, C = K + no_object.
    """

    exclusive: ClassVar[bool]
    no_object: ClassVar[int]

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Logits (…, C) -> scores (…, K) in [0, 1]."""

    def ranked(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Highest score and its class (Q,) of queries (Q, C); a query that decides for no-object has score 0."""
        score, label = self.scores(logits).max(-1)
        return score, label

    @abstractmethod
    def sharpened(self, logits: Tensor) -> Tensor:
        """Logits (…, C) -> shares (…, K) with which a query's mask counts for each class."""

    @abstractmethod
    def cost(self, candidates: Candidates) -> Tensor:
        """(L', G, Q): what each query costs each object for its class."""

    @abstractmethod
    def loss(self, matched: Matched) -> Tensor:
        """(L, B, Q, 1 or K) of all queries, matched or not."""

    @abstractmethod
    def normaliser(self, counts: Normalisers) -> float:
        """What the sum of the loss is divided by."""


@dataclass(frozen=True, kw_only=True)
class Softmax(ClassLoss):
    """Cross entropy over the classes and no-object, which weighs less: most queries find nothing."""

    no_object_weight: float = 0.1
    exclusive: ClassVar[bool] = True
    no_object: ClassVar[int] = 1

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities of the classes."""
        return logits.softmax(-1)[..., :-1]

    def ranked(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of queries that do not decide for no-object."""
        score, label = logits.softmax(-1).max(-1)
        nothing = label == logits.shape[-1] - 1
        return score.masked_fill(nothing, 0.0), label.masked_fill(nothing, 0)

    def sharpened(self, logits: Tensor) -> Tensor:
        """The probabilities, which exclude each other already."""
        return self.scores(logits)

    def cost(self, candidates: Candidates) -> Tensor:
        """The probability of the object's class, negative."""
        problem = candidates.problem
        return -candidates.logits.softmax(-1)[:, problem.image, :, problem.labels].transpose(0, 1)

    def loss(self, matched: Matched) -> Tensor:
        """(L, B, Q, 1)."""
        labelled = matched.labelled(matched.logits.shape[-1] - 1)
        return softmax_loss(matched.logits, labelled, no_object_weight=self.no_object_weight)

    def normaliser(self, counts: Normalisers) -> float:
        """The class weights of all queries."""
        return counts.matched + self.no_object_weight * counts.unmatched


@dataclass(frozen=True, kw_only=True)
class Focal(ClassLoss):
    """A sigmoid for every class, with focal loss; gamma is 2.

    Attributes:
        alpha: weight of the positives against the negatives.
        temperature: of :meth:`sharpened`, as published; None: scores count as they are.
    """

    alpha: float = 0.25
    temperature: float | None = 0.06
    exclusive: ClassVar[bool] = False
    no_object: ClassVar[int] = 0

    def scores(self, logits: Tensor) -> Tensor:
        """Each class on its own."""
        return logits.sigmoid()

    def sharpened(self, logits: Tensor) -> Tensor:
        """Softmax of the scores at a low temperature: scores of sigmoids do not exclude each other (MaskDINO)."""
        scores = self.scores(logits)
        return scores if self.temperature is None else (scores / self.temperature).softmax(-1)

    def cost(self, candidates: Candidates) -> Tensor:
        """What the focal loss of the object's class would rise by if the query did not get it."""
        problem, alpha = candidates.problem, self.alpha
        # only the object's own class is ever needed: (L', B, Q, C) -> (L', G, Q)
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
        """(L, B, Q, K): 1 for the class of a query's object, 0 everywhere else."""
        classes = matched.logits.shape[-1]
        return F.one_hot(matched.labelled(classes), classes + 1)[..., :-1].to(matched.logits.dtype)


@dataclass(frozen=True, kw_only=True)
class Varifocal(Focal):
    """Focal cost, but the loss teaches how well the query's box lies on its object."""

    def loss(self, matched: Matched) -> Tensor:
        """(L, B, Q, K)."""
        logits, goal = matched.logits, self.one_hot(matched)
        overlap = iou(matched.corners.detach(), matched.goal_corners)
        quality = logits.new_zeros(logits.shape[:3]).index_put(matched.place, overlap)
        return varifocal_loss(logits, goal, quality, alpha=self.alpha)


class Decides(Protocol):
    """The part of an architecture that says how classes are decided; ``detrkit.models.config`` has the meaning."""

    @property
    def classification(self) -> str: ...


class Teaches(Protocol):
    """The part of an objective that says how classes are learned."""

    @property
    def class_loss(self) -> str: ...

    @property
    def no_object_weight(self) -> float: ...

    @property
    def focal_alpha(self) -> float: ...


class ClassOptions(Protocol):
    """What a model's configuration says about its classes."""

    @property
    def architecture(self) -> Decides: ...

    @property
    def objective(self) -> Teaches: ...


def build_classes(config: ClassOptions) -> ClassLoss:
    """The one place where a configuration's strings become an object. Configurations check their values themselves."""
    objective = config.objective
    if config.architecture.classification == "softmax":
        return Softmax(no_object_weight=objective.no_object_weight)
    kind = Varifocal if objective.class_loss == "varifocal" else Focal
    return kind(alpha=objective.focal_alpha)


def softmax_loss(logits: Tensor, labels: Tensor, *, no_object_weight: float) -> Tensor:
    """Weighted cross entropy of logits (…, K + 1), no-object last, and labels (…), K = no object: (…, 1)."""
    weight = logits.new_ones(logits.shape[-1])
    weight[-1] = no_object_weight
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight, reduction="none")
    return loss.view(*labels.shape, 1)


def focal_loss(logits: Tensor, goal: Tensor, *, alpha: float) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), gamma 2: logits and goals (0 or 1) of one shape -> the same shape."""
    p = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    loss = loss * (1 - (p * goal + (1 - p) * (1 - goal))) ** 2
    return loss * (alpha * goal + (1 - alpha) * (1 - goal))


def varifocal_loss(logits: Tensor, goal: Tensor, quality: Tensor, *, alpha: float) -> Tensor:
    """Varifocal loss (Zhang et al., CVPR 2021), gamma 2: (…, K).

    logits and one-hot goal (…, K), quality (…) in [0, 1]: how well the query's box lies on its object. A positive
    learns its quality, weighted by it; a negative is weighted by (1 - alpha) p². The weights carry no gradient.
    """
    score = goal * quality.detach()[..., None]
    weight = (1 - alpha) * logits.detach().sigmoid() ** 2 * (1 - goal) + score
    return weight * F.binary_cross_entropy_with_logits(logits, score, reduction="none")
