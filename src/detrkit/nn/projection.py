"""Projections of backbone maps to the width of the transformer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from detrkit.nn.backbone import FeatureMap, level_mask
from detrkit.ops.zeroed import zeroed

__all__ = ["LevelProjection", "MaskedGroupNorm", "project_levels"]


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm whose statistics exclude padding, so that the result for an image does not depend on its batch."""

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """x (B, C, h, w), padding_mask (B, h, w) bool or None (ordinary group norm) -> (B, C, h, w), 0 in padding."""
        if padding_mask is None:
            return super().forward(x)
        valid = (~padding_mask)[:, None, None].to(torch.float32)
        grouped = x.float().unflatten(1, (self.num_groups, -1))
        count = valid.sum((2, 3, 4), keepdim=True) * grouped.shape[2]
        mean = (grouped * valid).sum((2, 3, 4), keepdim=True) / count
        centred = (grouped - mean) * valid
        variance = centred.square().sum((2, 3, 4), keepdim=True) / count
        normed = (centred * (variance + self.eps).rsqrt()).flatten(1, 2)
        affine = normed * self.weight[:, None, None] + self.bias[:, None, None]
        return (affine * valid[:, 0]).to(x.dtype)


class LevelProjection(nn.Module):
    """1x1 convolution (or 3x3 with stride 2 for an extra level), with optional group norm."""

    def __init__(
        self, *, in_channels: int, dim: int, stride: int = 1, group_norm: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        kernel = 3 if stride == 2 else 1
        self.conv = nn.Conv2d(in_channels, dim, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.norm = MaskedGroupNorm(32, dim) if group_norm else None
        self.stride = stride

    def forward(self, level: FeatureMap, padding_mask: Tensor, *, mask_padding: bool = False) -> FeatureMap:
        """Project one level of images with padding_mask (B, H, W) in pixels.

        With ``mask_padding`` the padding stays zero and is excluded from the statistics.
        """
        x = self.conv(level.tensor)
        stride = level.stride * self.stride
        mask = level.padding_mask
        if self.stride > 1:
            mask = level_mask(padding_mask, stride, x.shape[-2:], exact=mask_padding)
        if self.norm is not None:
            x = self.norm(x, mask if mask_padding else None)
        elif mask_padding:
            x = zeroed(x, mask[:, None])
        return FeatureMap(x, mask, stride)


def project_levels(
    projections: Iterable[nn.Module], maps: Sequence[FeatureMap], padding_mask: Tensor, *, mask_padding: bool
) -> list[FeatureMap]:
    """Project backbone maps to all levels, for images with padding_mask (B, H, W) in pixels.

    The first extra projection reads the last backbone map, each further one reads the level before.
    """
    levels: list[FeatureMap] = []
    for index, projection in enumerate(projections):
        source = maps[min(index, len(maps) - 1)] if index <= len(maps) else levels[-1]
        levels.append(projection(source, padding_mask, mask_padding=mask_padding))
    return levels
