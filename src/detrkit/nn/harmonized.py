"""Harmonised content-position sampling (DAPE, AAAI 2026; reconstruction from the published description).

Deformable attention replaces the content of a token by a weighted sum over sampled points, but its position encoding
stays that of its own cell: after a few layers, content and position are misaligned. Here every token has a
**code**, a short vector that first encodes its own place. The code is sampled at the same points with the same weights
as the content, in one call of the sampling operator. What the code says reaches the next layer's position encoding in
one of two readings of the description:

* :class:`PositionCode`: the position encoding is made from the code alone;
* :class:`PositionCorrection`: the position encoding stays that of the own place, plus a correction made from the
  difference between the sampled code and the code of the own place, zero at the start of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Unpack

import torch
from torch import Tensor, nn

from detrkit.nn.deformable import (
    AttentionFactory,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    LayerOptions,
    MemoryFusion,
    MSDeformAttn,
)
from detrkit.nn.position import sine_embedding
from detrkit.nn.queries import Block
from detrkit.nn.tokens import Tokens
from detrkit.nn.transformer import run_layer

__all__ = [
    "CoSamplingAttn",
    "CodedTokens",
    "HarmonizedDecoderLayer",
    "HarmonizedEncoder",
    "HarmonizedEncoderLayer",
    "PositionCode",
    "PositionCorrection",
    "PositionedAttn",
    "PositionedCoSamplingAttn",
]


_PLAIN = tuple(item.name for item in fields(Tokens))  # torch.compile cannot ask a class


@dataclass(frozen=True)
class CodedTokens(Tokens):
    """Tokens with one code each: where in the image the content of the token comes from."""

    code: Tensor = field(kw_only=True)
    """(B, S, r), one code per token."""

    own_code: Tensor = field(kw_only=True)
    """(B, S, r), the codes of the tokens' own places."""

    own_position: Tensor = field(kw_only=True)
    """(B, S, C), the position encodings of the tokens' own places, level embedding included."""

    encoding: PositionCode = field(kw_only=True)
    """Makes position encodings from codes."""


class PositionedAttn(MSDeformAttn):
    """Deformable attention whose values include a map of rank r of the position, zero at the start of training."""

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int, rank: int = 16) -> None:
        super().__init__(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points)
        self.value_position = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False))
        self.reset_value_position()

    def reset_value_position(self) -> None:
        """Initialise the map from positions to values to zero: its first half at random, its second half zero."""
        nn.init.xavier_uniform_(self.value_position[0].get_parameter("weight"))
        nn.init.zeros_(self.value_position[1].get_parameter("weight"))

    def values(self, tokens: Tokens) -> Tensor:
        """Return the values to sample from, (B, S, heads, C / heads)."""
        return super().values(replace(tokens, content=tokens.content + self.value_position(tokens.position)))


class CoSamplingAttn(MSDeformAttn):
    """Deformable attention that samples code and content in one call, at the same points with the same weights."""

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
    """Code φ of a place, and the map from codes to position encodings: LN(W_up · code), which replaces the encoding of
    a token's own cell and is added to that of a query's box.

    φ = W · sine(x, y, log s): x and y in units of the valid area; s is the side of the proposal, 0.05 · 2^level, for
    tokens, and √(w · h) for boxes.
    rank: channels of a code, a multiple of the number of heads.
    """

    def __init__(self, *, dim: int, rank: int, features: int = 32) -> None:
        super().__init__()
        self.features = features
        self.proj = nn.Linear(3 * features, rank)
        self.up = nn.Linear(rank, dim)
        self.norm: nn.Module = nn.LayerNorm(dim)

    def forward(self, code: Tensor) -> Tensor:
        """Codes (B, N, r) -> position encodings (B, N, C)."""
        position: Tensor = self.norm(self.up(code))
        return position

    def of_cells(self, tokens: Tokens) -> Tensor:
        """Return the code φ (B, S, r) of the place of every token."""
        side = tokens.sides().log()
        return self._code(tokens.centres(), side[:, None].expand(tokens.content.shape[0], -1, 1))

    def of_boxes(self, boxes: Tensor) -> Tensor:
        """Return the code φ (B, N, r) of boxes cxcywh (B, N, 4)."""
        sides = boxes[..., 2:].clamp(min=1e-3).log().mean(-1, keepdim=True)
        return self._code(boxes[..., :2], sides)

    def _code(self, centres: Tensor, log_sides: Tensor) -> Tensor:
        place = torch.cat((centres, log_sides), dim=-1)
        embedded = sine_embedding(place * (2 * math.pi), self.features).flatten(-2)
        code: Tensor = self.proj(embedded.to(self.proj.weight.dtype))
        return code

    def token_positions(self, tokens: CodedTokens) -> Tensor:
        """Return the position encodings (B, S, C) of tokens with these codes, level embedding included."""
        position = self(tokens.code)
        return position if tokens.level_embed is None else position + tokens.level_embed

    def query_positions(self, position: Tensor, boxes: Tensor, code: Tensor) -> Tensor:
        """Return the position encodings (B, N, C) of queries with boxes (B, N, 4) and sampled codes (B, N, r).

        position: (B, N, C), the encodings of the boxes alone.
        """
        return position + self(code)


