"""Cross-level token fusion of Salience-DETR (RepVGGPluXNetwork): a path aggregation network, top-down then bottom-up.

Its blocks have a 3x3 and a 1x1 branch and a squeeze-and-excitation gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PluXPyramid"]


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses running statistics if there is only one value per channel, which has no variance."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        if self.training and input[:, 0].numel() == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class ConvNorm(nn.Sequential):
    """Convolution without bias that keeps the size (stride 1) or halves it, batch norm, activation."""

    def __init__(
        self, in_dim: int, dim: int, kernel: int = 1, stride: int = 1, groups: int = 1, activation: bool = True
    ) -> None:
        conv = nn.Conv2d(in_dim, dim, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        nn.init.kaiming_uniform_(conv.weight, a=1)
        super().__init__(conv, BatchNorm(dim), nn.SiLU() if activation else nn.Identity())


def _zero_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """Set x (B, C, h, w) to zero in padding (B, 1, h, w), if given."""
    return x if padding is None else x.masked_fill(padding, 0.0)


class AttentionGate(nn.Module):
    """Squeeze and excitation: channels gated by their mean over the map, weighted by attention."""

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        self.conv_mask = nn.Conv2d(dim, 1, kernel_size=1)
        self.se_module = nn.Sequential(
            nn.Conv2d(dim, dim // reduction, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(dim // reduction, dim, 1, bias=False),
            nn.Sigmoid(),
        )
        for conv in (self.conv_mask, self.se_module[0], self.se_module[2]):
            nn.init.kaiming_uniform_(conv.get_parameter("weight"), a=1)
        nn.init.zeros_(self.conv_mask.get_parameter("bias"))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        logits = self.conv_mask(x)
        if padding is not None:
            logits = logits.masked_fill(padding, -torch.inf)
        weight = logits.flatten(2).softmax(-1)
        mean = (x.flatten(2) * weight).sum(-1)[..., None, None]
        gated: Tensor = x * self.se_module(mean)
        return gated


class PluXBlock(nn.Module):
    """3x3 and 1x1 grouped convolutions side by side, activation, gate; residual."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, dim, kernel=3, groups=groups, activation=False)
        self.conv2 = ConvNorm(dim, dim, groups=groups, activation=False)
        self.se_module = AttentionGate(dim)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        mixed = F.silu(self.conv1(_zero_padding(x, padding)) + self.conv2(x))
        fused: Tensor = self.se_module(mixed, padding) + x
        return fused


class FusionBlock(nn.Module):
    """Fuses two concatenated levels: a stack of blocks, and a path around it (cross-stage partial)."""

    def __init__(self, dim: int, groups: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(2 * dim, dim)
        self.conv2 = ConvNorm(2 * dim, dim)
        self.bottlenecks = nn.ModuleList(PluXBlock(dim, groups) for _ in range(blocks))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, 2C, h, w) -> (B, C, h, w)."""
        deep = self.conv1(x)
        for block in self.bottlenecks:
            deep = block(deep, padding)
        fused: Tensor = deep + self.conv2(x)
        return fused


class PluXPyramid(nn.Module):
    """Fuses the levels of the memory from the coarsest to the finest and back; modules are ordered from the finest."""

    def __init__(self, *, dim: int, num_levels: int, groups: int = 4, blocks: int = 3) -> None:
        super().__init__()
        steps = num_levels - 1
        self.lateral_convs = nn.ModuleList(ConvNorm(dim, dim) for _ in range(steps))
        self.layer_blocks = nn.ModuleList(FusionBlock(dim, groups, blocks) for _ in range(steps))
        self.downsample_blocks = nn.ModuleList(ConvNorm(dim, dim, kernel=3, stride=2) for _ in range(steps))
        self.pan_blocks = nn.ModuleList(FusionBlock(dim, groups, blocks) for _ in range(steps))

    def forward(self, maps: Sequence[Tensor], padding_masks: Sequence[Tensor] | None = None) -> list[Tensor]:
        """maps (B, C, h, w), finest first -> as many fused maps.

        padding_masks (B, h, w): padding excluded from convolutions and pooling, so that the result for an image does
        not depend on its batch; None: padding takes part, as published.
        """
        paddings = [None] * len(maps) if padding_masks is None else [mask[:, None] for mask in padding_masks]
        steps = list(zip(self.lateral_convs, self.layer_blocks, strict=True))
        down = [maps[-1]]
        for level in reversed(range(len(maps) - 1)):
            lateral, fuse = steps[level]
            down[0] = lateral(down[0])
            upsampled = F.interpolate(down[0], size=maps[level].shape[-2:], mode="nearest")
            down.insert(0, fuse(torch.cat((upsampled, maps[level]), dim=1), paddings[level]))
        up = down[:1]
        for level, (reduce, fuse) in enumerate(zip(self.downsample_blocks, self.pan_blocks, strict=True)):
            reduced = reduce(_zero_padding(up[-1], paddings[level]))
            up.append(fuse(torch.cat((reduced, down[level + 1]), dim=1), paddings[level + 1]))
        return up
