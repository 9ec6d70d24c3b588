"""Position relation between queries (Relation-DETR, Hou et al., ECCV 2024, section 4.1): a bias of self-attention that
depends on the relative position and size of the boxes of two queries.

The bias of N queries has heads · N² entries, its features 64 · N². Kept for the backward pass, they take half of the
memory of a training step (332 MiB per layer and image at N = 1100). :class:`FullRelation` therefore processes a few
rows at a time and recomputes their bias in the backward pass: equal up to rounding, and no N × N
matrix is stored. On a GPU one kernel does both (:mod:`detrkit.ops.relation_attention`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detrkit.nn.position import sine_divisors, sine_embedding
from detrkit.ops.on_gpu import worst_error
from detrkit.ops.relation_attention import fused_relation, relation_attention

__all__ = ["FullRelation", "LowRankRelation", "PositionRelation", "box_relation"]


def box_relation(source: Tensor, target: Tensor, eps: float = 1e-5) -> Tensor:
    """Return offsets and size ratios of boxes cxcywh (B, N, 4) and (B, M, 4), on a log scale: (B, N, M, 4).

    e(i, j) = [log(|x_i - x_j| / w_i + 1), log(|y_i - y_j| / h_i + 1), log(w_i / w_j), log(h_i / h_j)]
    """
    source, target = source[:, :, None], target[:, None]
    offset = ((source[..., :2] - target[..., :2]).abs() / (source[..., 2:] + eps) + 1.0).log()
    ratio = ((source[..., 2:] + eps) / (target[..., 2:] + eps)).log()
    return torch.cat((offset, ratio), dim=-1)


class PositionRelation(nn.Module):
    """Rel(i, j) = ReLU(W · Embed(e(i, j)) + B), one number per head, with e of :func:`box_relation`.

    The paper has max(ε, ·) in place of ReLU; its repository left that because of bf16. No gradient reaches the boxes.

    features, temperature, scale: of the sine embedding of each of the four numbers (d_re, T and s in the paper).
    rows: number of queries per step, see :class:`FullRelation`.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        features: int = 16,
        temperature: float = 10000.0,
        scale: float = 100.0,
        rows: int | None = 32,
    ) -> None:
        super().__init__()
        self.pos_proj = nn.Conv2d(4 * features, num_heads, kernel_size=1)
        self.features, self.temperature, self.scale = features, temperature, scale
        self.rows = rows

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Boxes of queries (source, (B, N, 4)) and of keys (target, (B, M, 4)) -> bias (B, heads, N, M)."""
        dtype = self.pos_proj.weight.dtype
        with torch.no_grad():
            relation = (box_relation(source.float(), target.float()) * self.scale).permute(0, 3, 1, 2).contiguous()
            # pairs last, and sines and cosines apart: interleaved, as the map has them, they are slow to write
            divisors = sine_divisors(self.features, self.temperature, relation.device)[::2]
            angles = (relation.flatten(2)[:, :, None] / divisors[:, None]).flatten(1, 2)
            sine, cosine = angles.sin().to(dtype), angles.cos().to(dtype)
        assert self.pos_proj.bias is not None
        sines, cosines = (
            self.pos_proj.weight.flatten(1).unflatten(1, (-1, 2)).expand(sine.shape[0], -1, -1, -1).unbind(3)
        )
        mapped = torch.baddbmm(torch.baddbmm(self.pos_proj.bias[:, None], sines, sine), cosines, cosine)
        return torch.relu(mapped).unflatten(2, relation.shape[2:])

    def bias(self, source: Tensor, target: Tensor, blocked: Tensor | None) -> FullRelation:
        """Return the bias of self-attention between queries with these boxes."""
        return FullRelation(self, source.detach(), target.detach(), blocked, self.rows)


@dataclass(frozen=True)
class FullRelation:
    """Bias of a full position relation; attention is exact and computed ``rows`` queries at a time."""

    relation: Callable[[Tensor, Tensor], Tensor]
    """Maps the boxes ``source`` and ``target`` to a bias."""

    source: Tensor
    """(B, N, 4), boxes of the queries."""

    target: Tensor
    """(B, N, 4), boxes of the keys."""

    blocked: Tensor | None = None
    """Added to the bias, broadcastable to (B, heads, N, N): -inf where a query must not see another; or None."""

    rows: int | None = None
    """None: all queries at once, and never in the fused kernel."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Attend with this bias: q, k, v (B, heads, N, d) -> (B, heads, N, d)."""
        number = q.shape[2]
        if self.rows is not None and isinstance(self.relation, PositionRelation):
            weight = self.relation.pos_proj.weight.flatten(1)
            if fused_relation(q, weight, self.blocked, dropout, trial=relation_trial):
                return self.fused(self.relation, q, k, v)
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

    def fused(self, module: PositionRelation, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:meth:`attend` in one kernel, with the relation of a module."""
        assert module.pos_proj.bias is not None
        return relation_attention(
            q, k, v, self.source, self.target, module.pos_proj.weight.flatten(1), module.pos_proj.bias, self.blocked,
            scale=module.scale, temperature=module.temperature,
        )  # fmt: skip

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, source: Tensor, blocked: Tensor | None, dropout: float) -> Tensor:
        bias = self.relation(source, self.target).to(q.dtype)
        if blocked is not None:
            bias = bias + blocked.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def relation_trial(device: torch.device) -> float:
    """Compare the kernel with all rows at once on a small call (:data:`detrkit.ops.on_gpu.Trial`)."""
    draw = torch.Generator().manual_seed(0)
    boxes = torch.rand(2, 2, 21, 4, generator=draw) * 0.4 + 0.1
    *inputs, gradient = torch.randn(4, 2, 4, 21, 16, generator=draw)
    with torch.device("meta"):  # no random number of a run is drawn
        module = PositionRelation(num_heads=4)
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=draw)

    def results(where: torch.device, *, fused: bool) -> tuple[Tensor, ...]:
        own = module.to(where)
        q, k, v = (leaf.detach().to(where).requires_grad_() for leaf in inputs)
        relation = FullRelation(own, *boxes.to(where))
        mixed = relation.fused(own, q, k, v) if fused else relation.attend(q, k, v, 0.0)
        return mixed.detach(), *torch.autograd.grad(mixed, [q, k, v, *own.parameters()], gradient.to(where))

    expected, found = results(torch.device("cpu"), fused=False), results(device, fused=True)
    return worst_error(zip(found, expected, strict=True), 2e-2)  # products may be in TF32, of sines of large angles


class LowRankRelation(nn.Module):
    """Relation of rank r (DAPE; reconstruction from the published description):

    bias_h(i, j) = ⟨u_h(box i), v_h(box j)⟩ / √r, with u and v linear in a sine embedding of (cx, cy, log w, log h).

    Sizes are scaled as in the full relation. Sines of differences of log w and log h are sums of products of these
    sines, so that this part of the full relation can be represented exactly. v is initialised to zero, and with it the
    bias. No gradient reaches the boxes.
    """

    def __init__(self, *, num_heads: int, rank: int, features: int = 32, size_scale: float = 100.0) -> None:
        super().__init__()
        self.num_heads, self.features, self.size_scale = num_heads, features, size_scale
        self.source_proj = nn.Linear(4 * features, num_heads * rank)
        self.target_proj = nn.Linear(4 * features, num_heads * rank)
        nn.init.zeros_(self.target_proj.weight)
        nn.init.zeros_(self.target_proj.bias)

    @torch.no_grad()
    def embed(self, boxes: Tensor) -> Tensor:
        """Boxes cxcywh (B, N, 4) -> sines of cx, cy, log w, log h (B, N, 4 · features), float32."""
        boxes = boxes.float()
        sizes = boxes[..., 2:].clamp(min=1e-3).log() * self.size_scale
        values = torch.cat((boxes[..., :2] * (2 * math.pi), sizes), dim=-1)
        return sine_embedding(values, self.features).flatten(-2)

    def factors(self, boxes: Tensor, proj: nn.Linear) -> Tensor:
        """Boxes cxcywh (B, N, 4) -> factors (B, heads, N, r)."""
        return proj(self.embed(boxes).to(proj.weight.dtype)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the bias as a matrix (B, heads, N, M); attention never builds it."""
        u, v = self.factors(source, self.source_proj), self.factors(target, self.target_proj)
        return u @ v.transpose(-1, -2) / u.shape[-1] ** 0.5

    def bias(self, source: Tensor, target: Tensor, blocked: Tensor | None) -> LowRankBias:
        """Return the bias of self-attention between queries with these boxes."""
        return LowRankBias(self.factors(source, self.source_proj), self.factors(target, self.target_proj), blocked)


@dataclass(frozen=True)
class LowRankBias:
    """Bias of rank r: u is appended to the queries and v to the keys, (B, heads, N, r) each.

    Fused attention then computes q·k / √d + u·v / √r. blocked: as in :class:`FullRelation`.
    """

    u: Tensor
    v: Tensor
    blocked: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Attend with this bias: q, k, v (B, heads, N, d) -> (B, heads, N, d)."""
        dim, rank = q.shape[-1], self.u.shape[-1]
        mixed = F.scaled_dot_product_attention(
            torch.cat((q * dim**-0.5, self.u.to(q.dtype) * rank**-0.5), dim=-1),
            torch.cat((k, self.v.to(k.dtype)), dim=-1),
            F.pad(v, (0, rank)),  # fused kernels need equal widths; the fallback would build an N x N matrix
            attn_mask=None if self.blocked is None else self.blocked.to(q.dtype),
            dropout_p=dropout,
            scale=1.0,
        )
        return mixed[..., :dim]
