"""The device of a model."""

from __future__ import annotations

import torch

from detrkit.errors import DetrkitError

__all__ = ["resolve_device"]


def resolve_device(device: str | torch.device | None = "auto") -> torch.device:
    """The torch device of a name; ``"auto"`` or None: CUDA, else Apple's MPS, else the CPU.

    Raises:
        DetrkitError: the machine has no such device, or torch does not know the name.
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DetrkitError(f"there is no device '{device}': use auto, cpu, cuda, cuda:1 or mps") from error
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise DetrkitError(
            f"device '{device}' is not there: torch sees {count} CUDA devices ('detrkit env --torch' lists them)"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DetrkitError("device 'mps' is not there: it needs an Apple computer with a torch built for it")
    return chosen
