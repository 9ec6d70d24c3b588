"""Encoder of Salience-DETR ("hierarchical query filtering", "background embedding").

Only salient tokens are refined, fewer in every layer; all other tokens get a learned embedding at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrkit.nn.attention import MultiheadAttention
from detrkit.nn.deformable import MSDeformAttn
from detrkit.nn.position import LearnedPosition
from detrkit.nn.tokens import Tokens, gather_rows, on_levels
from detrkit.nn.transformer import FeedForwardLayer, run_layer
from detrkit.ops.exporting import is_exporting

__all__ = ["Focus", "SalienceEncoder", "SalienceEncoderLayer", "SalienceFilter"]

_STEP = 2.5e-7  # two units in the last place of a float32


@dataclass(frozen=True)
class Focus:
    """The tokens that one encoder layer refines.

    All images of a batch have the same n. As published, the surplus tokens of a smaller image are attended to, but not
    written back.
    """

    index: Tensor
    """(B, n), the most salient first."""

    seen: Tensor
    """(B, n) bool, the tokens that take part in the layer."""

    kept: Tensor
    """(B, n) bool, the tokens that are written back."""


def lowest_in_padding(scores: Tensor, padding_mask: Tensor) -> Tensor:
    """Replace scores (B, n) in padding (B, n) by the lowest score."""
    return torch.where(padding_mask, scores.min(), scores)


class SalienceFilter(nn.Module):
    """Selects tokens by salience (B, S) with two keep ratios, one per level and one per encoder layer.

    The ratios are buffers because official checkpoints contain them. mask_padding: the selection of an image does not
    depend on the other images of its batch.

    The number of tokens per layer follows the largest image of the batch. The shapes of an exported program cannot: it
    has room for an image that fills the canvas, and the tokens beyond that number neither take part nor change.
    """

    level_filter_ratio: Tensor
    layer_filter_ratio: Tensor

    def __init__(self, *, levels: Sequence[float], layers: Sequence[float], mask_padding: bool) -> None:
        super().__init__()
        self.register_buffer("level_filter_ratio", torch.tensor(levels))
        self.register_buffer("layer_filter_ratio", torch.tensor(layers))
        self.mask_padding = mask_padding
        self.ratios = tuple(levels), tuple(layers)

    @torch.no_grad()
    def forward(self, salience: Tensor, tokens: Tokens) -> list[Focus]:
        """salience (B, S) -> the tokens in focus, per layer."""
        # not prod(-1): OpenVINO fuses it with the product that follows and takes the ratios of the wrong level
        columns, rows = tokens.valid_cells.unbind(-1)
        per_image = (columns * rows * self.level_filter_ratio).long().clamp(min=1)
        largest = per_image.amax(0)
        limits = per_image if self.mask_padding else largest.expand_as(per_image)
        sizes, start, best, index = tokens.sizes, 0, [], []
        levels = zip(salience.split(sizes, dim=1), tokens.padding_mask.split(sizes, dim=1), strict=True)
        counts = _room(sizes, self.ratios[0]) if is_exporting() else largest.tolist()
        for level, (count, (scores, padding)) in enumerate(zip(counts, levels, strict=True)):
            if self.mask_padding:
                scores = scores.masked_fill(padding, -torch.inf)
            else:
                # published: padding gets the lowest score of the level. Of equal scores every runtime would choose
                # others, so that it gets a little less, token by token
                lowest = scores.min()
                scores = torch.where(padding, lowest - _STEP * (lowest.abs() + 1) * padding.cumsum(1), scores)
            found = scores.topk(count, dim=1)
            surplus = torch.arange(count, device=scores.device) >= limits[:, level, None]
            best.append(found.values.masked_fill(surplus, -torch.inf))
            index.append(found.indices + start)
            start += sizes[level]
        chosen = torch.cat(index, dim=1).gather(1, torch.cat(best, dim=1).argsort(dim=1, descending=True))
        own, number = per_image.sum(1, keepdim=True), chosen.shape[1]
        lengths = (largest.sum() * self.layer_filter_ratio).long().clamp(min=1)
        rooms = _room([number] * len(lengths), self.ratios[1]) if is_exporting() else lengths.tolist()
        return [
            self._focus(chosen[:, :room], own, length, ratio)
            for room, length, ratio in zip(rooms, lengths, self.layer_filter_ratio, strict=True)
        ]

    def _focus(self, index: Tensor, own: Tensor, length: Tensor, ratio: Tensor) -> Focus:
        """Build the focus of a layer from its tokens (B, n).

        own: (B, 1), number of selected tokens per image · length: number of tokens of the layer.
        """
        rank = torch.arange(index.shape[1], device=index.device)
        if self.mask_padding:
            kept = rank < (own * ratio).long().clamp(min=1)
            return Focus(index, kept, kept)
        seen = (rank < length).expand_as(index)
        return Focus(index, seen, seen & (rank < own))


def _room(numbers: Sequence[int], ratios: Sequence[float]) -> list[int | torch.SymInt]:
    """Return numbers that no share of these numbers exceeds, however it is rounded; symbolic ones in a trace."""
    return [
        number if ratio == 1 else torch.sym_int(number * ratio) + 1
        for number, ratio in zip(numbers, ratios, strict=True)
    ]


class SalienceEncoderLayer(FeedForwardLayer):
    """Self-attention of the ``attending`` highest-ranked tokens, then a deformable encoder layer for all tokens."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
        attending: int,
    ) -> None:
        super().__init__(dim=dim, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False)
        self.pre_attention = MultiheadAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.self_attn = MSDeformAttn(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points)
        self.attention_norm = nn.LayerNorm(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attending = attending

    def forward(
        self, query: Tensor, position: Tensor, rank: Tensor, seen: Tensor, reference: Tensor, tokens: Tokens
    ) -> Tensor:
        """query and position (B, n, C), rank and seen (B, n), reference (B, n, L, 2), all tokens -> (B, n, C)."""
        query = self._attend_best(query, position, rank.masked_fill(~seen, -torch.inf), seen)
        query = self.residual(query, self.norm1, lambda x: self.self_attn(x + position, reference, tokens))
        return self.residual(query, self.norm2, self.feed_forward)

    def _attend_best(self, query: Tensor, position: Tensor, rank: Tensor, seen: Tensor) -> Tensor:
        """Let the queries (B, n, C) of the highest rank (B, n) attend to each other; the others stay."""
        best = rank.topk(min(self.attending, rank.shape[1]), dim=1).indices
        best_position, unseen = gather_rows(position, best), ~seen.gather(1, best)
        refined = self.residual(
            gather_rows(query, best),
            self.attention_norm,
            lambda x: self.pre_attention(x + best_position, x + best_position, x, unseen),
        )
        return query.scatter(1, best[..., None].expand_as(refined), refined.to(query.dtype))


class SalienceEncoder(nn.Module):
    """Refines the tokens in focus, layer by layer. All layers sample from the input tokens, as published."""

    def __init__(
        self,
        layers: Sequence[SalienceEncoderLayer],
        background_embedding: LearnedPosition,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpointing = checkpointing
        self.background_embedding = background_embedding

    def forward(
        self, tokens: Tokens, salience: Tensor, focuses: Sequence[Focus], classify: Callable[[Tensor], Tensor]
    ) -> Tokens:
        """tokens and salience (B, S) -> memory; classify: maps (B, n, C) to the class logits that rank tokens."""
        content = tokens.content
        salience = lowest_in_padding(salience.detach(), tokens.padding_mask)
        reference = on_levels(tokens.centres(), tokens)
        for layer, focus in zip(self.layers, focuses, strict=True):
            query = gather_rows(content, focus.index)
            rank = classify(query).detach().amax(-1) * salience.gather(1, focus.index)
            points = gather_rows(reference.flatten(2), focus.index).unflatten(-1, reference.shape[2:])
            position = gather_rows(tokens.position, focus.index)
            inputs = (query, position, rank, focus.seen, points, tokens)
            refined = run_layer(layer, *inputs, checkpointing=self.checkpointing)
            written = torch.where(focus.kept[..., None], refined.to(content.dtype), query)
            content = content.scatter(1, focus.index[..., None].expand_as(written), written)
        return replace(tokens, content=content + self._background(tokens, focuses[-1]))

    def _background(self, tokens: Tokens, last: Focus) -> Tensor:
        """Return the background embedding (B, S, C), zero for tokens in the last layer and in padding."""
        maps = [self.background_embedding(level).flatten(1, 2) for level in tokens.padding_maps()]
        embedded = torch.cat(maps, dim=1)
        covered = tokens.padding_mask.scatter(1, last.index, last.seen | tokens.padding_mask.gather(1, last.index))
        return embedded.masked_fill(covered[..., None], 0.0)
