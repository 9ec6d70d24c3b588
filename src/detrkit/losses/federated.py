"""Federated loss, for data that were searched for a part of their classes image by image (Zhou et al., "Probabilistic
two-stage detection", 2021).

A query that found no object is a negative of every class, but of most classes nobody knows whether the image has them.
So only some classes count: those that the batch has, and a sample of the others. Where LVIS says more of an image, that
holds (not in the paper): classes verified to be absent count always, and classes of which not every object is annotated
count for matched queries only, as in its evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detrkit.losses.problem import Matched
from detrkit.structures import Target

__all__ = ["FederatedClasses", "leave_out"]


class FederatedClasses:
    """Chooses the classes whose absence counts, anew for every batch.

    image_counts (K,): how many training images have each class · number: how many classes count, at least: those of the
    batch, then others without replacement, drawn in proportion to image_counts ** power.
    """

    def __init__(self, *, image_counts: Tensor | Sequence[float], number: int = 50, power: float = 0.5) -> None:
        self._weights = torch.as_tensor(image_counts, dtype=torch.float32) ** power
        self._number = min(number, len(self._weights))

    def __call__(self, targets: list[Target]) -> Tensor:
        """(B, K) bool: the classes that an unmatched query of each image is a negative of."""
        present = torch.cat([target.labels for target in targets])
        # The first to arrive of exponential clocks with these rates are a draw without replacement; no count has to
        # come back from the device.
        arrival = (torch.empty(len(self._weights)).exponential_() / self._weights).to(present.device)
        arrival[present] = -1.0
        chosen = torch.zeros_like(arrival, dtype=torch.bool)
        chosen[arrival.topk(self._number, largest=False).indices] = True
        chosen &= arrival.isfinite()  # a class without images is never drawn
        chosen[present] = True
        counted = chosen.repeat(len(targets), 1)
        for row, target in zip(counted, targets, strict=True):
            if target.negatives is not None:
                row[target.negatives] = True
            if target.not_exhaustive is not None:
                row[target.not_exhaustive] = False
        return counted


def leave_out(loss: Tensor, counted: Tensor, matched: Matched) -> Tensor:
    """The class losses (L, B, Q, K), zero where a class does not count (B, K), but for the class of a matched query."""
    kept = counted[None, :, None].repeat(loss.shape[0], 1, loss.shape[2], 1)
    kept[(*matched.place, matched.problem.labels[matched.matches.target])] = True
    return loss.masked_fill(~kept, 0.0)
