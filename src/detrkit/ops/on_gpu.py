"""What operators with Triton kernels share: whether kernels run on a device, the device to launch on, a count."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from detrkit.backends import OPERATORS, backend_on, forced_backend, forced_in_vain, impossible_on
from detrkit.errors import first_line

__all__ = ["LAUNCHES", "Trial", "failure_of", "launching_on", "usable_backend", "worst_error"]

LAUNCHES: Counter[str] = Counter()
"""How often each Triton kernel was launched in this process."""

OLDEST = (7, 5)  # compute capability that Triton still compiles for

Trial = Callable[[torch.device], float]
"""Runs a kernel forward and backward on small inputs, and on the CPU what it stands in for; returns its largest error
in units of what is allowed."""


def usable_backend(
    operator: str, device: torch.device, declined: str | None, *, trial: Trial, oldest: tuple[int, int] = OLDEST
) -> str:
    """The backend of an operator for a call with tensors on a device.

    Args:
        operator: its name.
        device: where the tensors are.
        declined: why the Triton kernels do not take these tensors, or None.
        trial: done once before the kernels' first use on a GPU; where it fails, the reference runs.
        oldest: compute capability that the kernels need.

    Raises:
        DetrkitError: ``DETRKIT_BACKEND`` forces one that cannot run here or does not take these tensors.
    """
    name = backend_on(device.type, OPERATORS[operator])
    reason = impossible_on(device.type, name)
    if name == "triton" and reason is None:
        reason = _cannot_launch(device, oldest) or (declined and f"{operator} takes {declined}")
        if reason is None and device.type == "cuda":
            reason = failure_of(operator, trial, device)
    if reason is None:
        return name
    if forced_backend() is None:
        return "reference"
    raise forced_in_vain(name, reason)


def worst_error(pairs: Iterable[tuple[Tensor, Tensor]], allowed: float) -> float:
    """The largest difference of pairs (found, expected on the CPU) relative to the largest expected number, in units of
    ``allowed``; infinite if a number found is not finite."""
    errors = [
        (found.cpu().double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-3)
        for found, expected in pairs
    ]
    worst = float(torch.stack(errors).max())
    return worst / allowed if math.isfinite(worst) else math.inf


def launching_on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch kernels on the device of a tensor, on its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@functools.cache
def failure_of(operator: str, trial: Trial, device: torch.device) -> str | None:
    """Why the kernels of an operator are not to be trusted on a device: wrong numbers, or none; None: they are.

    Kernels are compiled on the user's machine, by its versions of Triton and driver, for its GPU: they may meet a
    combination that nobody has seen. Then a training is slower, with a warning, but not wrong.
    """
    try:
        # whatever the first call stands in: a prediction, mixed precision
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            error = trial(device)
        reason = None if error <= 1 else f"its results are wrong here ({error:.3g} times the error that is allowed)"
    except Exception as failure:  # whatever Triton, its compiler and the driver raise
        reason = f"it does not run here ({type(failure).__name__}: {first_line(failure)})"
    if reason is not None:
        reason = f"{operator} in Triton: {reason}"
        warnings.warn(f"{reason}; the reference is used, which is slower. Please report this", stacklevel=2)
    return reason


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
