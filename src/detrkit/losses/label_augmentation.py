"""Label augmentation of DELA-DETR (Wang et al., ECCV 2022): several queries per object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detrkit.structures import Target

__all__ = ["LabelAugmentation"]


def _random_order(n: int) -> Tensor:
    return torch.randperm(n)


@dataclass(frozen=True, kw_only=True)
class LabelAugmentation:
    """Repetition of the objects of a target before matching; targets are never changed in place."""

    repeat: int | None = None
    """Every object is repeated this many times, in the order g1..gn, g1..gn (published: 2)."""

    ratio: float | None = None
    """Number of objects after repetition as a share of the queries, int(ratio · Q): all objects in turn, as often as
    they fit, then distinct random ones. Images with at least as many objects stay unchanged."""

    random_order: Callable[[int], Tensor] = _random_order
    """Permutation of n; replace it to reproduce recorded runs."""

    def length(self, boxes: int, num_queries: int) -> int:
        """Number of boxes after augmentation of an image that has ``boxes`` boxes."""
        if self.repeat is not None:
            return boxes * self.repeat
        if self.ratio is not None:
            wanted = int(self.ratio * num_queries)
            return wanted if 0 < boxes < wanted else boxes
        return boxes

    def __call__(self, targets: list[Target], num_queries: int) -> list[Target]:
        """New targets, with ``is_copy`` True for the repeated objects."""
        if self.repeat is None and self.ratio is None:
            return targets
        return [self._repeat(target, self.length(len(target), num_queries)) for target in targets]

    def _repeat(self, target: Target, length: int) -> Target:
        boxes = len(target)
        device = target.labels.device
        if length == boxes:
            return replace(target, is_copy=torch.zeros(boxes, dtype=torch.bool, device=device))
        rounds, extra = divmod(length, boxes)
        index = torch.arange(boxes).repeat(rounds)
        if self.ratio is not None:
            index = torch.cat((index, self.random_order(boxes)[:extra]))
        index = index.to(device)
        return replace(target[index], is_copy=torch.arange(length, device=device) >= boxes)
