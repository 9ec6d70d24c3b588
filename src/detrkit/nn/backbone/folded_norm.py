"""Frozen batch norm as a part of the convolution before it, on a CPU.

A fixed affine map after a convolution is the same convolution with other weights: W' = s · W and b' = b - s · m with
s = weight / √(variance + ε). The map of the norm is then neither computed nor kept for the backward pass, which
saves half of the activations of a ResNet. Parameters and buffers stay where they are; W' is made in every pass and not
kept. On a GPU two small kernels more per convolution would cost what they save, and mixed precision would round W'.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.nn.backbone.frozen_norm import FrozenBatchNorm
from detrkit.ops.eager import in_plain_cpu

__all__ = ["FoldedConv2d", "fold_norms_in"]

# Modules of timm in which a norm applies to the convolution that is registered just before it.
_IN_ORDER = (
    "timm.models.resnet",
    "timm.models._efficientnet_blocks",
    "timm.models.efficientnet",
    "timm.models._features",
    "torch.nn.modules.container",
)


class FoldedConv2d(nn.Conv2d):
    """A convolution that also applies the frozen norm after it, wherever :func:`in_plain_cpu` says so."""

    norms: tuple[FrozenBatchNorm]
    """The norm; in a tuple, since it belongs to the network and not to this module."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        (norm,) = self.norms
        if not (norm.folded and in_plain_cpu(x)):
            return self._conv_forward(x, self.weight, self.bias)
        scale, shift = norm.affine()
        if self.bias is not None:
            shift = shift + scale * self.bias
        output: Tensor = _ScaledConvolution.apply(
            x, self.weight, scale, shift, (self.stride, self.padding, self.dilation, self.groups)
        )
        return output


def fold_norms_in(network: nn.Module) -> bool:
    """Fold frozen norms into convolutions inside ``network`` in place; parameters and their names stay.

    Returns:
        Whether any was folded.
    """
    found = False
    for parent in network.modules():
        if type(parent).__module__ not in _IN_ORDER:
            continue
        children = [child for child in parent.children() if not isinstance(child, nn.Identity)]
        for convolution, norm in pairwise(children):
            plain = type(convolution) is nn.Conv2d and not isinstance(convolution.padding, str)
            if plain and isinstance(norm, FrozenBatchNorm) and len(norm.weight) == convolution.out_channels:
                convolution.__class__ = FoldedConv2d
                object.__setattr__(convolution, "norms", (norm,))  # no submodule of its own
                norm.folded = found = True
    return found


class _ScaledConvolution(torch.autograd.Function):
    """Convolution with scale · weight, which is made again in the backward pass instead of being kept.

    Kernels of one cell are products of matrices: with one thread torch would copy the maps to another layout and back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, options: Any) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.options = options
        late = _scales_output(x, weight, options)
        weight, bias = (weight, None) if late else (weight * _per_filter(scale), shift)
        if _is_product(x, weight, options):
            shape = (len(x), len(scale), *x.shape[2:])
            maps = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)  # activations overwrite no view
            if bias is None:
                torch.mm(_as_rows(x), weight.flatten(1).T, out=_as_rows(maps))
            else:
                torch.addmm(bias, _as_rows(x), weight.flatten(1).T, out=_as_rows(maps))
        else:
            maps = F.conv2d(x, weight, bias, *options)
        factor, constant = (value.view(-1, 1, 1) for value in (scale, shift))
        return torch.addcmul(constant, maps, factor, out=maps) if late else maps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        late = _scales_output(x, weight, ctx.options)
        by_shift = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[3] else None
        if late:
            gradient = gradient * scale.view(-1, 1, 1)
        else:
            weight = weight * _per_filter(scale)
        needed = ctx.needs_input_grad[:2]
        by_x: Tensor | None
        by_weight: Tensor | None
        if _is_product(x, weight, ctx.options):
            rows = _as_rows(gradient)
            by_x = _as_maps(rows @ weight.flatten(1), x) if needed[0] else None
            by_weight = (rows.T @ _as_rows(x)).view_as(weight) if needed[1] else None
        else:
            stride, padding, dilation, groups = ctx.options
            by_x, by_weight, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*needed, False]
            )
        if by_weight is not None and not late:
            by_weight.mul_(_per_filter(scale))
        return by_x, by_weight, None, by_shift, None


def _per_filter(scale: Tensor) -> Tensor:
    return scale.view(-1, 1, 1, 1)


def _scales_output(x: Tensor, weight: Tensor, options: Any) -> bool:
    """Whether the output has fewer numbers than the weight, as in the last stage: then it is scaled in its place."""
    cells: int = len(x) * (x.shape[2] // options[0][0]) * (x.shape[3] // options[0][1])
    return cells < weight[0].numel()


def _is_product(x: Tensor, weight: Tensor, options: Any) -> bool:
    """Whether a convolution is a product of cells and weights, and the channels of a cell lie side by side."""
    one_cell = weight.shape[2:] == (1, 1) and options == ((1, 1), (0, 0), (1, 1), 1)
    return one_cell and x.is_contiguous(memory_format=torch.channels_last)


def _as_rows(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B·h·w, C)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _as_maps(rows: Tensor, like: Tensor) -> Tensor:
    """(B·h·w, C) -> (B, C, h, w), of the sides of ``like``."""
    return rows.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)
