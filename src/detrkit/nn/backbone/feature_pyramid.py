"""Levels for networks with a single one: "Exploring Plain Vision Transformer Backbones" (Li et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

__all__ = ["SimpleFeaturePyramid"]


def _scaled(channels: int, factor: float) -> tuple[list[nn.Module], int]:
    """Build modules that enlarge (factor > 1, a power of two) or shrink a map; also return the output channels."""
    modules: list[nn.Module] = []
    if factor < 1:
        modules.append(nn.MaxPool2d(round(1 / factor)))
    while factor > 1:
        if modules:
            modules += [LayerNorm2d(channels), nn.GELU()]
        modules.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels //= 2
        factor /= 2
    return modules, channels


class SimpleFeaturePyramid(nn.Module):
    """Builds every level from the last map of a plain vision transformer (section 3, simple feature pyramid).

    Args:
        in_channels, stride: channels and stride of that map; the stride is a power of two.
        strides: strides of the levels, powers of two, finest first.
        dim: channels of every level.
    """

    def __init__(self, *, in_channels: int, stride: int, strides: Sequence[int], dim: int = 256) -> None:
        super().__init__()
        self.dim = dim
        self.levels = nn.ModuleList()
        for level_stride in strides:
            modules, channels = _scaled(in_channels, stride / level_stride)
            for width, kernel in ((channels, 1), (dim, 3)):
                modules.append(nn.Conv2d(width, dim, kernel, padding=kernel // 2, bias=False))
                modules.append(LayerNorm2d(dim))
            self.levels.append(nn.Sequential(*modules))

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, h, w) at ``stride`` -> one map (B, dim, h', w') per level."""
        return [level(x) for level in self.levels]
