"""What a criterion gives back, and the names of its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from detrkit.losses.problem import Matches

__all__ = ["LossOutput", "by_layer_name"]


@dataclass(frozen=True)
class LossOutput:
    """What a batch costs.

    Attributes:
        total: what is minimised, weighted over all layers.
        terms: detached scalars for the log, unweighted: ``loss_class``, ``loss_bbox``, ``loss_giou`` for the last
            layer, ``…_0`` onward for the layers before it, ``cardinality_error`` likewise, ``class_error`` (per cent of
            matched queries with a wrong class, last layer). Losses of a query group end in its name; that of a heatmap
            is ``loss_`` and its name.
        matches: of the matching queries.
        groups: the matches of each group.
    """

    total: Tensor
    terms: dict[str, Tensor]
    matches: Matches
    groups: dict[str, Matches] = field(default_factory=dict)


def by_layer_name(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values (L,) of a term -> one entry per layer, the last without a number, and last layer first."""
    return {
        name if layer == len(value) - 1 else f"{name}_{layer}": value[layer]
        for name, value in terms.items()
        for layer in reversed(range(len(value)))
    }
