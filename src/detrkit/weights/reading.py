"""Opening checkpoint files of any origin without running code from them."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detrkit.errors import CheckpointError
from detrkit.weights.published.download import fetch_again

__all__ = ["Contents", "is_safetensors", "read_contents", "read_state_dict"]


# Where training checkpoints keep the state dict.
_WRAPPERS = ("model", "state_dict", "ema_state_dict")


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds: its tensors by name, the training arguments if any, the names of all parts."""

    state: dict[str, Tensor]
    arguments: dict[str, object]
    parts: tuple[str, ...]


def is_safetensors(path: Path) -> bool:
    """Whether this is a safetensors file, by its name or its first bytes (downloads may have any name)."""
    if path.suffix == ".safetensors":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` or ``.safetensors`` file by name; raises as :func:`read_contents`."""
    return read_contents(path).state


def read_contents(path: str | Path) -> Contents:
    """Reads a ``.pth`` or ``.safetensors`` file without running any code from it.

    Training checkpoints ({"model": …, "args": argparse.Namespace}) are unwrapped; ``module.`` prefixes are dropped.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that would need to execute code to load.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    content: object
    try:
        if is_safetensors(path):
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}){fetch_again(path)}") from error
    except Exception as error:  # torch and pickle raise many types for damaged or unsafe files
        raise CheckpointError(f"{path}: cannot be loaded safely ({_reason(error)}){fetch_again(path)}") from error
    whole = content if isinstance(content, Mapping) else {}
    given = whole.get("args")
    arguments = vars(given) if isinstance(given, argparse.Namespace) else given if isinstance(given, dict) else {}
    wrapper = next((key for key in _WRAPPERS if isinstance(whole.get(key), Mapping)), "")
    tensors = whole[wrapper] if wrapper else whole
    state = {str(key).removeprefix("module."): value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path}: holds no state dict (a mapping from names to tensors){fetch_again(path)}")
    return Contents(state, dict(arguments), tuple(map(str, whole)) if wrapper else ())


def _reason(error: Exception) -> str:
    """What torch found, without its advice to load the file unsafely."""
    text = " ".join(str(error).split())
    unsafe = re.search(r"GLOBAL (\S+)", text)
    if unsafe:
        return f"it holds a Python object, {unsafe[1]}, that only running its code would restore"
    known = isinstance(error, pickle.UnpicklingError | RuntimeError)  # of the others, none means anything to a user
    if not text or not known or "weights_only" in text or "PytorchStreamReader" in text:
        return "it is damaged or no checkpoint"
    return text[:200]
