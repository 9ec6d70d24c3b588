"""Terms of masks: binary cross entropy and dice at sampled points (Mask2Former, section 3.3; MaskDINO, section 3.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detrkit.losses.points import MaskPoints, sample_masks, target_masks
from detrkit.losses.problem import Candidates, Matched
from detrkit.losses.terms import Term
from detrkit.structures import MaskView, QueryGroup

__all__ = ["DiceTerm", "MaskTerm", "PointTerm", "dice_loss"]

_ROWS_AT_ONCE = 32  # masks that are multiplied out at a time; the backward pass multiplies them out again


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 Σ pt + 1) / (Σ p + Σ t + 1) over the points: logits and targets (M, P) -> (M,)."""
    p = logits.sigmoid()
    return 1 - (2 * (p * target).sum(-1) + 1) / (p.sum(-1) + target.sum(-1) + 1)


@dataclass(frozen=True)
class _Pairwise:
    """Costs (L', G, Q) of every object with every query of its image, at points that the image's masks share."""

    cross_entropy: Tensor
    dice: Tensor


@dataclass(frozen=True, kw_only=True)
class PointTerm(Term, ABC):
    """A term of masks at points; terms with one ``points`` compare the same samples."""

    points: MaskPoints

    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        """What the masks are computed from; nothing where a group has none."""
        return () if group.masks is None else group.masks.factors

    def loss(self, matched: Matched, divisor: float) -> Tensor:
        """Of the matched masks."""
        logits, target = matched.once(self.points, lambda: _sampled(matched, self.points))
        return matched.per_layer(self.between(logits, target)) / divisor

    @abstractmethod
    def between(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss (M,) of logits (M, P), given the samples of the masks of their objects (M, P) in [0, 1]."""

    def pairwise(self, candidates: Candidates) -> _Pairwise:
        """The costs of all mask terms, computed once."""
        return candidates.once(self.points, lambda: _pairwise(candidates, self.points))


@dataclass(frozen=True, kw_only=True)
class MaskTerm(PointTerm):
    """Binary cross entropy of a mask, a mean over its points."""

    name: ClassVar[str] = "loss_mask"

    def between(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cross entropy."""
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)

    def cost(self, candidates: Candidates) -> Tensor:
        """The same of every pair."""
        return self.pairwise(candidates).cross_entropy


@dataclass(frozen=True, kw_only=True)
class DiceTerm(PointTerm):
    """Dice of a mask, see :func:`dice_loss`."""

    name: ClassVar[str] = "loss_dice"

    def between(self, logits: Tensor, target: Tensor) -> Tensor:
        """Dice."""
        return dice_loss(logits, target)

    def cost(self, candidates: Candidates) -> Tensor:
        """The same of every pair."""
        return self.pairwise(candidates).dice


def _masks(group: QueryGroup) -> MaskView:
    assert group.masks is not None
    return group.masks


def _sampled(matched: Matched, points: MaskPoints) -> tuple[Tensor, Tensor]:
    """Logits and targets (L·M, P) of the matched masks, each at points of its own.

    A few masks exist at a time: what stays for the backward pass are their samples and the factors.
    """
    masks, (layer, image, query) = _masks(matched.problem.group), matched.query_index
    image = image.cpu()  # once, not for every few masks
    logits, targets = [], []
    for start in range(0, max(1, len(layer)), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        place = layer[part], image[part], query[part]
        with torch.no_grad():
            at = points.uncertain(masks.rows(*place).float())
        sampled = checkpoint(_sample_rows, masks, place, at, points, use_reentrant=False, preserve_rng_state=False)
        logits.append(sampled)
        targets.append(points.of_objects(matched.problem.targets, image[part], matched.matches.target[part], at))
    return torch.cat(logits), torch.cat(targets)


def _sample_rows(masks: MaskView, place: tuple[Tensor, Tensor, Tensor], at: Tensor, points: MaskPoints) -> Tensor:
    return points.sample(masks.rows(*place).float(), at)


def _pairwise(candidates: Candidates, points: MaskPoints) -> _Pairwise:
    """Costs in closed form: one product of samples for cross entropy, one for dice (MaskDINO's "hybrid matching")."""
    problem = candidates.problem
    masks, targets = _masks(problem.group), problem.targets
    at = points.shared(len(targets), problem.group.logits.device)
    pairs: list[tuple[Tensor, Tensor]] = []
    for image, of_image in enumerate(target_masks(targets)):
        sampled = sample_masks(of_image, at[image : image + 1], border=points.border)
        layers = [_pairs(logits, sampled) for logits in masks.of_image(image, candidates.numbers, at[image])]
        pairs.append((torch.stack([one for one, _ in layers]), torch.stack([other for _, other in layers])))
    cross_entropy, dice = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
    return _Pairwise(cross_entropy, dice)


def _pairs(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and dice (n, Q) of logits (Q, P) with targets (n, P)."""
    p, number = logits.sigmoid(), logits.shape[-1]
    cross_entropy = (F.softplus(logits).sum(-1) - target @ logits.T) / number
    dice = 1 - (2 * (target @ p.T) + 1) / (target.sum(-1, keepdim=True) + p.sum(-1) + 1)
    return cross_entropy, dice
