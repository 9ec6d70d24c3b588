"""The precision of a forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast, get_args

import torch

__all__ = ["Precision", "autocast", "check_precision"]

Precision = Literal["fp32", "bf16", "fp16"]


def check_precision(precision: str) -> Precision:
    """The precision of a forward pass.

    Raises:
        ValueError: there is no such one.
    """
    if precision in get_args(Precision):
        return cast(Precision, precision)
    raise ValueError(f"precision is 'fp32', 'bf16' or 'fp16', got {precision!r}")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context manager for a forward pass in this precision; it does nothing for fp32."""
    if check_precision(precision) == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
