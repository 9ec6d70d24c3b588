"""Federated loss, for data where each image is annotated for some of the classes only (Zhou et al., "Probabilistic
two-stage detection", 2021).

An unmatched query is a negative for every class. In federated data it is unknown for most classes whether the image
shows them, so the loss uses only the classes present in the batch and a random sample of the others. Two additions that
are not in the paper use what LVIS records per image: a class verified to be absent always counts, and a class that is
not exhaustively annotated counts for matched queries only, as in the LVIS evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detrkit.losses.problem import Matched
from detrkit.structures import Target

__all__ = ["FederatedClasses", "leave_out"]


class FederatedClasses:
    """Random selection of the classes whose negatives count, drawn anew for every batch.

    Args:
        image_counts: (K,) number of training images per class.
        number: minimum number of classes: those in the batch first, then others drawn without replacement.
        power: other classes are drawn in proportion to ``image_counts ** power``.
    """

    def __init__(self, *, image_counts: Tensor | Sequence[float], number: int = 50, power: float = 0.5) -> None:
        self._weights = torch.as_tensor(image_counts, dtype=torch.float32) ** power
        self._number = min(number, len(self._weights))

    def __call__(self, targets: list[Target]) -> Tensor:
        """(B, K) bool: classes for which the unmatched queries of an image are negatives."""
        present = torch.cat([target.labels for target in targets])
        # The smallest of exponential variables with these rates are a weighted draw without replacement. No count has
        # to be copied back from the device.
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
    """Zero the class losses (L, B, Q, K) of classes that do not count (B, K), except the class of a matched query."""
    kept = counted[None, :, None].repeat(loss.shape[0], 1, loss.shape[2], 1)
    kept[(*matched.query_index, matched.problem.labels[matched.matches.target])] = True
    return loss.masked_fill(~kept, 0.0)
