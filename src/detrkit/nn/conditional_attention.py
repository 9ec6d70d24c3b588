"""Attention of Conditional DETR: content and position have separate projections (paper, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrkit.nn.attention import AttentionBias, attend_heads

__all__ = ["ConditionalCrossAttention", "ConditionalSelfAttention"]


class _Attention(nn.Module):
    """Base class with heads, dropout and the output projection."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | AttentionBias | None = None
    ) -> Tensor:
        return self.out_proj(attend_heads(q, k, v, mask, self.dropout if self.training else 0.0, bias))


class ConditionalSelfAttention(_Attention):
    """Self-attention among queries; content and query embedding are projected separately and added."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(dim=dim, num_heads=num_heads, dropout=dropout)
        self.query_content = nn.Linear(dim, dim)
        self.query_position = nn.Linear(dim, dim)
        self.key_content = nn.Linear(dim, dim)
        self.key_position = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def forward(self, content: Tensor, queries: Tensor, bias: Tensor | AttentionBias | None = None) -> Tensor:
        """content and queries (B, Q, C) -> (B, Q, C); bias: as in :class:`detrkit.nn.attention.MultiheadAttention`."""
        q = self.query_content(content) + self.query_position(queries)
        k = self.key_content(content) + self.key_position(queries)
        return self._mix(self._heads(q), self._heads(k), self._heads(self.value(content)), bias=bias)


class ConditionalCrossAttention(_Attention):
    """Cross-attention with logits content · content + position · position, concatenated in every head.

    first: whether this is the first decoder layer, which adds the query embedding and the key position to the content.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float, first: bool) -> None:
        super().__init__(dim=dim, num_heads=num_heads, dropout=dropout)
        self.query_content = nn.Linear(dim, dim)
        self.query_position = nn.Linear(dim, dim) if first else None
        self.query_sine = nn.Linear(dim, dim)
        self.key_content = nn.Linear(dim, dim)
        self.key_position = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def project_memory(self, content: Tensor, position: Tensor) -> Tensor:
        """Return content keys, position keys and values (B, S, 3C) of tokens (B, S, C), without their biases."""
        linear = nn.functional.linear
        return torch.cat(
            (
                linear(content, self.key_content.weight),
                linear(position, self.key_position.weight),
                linear(content, self.value.weight),
            ),
            dim=-1,
        )

    def attend(
        self, content: Tensor, queries: Tensor, sine: Tensor, projected: Tensor, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        """Attend with content, queries and the conditional sine embedding (B, Q, C) to projected tokens -> (B, Q, C).

        projected: (B, S, 3C) with padding mask (B, S), or (B, Q, S, 3C), separate keys per query.
        """
        bias = torch.cat((self.key_content.bias, self.key_position.bias, self.value.bias))
        key_content, key_position, value = (projected + bias).chunk(3, dim=-1)
        query = self.query_content(content)
        if self.query_position is not None:
            query = query + self.query_position(queries)
            key_content = key_content + key_position
        q = torch.cat((self._heads(query), self._heads(self.query_sine(sine))), dim=-1)
        k = torch.cat((self._heads(key_content), self._heads(key_position)), dim=-1)
        return self._mix(q, k, self._heads(value), key_padding_mask)
