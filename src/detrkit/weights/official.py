"""Official checkpoints of the published repositories, loaded into our models and written back name by name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from detrkit.errors import CheckpointError
from detrkit.models import entry
from detrkit.models.detector import Detector
from detrkit.weights.keymaps import KEYMAPS, KeyMap

__all__ = ["OfficialLoadReport", "load_official", "official_names", "read_state_dict", "to_official"]

# Left behind by profilers and other frameworks; they are no weights.
_IGNORED = ("_classes_", "total_params", "total_ops", "num_batches_tracked")
# What another class or query count may change, and only on request.
_HEADS = ("class_embed.", "query_embed.")


@dataclass
class OfficialLoadReport:
    """What :func:`load_official` did: tensors loaded, ignored leftovers, and heads that kept their fresh values."""

    loaded: int = 0
    ignored: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


def _keymap(model: Detector) -> KeyMap:
    family = entry(model.name).family
    if not getattr(model.config, "refine_boxes", True):
        family = f"{family}_shared_heads"
    return KEYMAPS[family]


def official_names(model: Detector) -> dict[str, list[str]]:
    """Our state-dict key -> the official names of that tensor."""
    keymap = _keymap(model)
    layers = int(getattr(model.config, "decoder_layers", 1))
    return {key: keymap.official(key, layers) for key in model.state_dict() if not key.endswith("num_batches_tracked")}


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads a ``.pth`` or ``.safetensors`` file without running any code from it.

    Training checkpoints ({"model": …, "args": argparse.Namespace}) are unwrapped; ``module.`` prefixes are dropped.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that would need to execute code to load.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    except Exception as error:  # torch and pickle raise many types for damaged or unsafe files
        raise CheckpointError(f"{path}: cannot be loaded safely ({_reason(error)})") from error
    for key in ("model", "state_dict", "ema_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not state:
        raise CheckpointError(f"{path}: holds no state dict (a mapping from names to tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _reason(error: Exception) -> str:
    """What torch found, without its advice to load the file unsafely."""
    text = " ".join(str(error).split())
    unsafe = re.search(r"GLOBAL (\S+)", text)
    if unsafe:
        return f"it holds a Python object, {unsafe[1]}, that only running its code would restore"
    if not text or "weights_only" in text or "PytorchStreamReader" in text:
        return "it is damaged or no checkpoint"
    return text[:200]


def _nearest_family(keys: set[str]) -> str:
    if any(key.startswith("ref_point_head") or key.startswith("transformer.decoder.ref_point_head") for key in keys):
        return "the DE-DETR or Conditional DETR family"
    if any("sampling_offsets" in key for key in keys):
        return "the Deformable DETR family"
    if any(key.startswith("transformer.decoder") for key in keys):
        return "the DETR family"
    return "another family of models"


def _summary(kind: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} {kind} ({shown})"


def load_official(
    model: nn.Module, state_dict_or_path: Mapping[str, Tensor] | str | Path, *, new_head: bool = False
) -> OfficialLoadReport:
    """Loads an official state dict into one of our models.

    Aliases (several names of one tensor) are accepted and must be equal; leftovers of profilers are ignored.

    Args:
        model: from :func:`detrkit.create_model`.
        state_dict_or_path: official names -> tensors, or a ``.pth`` / ``.safetensors`` file.
        new_head: head surgery: where the number of classes differs, class heads keep their fresh values; where the
            number of queries differs, as many query embeddings as both have are taken over.

    Raises:
        CheckpointError: missing, unexpected or mismatched keys (all named), or aliases that differ.
    """
    if not isinstance(model, Detector):
        raise TypeError(f"load_official needs a detrkit model, got {type(model).__name__}")
    given = dict(state_dict_or_path) if isinstance(state_dict_or_path, Mapping) else read_state_dict(state_dict_or_path)
    report = OfficialLoadReport(ignored=[key for key in given if key.endswith(_IGNORED)])
    unused = set(given) - set(report.ignored)
    own = model.state_dict()
    missing: list[str] = []
    mismatched: list[str] = []
    for key, names in official_names(model).items():
        present = [name for name in names if name in given]
        unused.difference_update(present)
        if not present:
            missing.append(names[0])
            continue
        value = given[present[0]]
        for alias in present[1:]:
            if not torch.equal(given[alias], value):
                raise CheckpointError(f"'{alias}' and '{present[0]}' must be the same tensor but differ in this file")
        if value.shape == own[key].shape:
            own[key] = value.to(own[key].dtype)
            report.loaded += 1
        elif new_head and key.startswith(_HEADS):
            report.fresh.append(key)
            if key.startswith("query_embed.") and value.shape[1:] == own[key].shape[1:]:
                both = min(len(value), len(own[key]))
                own[key] = torch.cat((value[:both].to(own[key].dtype), own[key][both:]))
        else:
            mismatched.append(f"{present[0]} {tuple(value.shape)} instead of {tuple(own[key].shape)}")
    problems = [
        _summary(kind, sorted(keys))
        for kind, keys in (("missing", missing), ("unexpected", list(unused)), ("mismatched", mismatched))
        if keys
    ]
    if problems:
        advice = ""
        if mismatched and not missing and not unused and all(key.startswith(_HEADS) for key in mismatched):
            advice = "; another class or query count: pass new_head=True to keep what fits"
        elif missing or unused:
            advice = f"; the file looks like {_nearest_family(set(given))}"
        raise CheckpointError(f"weights do not fit model '{model.name}': {'; '.join(problems)}{advice}")
    model.load_state_dict(own)
    return report


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under their official names, aliases included, so that official loaders accept them."""
    if not isinstance(model, Detector):
        raise TypeError(f"to_official needs a detrkit model, got {type(model).__name__}")
    state = model.state_dict()
    return {name: state[key] for key, names in official_names(model).items() for name in names}
