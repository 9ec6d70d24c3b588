"""Position encodings of feature maps (DETR, appendix "Spatial positional encoding"; spec A3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["LearnedPosition", "SinePosition", "sine_boxes", "sine_embedding"]


def sine_embedding(values: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """Interleaved sine and cosine of angles (…) -> (…, features)."""
    index = torch.arange(features, dtype=torch.float32, device=values.device)
    divisor = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / features)
    angles = values[..., None] / divisor
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_boxes(boxes: Tensor, features: int, *, order: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
    """Sine embedding of box coordinates in [0, 1] (…, 4), scaled to 2π, taken in ``order`` -> (…, 4 · features)."""
    return sine_embedding(boxes[..., list(order)] * (2 * math.pi), features).flatten(-2)


class SinePosition(nn.Module):
    """Sine encoding of row and column, counted in valid cells and scaled to 2π. Channels: y first, then x.

    offset: added to the counts; -0.5 makes them cell centres (Deformable DETR).
    """

    def __init__(self, *, dim: int, temperature: float = 10000.0, offset: float = 0.0) -> None:
        super().__init__()
        self.features = dim // 2
        self.temperature = temperature
        self.offset = offset

    def forward(self, padding_mask: Tensor) -> Tensor:
        """padding_mask (B, h, w) bool, True = padding -> (B, h, w, dim) float32."""
        valid = ~padding_mask
        y = valid.cumsum(1, dtype=torch.float32)
        x = valid.cumsum(2, dtype=torch.float32)
        y = (y + self.offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = (x + self.offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        encode = [sine_embedding(axis, self.features, self.temperature) for axis in (y, x)]
        return torch.cat(encode, dim=-1)


class LearnedPosition(nn.Module):
    """Learned row and column tables of 50 entries each. Channels: x (column) first, then y (row)."""

    def __init__(self, *, dim: int, entries: int = 50) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(entries, dim // 2)
        self.col_embed = nn.Embedding(entries, dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding_mask: Tensor) -> Tensor:
        """padding_mask (B, h, w) -> (B, h, w, dim).

        Raises:
            ValueError: the map has more rows or columns than the tables have entries.
        """
        batch, height, width = padding_mask.shape
        entries = self.row_embed.num_embeddings
        if max(height, width) > entries:
            raise ValueError(
                f"learned positions know {entries} rows and columns, the feature map has {height} x {width}: "
                "use smaller images or position_embedding='sine'"
            )
        x = self.col_embed.weight[:width].expand(height, width, -1)
        y = self.row_embed.weight[:height, None].expand(height, width, -1)
        return torch.cat((x, y), dim=-1).expand(batch, -1, -1, -1)
