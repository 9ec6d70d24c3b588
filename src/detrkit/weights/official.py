"""Official checkpoints of the published repositories, loaded into our models and written back name by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from detrkit.errors import CheckpointError
from detrkit.models import entry
from detrkit.models.detector import Detector
from detrkit.weights.checkpoint import is_ours, read_info
from detrkit.weights.keydiff import IGNORED, KeyDiff, Mismatch, compare
from detrkit.weights.keymaps import KEYMAPS, KeyMap
from detrkit.weights.reading import read_state_dict

__all__ = ["OfficialLoadReport", "load_official", "official_names", "to_official"]

# What another class or query count may change, and only on request.
_CLASS_HEADS = ("class_embed.", "enc_class_embed.", "denoising.label_encoder.")
_QUERIES = ("query_embed.", "tgt_embed.")


@dataclass
class OfficialLoadReport:
    """What :func:`load_official` did: tensors loaded, ignored leftovers, and what head surgery changed.

    fresh: tensors that kept their fresh values, whole or (queries) in part · classes, queries: rows in the file and in
    the model, where they differ.
    """

    loaded: int = 0
    ignored: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    classes: tuple[int, int] | None = None
    queries: tuple[int, int] | None = None

    def remarks(self) -> list[str]:
        """What the surgery did, in words; empty where everything fitted."""
        lines = []
        if self.classes is not None:
            count = sum(key.startswith(_CLASS_HEADS) for key in self.fresh)
            given, wanted = self.classes
            lines.append(
                f"{given} class outputs in the file, {wanted} here: {count} tensors of the class heads start new"
            )
        if self.queries is not None:
            given, wanted = self.queries
            new = f", {wanted - given} start new" if wanted > given else ""
            lines.append(f"{given} queries in the file, {wanted} here: {min(given, wanted)} are taken over{new}")
        return lines


def _keymap(model: Detector) -> KeyMap:
    family = entry(model.name).family
    if not getattr(model.config, "refine_boxes", True):
        family = f"{family}_shared_heads"
    elif getattr(model.config, "two_stage", False):
        family = f"{family}_two_stage"
    if getattr(model.config, "relation", "none") != "none":
        family = f"{family}_relation"
    return KEYMAPS[family]


def official_names(model: Detector) -> dict[str, list[str]]:
    """Our state-dict key -> the official names of that tensor."""
    keymap = _keymap(model)
    layers = int(getattr(model.config, "decoder_layers", 1))
    return {key: keymap.official(key, layers) for key in model.state_dict() if not key.endswith("num_batches_tracked")}


def _names(model: Detector, given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names to look for: official ones, or our own where the file has those (one of our checkpoints)."""
    official = official_names(model)
    if any(key in given for key, names in official.items() if key not in names):
        return {key: [key] for key in official}
    return official


def load_official(
    model: nn.Module, state_dict_or_path: Mapping[str, Tensor] | str | Path, *, new_head: bool = False
) -> OfficialLoadReport:
    """Loads an official state dict, or one of our checkpoints, into one of our models.

    Aliases (several names of one tensor) are accepted and must be equal; leftovers of profilers are ignored.

    Args:
        model: from :func:`detrkit.create_model`.
        state_dict_or_path: names -> tensors, or a ``.pth`` / ``.safetensors`` file.
        new_head: head surgery: where the number of classes differs, class heads keep their fresh values; where the
            number of queries differs, as many query embeddings as both have are taken over. Everything else must fit.

    Raises:
        CheckpointError: missing, unexpected or mismatched keys (all named), or aliases that differ. The model is as it
            was before.
    """
    if not isinstance(model, Detector):
        raise TypeError(f"load_official needs a detrkit model, got {type(model).__name__}")
    if isinstance(state_dict_or_path, Mapping):
        path, where, given = None, "", dict(state_dict_or_path)
    else:
        path, where, given = Path(state_dict_or_path), f"{state_dict_or_path}: ", read_state_dict(state_dict_or_path)
    own, names = model.state_dict(), _names(model, given)
    diff = compare(names, own, given)
    surgery = {
        item.key: item
        for item in diff.mismatched
        if item.key.startswith(_CLASS_HEADS + _QUERIES) and item.given[1:] == item.wanted[1:]
    }
    if remaining := (diff.without(surgery.values()) if new_head else diff):
        problem = f"{where}weights do not fit model '{model.name}': {remaining.summary()}"
        if len(surgery) == len(diff):
            raise CheckpointError(f"{problem}; another class or query count: pass new_head=True to keep what fits")
        raise CheckpointError(problem + _advice(path, given, remaining))
    report = OfficialLoadReport(ignored=[key for key in given if key.endswith(IGNORED)])
    for key, accepted in names.items():
        present = [name for name in accepted if name in given]
        value = given[present[0]]
        for alias in present[1:]:
            if not torch.equal(given[alias], value):
                raise CheckpointError(
                    f"{where}'{alias}' and '{present[0]}' must be the same tensor but differ in this file"
                )
        if key in surgery:
            own[key] = _operate(surgery[key], own[key], value, report)
        else:
            own[key] = value.to(own[key].dtype)
            report.loaded += 1
    model.load_state_dict(own)
    return report


def _operate(change: Mismatch, own: Tensor, given: Tensor, report: OfficialLoadReport) -> Tensor:
    """The tensor that a model with other classes or queries starts from."""
    report.fresh.append(change.key)
    rows = (change.given[0], change.wanted[0])
    if not change.key.startswith(_QUERIES):
        report.classes = rows
        return own
    report.queries = rows
    both = min(rows)
    return torch.cat((given[:both].to(own.dtype), own[both:]))


def _advice(path: Path | None, given: Mapping[str, Tensor], diff: KeyDiff) -> str:
    """Which model the file is of, where whole tensors differ."""
    if not (diff.missing or diff.unexpected):
        return ""
    if path is not None and is_ours(path):
        return f"; the file holds a '{read_info(path).name}'"
    from detrkit.weights.matching import match

    nearest = match(given, file=path)
    return f"; the file looks like '{nearest.name}'" if nearest.likely else "; the file is of no family known here"


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under their official names, aliases included, so that official loaders accept them."""
    if not isinstance(model, Detector):
        raise TypeError(f"to_official needs a detrkit model, got {type(model).__name__}")
    state = model.state_dict()
    return {name: state[key] for key, names in official_names(model).items() for name in names}
