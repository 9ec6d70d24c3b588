"""From masks of queries to instances, segments and classes of pixels (Mask2Former; MaskDINO).

Masks are made at 1/4 of the image's size and are wanted at its original size, where all of them would not fit: 300 of a
1024 x 2048 image take 2.3 GiB. So queries are ranked before any mask is resized, and masks are resized a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.losses.classes import ClassLoss
from detrkit.structures import MaskView

__all__ = ["FoundSegments", "ImageMasks", "PanopticRules", "instance_masks", "panoptic_segments", "semantic_labels"]

_PIXELS_AT_ONCE = 2**25  # of masks in float32 that exist at a time: 128 MiB


@dataclass(frozen=True)
class ImageMasks:
    """The masks of one image of a batch, and the way from the canvas to the original.

    Attributes:
        masks: of the batch; the last layer counts.
        image: which of the batch.
        canvas: (height, width) of the padded batch.
        valid: (height, width) of the image on it.
        original: (height, width) of the upright file.
        boxes: (Q, 4) xyxy in [0, 1] of the image, at which the resized masks of the queries are cut off; None: nowhere.
    """

    masks: MaskView
    image: int
    canvas: tuple[int, int]
    valid: tuple[int, int]
    original: tuple[int, int]
    boxes: Tensor | None = None

    def resize(self, maps: Tensor) -> Tensor:
        """Maps (n, h, w) of the canvas at any scale -> (n, H, W) of the original: bilinear, padding cut off."""
        return _resized(self.valid_part(maps), self.original)

    def valid_part(self, maps: Tensor) -> Tensor:
        """Maps (n, h, w) of the canvas at any scale -> (n, *valid) of the image as the model saw it."""
        return _resized(maps, self.canvas)[:, : self.valid[0], : self.valid[1]]

    def logits(self, queries: Tensor) -> Tensor:
        """Logits (n, h, w) of the masks of some queries, at 1/4."""
        rows = self.masks.rows(torch.full_like(queries, -1), torch.full_like(queries, self.image), queries)
        return rows.float()

    def parts(self, count: int) -> Iterator[slice]:
        """``range(count)`` cut so that the maps of a part fit memory on the canvas and at the original size."""
        height, width = (max(sides) for sides in zip(self.canvas, self.original, strict=True))
        step = max(1, _PIXELS_AT_ONCE // (height * width))
        return (slice(start, start + step) for start in range(0, count, step))

    def resized(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(which of the queries, their logits (n, H, W) at the original size), a few at a time."""
        for part in self.parts(len(queries)):
            logits = self.resize(self.logits(queries[part]))
            if self.boxes is not None:
                logits.masked_fill_(~_inside(self.boxes[queries[part]], self.original), -torch.inf)
            yield part, logits


def _inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, H, W) bool, the pixels that boxes (n, 4) xyxy in [0, 1] touch."""
    height, width = size
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    x0, y0, x1, y1 = (boxes * boxes.new_tensor([width, height, width, height]))[..., None].unbind(1)
    across = (columns >= x0.floor()) & (columns < x1.ceil())
    down = (rows >= y0.floor()) & (rows < y1.ceil())
    return down[:, :, None] & across[:, None, :]


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def instance_masks(masks: ImageMasks, queries: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(which of the queries, bool masks (n, H, W), quality (n,)), a few at a time.

    A pixel belongs to an instance where its logit is above 0. The quality of a mask is the mean probability of its
    pixels; MaskDINO and Mask2Former multiply the score of the class by it.
    """
    for part, logits in masks.resized(queries):
        inside = logits > 0
        box = _box_of(inside)  # that of large images is often small
        where = inside[box]
        quality = (logits[box].sigmoid() * where).sum((1, 2)) / (where.sum((1, 2)) + 1e-6)
        yield part, inside, quality


def _box_of(masks: Tensor) -> tuple[slice, slice, slice]:
    """The smallest part of masks (n, H, W) outside of which all are False."""
    sides = [masks.any(2).any(0).nonzero()[:, 0].tolist(), masks.any(1).any(0).nonzero()[:, 0].tolist()]
    rows, columns = (slice(side[0], side[-1] + 1) if side else slice(0) for side in sides)
    return slice(None), rows, columns


