"""Whether a program is being exported: then it must consist of operators that every runtime has."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["is_exporting"]


def _asked() -> bool:
    return torch.compiler.is_exporting()


# torch.compile of PyTorch 2.11 takes `torch.compiler.is_exporting()` for True wherever it is traced: compiled models
# would run without kernels. So the question is asked once, while tracing.
is_exporting: Callable[[], bool] = torch.compiler.assume_constant_result(_asked)