class PositionCorrection(PositionCode):
    """Position encodings of the own places, corrected by W_up · (sampled code − own code); W_up starts at zero."""

    def __init__(self, *, dim: int, rank: int, features: int = 32) -> None:
        super().__init__(dim=dim, rank=rank, features=features)
        self.up = nn.Linear(rank, dim, bias=False)
        self.norm = nn.Identity()
        nn.init.zeros_(self.up.weight)

    def token_positions(self, tokens: CodedTokens) -> Tensor:
        """Return the position encodings (B, S, C) of tokens with these codes, level embedding included."""
        return tokens.own_position + self(tokens.code - tokens.own_code)

    def query_positions(self, position: Tensor, boxes: Tensor, code: Tensor) -> Tensor:
        """Return the position encodings (B, N, C) of queries; arguments as in :class:`PositionCode`."""
        return position + self(code - self.of_boxes(boxes.detach()))


class HarmonizedEncoderLayer(DeformableEncoderLayer):
    """A deformable encoder layer that also samples codes.

    code_residual: share of the old code in the new one; the rest is the sampled code.
    """

    def __init__(
        self,
        *,
        attention: AttentionFactory = CoSamplingAttn,
        code_residual: float = 0.5,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(attention=attention, **options)
        self.code_residual = code_residual

    def forward(self, tokens: Tokens, reference: Tensor) -> Tokens:
        """Run as :class:`DeformableEncoderLayer`; the new code is a mean of the old and the sampled one."""
        assert isinstance(tokens, CodedTokens)
        sampled, code = self.self_attn(tokens.content + tokens.position, reference, tokens)
        code = self.code_residual * tokens.code + (1 - self.code_residual) * code
        return replace(tokens, content=self.add_sampled(tokens, sampled), code=code)


class HarmonizedEncoder(DeformableEncoder):
    """A deformable encoder that makes positions from the codes before every layer.

    Plain layers leave the codes as they are: then only the decoder samples them.
    """

    def __init__(
        self,
        layers: Sequence[DeformableEncoderLayer],
        code: PositionCode,
        memory_fusion: MemoryFusion | None = None,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(layers, checkpointing=checkpointing)
        self.code = code
        self.memory_fusion = memory_fusion  # after the code: the optimizer states of stored runs depend on this order

    def forward(self, tokens: Tokens) -> Tokens:
        """tokens -> memory with content and code."""
        plain = {name: getattr(tokens, name) for name in _PLAIN}
        own = self.code.of_cells(tokens)
        coded = CodedTokens(**plain, code=own, own_code=own, own_position=tokens.position, encoding=self.code)
        return super().forward(replace(coded, position=self.code.token_positions(coded)))

    def step(self, layer: nn.Module, tokens: Tokens, reference: Tensor) -> Tokens:
        """Run one layer and return the tokens for the next, with positions from their codes."""
        assert isinstance(tokens, CodedTokens)
        coded: CodedTokens = run_layer(layer, tokens, reference, checkpointing=self.checkpointing)
        if coded.code is tokens.code:  # a plain layer
            return coded
        return replace(coded, position=self.code.token_positions(coded))


class HarmonizedDecoderLayer(DeformableDecoderLayer):
    """A deformable decoder layer that also returns the code that it sampled."""

    def forward(  # type: ignore[override]  # one more output
        self, content: Tensor, position: Tensor, reference: Tensor, memory: Tokens, blocks: Sequence[Block]
    ) -> tuple[Tensor, Tensor]:
        """Run as :class:`DeformableDecoderLayer` -> content (B, Q, C) and sampled code (B, Q, r)."""
        content = self.self_attend(content, position, blocks)
        sampled, code = self.cross_attn(content + position, reference, memory)
        return self.add_sampled(content, sampled), code
