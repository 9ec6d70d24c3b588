"""Exclude padding from an image network, so that the features of an image do not depend on its batch.

timm networks pass only maps from module to module, no padding masks. :func:`use_padding` therefore stores the padding
while the network runs, per thread, and hooks before all modules that look at neighbouring cells read it. Modules have
no state of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detrkit.ops.zeroed import zeroed

__all__ = [
    "CheckpointedBlocks",
    "Padding",
    "cells_mask",
    "current_padding_mask",
    "use_padding",
    "valid_sizes",
    "zero_padding_in",
]


def valid_sizes(padding_mask: Tensor) -> Tensor:
    """Return height and width (B, 2) in pixels of the valid area, which starts at the top left of mask (B, H, W)."""
    valid = ~padding_mask
    return torch.stack((valid.any(2).sum(1), valid.any(1).sum(1)), dim=-1)


def cells_mask(sizes: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Return the padding mask (B, height, width) of a map: cells of ``stride`` pixels without any valid pixel."""
    cells = torch.div(sizes + stride - 1, stride, rounding_mode="floor")
    rows = torch.arange(height, device=sizes.device) >= cells[:, :1]
    columns = torch.arange(width, device=sizes.device) >= cells[:, 1:]
    return rows[:, :, None] | columns[:, None, :]


@dataclass(frozen=True)
class Padding:
    """Valid height and width (B, 2) of the images, and height of their canvas, all in pixels."""

    sizes: Tensor
    canvas: int

    def of_map(self, rows: int, columns: int) -> Tensor:
        """Return the padding mask (B, rows, columns) of a map inside the network."""
        return cells_mask(self.sizes, self.canvas // rows, rows, columns)


class _Current(threading.local):
    """The padding of the running network, per thread. torch.compile does not support context variables."""

    padding: Padding | None = None


_current = _Current()


@contextmanager
def use_padding(padding: Padding | None) -> Iterator[None]:
    """Run networks inside this context on maps with this padding."""
    before = _current.padding
    _current.padding = padding
    try:
        yield
    finally:
        _current.padding = before


def current_padding_mask(rows: int, columns: int) -> Tensor | None:
    """Return the padding mask (B, rows, columns) of a map inside the running network, or None without padding."""
    padding = _current.padding
    return None if padding is None else padding.of_map(rows, columns)


def _zero_padding(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Set the padding of a map (B, C, h, w) to zero."""
    (x, *rest) = inputs
    mask = current_padding_mask(x.shape[-2], x.shape[-1])
    return inputs if mask is None else (zeroed(x, mask[:, None]), *rest)


def _zero_padding_channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Set the padding of a map (B, h, w, C) to zero."""
    (x, *rest) = inputs
    mask = current_padding_mask(x.shape[1], x.shape[2])
    return inputs if mask is None else (zeroed(x, mask[..., None]), *rest)


def zero_padding_in(network: nn.Module) -> None:
    """Set padding to zero before every module of a network that looks at neighbouring cells."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and module.kernel_size not in (1, (1, 1)):
            module.register_forward_pre_hook(_zero_padding)
        elif isinstance(module, PatchMerging):
            module.register_forward_pre_hook(_zero_padding_channels_last)


class CheckpointedBlocks(nn.Sequential):
    """Blocks whose activations are recomputed in the backward pass, with the padding of the forward pass.

    The backward pass can run in another thread, which has no padding set.
    """

    @staticmethod
    def convert_in(stage: nn.Module) -> None:
        """Convert the blocks of a stage in place; parameters and their names stay."""
        blocks = getattr(stage, "blocks", stage)
        if type(blocks) is nn.Sequential:
            blocks.__class__ = CheckpointedBlocks

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) -> output of the last block."""
        padding = _current.padding
        for block in self:
            x = checkpoint(_run, block, x, padding, use_reentrant=False) if torch.is_grad_enabled() else block(x)
        return x


def _run(block: nn.Module, x: Tensor, padding: Padding | None) -> Tensor:
    with use_padding(padding):
        output: Tensor = block(x)
        return output
