"""Blocks of Deformable DETR (Zhu et al., ICLR 2021, section 4): attention at sampled points of every level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypedDict

import torch
from torch import Tensor, nn

from detrkit.nn.attention import MultiheadAttention
from detrkit.nn.queries import Block
from detrkit.nn.tokens import Tokens, on_levels
from detrkit.nn.transformer import FeedForwardLayer, run_layer, xavier_
from detrkit.ops.eager import in_plain_cpu
from detrkit.ops.exporting import is_exporting
from detrkit.ops.ms_deform_attn import ms_deform_attn, sample_maps
from detrkit.ops.zeroed import zeroed

__all__ = [
    "AttentionFactory",
    "DeformableDecoderLayer",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "LayerOptions",
    "MSDeformAttn",
    "MemoryFusion",
    "deformable_xavier_",
]


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections (eq. 3)."""

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"hidden_dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: head m samples in direction 2πm/heads, point p at distance p + 1, all with equal weight."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        grid = direction[:, None, None] * steps[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(grid.expand(-1, self.num_levels, -1, -1).flatten())
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zero)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, reference: Tensor, tokens: Tokens) -> Tensor:
        """Sample for query (B, Q, C) around points (B, Q, L, 2) or within boxes (B, Q, L, 4) -> (B, Q, C)."""
        output: Tensor = self.output_proj(self.sample(self.values(tokens), query, reference, tokens))
        return output

    def values(self, tokens: Tokens) -> Tensor:
        """Return the values to sample from, (B, S, heads, C / heads)."""
        return self.value_proj(tokens.content).unflatten(-1, (self.num_heads, -1))

    def sample(self, values: Tensor, query: Tensor, reference: Tensor, tokens: Tokens) -> Tensor:
        """Sample values (B, S, heads, D) with the offsets and weights of the query -> (B, Q, heads · D).

        Query and reference as in :meth:`forward`. Offsets are in cells of the level around points; within boxes
        ``num_points`` is half a side, so that the initial grid just fits.
        """
        if not (in_plain_cpu(values) and not tokens.padding_mask.any()):  # a copy of all values, often for nothing
            values = zeroed(values, tokens.padding_mask[..., None, None])
        if is_exporting():
            return self._sample_in_rows(values, query, reference, tokens)
        levels_points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).float().unflatten(-1, (*levels_points, 2))
        weights = self.attention_weights(query).float().unflatten(-1, (self.num_heads, -1)).softmax(-1)
        reference = reference.float()[:, :, None, :, None]
        if reference.shape[-1] == 2:
            locations = reference + offsets / tokens.extents.to(offsets)[:, None]
        else:
            locations = reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
        return ms_deform_attn(values, tokens.shapes, locations, weights.unflatten(-1, levels_points[1:]))

    def _sample_in_rows(self, values: Tensor, query: Tensor, reference: Tensor, tokens: Tokens) -> Tensor:
        """:meth:`sample` for exported programs: points are computed with the queries last, as they are used."""
        levels_points = (self.num_heads, self.num_levels, self.num_points)

        def in_rows(x: Tensor) -> Tensor:  # (B, Q, H, L, P, …) -> (L, B, H, P, Q, …)
            return x.movedim((3, 0, 2, 4, 1), (0, 1, 2, 3, 4))

        offsets = 2 * self.sampling_offsets(query).float()
        weights = self.attention_weights(query).float().unflatten(-1, (self.num_heads, -1)).softmax(-1)
        centres = (2 * reference.float()[..., :2] - 1).movedim(2, 0)[:, :, None, None]  # (L, B, 1, 1, Q, 2)
        if reference.shape[-1] == 2:
            cells = (1 / tokens.extents.to(offsets))[None, None, None, :, None]  # (1, 1, 1, L, 1, 2)
            offsets = offsets * cells.expand(1, 1, *levels_points, 2).flatten(2)
            moves = in_rows(offsets.unflatten(-1, (*levels_points, 2)))
        else:
            sides = (reference.float()[..., 2:] * (0.5 / self.num_points)).movedim(2, 0)[:, :, None, None]
            moves = in_rows(offsets.unflatten(-1, (*levels_points, 2))) * sides
        shares = in_rows(weights.unflatten(-1, levels_points[1:]))
        return sample_maps(values, tokens.shapes, (centres + moves).flatten(1, 2), shares.flatten(1, 2))


class AttentionFactory(Protocol):
    """Builds the deformable attention of a layer: :class:`MSDeformAttn` or a subclass."""

    def __call__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int) -> MSDeformAttn: ...


class LayerOptions(TypedDict):
    """Constructor arguments of encoder and decoder layers."""

    dim: int
    num_heads: int
    num_levels: int
    num_points: int
    ffn_dim: int
    dropout: float


