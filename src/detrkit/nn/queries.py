"""What a decoder takes and gives: sets of queries in, their decoded states, logits and boxes out.

Beside the queries that detect (:data:`MATCHING`) training decodes further sets in the same pass: noised objects
(DN-DETR, DINO), one-to-many queries (Relation-DETR), more groups (Group DETR: Chen et al., ICCV 2023, arXiv
2207.13085). They share every layer and differ in which queries they see in self-attention and in how they find their
objects. Both are facts of the set, so that no decoder and no loss has to know where which of them stand.
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
"""Name of the queries that detect, the only ones outside of training."""


@dataclass(frozen=True, kw_only=True)
class Queries:
    """One set of N queries.

    Attributes:
        name: :data:`MATCHING`, or what the set is called among the groups of the predictions.
        content: (B, N, C), what the queries hold before the first layer.
        position: (B, N, C), a position embedding that all layers share; None where layers make it from boxes.
        reference: (B, N, 4) start boxes or (B, N, 2) points in [0, 1] of the valid area; None where there are none.
        sees: names of the other sets that these queries see in self-attention; they always see their own.
        blocked: (1 or B, 1, N, N) bool, pairs of the set that must not see each other; None: all do.
        pairs, repeat, ignored, normaliser: see :class:`detrkit.structures.QueryGroup`.
    """

    name: str = MATCHING
    content: Tensor
    position: Tensor | None = None
    reference: Tensor | None = None
    sees: tuple[str, ...] = ()
    blocked: Tensor | None = None
    pairs: tuple[Tensor, Tensor, Tensor] | None = None
    repeat: int = 1
    ignored: Tensor | None = None
    normaliser: float = 1.0

    @property
    def number(self) -> int:
        """N."""
        return self.content.shape[1]

    @property
    def place(self) -> Tensor:
        """The position embedding, of queries that have one."""
        assert self.position is not None
        return self.position

    @property
    def start(self) -> Tensor:
        """The reference, of queries that have one."""
        assert self.reference is not None
        return self.reference


@dataclass(frozen=True)
class Block:
    """Neighbouring sets whose queries attend to each other.

    Attributes:
        names: of the sets.
        size: queries of all of them, n.
        blocked: (1 or B, 1, n, n), 0, or -inf where a query (row) must not see another (column); None: all see all.
        relation: what attends under a bias of its own, ``blocked`` included; None: under ``blocked`` alone.
    """

    names: tuple[str, ...]
    size: int
    blocked: Tensor | None = None
    relation: AttentionBias | None = None

    @property
    def bias(self) -> Tensor | AttentionBias | None:
        """What self-attention adds to its logits."""
        return self.blocked if self.relation is None else self.relation


def attention_blocks(queries: Sequence[Queries]) -> list[Block]:
    """The blocks of self-attention: a set is in one with the sets before it where one of them sees the other.

    Raises:
        ValueError: two sets have one name, or sets that see each other do not stand side by side.
    """
    names = [one.name for one in queries]
    if len(set(names)) < len(names):
        raise ValueError(f"every set of queries needs a name of its own, got {', '.join(names)}")
    together: list[list[Queries]] = []
    for one in queries:
        linked = together and any(one.name in other.sees or other.name in one.sees for other in together[-1])
        if linked:
            together[-1].append(one)
        else:
            together.append([one])
    for sets in together:
        inside = {one.name for one in sets}
        for one in sets:
            if apart := set(one.sees) & (set(names) - inside):
                raise ValueError(f"queries '{one.name}' see {', '.join(sorted(apart))}, which must stand beside them")
    return [
        Block(tuple(one.name for one in sets), sum(one.number for one in sets), _blocked(sets)) for sets in together
    ]


def _blocked(sets: Sequence[Queries]) -> Tensor | None:
    if len(sets) == 1 and sets[0].blocked is None:
        return None
    device = sets[0].content.device
    owner = torch.cat([torch.full((one.number,), index, device=device) for index, one in enumerate(sets)])
    seen = torch.tensor([[one is other or other.name in one.sees for other in sets] for one in sets]).to(device)
    blocked = ~seen[owner[:, None], owner][None, None]
    start = 0
    for one in sets:
        if one.blocked is not None:
            rows = (start, len(owner) - start - one.number)
            blocked = blocked | nn.functional.pad(one.blocked, rows + rows)
        start += one.number
    return torch.zeros(blocked.shape, device=device).masked_fill(blocked, -torch.inf)


def within_blocks(attend: Callable[..., Tensor], blocks: Sequence[Block], *inputs: Tensor) -> Tensor:
    """``attend(*inputs, bias=…)`` for the queries of each block alone: inputs (B, N, C) of all blocks -> (B, N, C)."""
    first = blocks[0]
    if len(blocks) == 1:
        return attend(*inputs, bias=first.bias)
    if all(block.bias is None and block.size == first.size for block in blocks):  # like Group DETR's: one batch of all
        batch, number = inputs[0].shape[:2]
        separate = (x.reshape(batch * len(blocks), first.size, x.shape[-1]) for x in inputs)
        return attend(*separate, bias=None).reshape(batch, number, -1)
    parts = zip(*(x.split([block.size for block in blocks], dim=1) for x in inputs), strict=True)
    return torch.cat([attend(*part, bias=block.bias) for part, block in zip(parts, blocks, strict=True)], dim=1)


def query_groups(embedding: nn.Embedding, size: int, batch: int, *, training: bool) -> list[Queries]:
    """Learned position embeddings as groups of ``size`` queries without content, the first as the matching ones.

    In training each group is matched with all objects on its own, so that an object teaches as many queries as there
    are groups, and the losses of all groups are averaged; in evaluation only the first is there (Group DETR).
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
    """What L decoder layers made of all N queries, first layer to last.

    Attributes:
        queries: the sets, in the order in which they stand side by side.
        hidden: (L, B, N, C), the states that the heads read; a mask head is one more reader.
        logits: (L, B, N, K), K + 1 with no-object last for softmax classification.
        boxes: (L, B, N, 4) float32 cxcywh in [0, 1] of the valid area.
        masks: of the same queries, where a mask head makes them, or None.
    """

    queries: tuple[Queries, ...]
    hidden: Tensor
    logits: Tensor
    boxes: Tensor
    masks: MaskView | None = None

    def group(self, name: str) -> Decoded:
        """The part of one set.

        Raises:
            KeyError: no set is called so.
        """
        start = 0
        for one in self.queries:
            if one.name == name:
                part = slice(start, start + one.number)
                masks = None if self.masks is None else self.masks[part]
                tensors = (self.hidden[:, :, part], self.logits[:, :, part], self.boxes[:, :, part])
                return Decoded((one,), *tensors, masks)
            start += one.number
        raise KeyError(f"no queries '{name}'; there are {', '.join(one.name for one in self.queries)}")

    def predictions(self, proposals: Mapping[str, QueryGroup]) -> Predictions:
        """The matching queries; ``groups`` are the sets before them, proposals of the encoder, and the sets after."""
        groups = {one.name: self.group(one.name)._as(QueryGroup) for one in self.queries if one.name != MATCHING}
        names = [one.name for one in self.queries]
        before = {name: groups.pop(name) for name in names[: names.index(MATCHING)]}
        found = self.group(MATCHING)._as(Predictions)
        return replace(found, groups={**before, **proposals, **groups})

    def _as(self, kind: type[G]) -> G:
        (one,) = self.queries
        return kind(
            logits=self.logits,
            boxes=self.boxes,
            masks=self.masks,
            pairs=one.pairs,
            repeat=one.repeat,
            ignored=one.ignored,
            normaliser=one.normaliser,
        )
