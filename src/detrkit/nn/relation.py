"""Position relation between queries (Relation-DETR, Hou et al., ECCV 2024, section 4.1; spec A.11): a bias of
self-attention that depends on how the box of one query lies to the box of another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrkit.nn.position import sine_embedding

__all__ = ["PositionRelation", "box_relation"]


def box_relation(source: Tensor, target: Tensor, eps: float = 1e-5) -> Tensor:
    """Offsets and size ratios of boxes cxcywh (B, N, 4) and (B, M, 4), on a log scale: (B, N, M, 4)."""
    source, target = source[:, :, None], target[:, None]
    offset = ((source[..., :2] - target[..., :2]).abs() / (source[..., 2:] + eps) + 1.0).log()
    ratio = ((source[..., 2:] + eps) / (target[..., 2:] + eps)).log()
    return torch.cat((offset, ratio), dim=-1)


class PositionRelation(nn.Module):
    """Sine embedding of the relation, a linear map to the heads, ReLU. No gradient reaches the boxes."""

    def __init__(
        self, *, num_heads: int, features: int = 16, temperature: float = 10000.0, scale: float = 100.0
    ) -> None:
        super().__init__()
        self.pos_proj = nn.Conv2d(4 * features, num_heads, kernel_size=1)
        self.features, self.temperature, self.scale = features, temperature, scale

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Boxes (B, N, 4) that attend and (B, M, 4) that are attended to -> bias (B, heads, N, M)."""
        with torch.no_grad():
            relation = box_relation(source.float(), target.float()) * self.scale
            embedded = sine_embedding(relation, self.features, self.temperature).flatten(-2)
        return torch.relu(self.pos_proj(embedded.permute(0, 3, 1, 2)))
