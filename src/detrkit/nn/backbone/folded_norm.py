"""Frozen batch norm as a part of the convolution before it, on a CPU.

A fixed affine map of the output of a convolution is the same convolution with other weights: W' = s · W and b' = b - s · m
with s = weight / √(variance + ε). The map of the norm is then neither computed nor kept for the backward pass, which
saves half of the activations of a ResNet. Parameters and buffers stay where they are; W' is made in every pass and not
kept. On a GPU two small kernels more per convolution would cost what they save, and mixed precision would round W'.
"""

from __future__ import annotations

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
        for convolution, norm in zip(children, children[1:], strict=False):
            plain = type(convolution) is nn.Conv2d and not isinstance(convolution.padding, str)
            if plain and isinstance(norm, FrozenBatchNorm) and len(norm.weight) == convolution.out_channels:
                convolution.__class__ = FoldedConv2d
                convolution.norms = (norm,)
                norm.folded = found = True
    return found


class _ScaledConvolution(torch.autograd.Function):
    """Convolution with scale · weight, which is made again in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, options: Any) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.options = options
        return F.conv2d(x, weight * scale.view(-1, 1, 1, 1), shift, *options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        factor = scale.view(-1, 1, 1, 1)
        by_x, by_weight, by_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight * factor, [len(scale)], stride, padding, dilation, False, [0, 0], groups,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]],
        )  # fmt: skip
        return by_x, None if by_weight is None else by_weight.mul_(factor), None, by_bias, None
