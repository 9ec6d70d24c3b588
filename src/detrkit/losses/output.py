"""The result of a criterion, and the names of its values in the log."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from detrkit.losses.problem import Matches

__all__ = ["LossOutput", "by_layer_name"]


@dataclass(frozen=True)
class LossOutput:
    """The losses of a batch."""

    total: Tensor
    """The weighted sum over all terms and layers, which training minimises."""

    terms: dict[str, Tensor]
    """Detached, unweighted scalars for the log.

    ``loss_class``, ``loss_bbox``, ``loss_giou`` and ``cardinality_error`` are those of the last layer; ``…_0`` onward
    are those of the layers before it. ``class_error`` is the percentage of matched queries with a wrong class in the
    last layer. Losses of a query group end in its name; the loss of a heatmap is ``loss_`` and its name.
    """

    matches: Matches
    """Matches of the matching queries."""

    groups: dict[str, Matches] = field(default_factory=dict)
    """Matches of each query group."""


def by_layer_name(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values (L,) of each term -> one entry per layer, last layer first; the name of the last layer has no number."""
    return {
        name if layer == len(value) - 1 else f"{name}_{layer}": value[layer]
        for name, value in terms.items()
        for layer in reversed(range(len(value)))
    }
