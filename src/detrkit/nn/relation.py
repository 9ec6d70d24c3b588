"""Position relation between queries (Relation-DETR, Hou et al., ECCV 2024, section 4.1): a bias of
self-attention that depends on how the box of one query lies to the box of another.

The bias of N queries has heads · N² entries and its features 64 · N². Kept for the backward pass they are half of all
the memory of a training step (332 MiB per layer and image at N = 1100). :class:`FullRelation` therefore attends a few
rows at a time and makes their bias again in the backward pass: the same to rounding, without a matrix that stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detrkit.nn.position import sine_embedding

__all__ = ["FullRelation", "LowRankRelation", "PositionRelation", "box_relation"]


def box_relation(source: Tensor, target: Tensor, eps: float = 1e-5) -> Tensor:
    """Offsets and size ratios of boxes cxcywh (B, N, 4) and (B, M, 4), on a log scale: (B, N, M, 4)."""
    source, target = source[:, :, None], target[:, None]
    offset = ((source[..., :2] - target[..., :2]).abs() / (source[..., 2:] + eps) + 1.0).log()
    ratio = ((source[..., 2:] + eps) / (target[..., 2:] + eps)).log()
    return torch.cat((offset, ratio), dim=-1)


class PositionRelation(nn.Module):
    """Sine embedding of the relation, a linear map to the heads, ReLU. No gradient reaches the boxes.

    rows: queries that attend at once, see :class:`FullRelation`.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        features: int = 16,
        temperature: float = 10000.0,
        scale: float = 100.0,
        rows: int | None = 128,
    ) -> None:
        super().__init__()
        self.pos_proj = nn.Conv2d(4 * features, num_heads, kernel_size=1)
        self.features, self.temperature, self.scale = features, temperature, scale
        self.rows = rows

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Boxes (B, N, 4) that attend and (B, M, 4) that are attended to -> bias (B, heads, N, M)."""
        with torch.no_grad():
            relation = box_relation(source.float(), target.float()) * self.scale
            embedded = sine_embedding(relation, self.features, self.temperature).flatten(-2)
        return torch.relu(self.pos_proj(embedded.permute(0, 3, 1, 2).to(self.pos_proj.weight.dtype)))

    def bias(self, source: Tensor, target: Tensor, blocked: Tensor | None) -> FullRelation:
        """What self-attention of queries with these boxes attends under."""
        return FullRelation(self, source.detach(), target.detach(), blocked, self.rows)


@dataclass(frozen=True)
class FullRelation:
    """Self-attention under a position relation, exact, ``rows`` queries at a time (None: all at once).

    relation: makes the bias of boxes source (B, N, 4) and target (B, N, 4) · blocked: added to it, broadcastable to
    (B, heads, N, N), -inf where a query must not see another; or None.
    """

    relation: Callable[[Tensor, Tensor], Tensor]
    source: Tensor
    target: Tensor
    blocked: Tensor | None = None
    rows: int | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """q, k, v (B, heads, N, d) -> (B, heads, N, d)."""
        number = q.shape[2]
        rows = self.rows or number
        parts = []
        for start in range(0, number, rows):
            part = slice(start, start + rows)
            blocked = None if self.blocked is None else self.blocked[:, :, part]
            arguments = (q[:, :, part], k, v, self.source[:, part], blocked, dropout)
            if rows < number and torch.is_grad_enabled():
                parts.append(checkpoint(self._rows, *arguments, use_reentrant=False, preserve_rng_state=dropout > 0))
            else:
                parts.append(self._rows(*arguments))
        return torch.cat(parts, dim=2)

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, source: Tensor, blocked: Tensor | None, dropout: float) -> Tensor:
        bias = self.relation(source, self.target).to(q.dtype)
        if blocked is not None:
            bias = bias + blocked.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


class LowRankRelation(nn.Module):
    """Relation of rank r (DAPE; reconstruction from the published description):

    bias_h(i, j) = ⟨u_h(box i), v_h(box j)⟩ / √r, with u and v linear in a sine embedding of (cx, cy, log w, log h).

    Sizes are scaled as in the full relation: sines of differences of log w and log h are sums of products of these
    sines, so that this part of it is within reach exactly. v starts at zero, so training starts without relation. No
    gradient reaches the boxes.
    """

    def __init__(self, *, num_heads: int, rank: int, features: int = 32, size_scale: float = 100.0) -> None:
        super().__init__()
        self.num_heads, self.features, self.size_scale = num_heads, features, size_scale
        self.source_proj = nn.Linear(4 * features, num_heads * rank)
        self.target_proj = nn.Linear(4 * features, num_heads * rank)
        nn.init.zeros_(self.target_proj.weight)
        nn.init.zeros_(self.target_proj.bias)

    def factors(self, boxes: Tensor, proj: nn.Linear) -> Tensor:
        """Boxes cxcywh (B, N, 4) -> (B, heads, N, r)."""
        with torch.no_grad():
            boxes = boxes.float()
            sizes = boxes[..., 2:].clamp(min=1e-3).log() * self.size_scale
            values = torch.cat((boxes[..., :2] * (2 * math.pi), sizes), dim=-1)
            embedded = sine_embedding(values, self.features).flatten(-2)
        return proj(embedded).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The bias (B, heads, N, M) as a matrix, which attention never builds."""
        u, v = self.factors(source, self.source_proj), self.factors(target, self.target_proj)
        return u @ v.transpose(-1, -2) / u.shape[-1] ** 0.5

    def bias(self, source: Tensor, target: Tensor, blocked: Tensor | None) -> LowRankBias:
        """What self-attention of queries with these boxes attends under."""
        return LowRankBias(self.factors(source, self.source_proj), self.factors(target, self.target_proj), blocked)


@dataclass(frozen=True)
class LowRankBias:
    """Self-attention under a bias of rank r: u goes behind the queries and v behind the keys, (B, heads, N, r) each, so
    one fused attention computes q·k / √d + u·v / √r. blocked: as in :class:`FullRelation`."""

    u: Tensor
    v: Tensor
    blocked: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """q, k, v (B, heads, N, d) -> (B, heads, N, d)."""
        dim, rank = q.shape[-1], self.u.shape[-1]
        mixed = F.scaled_dot_product_attention(
            torch.cat((q * dim**-0.5, self.u.to(q.dtype) * rank**-0.5), dim=-1),
            torch.cat((k, self.v.to(k.dtype)), dim=-1),
            F.pad(v, (0, rank)),  # fused kernels want equal widths; what they do not take builds N x N
            attn_mask=None if self.blocked is None else self.blocked.to(q.dtype),
            dropout_p=dropout,
            scale=1.0,
        )
        return mixed[..., :dim]
