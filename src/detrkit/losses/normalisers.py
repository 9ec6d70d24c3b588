"""Divisors of the losses: counts of ground truth that add up over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from detrkit.structures import QueryGroup, Target

__all__ = ["Normalisers"]


@dataclass(frozen=True)
class Normalisers:
    """Counts of a batch.

    Sum them over all micro-batches and processes of a step, then divide by the number of processes (DDP averages
    gradients): the gradient is then that of the whole batch, however it was split.

    Attributes:
        objects: number of objects, including the copies of label augmentation.
        originals: number of objects without copies.
        matched: number of matched queries. An image with n objects always has min(n, Q), so it is known before
            matching.
        unmatched: number of the other matching queries.
        images: number of images.
        things: number of objects that are things, such as cars, and not stuff, such as sky; with copies.
        original_things: the same without copies.
    """

    objects: float = 0.0
    originals: float = 0.0
    matched: float = 0.0
    unmatched: float = 0.0
    images: float = 0.0
    things: float = 0.0
    original_things: float = 0.0

    @classmethod
    def count(cls, targets: Sequence[Target], *, num_queries: int) -> Normalisers:
        """Counts of prepared targets."""
        matched = sum(min(len(target), num_queries) for target in targets)
        return cls(
            objects=sum(len(target) for target in targets),
            originals=sum(len(target.originals()) for target in targets),
            matched=matched,
            unmatched=len(targets) * num_queries - matched,
            images=len(targets),
            things=sum(_things(target) for target in targets),
            original_things=sum(_things(target.originals()) for target in targets),
        )

    def __add__(self, other: Normalisers) -> Normalisers:
        """Sum of two counts."""
        return Normalisers(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __truediv__(self, processes: float) -> Normalisers:
        """Counts divided by the number of processes."""
        return Normalisers(*(value / processes for value in astuple(self)))

    def tensor(self) -> Tensor:
        """The counts as (7,) float64, to be summed over processes."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> Normalisers:
        """The inverse of :meth:`tensor`."""
        return cls(*values.tolist())

    def of_group(self, group: QueryGroup) -> Normalisers:
        """Counts with the ``objects`` and ``things`` of this group, at least 1 as in the official criteria."""
        objects, things = self.objects, self.things
        if group.takes_originals:
            objects, things = self.originals, self.original_things
        return replace(self, objects=max(objects * group.repeat, 1.0), things=max(things * group.repeat, 1.0))


def _things(target: Target) -> int:
    return len(target) if target.is_thing is None else int(target.is_thing.sum())
