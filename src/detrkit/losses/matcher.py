"""Bipartite matching of queries and objects (DETR, section 3.1) for all layers and images at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrkit.ops.boxes import cxcywh_to_xyxy, generalized_iou
from detrkit.structures import QueryGroup, Target

__all__ = ["HungarianMatcher", "Matches"]

# What a query costs a copy when an original already has it (two-stage matching).
TAKEN = 1e6
# Stands in for NaN and infinity, so that one bad prediction cannot stop a run.
NOT_FINITE = 1e8
# Pairs of query and object whose costs are made at once; beyond that, layers go one after the other.
MOST_PAIRS = 8_000_000


@dataclass(frozen=True)
class Matches:
    """Matched pairs of all layers, layer-major: four index vectors of one length L·M.

    ``target`` counts through the concatenated targets of the batch.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    def pairs(self, layer: int, image: int, offset: int = 0) -> Tensor:
        """(2, n) query and target index of one layer and image; ``offset`` = targets of the images before."""
        chosen = (self.layer == layer) & (self.image == image)
        return torch.stack((self.query[chosen], self.target[chosen] - offset))


def _assign(cost: np.ndarray, copies: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Queries and targets of one problem: cost (Q, n). With ``copies`` (n,) bool, originals choose first.

    Where originals and copies are more than queries, some queries get a copy on top of their original, as published.
    """
    if copies is None or not copies.any():
        query, target = linear_sum_assignment(cost)
        return query, target
    (originals,), (repeated,) = np.nonzero(~copies), np.nonzero(copies)
    query, target = linear_sum_assignment(cost[:, originals])
    rest = cost[:, repeated]
    rest[query] = TAKEN
    query2, target2 = linear_sum_assignment(rest)
    return np.concatenate((query, query2)), np.concatenate((originals[target], repeated[target2]))


class HungarianMatcher:
    """One-to-one matching by weighted class, L1 and GIoU cost.

    Args:
        cost_class, cost_bbox, cost_giou: weights (published: 1, 5, 2; focal classification 2, 5, 2).
        classification: "softmax" uses the probability of the target class, "focal" the focal cost.
        focal_alpha: for "focal"; gamma is 2.
        two_stage: originals are matched before their copies.
    """

    def __init__(
        self,
        *,
        cost_class: float = 1.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        classification: str = "softmax",
        focal_alpha: float = 0.25,
        two_stage: bool = False,
    ) -> None:
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.classification = classification
        self.focal_alpha = focal_alpha
        self.two_stage = two_stage
        self._warned = False

    def cost(self, predictions: QueryGroup, targets: list[Target]) -> Tensor:
        """(L, G, Q): what each object of the batch costs each query of its own image."""
        layers, _, queries = predictions.logits.shape[:3]
        pairs = queries * sum(len(target) for target in targets)
        at_once = max(1, MOST_PAIRS // max(1, pairs))
        parts = [slice(start, start + at_once) for start in range(0, layers, at_once)]
        return torch.cat([self._cost(predictions.logits[p], predictions.boxes[p], targets) for p in parts])

    def _cost(self, logits: Tensor, boxes: Tensor, targets: list[Target]) -> Tensor:
        counts = [len(target) for target in targets]
        image = torch.arange(len(targets)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
        image = image.to(logits.device)
        labels = torch.cat([target.labels for target in targets])
        goal = torch.cat([target.boxes for target in targets])[None, :, None]
        # Only the target's own class is ever needed: (L, B, Q, C) -> (L, G, Q).
        logits = logits.float()
        if self.classification == "softmax":
            class_cost = -logits.softmax(-1)[:, image, :, labels].transpose(0, 1)
        else:
            p = logits[:, image, :, labels].transpose(0, 1).sigmoid()
            alpha = self.focal_alpha
            positive = alpha * (1 - p) ** 2 * -(p + 1e-8).log()
            negative = (1 - alpha) * p**2 * -(1 - p + 1e-8).log()
            class_cost = positive - negative
        predicted = boxes.float()[:, image]
        l1 = (predicted - goal).abs().sum(-1)
        giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(goal))
        return self.cost_bbox * l1 + self.cost_class * class_cost - self.cost_giou * giou

    def __call__(self, predictions: QueryGroup, targets: list[Target]) -> Matches:
        """Matches every layer on its own; at most min(Q, objects) pairs an image."""
        return self.match([(predictions, targets)])[0]

    @torch.no_grad()
    def match(self, problems: Sequence[tuple[QueryGroup, list[Target]]]) -> list[Matches]:
        """Matches of several sets of predictions; their costs go to the host in one copy."""
        costs = [
            self.cost(predictions, targets) if any(len(target) for target in targets) else None
            for predictions, targets in problems
        ]
        flat = [cost.flatten() for cost in costs if cost is not None]
        host = self._finite(torch.cat(flat).cpu().numpy()) if flat else np.zeros(0)
        result, start = [], 0
        for (predictions, targets), cost in zip(problems, costs, strict=True):
            device = predictions.logits.device
            if cost is None:
                empty = torch.zeros(0, dtype=torch.long, device=device)
                result.append(Matches(empty, empty, empty, empty))
                continue
            part = host[start : start + cost.numel()].reshape(cost.shape)
            start += cost.numel()
            result.append(Matches(*torch.from_numpy(self._solve(part, targets)).to(device)))
        return result

    def _finite(self, cost: np.ndarray) -> np.ndarray:
        finite = np.isfinite(cost)
        if finite.all():
            return cost
        if not self._warned:
            self._warned = True
            warnings.warn("predictions are not finite: the matcher treats them as the worst match", stacklevel=2)
        return np.where(finite, cost, NOT_FINITE)

    def _solve(self, cost: np.ndarray, targets: list[Target]) -> np.ndarray:
        """(4, L·M) rows layer, image, query, target from costs (L, G, Q)."""
        copies = [self._copies(target) for target in targets]
        rows: list[np.ndarray] = []
        for layer, of_layer in enumerate(cost):
            start = 0
            for image, target in enumerate(targets):
                if len(target):
                    query, chosen = _assign(of_layer[start : start + len(target)].T, copies[image])
                    rows.append(
                        np.stack((np.full_like(query, layer), np.full_like(query, image), query, chosen + start))
                    )
                start += len(target)
        return np.concatenate(rows, axis=1)

    def _copies(self, target: Target) -> np.ndarray | None:
        return target.is_copy.cpu().numpy() if self.two_stage and target.is_copy is not None else None
