"""What operators with Triton kernels share: whether kernels run on a device, the device to launch on, a count."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from detrkit.backends import OPERATORS, backend_on, forced_backend, forced_in_vain, impossible_on

__all__ = ["LAUNCHES", "launching_on", "usable_backend"]

LAUNCHES: Counter[str] = Counter()
"""How often each Triton kernel was launched in this process."""

OLDEST = (7, 5)  # compute capability that Triton still compiles for


def usable_backend(operator: str, device: torch.device, declined: str | None, oldest: tuple[int, int] = OLDEST) -> str:
    """The backend of an operator for a call with tensors on a device.

    declined: why the Triton kernels do not take these tensors, or None. oldest: compute capability that they need.

    Raises:
        DetrkitError: ``DETRKIT_BACKEND`` forces one that cannot run here or does not take these tensors.
    """
    name = backend_on(device.type, OPERATORS[operator])
    reason = impossible_on(device.type, name)
    if name == "triton" and reason is None:
        reason = _cannot_launch(device, oldest) or (declined and f"{operator} takes {declined}")
    if reason is None:
        return name
    if forced_backend() is None:
        return "reference"
    raise forced_in_vain(name, reason)


def launching_on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch kernels on the device of a tensor, on its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@functools.cache
def _cannot_launch(device: torch.device, oldest: tuple[int, int]) -> str | None:
    import triton
    from triton import language

    if device.type != "cuda":
        interpreted = not isinstance(language.zeros, triton.JITFunction)
        return None if interpreted else "Triton was imported before TRITON_INTERPRET was set"
    found = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and found < oldest:
        return f"its kernels need compute capability {oldest[0]}.{oldest[1]}, the device has {found[0]}.{found[1]}"
    return None
