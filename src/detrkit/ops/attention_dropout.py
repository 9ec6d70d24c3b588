"""Attention with dropout of its weights on a CPU, where torch has no fused form of it.

torch's own form keeps four matrices of queries and keys for the backward pass, and looks for queries that see no key;
this one keeps the weights, and one byte of noise for each. The random numbers are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detrkit.ops.dropout import drawn_noise

__all__ = ["attend_with_dropout"]


def attend_with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """softmax(q kᵀ / √d) with dropout, times v: q (B, heads, N, d), k and v (B, heads, S, d) -> (B, heads, N, d).

    mask: bool, broadcastable to (B, heads, N, S), True = seen; every query must see a key.
    """
    output: Tensor = _Attention.apply(q, k, v, mask, rate)
    return output


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
        scaled = q * q.shape[-1] ** -0.5
        logits = scaled @ k.transpose(-1, -2)
        if mask is not None:
            logits.masked_fill_(~mask, -torch.inf)
        weights = logits.softmax(-1)
        noise = drawn_noise(weights, rate)
        ctx.save_for_backward(scaled, k, v, weights, noise.to(torch.bool))
        ctx.factor = 1 / (1 - rate)
        return (noise.mul_(weights) @ v).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, k, v, weights, kept = ctx.saved_tensors
        gradient = gradient * ctx.factor
        by_v = (weights * kept).transpose(-1, -2) @ gradient
        by_weights = (gradient @ v.transpose(-1, -2)).mul_(kept)
        by_logits = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        by_q = (by_logits @ k).mul_(scaled.shape[-1] ** -0.5)
        return by_q, by_logits.transpose(-1, -2) @ scaled, by_v, None, None