def deformable_xavier_(module: nn.Module) -> None:
    """Initialise every parameter of two or more dimensions Xavier-uniform, but keep the sampling grids."""
    xavier_(module)
    for part in module.modules():
        if isinstance(part, MSDeformAttn):
            part.reset_parameters()


class DeformableEncoderLayer(FeedForwardLayer):
    """Deformable self-attention of the tokens, then a feed-forward block; post-norm."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
        attention: AttentionFactory = MSDeformAttn,
    ) -> None:
        super().__init__(dim=dim, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False)
        self.self_attn = attention(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tokens, reference: Tensor) -> Tokens:
        """Tokens with their own centres (B, S, L, 2) as reference -> tokens with new content."""
        sampled = self.self_attn(tokens.content + tokens.position, reference, tokens)
        return replace(tokens, content=self.add_sampled(tokens, sampled))

    def add_sampled(self, tokens: Tokens, sampled: Tensor) -> Tensor:
        """Add the sampled features (B, S, C) and apply the feed-forward block -> content (B, S, C)."""
        content = self.residual(tokens.content, self.norm1, lambda _: sampled)
        return self.residual(content, self.norm2, self.feed_forward)


class MemoryFusion(nn.Sequential):
    """Fuses the tokens before and after every encoder layer into one memory (Relation-DETR)."""

    def __init__(self, *, dim: int, inputs: int) -> None:
        super().__init__(nn.Linear(inputs * dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.LayerNorm(dim))

    def forward(self, contents: Sequence[Tensor]) -> Tensor:
        """Contents (B, S, C) of all layers -> (B, S, C)."""
        fused = torch.cat(tuple(contents), dim=-1)
        for module in self:
            fused = module(fused)
        return fused


class DeformableEncoder(nn.Module):
    """A stack of deformable encoder layers, with an optional fusion of the outputs of all layers.

    checkpointing: keep only the tokens between layers for the backward pass, and compute the rest again.
    """

    def __init__(
        self,
        layers: Sequence[DeformableEncoderLayer],
        memory_fusion: MemoryFusion | None = None,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.memory_fusion = memory_fusion
        self.checkpointing = checkpointing

    def forward(self, tokens: Tokens) -> Tokens:
        """tokens -> memory: tokens with new content."""
        reference = on_levels(tokens.centres(), tokens)
        contents = [tokens.content]
        for layer in self.layers:
            tokens = self.step(layer, tokens, reference)
            contents.append(tokens.content)
        return tokens if self.memory_fusion is None else replace(tokens, content=self.memory_fusion(contents))

    def step(self, layer: nn.Module, tokens: Tokens, reference: Tensor) -> Tokens:
        """Run one layer and return the tokens for the next."""
        output: Tokens = run_layer(layer, tokens, reference, checkpointing=self.checkpointing)
        return output


class DeformableDecoderLayer(FeedForwardLayer):
    """Self-attention among the queries (norm2), deformable cross-attention (norm1), feed-forward block (norm3)."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
        attention: AttentionFactory = MSDeformAttn,
    ) -> None:
        super().__init__(dim=dim, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False)
        self.self_attn = MultiheadAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.cross_attn = attention(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, content: Tensor, position: Tensor, reference: Tensor, memory: Tokens, blocks: Sequence[Block]
    ) -> Tensor:
        """content and position (B, Q, C), reference (B, Q, L, 2 or 4), memory -> content (B, Q, C).

        blocks: which queries attend to each other, and with which bias.
        """
        content = self.self_attend(content, position, blocks)
        return self.add_sampled(content, self.cross_attn(content + position, reference, memory))

    def self_attend(self, content: Tensor, position: Tensor, blocks: Sequence[Block]) -> Tensor:
        """Apply self-attention within the blocks -> content (B, Q, C)."""
        sizes = [block.size for block in blocks]

        def attend(content: Tensor) -> Tensor:
            # a single block is split too: this fixes the order in which gradients are summed, hence the last bits
            parts = zip(content.split(sizes, dim=1), position.split(sizes, dim=1), blocks, strict=True)
            attended = []
            for x, place, block in parts:
                placed = x + place
                attended.append(self.self_attn(placed, placed, x, bias=block.bias))
            return torch.cat(attended, dim=1)

        return self.residual(content, self.norm2, attend)

    def add_sampled(self, content: Tensor, sampled: Tensor) -> Tensor:
        """Add features sampled from the memory (B, Q, C) and apply the feed-forward block -> content (B, Q, C)."""
        content = self.residual(content, self.norm1, lambda _: sampled)
        return self.residual(content, self.norm3, self.feed_forward)
