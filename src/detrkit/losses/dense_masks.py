"""Terms of masks at every pixel of the canvas, of the last layer (DETR, section 4.4): focal loss and dice.

Padding counts as background, as published. Masks are enlarged a few at a time and made again in the backward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detrkit.losses.classes import focal_loss
from detrkit.losses.mask_terms import dice_loss
from detrkit.losses.points import target_masks
from detrkit.losses.problem import Matched
from detrkit.losses.terms import Term
from detrkit.structures import MaskView, QueryGroup, Target

__all__ = ["DenseDiceTerm", "DenseMaskTerm", "FocalMaskTerm"]

_ROWS_AT_ONCE = 16
_ALPHA = 0.25  # of the focal loss


@dataclass(frozen=True)
class _Losses:
    """Of every matched mask of the last layer (M,)."""

    focal: Tensor
    dice: Tensor


@dataclass(frozen=True, kw_only=True)
class DenseMaskTerm(Term, ABC):
    """A term of masks of the last layer; it has no cost: DETR matches by classes and boxes alone."""

    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        """What the masks are computed from; nothing where a group has none."""
        return () if group.masks is None else group.masks.factors

    def loss(self, matched: Matched, divisor: float) -> Tensor:
        """(1,), of the last layer.

        Raises:
            DataError: a target has no masks.
        """
        losses = matched.once(_Losses, lambda: _last_layer(matched))
        return self.of(losses).sum()[None] / divisor

    @abstractmethod
    def of(self, losses: _Losses) -> Tensor:
        """The one of both that the term minimises."""


@dataclass(frozen=True, kw_only=True)
class FocalMaskTerm(DenseMaskTerm):
    """Sigmoid focal loss, a mean over the pixels."""

    name: ClassVar[str] = "loss_mask"

    def of(self, losses: _Losses) -> Tensor:
        """Focal."""
        return losses.focal


@dataclass(frozen=True, kw_only=True)
class DenseDiceTerm(DenseMaskTerm):
    """Dice over all pixels, see :func:`detrkit.losses.mask_terms.dice_loss`."""

    name: ClassVar[str] = "loss_dice"

    def of(self, losses: _Losses) -> Tensor:
        """Dice."""
        return losses.dice


def _last_layer(matched: Matched) -> _Losses:
    """The losses of all matched masks of the last layer; both terms share them."""
    problem, matches = matched.problem, matched.matches
    targets, masks = problem.targets, problem.group.masks
    assert masks is not None
    last = matches.layer == problem.layers - 1
    place = matches.layer[last], matches.image[last], matches.query[last]
    pairs = list(zip(place[1].tolist(), matches.target[last].tolist(), strict=True))
    parts = []
    for start in range(0, max(1, len(pairs)), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        index = tuple(vector[part] for vector in place)
        wanted = _masks_of(targets, pairs[part])
        parts.append(checkpoint(_compare, masks, index, wanted, use_reentrant=False))
    focal, dice = (torch.cat(values) for values in zip(*parts, strict=True))
    return _Losses(focal, dice)


def _compare(masks: MaskView, index: tuple[Tensor, Tensor, Tensor], wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Focal loss and dice (m,) of masks at the size of bool masks (m, H, W)."""
    rows = masks.rows(*index).float()
    resized = F.interpolate(rows[:, None], size=wanted.shape[-2:], mode="bilinear", align_corners=False)
    logits, target = resized.flatten(1), wanted.flatten(1).float()
    return focal_loss(logits, target, alpha=_ALPHA).mean(1), dice_loss(logits, target)


def _masks_of(targets: Sequence[Target], pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Bool masks (m, H, W) of objects: (image, number of the object, counted through the batch)."""
    starts = list(accumulate((len(target) for target in targets), initial=0))
    masks = target_masks(targets)
    rows = [masks[image][number - starts[image]] for image, number in pairs]
    return torch.stack(rows) if rows else masks[0][:0]
