"""Dropout that keeps little for the backward pass.

On a CPU torch keeps the noise in the dtype of the activations, beside the activations before and after it. What is kept
here is one byte per number, or nothing: where ReLU comes first, its output after dropout is above 0 exactly where a
gradient passes. The random numbers are those of ``torch.nn.functional.dropout``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.ops.eager import in_plain_cpu

__all__ = ["add_dropout", "drawn_noise", "needs_noise", "relu_dropout"]


def needs_noise(x: Tensor, rate: float) -> bool:
    """Whether these forms apply to x."""
    return rate > 0 and x.requires_grad and torch.is_grad_enabled() and in_plain_cpu(x)


def drawn_noise(x: Tensor, rate: float) -> Tensor:
    """Ones and, with probability ``rate``, zeros, in the shape and dtype of x."""
    return torch.empty_like(x).bernoulli_(1 - rate)


def relu_dropout(x: Tensor, rate: float) -> Tensor:
    """dropout(ReLU(x))."""
    return _ReluDropout.apply(x, rate) if needs_noise(x, rate) else F.dropout(F.relu(x), rate)


def add_dropout(x: Tensor, added: Tensor, rate: float) -> Tensor:
    """x + dropout(added), of one shape."""
    if x.shape == added.shape and needs_noise(added, rate):
        return _AddDropout.apply(x, added, rate)
    return x + F.dropout(added, rate)


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        y = drawn_noise(x, rate).mul_(x).clamp_(min=0).mul_(1 / (1 - rate))
        ctx.save_for_backward(y)
        ctx.rate = rate
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, y, 0).mul_(1 / (1 - ctx.rate)), None


class _AddDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor, rate: float) -> Tensor:
        noise = drawn_noise(added, rate)
        ctx.save_for_backward(noise.to(torch.bool))
        ctx.rate = rate
        return torch.addcmul(x, added, noise, value=1 / (1 - rate))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (kept,) = ctx.saved_tensors
        return gradient, (gradient * kept).mul_(1 / (1 - ctx.rate)), None
