"""Our checkpoints: a safetensors file with the weights and, as JSON metadata, the model configuration and classes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detrkit.errors import CheckpointError
from detrkit.files import replacing
from detrkit.models import create_model
from detrkit.models.detector import Detector
from detrkit.structures import Categories
from detrkit.weights.published.download import fetch_again
from detrkit.weights.reading import is_safetensors

__all__ = ["CheckpointInfo", "is_ours", "load", "read_info", "save", "verify"]

_FORMAT = "detrkit-1"


@dataclass(frozen=True)
class CheckpointInfo:
    """Metadata of a checkpoint: registry name, model configuration, classes in label order, recipe, extra, checksum."""

    name: str
    config: dict[str, Any]
    categories: Categories | None
    recipe: dict[str, object] | None
    extra: dict[str, object]
    checksum: int | None = None
    """CRC-32 of the tensors; None in files of version 0.1."""


def save(
    model: nn.Module,
    path: str | Path,
    *,
    recipe: Mapping[str, object] | None = None,
    extra: Mapping[str, object] | None = None,
    half: bool = False,
) -> Path:
    """Write a model to a ``.safetensors`` file atomically: the file is complete or does not appear.

    Args:
        model: a detrkit model.
        path: file to write; parent folders are created.
        recipe: resolved recipe of the training run.
        extra: further JSON values (metrics, step).
        half: store floating-point weights in float16.

    Raises:
        CheckpointError: the file cannot be written; an earlier file is untouched.
    """
    if not isinstance(model, Detector):
        raise TypeError(f"save needs a detrkit model, got {type(model).__name__}")
    path = Path(path)
    tensors = {
        key: (value.detach().half() if half and value.is_floating_point() else value.detach()).cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    metadata = {
        "format": _FORMAT,
        "name": model.name,
        "config": model.config.flat(),
        "categories": None if model.categories is None else model.categories.to_json(),
        "recipe": recipe,
        "extra": extra or {},
        "checksum": _checksum(tensors),
    }
    try:
        with replacing(path) as draft:
            save_file(tensors, draft, metadata={"detrkit": json.dumps(metadata, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); an earlier file there is untouched") from error
    return path


def is_ours(path: Path) -> bool:
    """Whether a file is one of our checkpoints, or a damaged safetensors file (:func:`load` reports the damage)."""
    if not is_safetensors(path):
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "detrkit" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True


def read_info(path: str | Path) -> CheckpointInfo:
    """Read the metadata of one of our checkpoints without its weights.

    Raises:
        CheckpointError: missing file, not safetensors, or not written by detrkit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}){fetch_again(path)}") from error
    if "detrkit" not in metadata:
        raise CheckpointError(
            f"{path}: holds weights but no detrkit metadata; for official weights use detrkit.load_official"
        )
    info = json.loads(metadata["detrkit"])
    categories = info["categories"]
    return CheckpointInfo(
        name=info["name"],
        config=info["config"],
        categories=None if categories is None else Categories.from_json(categories),
        recipe=info.get("recipe"),
        extra=info.get("extra", {}),
        checksum=info.get("checksum"),
    )


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names and bytes."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, found)
    return found


def _read_tensors(path: Path, info: CheckpointInfo) -> dict[str, Tensor]:
    tensors = load_file(path)
    if info.checksum is not None and _checksum(tensors) != info.checksum:
        raise CheckpointError(f"{path}: damaged, its weights have another checksum than when they were written")
    return tensors


def verify(path: str | Path) -> None:
    """Check that one of our checkpoints is as it was written.

    Raises:
        CheckpointError: the file is missing, damaged or not one of ours.
    """
    _read_tensors(Path(path), read_info(path))


def load(path: str | Path, *, device: torch.device | str = "cpu") -> Detector:
    """Load a model written by :func:`save`, in evaluation mode. Nothing is unpickled.

    Raises:
        CheckpointError: the file is missing, damaged or not one of ours, or this version cannot build its model.
    """
    info = read_info(path)
    try:
        model = create_model(info.name, **info.config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: made for a model this version cannot build ({error})") from error
    tensors = _read_tensors(Path(path), info)
    state = {key: value.float() if value.dtype == torch.float16 else value for key, value in tensors.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: weights do not fit model '{info.name}' ({str(error).splitlines()[0]})"
        ) from error
    model.categories = info.categories
    return model.to(device).eval()
