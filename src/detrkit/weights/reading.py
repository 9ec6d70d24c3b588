"""Read checkpoint files of any origin without running code from them."""

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
from detrkit.files import beginning
from detrkit.runtime.info import is_artefact
from detrkit.weights.published.download import fetch_again

__all__ = ["Contents", "is_safetensors", "read_contents", "read_state_dict", "refuse_not_finite"]


# Where training checkpoints keep the state dict.
_WRAPPERS = ("model", "state_dict", "ema_state_dict")


@dataclass(frozen=True)
class Contents:
    """Contents of a checkpoint file: tensors by name, training arguments if any, and the names of all parts."""

    state: dict[str, Tensor]
    arguments: dict[str, object]
    parts: tuple[str, ...]


def is_safetensors(path: Path) -> bool:
    """Whether a file is in safetensors format, by its name or its first bytes (downloads may have any name)."""
    if path.suffix == ".safetensors":
        return True
    start = beginning(path, 9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` or ``.safetensors`` file by name. Raises as :func:`read_contents` does."""
    return read_contents(path).state


def read_contents(path: str | Path) -> Contents:
    """Read a ``.pth`` or ``.safetensors`` file without running code from it.

    Training checkpoints ({"model": …, "args": argparse.Namespace}) are unwrapped; ``module.`` prefixes are dropped.

    Raises:
        CheckpointError: no such file, not a checkpoint, or a file that would run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if is_artefact(path):
        raise CheckpointError(f"{path}: is an exported model; give the checkpoint that it was exported from")
    data: object
    try:
        if is_safetensors(path):
            data = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                data = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}){fetch_again(path)}") from error
    except Exception as error:  # torch and pickle raise many types for damaged or unsafe files
        raise CheckpointError(f"{path}: cannot be loaded safely ({_reason(error)}){fetch_again(path)}") from error
    parts = data if isinstance(data, Mapping) else {}
    args = parts.get("args")
    arguments = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    wrapper = next((key for key in _WRAPPERS if isinstance(parts.get(key), Mapping)), "")
    tensors = parts[wrapper] if wrapper else parts
    state = {str(key).removeprefix("module."): value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path}: holds no state dict (a mapping from names to tensors){fetch_again(path)}")
    return Contents(state, dict(arguments), tuple(map(str, parts)) if wrapper else ())


def refuse_not_finite(state: Mapping[str, Tensor], path: str | Path | None) -> None:
    """Refuse weights with which a model predicts nothing, without a word.

    Raises:
        CheckpointError: a tensor holds NaN or infinity; the message counts such tensors and names the first.
    """
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        where = "" if path is None else f"{path}: "
        raise CheckpointError(
            f"{where}{len(bad)} of {len(state)} tensors hold NaN or infinity, the first is '{bad[0]}': the training "
            "diverged or the file is damaged; take an earlier checkpoint (check_finite=False loads it all the same)"
        )


def _reason(error: Exception) -> str:
    """The cause of a loading error, without torch's advice to load the file unsafely."""
    text = " ".join(str(error).split())
    unsafe = re.search(r"GLOBAL (\S+)", text)
    if unsafe:
        return f"it holds a Python object, {unsafe[1]}, that only running its code would restore"
    known = isinstance(error, pickle.UnpicklingError | RuntimeError)  # messages of other types do not help a user
    if not text or not known or "weights_only" in text or "PytorchStreamReader" in text:
        return "it is damaged or no checkpoint"
    return text[:200]
