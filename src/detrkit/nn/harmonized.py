"""Harmonised content-position sampling (DAPE, AAAI 2026; reconstruction from the published description).

Deformable attention replaces what a token contains by a mean over sampled points, while its position encoding stays
that of its own cell: after a few layers content and position speak of different places. Here every token carries a
**code** of a few numbers, at first of its own place, that is sampled at the same points with the same weights as its
content, in one call of the sampling operator. The next layer's position encoding is made from the code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detrkit.nn.deformable import DeformableEncoder, DeformableEncoderLayer, Tokens
from detrkit.nn.position import sine_embedding

__all__ = ["HarmonizedEncoder", "PositionCode"]


class PositionCode(nn.Module):
    """Code φ of a token's place, and the position encoding that a code stands for.

    φ = W · sine(x, y, log s): x and y the centre in the valid area, s = 0.05 · 2^level the side of its proposal.
    rank: numbers a code has, shared evenly by the heads of attention.
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
        place = torch.cat((tokens.centres(), side[:, None].expand(len(tokens.content), -1, 1)), dim=-1)
        code: Tensor = self.proj(sine_embedding(place * (2 * math.pi), self.features).flatten(-2))
        return code

    def forward(self, code: Tensor) -> Tensor:
        """Codes (B, N, r) -> position encodings (B, N, C)."""
        position: Tensor = self.norm(self.up(code))
        return position


class HarmonizedEncoder(DeformableEncoder):
    """A deformable encoder whose tokens take their code along."""

    def __init__(self, layers: Sequence[DeformableEncoderLayer], code: PositionCode) -> None:
        super().__init__(layers)
        self.code = code

    def forward(self, tokens: Tokens) -> Tokens:
        """tokens -> memory with content and code. Positions are made from the codes; those given are not read."""
        return super().forward(self._place(tokens, self.code.start(tokens)))

    def step(self, layer: nn.Module, tokens: Tokens, reference: Tensor) -> Tokens:
        """What the next layer reads. Content keeps a residual, so the code does: half of it is where the token was."""
        content, sampled = layer(tokens, reference)
        return self._place(replace(tokens, content=content), (tokens.code + sampled) / 2)

    def _place(self, tokens: Tokens, code: Tensor) -> Tokens:
        return replace(tokens, code=code, position=self.code(code) + tokens.level_embed)
