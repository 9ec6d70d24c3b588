"""Harmonised content-position sampling (DAPE, AAAI 2026; reconstruction from the published description).

Deformable attention replaces the content of a token by a weighted sum over sampled points, but its position encoding
stays that of its own cell: after a few layers, content and position are misaligned. Here every token has a
**code**, a short vector that first encodes its own place. The code is sampled at the same points with the same weights
as the content, in one call of the sampling operator. The next layer's position encoding is made from the code.
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
    """Tokens with one code each: where in the image the content of the token comes from."""

    code: Tensor = field(kw_only=True)
    """(B, S, r), one code per token."""

    encoding: Callable[[Tensor], Tensor] = field(kw_only=True)
    """Maps codes (B, N, r) to position encodings (B, N, C)."""


class PositionedAttn(MSDeformAttn):
    """Deformable attention whose values include a linear map of the position."""

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points)
        self.value_position = nn.Linear(dim, dim)

    def values(self, tokens: Tokens) -> Tensor:
        """Return the values to sample from, (B, S, heads, C / heads)."""
        return super().values(replace(tokens, content=tokens.content + self.value_position(tokens.position)))


class CoSamplingAttn(MSDeformAttn):
    """Deformable attention that samples the code together with the content."""

    def forward(self, query: Tensor, reference: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # one more output
        """Return content (B, Q, C) as :class:`MSDeformAttn`, and the code (B, Q, r) sampled in the same way."""
        assert isinstance(tokens, CodedTokens)
        values = self.values(tokens)
        width = values.shape[-1]
        code = tokens.code.unflatten(-1, (self.num_heads, -1)).to(values.dtype)
        sampled = self.sample(torch.cat((values, code), dim=-1), query, reference, tokens)
        content, code = sampled.unflatten(-1, (self.num_heads, -1)).tensor_split((width,), dim=-1)
        return self.output_proj(content.flatten(-2)), code.flatten(-2)


class PositionedCoSamplingAttn(CoSamplingAttn, PositionedAttn):
    """Deformable attention that samples the code, with values that include positions."""


class PositionCode(nn.Module):
    """Code φ of the place of a token, and the map from codes to position encodings.

    φ = W · sine(x, y, log s): x and y are the centre in the valid area, s = 0.05 · 2^level is the side of the proposal.
    rank: channels of a code, a multiple of the number of heads.
    """

    def __init__(self, *, dim: int, rank: int, features: int = 32) -> None:
        super().__init__()
        self.features = features
        self.proj = nn.Linear(3 * features, rank)
        self.up = nn.Linear(rank, dim)
        self.norm = nn.LayerNorm(dim)

    def of_cells(self, tokens: Tokens) -> Tensor:
        """Return the code φ (B, S, r) of the place of every token."""
        side = torch.log(0.05 * 2.0 ** tokens.levels()).to(tokens.content.device)
        place = torch.cat((tokens.centres(), side[:, None].expand(tokens.content.shape[0], -1, 1)), dim=-1)
        code: Tensor = self.proj(sine_embedding(place * (2 * math.pi), self.features).flatten(-2))
        return code

    def forward(self, code: Tensor) -> Tensor:
        """Codes (B, N, r) -> position encodings (B, N, C)."""
        position: Tensor = self.norm(self.up(code))
        return position


class HarmonizedEncoderLayer(DeformableEncoderLayer):
    """A deformable encoder layer that also samples codes."""

    def forward(self, tokens: Tokens, reference: Tensor) -> Tokens:
        """Run as :class:`DeformableEncoderLayer`; the new code is the mean of the old and the sampled one."""
        assert isinstance(tokens, CodedTokens)
        sampled, code = self.self_attn(*self.attention_inputs(tokens, reference))
        return replace(tokens, content=self.add_sampled(tokens, sampled), code=(tokens.code + code) / 2)


class HarmonizedEncoder(DeformableEncoder):
    """A deformable encoder that makes positions from the codes before every layer."""

    def __init__(
        self,
        layers: Sequence[HarmonizedEncoderLayer],
        code: PositionCode,
        memory_fusion: MemoryFusion | None = None,
    ) -> None:
        super().__init__(layers)
        self.code = code
        self.memory_fusion = memory_fusion  # after the code: the optimizer states of stored runs depend on this order

    def forward(self, tokens: Tokens) -> Tokens:
        """tokens -> memory with content and code. Codes give the positions; only level embeddings are taken over."""
        plain = {field.name: getattr(tokens, field.name) for field in fields(Tokens)}
        coded = CodedTokens(**plain, code=self.code.of_cells(tokens), encoding=self.code)
        return super().forward(self._with_position(coded))

    def step(self, layer: nn.Module, tokens: Tokens, reference: Tensor) -> Tokens:
        """Run one layer and return the tokens for the next, with positions from their codes."""
        return self._with_position(layer(tokens, reference))

    def _with_position(self, tokens: CodedTokens) -> CodedTokens:
        position = tokens.encoding(tokens.code)
        return replace(tokens, position=position if tokens.level_embed is None else position + tokens.level_embed)


class HarmonizedDecoderLayer(DeformableDecoderLayer):
    """A deformable decoder layer that also returns the code that it sampled."""

    def forward(  # type: ignore[override]  # one more output
        self, content: Tensor, position: Tensor, reference: Tensor, memory: Tokens, blocks: Sequence[Block]
    ) -> tuple[Tensor, Tensor]:
        """Run as :class:`DeformableDecoderLayer` -> content (B, Q, C) and sampled code (B, Q, r)."""
        content = self.self_attend(content, position, blocks)
        sampled, code = self.cross_attn(content + position, reference, memory)
        return self.add_sampled(content, sampled), code
