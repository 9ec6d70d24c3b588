"""Padding kept out of an image network, so that an image gives the same features alone and in a padded batch.

Networks of timm pass maps from module to module and nothing else. What part of a map is padding therefore travels
beside them: :func:`padded` holds it for as long as the network runs, in the calling thread alone, and hooks in front
of everything that looks at neighbouring cells ask for it. No module remembers anything.
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

__all__ = ["Padding", "Recomputed", "cells_mask", "keep_padding_out", "padded", "padding_of", "valid_sizes"]


def valid_sizes(padding_mask: Tensor) -> Tensor:
    """(B, 2) height and width in pixels of the valid area, which starts at the top left: from mask (B, H, W)."""
    valid = ~padding_mask
    return torch.stack((valid.any(2).sum(1), valid.any(1).sum(1)), dim=-1)


def cells_mask(sizes: Tensor, stride: int, height: int, width: int) -> Tensor:
    """The padding of a map of ``stride`` pixels per cell, (B, height, width): cells without any valid pixel."""
    cells = torch.div(sizes + stride - 1, stride, rounding_mode="floor")
    rows = torch.arange(height, device=sizes.device) >= cells[:, :1]
    columns = torch.arange(width, device=sizes.device) >= cells[:, 1:]
    return rows[:, :, None] | columns[:, None, :]


@dataclass(frozen=True)
class Padding:
    """Valid height and width (B, 2) in pixels of the images, and the height in pixels of the canvas they are on."""

    sizes: Tensor
    canvas: int

    def of_map(self, rows: int, columns: int) -> Tensor:
        """The padding mask (B, rows, columns) of a map inside the network."""
        return cells_mask(self.sizes, self.canvas // rows, rows, columns)


class _Running(threading.local):
    """Of each thread: the padding of the network that it runs. Not a context variable, which torch.compile refuses."""

    padding: Padding | None = None


_running = _Running()


@contextmanager
def padded(padding: Padding | None) -> Iterator[None]:
    """What runs inside runs on maps with this padding."""
    before = _running.padding
    _running.padding = padding
    try:
        yield
    finally:
        _running.padding = before


def padding_of(rows: int, columns: int) -> Tensor | None:
    """The padding mask (B, rows, columns) of a map inside the network that runs; None where there is none."""
    padding = _running.padding
    return None if padding is None else padding.of_map(rows, columns)


def _blank(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Zeros in the padding of a map (B, C, h, w)."""
    (x, *rest) = inputs
    mask = padding_of(x.shape[-2], x.shape[-1])
    return inputs if mask is None else (x.masked_fill(mask[:, None], 0.0), *rest)


def _blank_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same for a map with the channels last (B, h, w, C)."""
    (x, *rest) = inputs
    mask = padding_of(x.shape[1], x.shape[2])
    return inputs if mask is None else (x.masked_fill(mask[..., None], 0.0), *rest)


def keep_padding_out(network: nn.Module) -> None:
    """Blanks padding in front of every module of a network that looks at neighbouring cells."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and module.kernel_size not in (1, (1, 1)):
            module.register_forward_pre_hook(_blank)
        elif isinstance(module, PatchMerging):
            module.register_forward_pre_hook(_blank_last)


class Recomputed(nn.Sequential):
    """Blocks whose activations are made again in the backward pass, which may run in another thread: under the padding
    that they were first made with."""

    @staticmethod
    def take_over(stage: nn.Module) -> None:
        """Makes the blocks of a stage one of these; parameters stay what and where they are."""
        blocks = getattr(stage, "blocks", stage)
        if type(blocks) is nn.Sequential:
            blocks.__class__ = Recomputed

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) -> what the last block gives."""
        padding = _running.padding
        for block in self:
            x = checkpoint(_run, block, x, padding, use_reentrant=False) if torch.is_grad_enabled() else block(x)
        return x


def _run(block: nn.Module, x: Tensor, padding: Padding | None) -> Tensor:
    with padded(padding):
        output: Tensor = block(x)
        return output
