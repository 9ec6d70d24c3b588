"""Label augmentation of DELA-DETR (Wang et al., ECCV 2022, section 3.4): several queries for every object."""

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
    """Repeats the boxes of a target before matching; targets are never changed in place.

    repeat: every box is given ``repeat`` times, in the order g1..gn, g1..gn (published: 2) · ratio: boxes are repeated
    until int(ratio · Q) of them stand there: whole rounds, then distinct random ones; images that already have as
    many stay as they are · random_order: permutation of n, replaceable for reproducing recorded runs.
    """

    repeat: int | None = None
    ratio: float | None = None
    random_order: Callable[[int], Tensor] = _random_order

    def length(self, boxes: int, num_queries: int) -> int:
        """How many boxes an image with ``boxes`` boxes has after augmentation."""
        if self.repeat is not None:
            return boxes * self.repeat
        if self.ratio is not None:
            wanted = int(self.ratio * num_queries)
            return wanted if 0 < boxes < wanted else boxes
        return boxes

    def __call__(self, targets: list[Target], num_queries: int) -> list[Target]:
        """New targets with ``is_copy`` marking what was repeated."""
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
