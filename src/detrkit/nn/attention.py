"""Multi-head attention with the packed projection of DETR, over one memory or over keys sampled for each query."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.ops.attention_dropout import attend_with_dropout
from detrkit.ops.dropout import needs_noise

__all__ = ["AttentionBias", "MultiheadAttention", "ProjectsMemory", "attend_heads"]


class AttentionBias(Protocol):
    """A bias that is never stored as a matrix: it computes the attention itself."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Attend with this bias: q, k, v (B, heads, N, d) -> (B, heads, N, d)."""
        ...


@runtime_checkable
class ProjectsMemory(Protocol):
    """Cross-attention that projects tokens before they are pooled."""

    def project_memory(self, content: Tensor, position: Tensor) -> Tensor:
        """Return keys and values of tokens (B, S, C), concatenated, without their biases."""
        ...


def attend_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    dropout: float,
    bias: Tensor | AttentionBias | None = None,
) -> Tensor:
    """Attend with q (B, Q, heads, d) to k and v; returns (B, Q, heads · d of v).

    k and v are either (B, S, heads, d), shared by all queries, with a padding mask (B, S) or a bias; or
    (B, Q, S, heads, d), separate for each query.
    """
    batch, queries = q.shape[:2]
    if k.dim() == 4:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return biased_attention(q, k, v, key_padding_mask, bias, dropout).transpose(1, 2).flatten(2)
    # A batch of B·Q problems with one query and S keys each.
    q, k, v = q.flatten(0, 1).unsqueeze(2), k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1).transpose(1, 2)
    return biased_attention(q, k, v, None, None, dropout).reshape(batch, queries, -1)


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    bias: Tensor | AttentionBias | None,
    dropout: float,
) -> Tensor:
    """Attend with q (B, heads, N, d) to k and v (B, heads, S, d), with a bias or else a padding mask (B, S)."""
    if bias is None or isinstance(bias, Tensor):
        mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
        if bias is None and needs_noise(q, dropout) and (mask is None or bool(mask.any(-1).all())):
            return attend_with_dropout(q, k, v, mask, dropout)
        mask = mask if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return bias.attend(q, k, v, dropout)


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention; parameters are named and packed as in ``torch.nn.MultiheadAttention``."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"hidden_dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        bias: Tensor | AttentionBias | None = None,
    ) -> Tensor:
        """query (B, N, C), key and value (B, S, C), mask (B, S) bool True = padding -> (B, N, C).

        bias: replaces the mask; a tensor broadcastable to (B, heads, N, S), added to the logits, or an AttentionBias.
        """
        inputs = (query, value) if key is query else (query, key, value)  # one product for equal inputs
        dim = query.shape[-1]
        sizes = [(4 - len(inputs)) * dim, *[dim] * (len(inputs) - 1)]
        weights, biases = self.in_proj_weight.split(sizes), self.in_proj_bias.split(sizes)
        projected = [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]
        if key is query:
            projected[:1] = projected[0].chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        mixed = biased_attention(q, k, v, key_padding_mask, bias, self._drop())
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def project_memory(self, content: Tensor, position: Tensor) -> Tensor:
        """Return keys and values (B, S, 2C) of tokens (B, S, C), **without** their biases.

        Pooling needs a linear function of the tokens: a bias would vanish where RoIAlign reads outside the map.
        """
        _, wk, wv = self.in_proj_weight.chunk(3)
        return torch.cat((F.linear(content + position, wk), F.linear(content, wv)), dim=-1)

    def attend(self, query: Tensor, keys_values: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend with query (B, Q, C) to projected tokens -> (B, Q, C).

        keys_values: from :meth:`project_memory`, either (B, S, 2C), one memory for all queries of an image, with
        padding mask (B, S) bool True = padding; or pooled to (B, Q, S, 2C), S separate keys per query.
        """
        dim = query.shape[-1]
        bq, bkv = self.in_proj_bias.split([dim, 2 * dim])
        q = F.linear(query, self.in_proj_weight[:dim], bq)
        k, v = (keys_values + bkv).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        return self.out_proj(attend_heads(q.unflatten(-1, (self.num_heads, -1)), k, v, key_padding_mask, self._drop()))

    def _drop(self) -> float:
        return self.dropout if self.training else 0.0
