"""Position encodings of feature maps (DETR, appendix "Spatial positional encoding")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LearnedPosition", "SinePosition", "StoredSinePosition", "sine_boxes", "sine_embedding"]


def sine_divisors(features: int, temperature: float = 10000.0, device: torch.device | None = None) -> Tensor:
    """Return the divisors (features,) of angles per channel; neighbouring sine and cosine channels share one."""
    index = torch.arange(features, dtype=torch.float32, device=device)
    return temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / features)


def sine_embedding(values: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """Embed angles (…) by interleaved sine and cosine -> (…, features)."""
    return interleaved_sine(values, sine_divisors(features, temperature, values.device))


def interleaved_sine(values: Tensor, divisors: Tensor) -> Tensor:
    """Interleave sine and cosine of angles (…) over divisors (features,) -> (…, features)."""
    even, odd = values[..., None] / divisors[0::2], values[..., None] / divisors[1::2]
    return torch.stack((even.sin(), odd.cos()), dim=-1).flatten(-2)


def sine_boxes(boxes: Tensor, features: int, *, order: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
    """Embed box coordinates in [0, 1] (…, 4), scaled to 2π and reordered -> (…, 4 · features)."""
    ordered = torch.stack([boxes[..., axis] for axis in order], dim=-1)  # an index would be made on the host
    return sine_embedding(ordered * (2 * math.pi), features).flatten(-2)


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
        divisors = self.divisors(padding_mask.device)
        return torch.cat([interleaved_sine(axis, divisors) for axis in (y, x)], dim=-1)

    def divisors(self, device: torch.device) -> Tensor:
        """Return the divisors of one axis."""
        return sine_divisors(self.features, self.temperature, device)


class StoredSinePosition(SinePosition):
    """Sine encoding with the divisors as a buffer, as in checkpoints of Salience-DETR."""

    dim_t: Tensor

    def __init__(self, *, dim: int, temperature: float = 10000.0, offset: float = 0.0) -> None:
        super().__init__(dim=dim, temperature=temperature, offset=offset)
        self.register_buffer("dim_t", sine_divisors(dim // 2, temperature))

    def divisors(self, device: torch.device) -> Tensor:
        """Return the buffer."""
        return self.dim_t


class LearnedPosition(nn.Module):
    """Learned row and column tables. Channels: x (column) first, then y (row).

    entries: rows and columns of the tables · stretch: interpolate the tables for larger maps, corners aligned; off:
    larger maps are an error.
    """

    def __init__(self, *, dim: int, entries: int = 50, stretch: bool = False) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(entries, dim // 2)
        self.col_embed = nn.Embedding(entries, dim // 2)
        self.stretch = stretch
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding_mask: Tensor) -> Tensor:
        """padding_mask (B, h, w) -> (B, h, w, dim).

        Raises:
            ValueError: the map has more rows or columns than the tables, and ``stretch`` is off.
        """
        batch, height, width = padding_mask.shape
        entries = self.row_embed.num_embeddings
        if max(height, width) > entries and not self.stretch:
            raise ValueError(
                f"learned positions know {entries} rows and columns, the feature map has {height} x {width}: "
                "use smaller images or position_embedding='sine'"
            )
        x = _resized(self.col_embed.weight, width).expand(height, width, -1)
        y = _resized(self.row_embed.weight, height)[:, None].expand(height, width, -1)
        return torch.cat((x, y), dim=-1).expand(batch, -1, -1, -1)


def _resized(table: Tensor, count: int) -> Tensor:
    """Return the first ``count`` rows of a table (entries, C), or the table stretched to ``count`` rows."""
    if count <= len(table):
        return table[:count]
    return F.interpolate(table.T[None], size=count, mode="linear", align_corners=True)[0].T
