"""Which implementation of an operator runs: the device decides, or ``DETRKIT_BACKEND`` forces one. Loads no torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Collection

from detrkit.errors import DetrkitError, did_you_mean

__all__ = [
    "BACKEND_NAMES",
    "BACKEND_VARIABLE",
    "OPERATORS",
    "backend_on",
    "forced_backend",
    "forced_in_vain",
    "impossible_on",
    "missing_for_compiling",
    "missing_for_triton",
]

BACKEND_VARIABLE = "DETRKIT_BACKEND"

BACKEND_NAMES = ("reference", "triton", "cpu")
"""``reference``: plain torch, anywhere. ``triton``: kernels for GPUs. ``cpu``: written for a CPU."""

OPERATORS = {"ms_deform_attn": BACKEND_NAMES, "relation_attention": ("reference", "triton")}
"""Operators with several backends, and which."""


def forced_backend() -> str | None:
    """The backend that the environment asks for; None: the best one of the device.

    Raises:
        DetrkitError: there is no such backend.
    """
    name = os.environ.get(BACKEND_VARIABLE, "")
    if name and name not in BACKEND_NAMES:
        raise DetrkitError(
            f"{BACKEND_VARIABLE}={name}: there is no such backend.{did_you_mean(name, BACKEND_NAMES)} "
            "Without the variable the device decides"
        )
    return name or None


def missing_for_triton() -> str | None:
    """What this installation lacks to compile Triton's kernels for a GPU; None: nothing.

    Triton brings its own compiler of kernels, but builds their launchers with the C compiler of the machine.
    """
    if sys.platform != "linux":
        return "it runs on Linux"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "it needs a C compiler (gcc or clang) on the path, or its name in the variable CC"
    return None


def missing_for_compiling(device_type: str) -> str | None:
    """What this installation lacks for ``torch.compile`` on a kind of device; None: nothing is known to be missing."""
    if device_type == "cuda":
        missing = missing_for_triton()
        return missing and f"Triton cannot be used: {missing}"
    if device_type == "cpu" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        return "it needs a compiler for C++ (g++ or clang++) on the path, or its name in the variable CXX"
    return None


def backend_on(device_type: str, written: Collection[str] = BACKEND_NAMES) -> str:
    """The backend of an operator on a kind of device ("cpu", "cuda", "mps"), unless it declines a shape.

    written: backends that the operator has; without one for the device, or without the forced one, the reference runs.

    Raises:
        DetrkitError: ``DETRKIT_BACKEND`` names no backend.
    """
    name = forced_backend()
    if name is None:
        name = device_type
        if device_type == "cuda" and missing_for_triton() is None:
            name = "triton"
    return name if name in written else "reference"


def impossible_on(device_type: str, name: str) -> str | None:
    """Why a backend cannot run on a kind of device; None: nothing speaks against it."""
    if name == "cpu" and device_type != "cpu":
        return f"it is written for the CPU, not for {device_type}"
    if name != "triton":
        return None
    interpreted = device_type == "cpu" and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if device_type != "cuda" and not interpreted:
        return f"Triton's kernels run on a CUDA device, not on {device_type} (for trials: TRITON_INTERPRET=1)"
    missing = missing_for_triton()
    return missing and f"Triton cannot be used: {missing}"


def forced_in_vain(name: str, reason: str) -> DetrkitError:
    """The error of a forced backend that cannot run."""
    return DetrkitError(f"{BACKEND_VARIABLE}={name} is impossible: {reason}. Unset the variable: the device decides")
