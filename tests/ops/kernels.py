"""Where tests run Triton's kernels."""

from __future__ import annotations

import os

import pytest
import torch

__all__ = ["triton_device"]


def triton_device() -> str:
    """``cpu`` in the interpreter, else ``cuda``; without a GPU the module is skipped."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("TRITON_INTERPRET is off, and there is no GPU", allow_module_level=True)
    return "cuda"
