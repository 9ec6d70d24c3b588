"""Batch norm as a fixed affine map, as in the training of DETR."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.ops.eager import in_plain_cpu

__all__ = ["FrozenBatchNorm", "freeze_batch_norm"]


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine terms are buffers, followed by the activation of the layer it replaces."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    folded: bool = False
    """Whether the convolution before it applies the affine map, see :mod:`detrkit.nn.backbone.folded_norm`."""

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
        if self.folded and in_plain_cpu(x):
            return self.act(x)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return self.act(x)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift (C,) of the map."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm inside ``module`` by its frozen form."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm(child))
        else:
            freeze_batch_norm(child)
