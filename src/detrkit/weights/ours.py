"""Our checkpoints: a safetensors file with the weights and, as JSON metadata, the model configuration and classes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detrkit.errors import CheckpointError, first_line
from detrkit.files import replacing
from detrkit.models import create_model
from detrkit.models.detector import Detector
from detrkit.nn.lora import merged_state
from detrkit.structures import Categories, Thresholds
from detrkit.weights.published.download import fetch_again
from detrkit.weights.reading import is_safetensors, refuse_not_finite

__all__ = ["CheckpointInfo", "copy_with_recipe", "is_ours", "load", "read_info", "save", "verify"]

_FORMAT = "detrkit-1"

# Keys of the metadata and the types of their values.
_METADATA: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "config": (dict,),
    "categories": (list, NoneType),
    "recipe": (dict, NoneType),
    "extra": (dict, NoneType),
    "thresholds": (dict, NoneType),
}


@dataclass(frozen=True)
class CheckpointInfo:
    """Metadata of a checkpoint: registry name, model configuration, classes in label order, recipe, extra, checksum,
    thresholds."""

    name: str
    config: dict[str, Any]
    categories: Categories | None
    recipe: dict[str, object] | None
    extra: dict[str, object]
    checksum: int | None = None
    """CRC-32 of the tensors; None in files of version 0.1."""
    thresholds: Thresholds | None = None
    """Score thresholds chosen on validation images; None where none were."""


def save(
    model: nn.Module,
    path: str | Path,
    *,
    recipe: Mapping[str, object] | None = None,
    extra: Mapping[str, object] | None = None,
    half: bool = False,
) -> Path:
    """Write a model to a ``.safetensors`` file atomically: the file is complete or does not appear.

    What LoRA has learned is added to the weights, in the file alone.

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
        for key, value in merged_state(model).items()
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
    if model.thresholds is not None:
        metadata["thresholds"] = model.thresholds.to_json()
    _write(tensors, metadata, path)
    return path


def _write(tensors: dict[str, Tensor], metadata: Mapping[str, object], path: Path) -> None:
    try:
        with replacing(path) as draft:
            save_file(tensors, draft, metadata={"detrkit": json.dumps(metadata, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); an earlier file there is untouched") from error


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
        raise CheckpointError(
            f"{path}: no such checkpoint file; run folders and names are opened by detrkit.from_pretrained"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}){fetch_again(path)}") from error
    if "detrkit" not in metadata:
        raise CheckpointError(
            f"{path}: holds weights but no detrkit metadata; for official weights use detrkit.load_official"
        )
    return _parse(path, metadata["detrkit"])


def _parse(path: Path, text: str) -> CheckpointInfo:
    """The metadata; what is missing or of another type is an error."""
    try:
        info = json.loads(text)
    except ValueError as error:
        raise _bad_metadata(path, f"is no JSON ({error})") from error
    if not isinstance(info, dict):
        raise _bad_metadata(path, f"is a {type(info).__name__}, not a mapping")
    for key, kinds in _METADATA.items():
        if not isinstance(info.get(key), kinds):
            what = f"{key} = {info[key]!r:.60}" if key in info else f"no '{key}'"
            raise _bad_metadata(path, f"has {what}, where there should be {kinds[0].__name__}")
    rows = info.get("categories")
    try:
        categories = None if rows is None else Categories.from_json(rows)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise _bad_metadata(path, "has categories that are not {id, name} each") from error
    given = info.get("thresholds")
    try:
        thresholds = None if given is None else Thresholds.from_json(given)
    except ValueError as error:
        raise _bad_metadata(path, f"has thresholds that cannot be used ({error})") from error
    for category in categories or ():
        if not isinstance(category.name, str | None):
            raise _bad_metadata(path, f"has a class with the name {category.name!r}, which is not text")
    return CheckpointInfo(
        name=info["name"],
        config=info["config"],
        categories=categories,
        recipe=info.get("recipe"),
        extra=info.get("extra") or {},
        checksum=info.get("checksum"),
        thresholds=thresholds,
    )


def _bad_metadata(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: its detrkit metadata {problem}: damaged, or changed by another program; take the original file"
        f"{fetch_again(path)}"
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


def copy_with_recipe(path: Path, target: Path, recipe: Mapping[str, object] | None) -> None:
    """Write a copy of one of our checkpoints with another recipe; all else stays as it is.

    Raises:
        CheckpointError: the file is damaged or not one of ours, or the copy cannot be written.
    """
    tensors = _read_tensors(path, read_info(path))
    with safe_open(path, framework="pt") as file:
        metadata = {**json.loads(file.metadata()["detrkit"]), "recipe": recipe}
    _write(tensors, metadata, target)


def load(path: str | Path, *, device: torch.device | str = "cpu", check_finite: bool = True) -> Detector:
    """Load a model written by :func:`save`, in evaluation mode. Nothing is unpickled.

    Args:
        path: the file.
        device: where to put the model.
        check_finite: refuse weights that are NaN or infinite.

    Raises:
        CheckpointError: the file is missing, damaged or not one of ours, or this version cannot build its model.
    """
    info = read_info(path)
    try:
        model = create_model(info.name, **info.config)
    except Exception as error:  # metadata may hold anything, and blocks raise many types for it
        raise CheckpointError(f"{path}: made for a model this version cannot build ({error})") from error
    classes = model.config.architecture.num_classes
    if info.categories is not None and len(info.categories) != classes:
        raise _bad_metadata(Path(path), f"names {len(info.categories)} classes, but its model has {classes}")
    if info.thresholds is not None and len(info.thresholds.per_class) != classes:
        count = len(info.thresholds.per_class)
        raise _bad_metadata(Path(path), f"has thresholds of {count} classes, but its model has {classes}")
    tensors = _read_tensors(Path(path), info)
    state = {key: value.float() if value.dtype == torch.float16 else value for key, value in tensors.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights do not fit model '{info.name}' ({first_line(error)})") from error
    if check_finite:
        refuse_not_finite(model.state_dict(), path)
    model.categories, model.thresholds = info.categories, info.thresholds
    return model.to(device).eval()
