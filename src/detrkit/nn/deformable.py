"""Blocks of Deformable DETR (Zhu et al., ICLR 2021, section 4): attention at sampled points of every level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrkit.nn.attention import AttentionBias, MultiheadAttention
from detrkit.nn.backbone import FeatureMap
from detrkit.nn.projection import to_tokens
from detrkit.nn.transformer import FeedForwardLayer, xavier_
from detrkit.ops.ms_deform_attn import ms_deform_attn

__all__ = [
    "DeformableDecoderLayer",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "MSDeformAttn",
    "MemoryFusion",
    "Tokens",
    "deformable_xavier_",
    "flatten_levels",
    "on_levels",
]


@dataclass(frozen=True)
class Tokens:
    """The cells of all levels, one level after the other: S tokens of L levels.

    content, position (B, S, C) · padding_mask (B, S) bool, True = padding · shapes (L, 2) int64 height and width, kept
    on the CPU · valid_cells (B, L, 2) float columns and rows that hold image · level_embed (S, C): what position tells
    of each token's level · code (B, S, r): where content comes from (:mod:`detrkit.nn.harmonized`), or None.
    """

    content: Tensor
    position: Tensor
    padding_mask: Tensor
    shapes: Tensor
    valid_cells: Tensor
    level_embed: Tensor
    code: Tensor | None = None

    @property
    def valid_ratios(self) -> Tensor:
        """(B, L, 2): the share of each level's width and height that holds image."""
        return self.valid_cells / self.shapes.flip(-1).to(self.valid_cells)

    def levels(self) -> Tensor:
        """(S,) int64 on the CPU: the level of every token."""
        return torch.arange(len(self.shapes)).repeat_interleave(self.shapes.prod(1))

    def centres(self) -> Tensor:
        """(B, S, 2): x and y of every token's centre, in units of the valid area."""
        centres = []
        for level, (height, width) in enumerate(self.shapes.tolist()):
            rows = torch.arange(height, device=self.content.device) + 0.5
            columns = torch.arange(width, device=self.content.device) + 0.5
            grid = torch.stack((columns.expand(height, -1), rows[:, None].expand(-1, width)), dim=-1)
            centres.append(grid.flatten(0, 1) / self.valid_cells[:, None, level])
        return torch.cat(centres, dim=1)


def flatten_levels(levels: Sequence[FeatureMap], positions: Sequence[Tensor], level_embed: Tensor) -> Tokens:
    """Levels with position encodings (B, h, w, C), to which the level's embedding (L, C) is added."""
    valid = [~level.padding_mask for level in levels]
    cells = [torch.stack((mask[:, 0].sum(1), mask[:, :, 0].sum(1)), dim=-1) for mask in valid]
    embed = torch.cat(
        [row.expand(position[0, ..., 0].numel(), -1) for row, position in zip(level_embed, positions, strict=True)]
    )
    return Tokens(
        content=torch.cat([to_tokens(level.tensor) for level in levels], dim=1),
        position=torch.cat([position.flatten(1, 2) for position in positions], dim=1) + embed,
        padding_mask=torch.cat([level.padding_mask.flatten(1) for level in levels], dim=1),
        shapes=torch.tensor([level.tensor.shape[-2:] for level in levels]),
        valid_cells=torch.stack(cells, dim=1).float(),
        level_embed=embed,
    )


def on_levels(reference: Tensor, tokens: Tokens) -> Tensor:
    """Points or boxes (B, Q, 2 or 4) of the valid area -> on the padded map of every level (B, Q, L, 2 or 4)."""
    ratios = tokens.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)
    return reference[:, :, None] * ratios[:, None]


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections (eq. 3).

    value_position: maps the tokens' positions to what is added to their content before it is read; published: None.
    """

    value_position: nn.Linear | None

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
        self.value_position = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head m looks in direction 2πm/heads, point p lies p + 1 steps away; all samples weigh the same."""
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

    def forward(self, query: Tensor, reference: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """query (B, Q, C) reads around reference points (B, Q, L, 2) or within boxes (B, Q, L, 4).

        Returns (B, Q, C), and the code (B, Q, r) at the same points with the same weights where tokens have one.
        """
        content = tokens.content
        if self.value_position is not None:
            content = content + self.value_position(tokens.position)
        value = self.value_proj(content).unflatten(-1, (self.num_heads, -1))
        width = value.shape[-1]
        if tokens.code is not None:
            value = torch.cat((value, tokens.code.unflatten(-1, (self.num_heads, -1)).to(value.dtype)), dim=-1)
        value = value.masked_fill(tokens.padding_mask[..., None, None], 0.0)
        levels_points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).float().unflatten(-1, (*levels_points, 2))
        weights = self.attention_weights(query).float().unflatten(-1, (self.num_heads, -1)).softmax(-1)
        reference = reference.float()[:, :, None, :, None]
        if reference.shape[-1] == 2:
            sizes = tokens.shapes.flip(-1).to(offsets)[:, None]
            locations = reference + offsets / sizes
        else:
            locations = reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
        sampled = ms_deform_attn(value, tokens.shapes, locations, weights.unflatten(-1, levels_points[1:]))
        if tokens.code is None:
            return self.output_proj(sampled), None
        mixed, code = sampled.unflatten(-1, (self.num_heads, -1)).tensor_split((width,), dim=-1)
        return self.output_proj(mixed.flatten(-2)), code.flatten(-2)


