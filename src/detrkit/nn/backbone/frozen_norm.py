"""Batch norm as a fixed affine map, as in the training of DETR."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.ops.exporting import is_exporting

__all__ = ["FrozenBatchNorm", "freeze_batch_norm"]


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine terms are buffers, followed by the activation of the layer it replaces."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(norm, name)
            if value is None:  # a norm without affine terms
                value = torch.ones(norm.num_features) if name == "weight" else torch.zeros(norm.num_features)
            self.register_buffer(name, value.detach().clone())
        act = getattr(norm, "act", None)  # timm's BatchNormAct2d
        self.act: nn.Module = act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        buffers = self.running_mean, self.running_var, self.weight, self.bias
        if torch.compiler.is_compiling() or is_exporting() or not x.requires_grad:
            x = F.batch_norm(x, *buffers, False, 0.0, self.eps)
        else:
            x = _FixedMap.apply(x, *buffers, self.eps)
        return self.act(x)


class _FixedMap(torch.autograd.Function):
    """The same numbers without keeping x for the backward pass, as torch does for the gradients of fixed terms: half of
    what a ResNet keeps."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(weight, variance)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, variance = ctx.saved_tensors
        scale = weight * (variance + ctx.eps).rsqrt()
        return (gradient * scale.view(-1, 1, 1)).to(gradient.dtype), None, None, None, None, None


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm inside ``module`` by its frozen form."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm(child))
        else:
            freeze_batch_norm(child)
