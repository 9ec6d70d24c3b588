"""Input and output of a decoder: sets of queries, and their decoded states, logits and boxes.

Besides the matching queries (:data:`MATCHING`), training decodes further sets in the same pass: denoising queries
(DN-DETR, DINO), one-to-many queries (Relation-DETR), more groups (Group DETR: Chen et al., ICCV 2023, arXiv
2207.13085). They share every layer. They differ in the queries that they see in self-attention and in the assignment
of objects. Each set describes both, so that decoders and losses do not depend on the order of the sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from detrkit.nn.attention import AttentionBias
from detrkit.structures import MaskView, Predictions, QueryGroup

__all__ = ["MATCHING", "Block", "Decoded", "Queries", "attention_blocks", "query_groups", "within_blocks"]

MATCHING = "matching"
"""Name of the matching queries, which make the detections; the only set in evaluation."""


@dataclass(frozen=True, kw_only=True)
class Queries:
    """One set of N queries.

    Attributes:
        name: :data:`MATCHING`, or the name of the set in ``groups`` of the predictions.
        content: (B, N, C), query content before the first layer.
        position: (B, N, C), position embedding shared by all layers; None if layers make positions from boxes.
        reference: initial boxes (B, N, 4) or points (B, N, 2) in [0, 1] of the valid area (DE-DETR: logits), or None.
        sees: names of the other sets that these queries attend to in self-attention, besides their own set.
        blocked: (1 or B, 1, N, N) bool, True where a query (row) must not attend to another (column); None: nowhere.
        masked: whether their masks are learned, if the model has a mask head.
        pairs, repeat, ignored, normaliser: see :class:`detrkit.structures.QueryGroup`.
    """

    name: str = MATCHING
    content: Tensor
    position: Tensor | None = None
    reference: Tensor | None = None
    sees: tuple[str, ...] = ()
    blocked: Tensor | None = None
    masked: bool = True
    pairs: tuple[Tensor, Tensor, Tensor] | None = None
    repeat: int = 1
    ignored: Tensor | None = None
    normaliser: float = 1.0

    @property
    def number(self) -> int:
        """The number of queries, N."""
        return self.content.shape[1]

    @property
    def required_position(self) -> Tensor:
        """The position embedding of a set that must have one."""
        assert self.position is not None
        return self.position

    @property
    def required_reference(self) -> Tensor:
        """The reference of a set that must have one."""
        assert self.reference is not None
        return self.reference


@dataclass(frozen=True)
class Block:
    """Neighbouring sets whose queries attend to each other.

    Attributes:
        names: names of the sets.
        size: number of their queries, n.
        blocked: (1 or B, 1, n, n), -inf where a query (row) must not see another (column), else 0; or None.
        relation: a bias that includes ``blocked`` and replaces it; or None.
    """

    names: tuple[str, ...]
    size: int
    blocked: Tensor | None = None
    relation: AttentionBias | None = None

    @property
    def bias(self) -> Tensor | AttentionBias | None:
        """The bias of self-attention."""
        return self.blocked if self.relation is None else self.relation


def attention_blocks(queries: Sequence[Queries]) -> list[Block]:
    """Group sets into blocks of self-attention: a set joins the block before it if one sees the other.

    Raises:
        ValueError: two sets have the same name, or sets that see each other are not neighbours.
    """
    names = [query_set.name for query_set in queries]
    if len(set(names)) < len(names):
        raise ValueError(f"every set of queries needs its own name, got {', '.join(names)}")
    together: list[list[Queries]] = []
    for query_set in queries:
        linked = together and any(
            query_set.name in other.sees or other.name in query_set.sees for other in together[-1]
        )
        if linked:
            together[-1].append(query_set)
        else:
            together.append([query_set])
    for sets in together:
        inside = {query_set.name for query_set in sets}
        for query_set in sets:
            if missing := set(query_set.sees) & (set(names) - inside):
                raise ValueError(
                    f"queries '{query_set.name}' see {', '.join(sorted(missing))}, which must be next to them"
                )
    return [
        Block(tuple(query_set.name for query_set in sets), sum(query_set.number for query_set in sets), _blocked(sets))
        for sets in together
    ]


def _blocked(sets: Sequence[Queries]) -> Tensor | None:
    if len(sets) == 1 and sets[0].blocked is None:
        return None
    device, total = sets[0].content.device, sum(query_set.number for query_set in sets)
    rows = []
    for query_set in sets:
        unseen = [query_set is not other and other.name not in query_set.sees for other in sets]
        row = [torch.full((other.number,), no, device=device) for other, no in zip(sets, unseen, strict=True)]
        rows.append(torch.cat(row).expand(query_set.number, -1))
    blocked = torch.cat(rows)[None, None]
    start = 0
    for query_set in sets:
        if query_set.blocked is not None:
            around = (start, total - start - query_set.number)
            blocked = blocked | nn.functional.pad(query_set.blocked, around + around)
        start += query_set.number
    return torch.zeros(blocked.shape, device=device).masked_fill(blocked, -torch.inf)


def within_blocks(attend: Callable[..., Tensor], blocks: Sequence[Block], *inputs: Tensor) -> Tensor:
    """Call ``attend(*inputs, bias=…)`` within each block: inputs (B, N, C) of all blocks -> (B, N, C)."""
    first = blocks[0]
    if len(blocks) == 1:
        return attend(*inputs, bias=first.bias)
    if all(block.bias is None and block.size == first.size for block in blocks):  # as in Group DETR: one batch
        batch, number = inputs[0].shape[:2]
        separate = (x.reshape(batch * len(blocks), first.size, x.shape[-1]) for x in inputs)
        return attend(*separate, bias=None).reshape(batch, number, -1)
    parts = zip(*(x.split([block.size for block in blocks], dim=1) for x in inputs), strict=True)
    return torch.cat([attend(*part, bias=block.bias) for part, block in zip(parts, blocks, strict=True)], dim=1)


def query_groups(embedding: nn.Embedding, size: int, batch: int, *, training: bool) -> list[Queries]:
    """Split learned position embeddings into groups of ``size`` queries with zero content (Group DETR).

    The first group has the matching queries. In training, each group is matched with all objects separately, and the
    losses of all groups are averaged; in evaluation there is only the first.
    """
    groups = embedding.weight.split(size) if training else embedding.weight[:size].split(size)
    positions = [group.expand(batch, -1, -1) for group in groups]
    return [
        Queries(
            name=f"group{index}" if index else MATCHING,
            content=torch.zeros_like(position),
            position=position,
            normaliser=float(len(groups)),
        )
        for index, position in enumerate(positions)
    ]


G = TypeVar("G", bound=QueryGroup)


@dataclass(frozen=True)
class Decoded:
    """Outputs of L decoder layers for all N queries, first layer to last.

    Attributes:
        queries: the sets, in the order of their queries.
        hidden: (L, B, N, C), input of the heads for classes, boxes and masks.
        logits: (L, B, N, K), K + 1 with no-object last for softmax classification.
        boxes: (L, B, N, 4) float32 cxcywh in [0, 1] of the valid area.
        masks: masks of the same queries, or None without a mask head.
    """

    queries: tuple[Queries, ...]
    hidden: Tensor
    logits: Tensor
    boxes: Tensor
    masks: MaskView | None = None

    def group(self, name: str) -> Decoded:
        """Return the part of one set.

        Raises:
            KeyError: there is no set with this name.
        """
        start = 0
        for query_set in self.queries:
            if query_set.name == name:
                part = slice(start, start + query_set.number)
                masks = None if self.masks is None or not query_set.masked else self.masks[part]
                tensors = (self.hidden[:, :, part], self.logits[:, :, part], self.boxes[:, :, part])
                return Decoded((query_set,), *tensors, masks)
            start += query_set.number
        raise KeyError(f"no queries '{name}'; there are {', '.join(query_set.name for query_set in self.queries)}")

    def predictions(self, proposals: Mapping[str, QueryGroup]) -> Predictions:
        """Return the matching queries; ``groups`` are the sets before them, the proposals, and the sets after them."""
        groups = {
            query_set.name: self.group(query_set.name)._to(QueryGroup)
            for query_set in self.queries
            if query_set.name != MATCHING
        }
        names = [query_set.name for query_set in self.queries]
        before = {name: groups.pop(name) for name in names[: names.index(MATCHING)]}
        found = self.group(MATCHING)._to(Predictions)
        return replace(found, groups={**before, **proposals, **groups})

    def _to(self, kind: type[G]) -> G:
        (query_set,) = self.queries
        return kind(
            logits=self.logits,
            boxes=self.boxes,
            masks=self.masks,
            pairs=query_set.pairs,
            repeat=query_set.repeat,
            ignored=query_set.ignored,
            normaliser=query_set.normaliser,
        )