def deformable_xavier_(module: nn.Module) -> None:
    """Xavier-uniform for every parameter of two or more dimensions, the sampling grids as they were."""
    xavier_(module)
    for part in module.modules():
        if isinstance(part, MSDeformAttn):
            part.reset_parameters()


class DeformableEncoderLayer(FeedForwardLayer):
    """Deformable self-attention of the tokens, then a feed-forward block; post-norm."""

    def __init__(
        self, *, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float
    ) -> None:
        super().__init__(dim=dim, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False)
        self.self_attn = MSDeformAttn(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tokens, reference: Tensor) -> tuple[Tensor, Tensor | None]:
        """tokens with their own centres (B, S, L, 2) as reference -> content (B, S, C), sampled code (B, S, r)."""
        mixed, code = self.self_attn(tokens.content + tokens.position, reference, tokens)
        content = self.residual(tokens.content, self.norm1, lambda _: mixed)
        return self.residual(content, self.norm2, self.feed_forward), code


class MemoryFusion(nn.Sequential):
    """The tokens before and after every encoder layer, side by side, mixed into one memory (Relation-DETR)."""

    def __init__(self, *, dim: int, inputs: int) -> None:
        super().__init__(nn.Linear(inputs * dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.LayerNorm(dim))

    def forward(self, contents: Sequence[Tensor]) -> Tensor:
        """Contents (B, S, C) of all layers -> (B, S, C)."""
        fused = torch.cat(tuple(contents), dim=-1)
        for module in self:
            fused = module(fused)
        return fused


class DeformableEncoder(nn.Module):
    """A stack of deformable encoder layers; its output is the last layer's, or a fusion of all."""

    memory_fusion: MemoryFusion | None

    def __init__(self, layers: Sequence[DeformableEncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.memory_fusion = None

    def forward(self, tokens: Tokens) -> Tokens:
        """tokens -> memory: the same with mixed content."""
        reference = on_levels(tokens.centres(), tokens)
        contents = [tokens.content]
        for layer in self.layers:
            tokens = self.step(layer, tokens, reference)
            contents.append(tokens.content)
        return tokens if self.memory_fusion is None else replace(tokens, content=self.memory_fusion(contents))

    def step(self, layer: nn.Module, tokens: Tokens, reference: Tensor) -> Tokens:
        """What the next layer reads."""
        content, _ = layer(tokens, reference)
        return replace(tokens, content=content)


class DeformableDecoderLayer(FeedForwardLayer):
    """Self-attention among the queries (norm2), deformable cross-attention (norm1), feed-forward block (norm3)."""

    def __init__(
        self, *, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float
    ) -> None:
        super().__init__(dim=dim, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False)
        self.self_attn = MultiheadAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.cross_attn = MSDeformAttn(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tokens,
        bias: Tensor | AttentionBias | None = None,
        apart: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """content and position (B, Q, C), reference (B, Q, L, 2 or 4) -> content (B, Q, C), sampled code (B, Q, r).

        bias: of self-attention, see :class:`detrkit.nn.attention.MultiheadAttention`; -inf blocks a pair.
        apart: the last so many queries attend to each other only, without bias.
        """
        content = self.residual(content, self.norm2, lambda x: self._self_attention(x, position, bias, apart))
        mixed, code = self.cross_attn(content + position, reference, memory)
        content = self.residual(content, self.norm1, lambda _: mixed)
        return self.residual(content, self.norm3, self.feed_forward), code

    def _self_attention(
        self, content: Tensor, position: Tensor, bias: Tensor | AttentionBias | None, apart: int
    ) -> Tensor:
        sizes = [content.shape[1] - apart, apart][: 1 + (apart > 0)]
        parts = zip(content.split(sizes, dim=1), position.split(sizes, dim=1), (bias, None), strict=False)
        return torch.cat([self.self_attn(x + p, x + p, x, bias=own) for x, p, own in parts], dim=1)
