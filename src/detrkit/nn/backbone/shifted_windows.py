"""Shifted-window attention on maps of any size, as published ("Swin Transformer", Liu et al., arXiv 2103.14030).

timm's block gives other results if a side is not a multiple of the window: it shifts, then pads, while the published
code pads, then shifts. Both agree at the training size.
"""

from __future__ import annotations

import torch
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.nn.backbone.padding import current_padding_mask

__all__ = ["ShiftedWindowBlock"]

_BLOCKED = -100.0  # added to the logits of pairs of cells that must not see each other
_PADDING = 4  # region of padding; shifted cells are in regions 1, 2 or 3, all others in region 0


class ShiftedWindowBlock(SwinTransformerBlock):
    """timm's Swin block with the published order: pad to whole windows, shift, attend within windows.

    An axis covered by one window is not shifted (torchvision's rule; the authors always shift). Inside
    :func:`detrkit.nn.backbone.padding.use_padding`, padding and the cells that fill the last windows are excluded from
    attention, and every axis is shifted; otherwise these cells are zeros that take part, as published.
    """

    @staticmethod
    def convert_in(network: nn.Module) -> None:
        """Convert every Swin block inside ``network`` in place; parameters and their names stay."""
        for module in network.modules():
            if type(module) is SwinTransformerBlock:
                module.__class__ = ShiftedWindowBlock

    def _attn(self, x: Tensor) -> Tensor:
        """Apply window attention to x (B, h, w, C)."""
        height, width = x.shape[1:3]
        window = self.window_size
        below, right = -height % window[0], -width % window[1]
        x = F.pad(x, (0, 0, 0, right, 0, below))
        size = (height + below, width + right)
        padding = current_padding_mask(height, width)
        # with padding, whether one window covers an axis would depend on the other images of the batch
        can_skip = padding is None
        shift = [
            0 if can_skip and side <= cells else step
            for side, cells, step in zip(size, window, self.shift_size, strict=True)
        ]
        regions = _regions(size, shift, padding, x.device)
        x = torch.roll(x, (-shift[0], -shift[1]), dims=(1, 2))
        windows = window_partition(x, window).flatten(1, 2)
        windows = self.attn(windows, mask=self._mask(regions, windows.dtype))
        x = window_reverse(windows.unflatten(1, window), window, *size)
        return torch.roll(x, shift, dims=(1, 2))[:, :height, :width]

    def _mask(self, regions: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return the bias of the logits, (windows of one or all images, cells, cells)."""
        if regions is None:
            return None
        cells = window_partition(regions[..., None], self.window_size).flatten(1)
        return (cells[:, None] != cells[:, :, None]).to(dtype) * _BLOCKED


def _regions(size: tuple[int, int], shift: list[int], padding: Tensor | None, device: torch.device) -> Tensor | None:
    """Return regions (1 or B, H, W) of the shifted map: cells see only their own region. None: no restriction."""
    if not any(shift) and padding is None:
        return None
    # cells that the shift brought from the other side are not neighbours
    rows, columns = (torch.arange(side, device=device) >= side - step for side, step in zip(size, shift, strict=True))
    regions = (2 * rows[:, None].int() + columns.int())[None]
    if padding is None:
        return regions
    height, width = padding.shape[1:]
    padding = F.pad(padding, (0, size[1] - width, 0, size[0] - height), value=True)
    return regions.masked_fill(torch.roll(padding, (-shift[0], -shift[1]), dims=(1, 2)), _PADDING)
