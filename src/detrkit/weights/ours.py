"""Our checkpoints: one safetensors file with the weights and, as JSON metadata, all that is needed to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from detrkit.errors import CheckpointError
from detrkit.files import replacing
from detrkit.models import create_model
from detrkit.models.detector import Detector
from detrkit.structures import Categories
from detrkit.weights.published.download import fetch_again
from detrkit.weights.reading import is_safetensors

__all__ = ["CheckpointInfo", "is_ours", "load", "read_info", "save"]

_FORMAT = "detrkit-1"


@dataclass(frozen=True)
class CheckpointInfo:
    """Metadata of a checkpoint: registry name, model configuration, classes in label order, recipe, extra."""

    name: str
    config: dict[str, Any]
    categories: Categories | None
    recipe: dict[str, object] | None
    extra: dict[str, object]


def save(
    model: nn.Module,
    path: str | Path,
    *,
    recipe: Mapping[str, object] | None = None,
    extra: Mapping[str, object] | None = None,
    half: bool = False,
) -> Path:
    """Writes a model to a ``.safetensors`` file, atomically: the file is there whole or not at all.

    Args:
        model: a detrkit model.
        path: file to write; parent folders are made.
        recipe: resolved recipe that trained it.
        extra: anything JSON can hold (metrics, step).
        half: store floating-point weights as float16.

    Raises:
        CheckpointError: the file cannot be written; a file that was there before is untouched.
    """
    if not isinstance(model, Detector):
        raise TypeError(f"save needs a detrkit model, got {type(model).__name__}")
    path = Path(path)
    metadata = {
        "format": _FORMAT,
        "name": model.name,
        "config": model.config.flat(),
        "categories": None if model.categories is None else model.categories.to_json(),
        "recipe": recipe,
        "extra": extra or {},
    }
    tensors = {
        key: (value.detach().half() if half and value.is_floating_point() else value.detach()).cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    try:
        with replacing(path) as draft:
            save_file(tensors, draft, metadata={"detrkit": json.dumps(metadata, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); an earlier file there is untouched") from error
    return path


def is_ours(path: Path) -> bool:
    """Whether this is one of our checkpoints, or a safetensors file too damaged to tell (:func:`load` says how)."""
    if not is_safetensors(path):
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "detrkit" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True


def read_info(path: str | Path) -> CheckpointInfo:
    """Metadata of one of our checkpoints without its weights.

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
    content = json.loads(metadata["detrkit"])
    categories = content["categories"]
    return CheckpointInfo(
        name=content["name"],
        config=content["config"],
        categories=None if categories is None else Categories.from_json(categories),
        recipe=content.get("recipe"),
        extra=content.get("extra", {}),
    )


def load(path: str | Path, *, device: torch.device | str = "cpu") -> Detector:
    """Builds the model that :func:`save` wrote, in evaluation mode. Nothing is unpickled.

    Raises:
        CheckpointError: missing or damaged file, not one of ours, or made by a model this version does not know.
    """
    info = read_info(path)
    try:
        model = create_model(info.name, **info.config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: made for a model this version cannot build ({error})") from error
    state = {key: value.float() if value.dtype == torch.float16 else value for key, value in load_file(path).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: weights do not fit model '{info.name}' ({str(error).splitlines()[0]})"
        ) from error
    model.categories = info.categories
    return model.to(device).eval()
