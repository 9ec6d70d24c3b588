"""The set-prediction loss of DETR (section 3.1), computed for all decoder layers together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.losses.classification import focal_loss, heatmap_loss, softmax_loss, varifocal_loss
from detrkit.losses.federated import FederatedClasses, leave_out
from detrkit.losses.label_augmentation import LabelAugmentation
from detrkit.losses.matcher import HungarianMatcher, Matches
from detrkit.ops.boxes import cxcywh_to_xyxy, generalized_iou, iou
from detrkit.structures import Predictions, QueryGroup, Target

if TYPE_CHECKING:
    from detrkit.models.config import DetectorConfig

__all__ = ["Criterion", "LossOutput", "build_criterion"]


@dataclass(frozen=True)
class LossOutput:
    """total: what is minimised, weighted over all layers · terms: detached scalars for the log, unweighted.

    Names: ``loss_class``, ``loss_bbox``, ``loss_giou`` for the last layer, ``…_0`` onward for the layers before it,
    ``cardinality_error`` likewise, ``class_error`` (per cent of matched queries with a wrong class, last layer). Losses
    of a query group end in its name; that of a heatmap is ``loss_`` and its name. groups: the matches of each group.
    """

    total: Tensor
    terms: dict[str, Tensor]
    matches: Matches
    groups: dict[str, Matches] = field(default_factory=dict)


def by_layer_name(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values (L,) of a term -> one entry a layer, the last without a number, and last layer first."""
    return {
        name if layer == len(value) - 1 else f"{name}_{layer}": value[layer]
        for name, value in terms.items()
        for layer in reversed(range(len(value)))
    }


def own_objects(group: QueryGroup) -> bool:
    """Whether a group takes the objects as they are, not as label augmentation repeats them."""
    return group.pairs is not None or group.repeat > 1


def group_targets(group: QueryGroup, targets: list[Target]) -> list[Target]:
    """The objects that a query group is matched with."""
    if own_objects(group):
        targets = LabelAugmentation(repeat=group.repeat)([target.originals() for target in targets], 0)
    if group.class_agnostic:
        targets = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
    return targets


def fixed_matches(pairs: tuple[Tensor, Tensor, Tensor], *, layers: int) -> Matches:
    """The same (image, query, target) pairs in every layer."""
    layer = torch.arange(layers, device=pairs[0].device).repeat_interleave(len(pairs[0]))
    image, query, target = (index.repeat(layers) for index in pairs)
    return Matches(layer, image, query, target)


