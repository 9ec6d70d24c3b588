"""Zeros where a mask says so."""

from __future__ import annotations

from torch import Tensor

from detrkit.ops.exporting import is_exporting

__all__ = ["zeroed"]


def zeroed(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` with zeros where ``mask`` (bool, of a shape that expands to that of ``x``) is True.

    Exported programs multiply: runtimes do that in whole rows, and as a part of the operator before it.
    """
    if is_exporting():
        return x * (~mask).to(x.dtype)
    return x.masked_fill(mask, 0.0)
