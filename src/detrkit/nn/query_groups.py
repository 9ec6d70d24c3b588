"""Group DETR (Chen et al., ICCV 2023, arXiv 2207.13085): several groups of queries in training, one after.

Every group is matched with all objects on its own, so an object teaches as many queries as there are groups, and no
NMS is needed after. Groups see the same memory but not each other: only self-attention has to know of them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from detrkit.structures import Predictions, QueryGroup

__all__ = ["learned_queries", "split_groups", "within_groups"]


def learned_queries(embedding: nn.Embedding, size: int, batch: int, *, training: bool) -> Tensor:
    """Embeddings of a batch's queries: all groups in training (B, G · size, C), else the first (B, size, C)."""
    used = embedding.weight if training else embedding.weight[:size]
    return used.expand(batch, -1, -1)


def within_groups(attend: Callable[..., Tensor], size: int, *inputs: Tensor) -> Tensor:
    """``attend`` on inputs (B, G · size, C) with every group of ``size`` queries as an image of its own."""
    batch, queries = inputs[0].shape[:2]
    if queries == size:
        return attend(*inputs)
    separate = (x.reshape(batch * queries // size, size, x.shape[-1]) for x in inputs)
    return attend(*separate).reshape(batch, queries, -1)


def split_groups(logits: Tensor, boxes: Tensor, size: int) -> Predictions:
    """The first group as the predictions, the others as ``group1``, …: (L, B, G · size, …) -> (L, B, size, …) each.

    The losses of all groups are averaged.
    """
    (first, *others) = zip(logits.split(size, dim=2), boxes.split(size, dim=2), strict=True)
    normaliser = 1.0 + len(others)
    groups = {f"group{index}": QueryGroup(*pair, normaliser=normaliser) for index, pair in enumerate(others, start=1)}
    return Predictions(*first, groups=groups, normaliser=normaliser)
