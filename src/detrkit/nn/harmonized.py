"""Harmonised content-position sampling (DAPE, AAAI 2026; reconstruction from the published description).

Deformable attention replaces what a token contains by a mean over sampled points, while its position encoding stays
that of its own cell: after a few layers content and position speak of different places. Here every token carries a
**code** of a few numbers, at first of its own place, that is sampled at the same points with the same weights as its
content, in one call of the sampling operator. The next layer's position encoding is made from the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from detrkit.nn.deformable import (
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    MemoryFusion,
    MSDeformAttn,
)
from detrkit.nn.position import sine_embedding
from detrkit.nn.queries import Block
from detrkit.nn.tokens import Tokens

__all__ = [
    "CoSamplingAttn",
    "CodedTokens",
    "HarmonizedDecoderLayer",
    "HarmonizedEncoder",
    "HarmonizedEncoderLayer",
    "PositionCode",
    "PositionedAttn",
    "PositionedCoSamplingAttn",
]


@dataclass(frozen=True)
class CodedTokens(Tokens):
    """Tokens that know where their content comes from.

    Attributes:
        code: (B, S, r), of where that is.
        encoding: makes position encodings (B, N, C) of codes (B, N, r).
    """

    code: Tensor = field(kw_only=True)
    encoding: Callable[[Tensor], Tensor] = field(kw_only=True)


class PositionedAttn(MSDeformAttn):
    """Deformable attention that also reads where tokens are: a linear map of their position joins the content."""

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points)
        self.value_position = nn.Linear(dim, dim)

    def values(self, tokens: Tokens) -> Tensor:
        """What is sampled, (B, S, heads, C / heads)."""
        return super().values(replace(tokens, content=tokens.content + self.value_position(tokens.position)))


class CoSamplingAttn(MSDeformAttn):
    """Deformable attention that samples the code along with the content."""

    def forward(self, query: Tensor, reference: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # one more output
        """As :class:`MSDeformAttn` -> (B, Q, C), and the code (B, Q, r) at the same points with the same weights."""
        assert isinstance(tokens, CodedTokens)
        values = self.values(tokens)
        width = values.shape[-1]
        code = tokens.code.unflatten(-1, (self.num_heads, -1)).to(values.dtype)
        sampled = self.sample(torch.cat((values, code), dim=-1), query, reference, tokens)
        content, code = sampled.unflatten(-1, (self.num_heads, -1)).tensor_split((width,), dim=-1)
        return self.output_proj(content.flatten(-2)), code.flatten(-2)


class PositionedCoSamplingAttn(CoSamplingAttn, PositionedAttn):
    """Samples codes along with values that hold positions."""


class PositionCode(nn.Module):
    """Code φ of a token's place, and the position encoding that a code stands for.

    φ = W · sine(x, y, log s): x and y the centre in the valid area, s = 0.05 · 2^level the side of its proposal.
    rank: numbers of a code, shared evenly by the heads of attention.
    """

    def __init__(self, *, dim: int, rank: int, features: int = 32) -> None:
        super().__init__()
        self.features = features
        self.proj = nn.Linear(3 * features, rank)
        self.up = nn.Linear(rank, dim)
        self.norm = nn.LayerNorm(dim)

    def start(self, tokens: Tokens) -> Tensor:
        """φ of every token's own place (B, S, r)."""
        side = torch.log(0.05 * 2.0 ** tokens.levels()).to(tokens.content.device)
        place = torch.cat((tokens.centres(), side[:, None].expand(tokens.content.shape[0], -1, 1)), dim=-1)
        code: Tensor = self.proj(sine_embedding(place * (2 * math.pi), self.features).flatten(-2))
        return code

    def forward(self, code: Tensor) -> Tensor:
        """Codes (B, N, r) -> position encodings (B, N, C)."""
        position: Tensor = self.norm(self.up(code))
        return position


class HarmonizedEncoderLayer(DeformableEncoderLayer):
    """A deformable encoder layer whose tokens take their code along."""

    def forward(self, tokens: Tokens, reference: Tensor) -> Tokens:
        """As :class:`DeformableEncoderLayer`; content keeps a residual, so the code does: half of it stays."""
        assert isinstance(tokens, CodedTokens)
        sampled, code = self.self_attn(*self.reads(tokens, reference))
        return replace(tokens, content=self.mixed(tokens, sampled), code=(tokens.code + code) / 2)


class HarmonizedEncoder(DeformableEncoder):
    """A deformable encoder in front of whose layers positions are made from the codes."""

    def __init__(
        self,
        layers: Sequence[HarmonizedEncoderLayer],
        code: PositionCode,
        memory_fusion: MemoryFusion | None = None,
    ) -> None:
        super().__init__(layers)
        self.code = code
        self.memory_fusion = memory_fusion  # behind the code: optimizer states of stored runs go by this order

    def forward(self, tokens: Tokens) -> Tokens:
        """tokens -> memory with content and code; of the positions that are given only the levels are read."""
        plain = {field.name: getattr(tokens, field.name) for field in fields(Tokens)}
        coded = CodedTokens(**plain, code=self.code.start(tokens), encoding=self.code)
        return super().forward(self._placed(coded))

    def step(self, layer: nn.Module, tokens: Tokens, reference: Tensor) -> Tokens:
        """What the next layer reads: content, code, and the position that the code stands for."""
        return self._placed(layer(tokens, reference))

    def _placed(self, tokens: CodedTokens) -> CodedTokens:
        position = tokens.encoding(tokens.code)
        return replace(tokens, position=position if tokens.level_embed is None else position + tokens.level_embed)


class HarmonizedDecoderLayer(DeformableDecoderLayer):
    """A deformable decoder layer that also says where what it read comes from."""

    def forward(  # type: ignore[override]  # one more output
        self, content: Tensor, position: Tensor, reference: Tensor, memory: Tokens, blocks: Sequence[Block]
    ) -> tuple[Tensor, Tensor]:
        """As :class:`DeformableDecoderLayer` -> content (B, Q, C) and sampled code (B, Q, r)."""
        content = self.attended(content, position, blocks)
        sampled, code = self.cross_attn(content + position, reference, memory)
        return self.mixed(content, sampled), code