def semantic_labels(
    masks: ImageMasks, class_logits: Tensor, *, classes: ClassLoss, scores: Callable[[Tensor], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Class of every pixel (H, W) int64, and how certain it is (H, W) in [0, 1].

    The class is the one with the highest sum over the queries of class weight times mask probability. The certainty is
    the highest product of class score and mask probability of any query. Both are computed at 1/4 and resized, classes
    a few at a time.

    Args:
        masks: of the image.
        class_logits: (Q, C).
        classes: what these mean.
        scores: shown the resized sums (n, H, W) of the classes, in order, for those who need more than the label.
    """
    logits = class_logits.float()
    share, (raw, _) = classes.sharpened(logits), classes.ranked(logits)
    p = masks.logits(torch.arange(len(share), device=share.device)).sigmoid()
    sums = torch.einsum("qk,qhw->khw", share, p)
    certainty = masks.resize((raw[:, None, None] * p).amax(0)[None])[0]
    best = torch.full(masks.original, -torch.inf, device=share.device)
    labels = torch.zeros(masks.original, dtype=torch.long, device=share.device)
    for part in masks.parts(len(sums)):
        resized = masks.resize(sums[part])
        if scores is not None:
            scores(resized)
        value, label = resized.max(0)
        better = value > best
        labels = torch.where(better, label + part.start, labels)
        best = torch.where(better, value, best)
    return labels, certainty


@dataclass(frozen=True, kw_only=True)
class PanopticRules:
    """Which queries become segments.

    Attributes:
        threshold: a query needs a higher class score.
        overlap: of the pixels that its mask has, a query must win at least this share against the others.
    """

    threshold: float = 0.25
    overlap: float = 0.8


@dataclass(frozen=True)
class FoundSegments:
    """Segments of an image that do not overlap.

    Attributes:
        ids: (H, W) int32, number of the segment from 1 on; 0: none.
        labels: of the segments, in the order of their numbers.
        scores: of the segments; of a stuff class that several queries found, the highest.
    """

    ids: Tensor
    labels: list[int]
    scores: list[float]


def panoptic_segments(
    masks: ImageMasks, class_logits: Tensor, *, classes: ClassLoss, is_thing: Tensor, rules: PanopticRules
) -> FoundSegments:
    """Every pixel to the query that claims it most, then what is left of each query's mask (Mask2Former, section 3).

    Args:
        masks: of the image.
        class_logits: (Q, C).
        classes: what these mean.
        is_thing: (K,) bool; queries of one stuff class are one segment.
        rules: see there.
    """
    logits = class_logits.float()
    raw, label = classes.ranked(logits)
    queries = (raw > rules.threshold).nonzero()[:, 0]
    label, raw = label[queries], raw[queries]
    if masks.boxes is not None:  # those of stuff may be anywhere
        stuff = queries[~is_thing.to(label.device)[label]]
        everywhere = masks.boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        masks = replace(masks, boxes=masks.boxes.index_put((stuff,), everywhere))
    weight = classes.sharpened(logits[queries]).amax(-1)
    device = logits.device
    best = torch.zeros(masks.original, device=device)
    winner = torch.full(masks.original, -1, dtype=torch.long, device=device)
    inside = torch.zeros(masks.original, dtype=torch.bool, device=device)
    sizes = torch.zeros(len(queries), dtype=torch.long, device=device)
    for part, resized in masks.resized(queries):
        for query, p in enumerate(resized.sigmoid(), start=part.start):
            own, claim = p >= 0.5, weight[query] * p
            sizes[query] = own.sum()
            better = claim > best
            best = torch.maximum(best, claim)
            winner.masked_fill_(better, query)
            inside = torch.where(better, own, inside)
    return _segments(winner, inside, sizes.tolist(), label.tolist(), raw.tolist(), is_thing.tolist(), rules.overlap)


def _segments(
    winner: Tensor,
    inside: Tensor,
    sizes: list[int],
    labels: list[int],
    scores: list[float],
    is_thing: list[bool],
    overlap: float,
) -> FoundSegments:
    """Numbers the queries that keep enough of their mask; those of one stuff class get one number."""
    count = len(sizes)
    won = torch.bincount(winner[winner >= 0], minlength=count).tolist()
    kept = torch.bincount(winner[inside & (winner >= 0)], minlength=count).tolist()
    number = [0] * (count + 1)  # the last is that of pixels without a winner
    found: list[tuple[int, float]] = []
    stuff: dict[int, int] = {}
    for query in range(count):
        if not (won[query] and sizes[query] and kept[query]) or won[query] / sizes[query] < overlap:
            continue
        label = labels[query]
        if not is_thing[label] and label in stuff:
            number[query] = stuff[label]
            place = number[query] - 1
            found[place] = (label, max(found[place][1], scores[query]))
            continue
        found.append((label, scores[query]))
        number[query] = len(found)
        if not is_thing[label]:
            stuff[label] = number[query]
    numbers = torch.tensor(number, dtype=torch.int32, device=winner.device)
    ids = torch.where(inside, numbers[winner], numbers[-1])
    return FoundSegments(ids, [label for label, _ in found], [score for _, score in found])
