"""One group of queries, the objects that it is to find, and which query has which: what every term looks at.

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
    """Matched pairs of all layers, layer-major: four index vectors of one length L·M.

    ``target`` counts through the objects of the batch.
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
        """(2, n) query and target index of one layer and image; ``offset`` = targets of the images before."""
        chosen = (self.layer == layer) & (self.image == image)
        return torch.stack((self.query[chosen], self.target[chosen] - offset))


@dataclass(frozen=True)
class Problem:
    """A query group and its objects, those of all images one after the other.

    Attributes:
        group: the queries.
        targets: their objects, image by image.
        labels: (G,).
        boxes: (G, 4) cxcywh.
        image: (G,) the image that each object is in.
    """

    group: QueryGroup
    targets: list[Target]
    labels: Tensor
    boxes: Tensor
    image: Tensor

    @classmethod
    def of(cls, group: QueryGroup, targets: list[Target]) -> Problem:
        """Gives a group the objects that it wants: without copies, repeated, or all of one class."""
        if group.masks is None:
            targets = [replace(target, masks=None) for target in targets]  # not to be repeated for nothing
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

    @property
    def layers(self) -> int:
        """How many layers the group has."""
        return len(self.group.logits)


class _Shared:
    """Remembers what several terms need, so that it is computed once."""

    _results: dict[object, object]

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What ``make`` returns, made when it is first asked for under ``key``."""
        if key not in self._results:
            self._results[key] = make()
        return cast(T, self._results[key])


@dataclass(frozen=True)
class Candidates(_Shared):
    """Every object with every query of its own image, in some of the layers: what a matcher chooses from."""

    problem: Problem
    layers: slice
    _results: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def numbers(self) -> range:
        """The layers."""
        return range(self.problem.layers)[self.layers]

    @property
    def logits(self) -> Tensor:
        """(L', B, Q, C) float32 of all queries."""
        return self.problem.group.logits[self.layers].float()

    @cached_property
    def boxes(self) -> Tensor:
        """(L', G, Q, 4) float32 cxcywh, predicted for each object's image."""
        return self.problem.group.boxes[self.layers].float()[:, self.problem.image]

    @property
    def goal(self) -> Tensor:
        """(1, G, 1, 4) cxcywh of the objects."""
        return self.problem.boxes[None, :, None]


@dataclass(frozen=True)
class Matched(_Shared):
    """A problem with its solution: what a loss is made of.

    Attributes:
        problem: queries and objects.
        matches: which query has which object, in every layer.
        counted: (B, K) bool, the classes that an unmatched query of each image is a negative of; None: all.
    """

    problem: Problem
    matches: Matches
    counted: Tensor | None = None
    _results: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the matched queries in (L, B, Q, …)."""
        return self.matches.layer, self.matches.image, self.matches.query

    @cached_property
    def logits(self) -> Tensor:
        """(L, B, Q, C) float32 of all queries."""
        return self.problem.group.logits.float()

    def labelled(self, nothing: int) -> Tensor:
        """(L, B, Q) the class of the object that each query has, ``nothing`` where it has none."""
        labels = self.problem.labels
        labelled = torch.full(self.logits.shape[:3], nothing, dtype=torch.long, device=self.logits.device)
        labelled[self.place] = labels[self.matches.target]
        return labelled

    @cached_property
    def boxes(self) -> Tensor:
        """(L·M, 4) float32 cxcywh of the matched queries."""
        return self.problem.group.boxes.float()[self.place]

    @cached_property
    def goal(self) -> Tensor:
        """(L·M, 4) cxcywh of their objects."""
        return self.problem.boxes[self.matches.target]

    @cached_property
    def corners(self) -> Tensor:
        """``boxes`` as xyxy."""
        return cxcywh_to_xyxy(self.boxes)

    @cached_property
    def goal_corners(self) -> Tensor:
        """``goal`` as xyxy."""
        return cxcywh_to_xyxy(self.goal)

    def per_layer(self, values: Tensor) -> Tensor:
        """Values (L·M,) of the matched pairs, summed within each layer: (L,)."""
        return values.view(self.problem.layers, -1).sum(1)
