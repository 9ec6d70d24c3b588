"""A query group, its objects, and the matched pairs: the input of every term.

L layers, B images, Q queries per image, G objects in the whole batch, M matched pairs per layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar, cast

import torch
from torch import Tensor

from detrkit.losses.label_augmentation import LabelAugmentation
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import QueryGroup, Target

__all__ = ["Candidates", "Matched", "Matches", "Problem"]

T = TypeVar("T")


@dataclass(frozen=True)
class Matches:
    """Matched pairs of all layers, layer-major: four index vectors of the same length L·M.

    ``target`` indexes the objects of the whole batch.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    @classmethod
    def fixed(cls, pairs: tuple[Tensor, Tensor, Tensor], *, layers: int) -> Matches:
        """The same (image, query, target) pairs in every layer."""
        layer = torch.arange(layers, device=pairs[0].device).repeat_interleave(len(pairs[0]))
        image, query, target = (index.repeat(layers) for index in pairs)
        return cls(layer, image, query, target)

    def pairs(self, layer: int, image: int, offset: int = 0) -> Tensor:
        """(2, n) query and target indices of one layer and image; ``offset``: number of objects in earlier images."""
        chosen = (self.layer == layer) & (self.image == image)
        return torch.stack((self.query[chosen], self.target[chosen] - offset))


@dataclass(frozen=True)
class Problem:
    """The matching problem of a query group: its queries, and the objects of all images in one list.

    Attributes:
        group: the queries.
        targets: their objects per image.
        labels: (G,).
        boxes: (G, 4) cxcywh.
        image: (G,) index of the image of each object.
    """

    group: QueryGroup
    targets: list[Target]
    labels: Tensor
    boxes: Tensor
    image: Tensor

    @classmethod
    def of(cls, group: QueryGroup, targets: list[Target]) -> Problem:
        """Build the problem of a group, with its objects repeated or reduced to one class as the group requires."""
        if group.masks is None:
            targets = [replace(target, masks=None) for target in targets]  # do not repeat masks that nothing reads
        if group.takes_originals:
            targets = LabelAugmentation(repeat=group.repeat)([target.originals() for target in targets], 0)
        if group.class_agnostic:
            targets = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
        counts = torch.tensor([len(target) for target in targets], dtype=torch.long)
        return cls(
            group=group,
            targets=targets,
            labels=torch.cat([target.labels for target in targets]),
            boxes=torch.cat([target.boxes for target in targets]),
            image=torch.arange(len(targets)).repeat_interleave(counts).to(group.logits.device),
        )

    @cached_property
    def is_thing(self) -> Tensor:
        """(G,) bool, False for stuff."""
        parts = [
            torch.ones_like(target.labels, dtype=torch.bool) if target.is_thing is None else target.is_thing
            for target in self.targets
        ]
        return torch.cat(parts)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.group.logits)


class _Shared:
    """Cache of values that several terms need."""

    _results: dict[object, object]

    def once(self, key: object, make: Callable[[], T]) -> T:
        """Result of ``make()``, computed at the first call with this key."""
        if key not in self._results:
            self._results[key] = make()
        return cast(T, self._results[key])


@dataclass(frozen=True)
class Candidates(_Shared):
    """All pairs of an object and a query of its image, in some of the layers: the input of a matching cost."""

    problem: Problem
    layers: slice
    _results: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def numbers(self) -> range:
        """The layers."""
        return range(self.problem.layers)[self.layers]

    @property
    def logits(self) -> Tensor:
        """(L', B, Q, C) float32 logits of all queries."""
        return self.problem.group.logits[self.layers].float()

    @cached_property
    def boxes(self) -> Tensor:
        """(L', G, Q, 4) float32 cxcywh predicted in the image of each object."""
        return self.problem.group.boxes[self.layers].float()[:, self.problem.image]

    @property
    def target_boxes(self) -> Tensor:
        """(1, G, 1, 4) cxcywh of the objects."""
        return self.problem.boxes[None, :, None]


@dataclass(frozen=True)
class Matched(_Shared):
    """A matching problem with its solution: the input of a loss.

    Attributes:
        problem: queries and objects.
        matches: matched pairs of every layer.
        counted: (B, K) bool, classes for which the unmatched queries of an image are negatives; None: all.
    """

    problem: Problem
    matches: Matches
    counted: Tensor | None = None
    _results: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def query_index(self) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the matched queries in (L, B, Q, …)."""
        return self.matches.layer, self.matches.image, self.matches.query

    @cached_property
    def logits(self) -> Tensor:
        """(L, B, Q, C) float32 logits of all queries."""
        return self.problem.group.logits.float()

    def class_targets(self, no_object: int) -> Tensor:
        """(L, B, Q) class of the object matched to each query, ``no_object`` for unmatched queries."""
        labels = self.problem.labels
        targets = torch.full(self.logits.shape[:3], no_object, dtype=torch.long, device=self.logits.device)
        targets[self.query_index] = labels[self.matches.target]
        return targets

    @cached_property
    def unjudged(self) -> Tensor | None:
        """(L, B, Q) bool, unmatched queries whose box lies to a half or more in an ignored region; None: no region."""
        regions = [target.ignored for target in self.problem.targets]
        if not any(region is not None and len(region) for region in regions):
            return None
        boxes = cxcywh_to_xyxy(self.problem.group.boxes.detach().float())
        found = torch.zeros(boxes.shape[:3], dtype=torch.bool, device=boxes.device)
        for image, region in enumerate(regions):
            if region is not None and len(region):
                low, high = boxes[:, image, :, None].split(2, dim=-1)
                region_low, region_high = cxcywh_to_xyxy(region.float()).split(2, dim=-1)
                shared = (torch.minimum(high, region_high) - torch.maximum(low, region_low)).clamp(min=0).prod(-1)
                found[:, image] = (shared >= 0.5 * (high - low).prod(-1)).any(-1)
        found[self.query_index] = False
        return found

    @cached_property
    def boxes(self) -> Tensor:
        """(L·M, 4) float32 cxcywh of the matched queries."""
        return self.problem.group.boxes.float()[self.query_index]

    @cached_property
    def target_boxes(self) -> Tensor:
        """(L·M, 4) cxcywh of their objects."""
        return self.problem.boxes[self.matches.target]

    @cached_property
    def corners(self) -> Tensor:
        """``boxes`` as xyxy."""
        return cxcywh_to_xyxy(self.boxes)

    @cached_property
    def target_corners(self) -> Tensor:
        """``target_boxes`` as xyxy."""
        return cxcywh_to_xyxy(self.target_boxes)

    def per_layer(self, values: Tensor) -> Tensor:
        """Sum of values (L·M,) of the matched pairs in each layer: (L,)."""
        return values.view(self.problem.layers, -1).sum(1)