class Criterion:
    """Matches, then sums classification, L1 and GIoU losses over the layers.

    The normalisers given by :meth:`count` are additive: boxes (after and before label augmentation) and the class
    weights of all queries. Summed over ranks and accumulated micro-batches they make the gradient that of the whole
    batch.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        label_augmentation: LabelAugmentation,
        num_classes: int,
        num_queries: int,
        classification: str = "softmax",
        class_loss: str = "focal",
        no_object_weight: float = 0.1,
        focal_alpha: float = 0.25,
        loss_class: float = 1.0,
        loss_bbox: float = 5.0,
        loss_giou: float = 2.0,
        federated: FederatedClasses | None = None,
    ) -> None:
        self.matcher = matcher
        self.label_augmentation = label_augmentation
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.classification = classification
        self.class_loss = class_loss
        self.no_object_weight = no_object_weight
        self.focal_alpha = focal_alpha
        self.weights = {"loss_class": loss_class, "loss_bbox": loss_bbox, "loss_giou": loss_giou}
        self.federated = federated
        self._warned = False

    def prepare(self, targets: list[Target]) -> list[Target]:
        """Label augmentation: what training matches against. Evaluation losses use the targets as they are."""
        crowded = max((len(target) for target in targets), default=0)
        if crowded > self.num_queries and not self._warned:
            self._warned = True
            warnings.warn(
                f"an image has {crowded} objects but the model only {self.num_queries} queries: the surplus is not "
                "learned. Set num_queries above the largest number of objects an image",
                stacklevel=2,
            )
        return self.label_augmentation(targets, self.num_queries)

    def count(self, targets: list[Target]) -> Tensor:
        """(4,) float64: boxes, class weight of all queries, boxes without copies, images; from prepared targets.

        An image with n boxes has min(n, Q) matched queries, whatever the matching, so no prediction is needed.
        """
        boxes = sum(len(target) for target in targets)
        matched = sum(min(len(target), self.num_queries) for target in targets)
        unmatched = len(targets) * self.num_queries - matched
        originals = sum(len(target.originals()) for target in targets)
        class_weight = matched + self.no_object_weight * unmatched
        return torch.tensor([boxes, class_weight, originals, len(targets)], dtype=torch.float64)

    def __call__(self, predictions: Predictions, targets: list[Target], counts: Tensor | None = None) -> LossOutput:
        """Losses of prepared targets.

        Args:
            predictions: all layers, (L, B, Q, …), groups of queries and heatmaps with losses of their own.
            targets: from :meth:`prepare`.
            counts: normalisers of the whole batch divided by the number of ranks; None = this batch alone.
        """
        counts = self.count(targets) if counts is None else counts
        groups = {name: (group, group_targets(group, targets)) for name, group in predictions.groups.items()}
        matched = {"": (predictions, targets)} | {k: pair for k, pair in groups.items() if pair[0].pairs is None}
        matches = dict(zip(matched, self.matcher.match(list(matched.values())), strict=True))
        counted = None if self.federated is None else self.federated(targets)
        total, terms = self._losses(predictions, targets, matches[""], counts, counted)
        terms |= self._log_only(predictions.logits.detach(), targets, matches[""])
        for name, (group, own) in groups.items():
            if group.pairs is not None:
                matches[name] = fixed_matches(group.pairs, layers=len(group.logits))
            normalisers = counts[[2, 1]] if own_objects(group) else counts
            loss, more = self._losses(group, own, matches[name], normalisers, None if group.class_agnostic else counted)
            total = total + loss
            terms |= {f"{term}_{name}": value for term, value in more.items()}
        for name, heatmap in predictions.heatmaps.items():
            loss = heatmap_loss(heatmap, targets)
            total = total + heatmap.weight * loss * (len(targets) / float(counts[3]))  # a mean over micro-batches
            terms[f"loss_{name}"] = loss.detach()
        return LossOutput(total, terms, matches.pop(""), matches)

    def _losses(
        self,
        predictions: QueryGroup,
        targets: list[Target],
        matches: Matches,
        counts: Tensor,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum over all layers, and the unweighted terms by name. counted: see ``FederatedClasses``."""
        logits, boxes = predictions.logits.float(), predictions.boxes.float()
        labels = torch.cat([target.labels for target in targets])
        goal = torch.cat([target.boxes for target in targets])[matches.target]
        chosen = boxes[matches.layer, matches.image, matches.query]
        corners, goal_corners = cxcywh_to_xyxy(chosen), cxcywh_to_xyxy(goal)
        giou = 1 - generalized_iou(corners, goal_corners)
        class_loss = self._classification(logits, labels, matches, corners.detach(), goal_corners)
        if predictions.ignored is not None:
            class_loss = class_loss.masked_fill(predictions.ignored[..., None], 0.0)
        if counted is not None:
            class_loss = leave_out(class_loss, counted, matches, labels)

        num_boxes = max(float(counts[0]) * predictions.repeat, 1.0) * predictions.normaliser
        class_weight = float(counts[1]) * predictions.normaliser if self.classification == "softmax" else num_boxes
        layers = len(logits)
        by_layer = {
            # the official order of operations: a mean over the queries, undone after the division
            "loss_class": class_loss.mean(2).sum((1, 2)) / class_weight * logits.shape[2],
            "loss_bbox": (chosen - goal).abs().sum(-1).view(layers, -1).sum(1) / num_boxes,
            "loss_giou": giou.view(layers, -1).sum(1) / num_boxes,
        }
        total = torch.stack([self.weights[name] * value.sum() for name, value in by_layer.items()]).sum()
        return total, by_layer_name({name: value.detach() for name, value in by_layer.items()})

    def _log_only(self, logits: Tensor, targets: list[Target], matches: Matches) -> dict[str, Tensor]:
        labels = torch.cat([target.labels for target in targets])
        return by_layer_name({"cardinality_error": self._cardinality(logits, targets)}) | {
            "class_error": self._class_error(logits, labels, matches)
        }

    def _classification(
        self, logits: Tensor, labels: Tensor, matches: Matches, corners: Tensor, goal_corners: Tensor
    ) -> Tensor:
        """(L, B, Q, 1 or K) from logits, and for varifocal loss from matched boxes and their objects xyxy."""
        place = (matches.layer, matches.image, matches.query)
        labelled = torch.full(logits.shape[:3], self.num_classes, dtype=torch.long, device=logits.device)
        labelled[place] = labels[matches.target]
        if self.classification == "softmax":
            return softmax_loss(logits, labelled, no_object_weight=self.no_object_weight)
        goal = F.one_hot(labelled, self.num_classes + 1)[..., :-1].to(logits.dtype)
        if self.class_loss == "varifocal":
            quality = logits.new_zeros(logits.shape[:3]).index_put(place, iou(corners, goal_corners))
            return varifocal_loss(logits, goal, quality, alpha=self.focal_alpha)
        return focal_loss(logits, goal, alpha=self.focal_alpha)

    def _cardinality(self, logits: Tensor, targets: list[Target]) -> Tensor:
        """Mean absolute difference between the number of queries that claim an object and the objects (log only).

        As in the official code a query claims nothing when its last logit is the highest, also for focal
        classification, where that is an ordinary class.
        """
        counts = torch.tensor([len(target) for target in targets], device=logits.device, dtype=torch.float32)
        claimed = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)
        return (claimed.float() - counts).abs().mean(-1)

    def _class_error(self, logits: Tensor, labels: Tensor, matches: Matches) -> Tensor:
        if len(matches.layer) == 0:
            return logits.new_tensor(100.0)
        last = matches.layer == len(logits) - 1
        guess = logits[-1, matches.image[last], matches.query[last]].argmax(-1)
        return 100 - 100 * (guess == labels[matches.target[last]]).float().mean()


def build_criterion(config: DetectorConfig, *, federated: FederatedClasses | None = None) -> Criterion:
    """The criterion a model configuration asks for; ``federated`` needs its classification to be "focal".

    Raises:
        ValueError: federated with softmax classification, where classes cannot be counted one by one.
    """
    if federated is not None and config.classification != "focal":
        raise ValueError(f"the federated loss needs classification 'focal', not '{config.classification}'")
    return Criterion(
        matcher=HungarianMatcher(
            cost_class=config.cost_class,
            cost_bbox=config.cost_bbox,
            cost_giou=config.cost_giou,
            classification=config.classification,
            focal_alpha=config.focal_alpha,
            two_stage=config.two_stage_match,
        ),
        label_augmentation=LabelAugmentation(repeat=config.repeat_label, ratio=config.repeat_ratio),
        num_classes=config.num_classes,
        num_queries=config.num_queries,
        classification=config.classification,
        class_loss=config.class_loss,
        no_object_weight=config.no_object_weight,
        focal_alpha=config.focal_alpha,
        loss_class=config.loss_class,
        loss_bbox=config.loss_bbox,
        loss_giou=config.loss_giou,
        federated=federated,
    )
