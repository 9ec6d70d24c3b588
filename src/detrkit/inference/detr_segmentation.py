"""Masks of DETR as its authors read them (facebookresearch/detr): instances, and panoptic segments by one argmax.

Mask2Former's rules (:mod:`detrkit.inference.segmentation`) weigh masks by class scores and smooth them at the original
size. DETR's masks compete alone, at the size that the model saw, and are brought to the original size as numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from detrkit.inference.segmentation import FoundSegments, ImageMasks
from detrkit.losses.classes import ClassLoss

__all__ = ["DETRPanopticRules", "detr_instance_masks", "detr_panoptic_segments"]


def detr_instance_masks(masks: ImageMasks, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(which of the queries, bool masks (n, H, W)), a few at a time.

    A pixel of the image as the model saw it belongs to an instance where its logit is above 0; these decisions are
    brought to the original size.
    """
    for part in masks.parts(len(queries)):
        inside = masks.valid_part(masks.logits(queries[part])) > 0
        yield part, F.interpolate(inside[None].to(torch.uint8), size=masks.original, mode="nearest")[0].bool()


@dataclass(frozen=True, kw_only=True)
class DETRPanopticRules:
    """Which queries become segments.

    Attributes:
        threshold: a query needs a higher class score.
        small: segments of so many pixels of the original, or fewer, are given up.
    """

    threshold: float = 0.85
    small: int = 4


def detr_panoptic_segments(
    masks: ImageMasks, class_logits: Tensor, *, classes: ClassLoss, is_thing: Tensor, rules: DETRPanopticRules
) -> FoundSegments:
    """Every pixel to the query with the highest mask logit, until no segment is small.

    Queries of one stuff class count as the first of them, but only in the first pass: once small segments are given
    up, the pixels of a query that was merged go to whichever remaining query claims them most, as published. Official
    code resizes masks of a padded batch with their padding; here it is cut off first, as if the image were alone.

    Args:
        masks: of the image.
        class_logits: (Q, C).
        classes: what these mean.
        is_thing: (K,) bool.
        rules: see there.
    """
    score, label = classes.ranked(class_logits.float())
    queries = (score > rules.threshold).nonzero()[:, 0]
    score, label = score[queries], label[queries]
    logits = masks.logits(queries)
    owner = _first_of_stuff(label.tolist(), is_thing.tolist()).to(label.device)
    while len(label):
        ids = _at_original(owner[_winner(masks, logits)], masks)
        kept = torch.bincount(ids.flatten(), minlength=len(label)) > rules.small
        if kept.all():
            return FoundSegments((ids + 1).to(torch.int32), label.tolist(), score.tolist())
        logits, label, score = logits[kept], label[kept], score[kept]
        owner = torch.arange(len(label), device=label.device)
    nothing = torch.zeros(masks.original, dtype=torch.int32, device=label.device)
    return FoundSegments(nothing, [], [])


def _first_of_stuff(labels: list[int], is_thing: list[bool]) -> Tensor:
    """(n,) of each query its own number; of a stuff class that has several, the first one's."""
    first: dict[int, int] = {}
    return torch.tensor(
        [number if is_thing[label] else first.setdefault(label, number) for number, label in enumerate(labels)],
        dtype=torch.long,
    )


def _winner(masks: ImageMasks, logits: Tensor) -> Tensor:
    """(h, w) int64, which of the masks (n, …) is highest at each pixel of the image as the model saw it."""
    best = torch.full(masks.valid, -torch.inf, device=logits.device)
    winner = torch.zeros(masks.valid, dtype=torch.long, device=logits.device)
    for part in masks.parts(len(logits)):
        value, index = masks.valid_part(logits[part]).max(0)
        better = value > best
        best = torch.where(better, value, best)
        winner = torch.where(better, index + part.start, winner)
    return winner


def _at_original(ids: Tensor, masks: ImageMasks) -> Tensor:
    """Numbers (h, w) at the original size, nearest neighbour.

    Pillow's, as in official code: torch decides otherwise where the centre of a pixel lies between two cells.
    """
    height, width = masks.original
    small = Image.fromarray(ids.to(torch.int32).cpu().numpy())
    return torch.from_numpy(np.array(small.resize((width, height), Image.Resampling.NEAREST))).to(ids.device)
