"""The network of a detector as one compiled graph (``training.compile``).

Compiled is everything from pixels to decoded queries. Outside stay what depends on the objects of a batch: drawing
denoising queries, matching, losses. So a graph depends on the canvas alone: denoising queries are filled up to a
multiple of a fixed number, with queries that nobody sees and that have no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.nn.queries import Queries
from detrkit.structures import Predictions, QueryGroup

__all__ = ["CompiledNetwork", "filled_up", "graph_inputs"]

Network = Callable[[Tensor, Tensor, Sequence[Queries]], Predictions]

GRAPHS = 64
"""Graphs kept for different canvases, modes and numbers of images; torch's default is 8."""

FILL = 200
"""Denoising queries are filled up to a multiple of this; DINO's have almost as many for any number of objects."""


class CompiledNetwork:
    """Calls :meth:`detrkit.models.detector.Detector.network` as one compiled graph, with equal results.

    Args:
        network: the method.
        options: of ``torch.compile``.
    """

    def __init__(self, network: Network, **options: Any) -> None:
        settings: Any = torch._dynamo.config
        settings.recompile_limit = max(settings.recompile_limit, GRAPHS)
        settings.optimize_ddp = False  # it would split the graph, and takes none with checkpoints
        self.graph = torch.compile(network, **options)

    def __call__(self, images: Tensor, padding_mask: Tensor, denoising: Sequence[Queries]) -> Predictions:
        """Arguments and result are those of the method."""
        out = self.graph(images, padding_mask, graph_inputs(denoising))
        for one in denoising:
            out.groups[one.name] = _restored(out.groups[one.name], one)
        return out


def graph_inputs(denoising: Sequence[Queries]) -> list[Queries]:
    """Return the sets that a graph takes in place of these: filled up, and without what only the losses read."""
    # a graph would be made anew for each other number
    return [replace(filled_up(one, FILL), pairs=None, ignored=None, normaliser=1.0) for one in denoising]


def filled_up(queries: Queries, multiple: int) -> Queries:
    """Add queries at the end, up to a multiple of a number, that see only themselves and that no other query sees."""
    number = queries.number
    more = -number % multiple
    if more == 0:
        return queries
    blocked = queries.blocked
    if blocked is None:
        blocked = queries.content.new_zeros((1, 1, number, number), dtype=torch.bool)
    added = torch.arange(number + more, device=blocked.device) >= number
    blocked = F.pad(blocked, (0, more, 0, more), value=True) & ~torch.diag(added)
    reference = queries.reference
    return replace(
        queries,
        content=F.pad(queries.content, (0, 0, 0, more)),
        reference=None if reference is None else F.pad(reference, (0, 0, 0, more), value=0.5),
        position=None if queries.position is None else F.pad(queries.position, (0, 0, 0, more)),
        blocked=blocked,
    )


def _restored(group: QueryGroup, queries: Queries) -> QueryGroup:
    """The decoded queries without those that filled them up, with what the losses read."""
    part = slice(0, queries.number)
    return replace(
        group,
        logits=group.logits[:, :, part],
        boxes=group.boxes[:, :, part],
        masks=None if group.masks is None else group.masks[part],
        hidden=None if group.hidden is None else group.hidden[:, :, part],
        pairs=queries.pairs,
        ignored=queries.ignored,
        normaliser=queries.normaliser,
    )
