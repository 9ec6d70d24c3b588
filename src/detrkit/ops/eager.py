"""Where operators written for memory and speed on a CPU may stand in for those of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from detrkit.ops.exporting import is_exporting

__all__ = ["in_plain_cpu"]


def in_plain_cpu(x: Tensor) -> bool:
    """Whether a tensor is computed with on a CPU as it is: not traced, not in mixed or half precision."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    return not (torch.compiler.is_compiling() or is_exporting() or torch.is_autocast_enabled("cpu"))
