"""What losses are divided by: counts of ground truth that add up over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from detrkit.structures import QueryGroup, Target

__all__ = ["Normalisers"]


@dataclass(frozen=True)
class Normalisers:
    """Counts of a batch. Summed over all of a step and divided by the number of processes (DDP averages gradients) they
    make the gradient that of the whole batch, however it is split.

    Attributes:
        objects: with the copies of label augmentation.
        originals: without them.
        matched: matching queries that get an object. An image with n objects has min(n, Q), whatever the matching, so
            no prediction is needed to know.
        unmatched: the other matching queries.
        images: of the batch.
    """

    objects: float = 0.0
    originals: float = 0.0
    matched: float = 0.0
    unmatched: float = 0.0
    images: float = 0.0

    @classmethod
    def count(cls, targets: Sequence[Target], *, num_queries: int) -> Normalisers:
        """Of prepared targets."""
        matched = sum(min(len(target), num_queries) for target in targets)
        return cls(
            objects=sum(len(target) for target in targets),
            originals=sum(len(target.originals()) for target in targets),
            matched=matched,
            unmatched=len(targets) * num_queries - matched,
            images=len(targets),
        )

    def __add__(self, other: Normalisers) -> Normalisers:
        """Of both."""
        return Normalisers(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __truediv__(self, processes: float) -> Normalisers:
        """The share of each of several processes."""
        return Normalisers(*(value / processes for value in astuple(self)))

    def tensor(self) -> Tensor:
        """(5,) float64, to be summed over processes."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> Normalisers:
        """The inverse of :meth:`tensor`."""
        return cls(*values.tolist())

    def of_group(self, group: QueryGroup) -> Normalisers:
        """With ``objects`` as this group is given them, never below 1, as in the official criteria."""
        objects = self.originals if group.takes_originals else self.objects
        return replace(self, objects=max(objects * group.repeat, 1.0))
