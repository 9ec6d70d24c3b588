"""Official checkpoints of the published repositories, loaded into our models and written back name by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from detrkit.errors import CheckpointError
from detrkit.models.detector import Detector
from detrkit.weights.official.class_names import CLASS_NAMES, decode_names, encode_names
from detrkit.weights.official.keydiff import IGNORED, KeyDiff, Mismatch, compare
from detrkit.weights.official.keymaps import backbone_layout, keeps_class_names, official_names, without_wrapper
from detrkit.weights.official.recognise import match
from detrkit.weights.ours import is_ours, read_info
from detrkit.weights.reading import read_contents

__all__ = ["OfficialLoadReport", "load_official", "official_names", "to_official"]

# What another class or query count may change, and only on request.
_CLASS_HEADS = ("class_embed.", "enc_class_embed.", "one_to_many_class_embed.", "denoising.label_encoder.")
_QUERIES = ("query_embed.", "tgt_embed.", "refpoint_embed.", "one_to_many_embed.")
# What a file of a detector lacks for a model with masks; its absence, too, is allowed only on request.
_MASK_HEAD = "mask_head."


@dataclass
class OfficialLoadReport:
    """What :func:`load_official` did: tensors loaded, ignored leftovers, and what head surgery changed.

    fresh: tensors that kept their fresh values, whole or (queries) in part · classes, queries: how many the file and
    the model have, where that differs (queries: in a group) · groups: of queries, in the file and in the model.
    """

    loaded: int = 0
    ignored: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    classes: tuple[int, int] | None = None
    queries: tuple[int, int] | None = None
    groups: tuple[int, int] = (1, 1)

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
            each = f" in each of {min(self.groups)} groups" if min(self.groups) > 1 else ""
            lines.append(f"{_taken('queries', *self.queries)}{each}")
        if self.groups[0] != self.groups[1]:
            lines.append(_taken("groups of queries", *self.groups))
        if masks := sum(key.startswith(_MASK_HEAD) for key in self.fresh):
            lines.append(f"the file has no mask head: {masks} tensors of the mask head start new")
        return lines


def _taken(what: str, given: int, wanted: int) -> str:
    new = f", {wanted - given} start new" if wanted > given else ""
    return f"{given} {what} in the file, {wanted} here: {min(given, wanted)} are taken over{new}"


def _names(model: Detector, given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names to look for, whichever the file has most of: official ones, those of the detector alone where official
    files wrap it, or our own (one of our checkpoints)."""
    official = official_names(model)
    layouts = [official, without_wrapper(model, official), {key: [key] for key in official}]
    return max(layouts, key=lambda names: sum(any(name in given for name in accepted) for accepted in names.values()))


def load_official(
    model: nn.Module, state_dict_or_path: Mapping[str, Tensor] | str | Path, *, new_head: bool = False
) -> OfficialLoadReport:
    """Loads an official state dict, or one of our checkpoints, into one of our models.

    Aliases (several names of one tensor) are accepted and must be equal; leftovers of profilers are ignored. A model
    without class names takes those that the file holds (files of the Relation-DETR repository do).

    Args:
        model: from :func:`detrkit.create_model`.
        state_dict_or_path: names -> tensors, or a ``.pth`` / ``.safetensors`` file.
        new_head: head surgery: where the number of classes differs, class heads keep their fresh values; where the
            number of queries differs, as many query embeddings as both have are taken over, in each group where
            there are groups (Group DETR); where the file is of a detector without masks, the whole mask head keeps its
            fresh values. Everything else must fit.

    Raises:
        CheckpointError: missing, unexpected or mismatched keys (all named), or aliases that differ. The model is as it
            was before.
    """
    if not isinstance(model, Detector):
        raise TypeError(f"load_official needs a detrkit model, got {type(model).__name__}")
    if isinstance(state_dict_or_path, Mapping):
        path, where, given, told = None, "", dict(state_dict_or_path), None
    else:
        path, where = Path(state_dict_or_path), f"{state_dict_or_path}: "
        contents = read_contents(path)
        given = contents.state
        told = read_info(path).config.get("groups", 1) if is_ours(path) else contents.arguments.get("group_detr")
    own, names = model.state_dict(), _names(model, given)
    diff = compare(names, own, given)
    surgery = {
        item.key: item
        for item in diff.mismatched
        if item.key.startswith(_CLASS_HEADS + _QUERIES) and item.given[1:] == item.wanted[1:]
    }
    masks = [key for key in names if key.startswith(_MASK_HEAD)]
    lacking = {names[key][0] for key in masks} if not any(names[key][0] in given for key in masks) else set()
    if remaining := (diff.without(surgery.values(), missing=lacking) if new_head else diff):
        problem = f"{where}weights do not fit model '{model.name}': {remaining.summary()}"
        if not diff.without(surgery.values(), missing=lacking):
            differs = ["another class or query count"] * bool(surgery) + ["no mask head"] * bool(lacking)
            raise CheckpointError(f"{problem}; {', '.join(differs)}: pass new_head=True to keep what fits")
        raise CheckpointError(problem + _advice(path, given, remaining))
    report = OfficialLoadReport(ignored=[key for key in given if key.endswith(IGNORED)])
    report.fresh += masks if lacking else []
    for key, accepted in names.items():
        present = [name for name in accepted if name in given]
        if not present:  # no weight: the model's own value stays
            continue
        value = given[present[0]]
        for alias in present[1:]:
            if not torch.equal(given[alias], value):
                raise CheckpointError(
                    f"{where}'{alias}' and '{present[0]}' must be the same tensor but differ in this file"
                )
        if key in surgery:
            if key.startswith(_QUERIES):
                groups = int(str(model.config.flat().get("groups", 1)))
                report.groups = (_groups(len(value), told, groups), groups)
            own[key] = _operate(surgery[key], own[key], value, report)
        else:
            own[key] = value.to(own[key].dtype).reshape(own[key].shape)
            report.loaded += 1
    model.load_state_dict(own)
    if model.categories is None and report.classes is None and CLASS_NAMES in given:
        model.categories = decode_names(given[CLASS_NAMES], model.config.architecture.num_classes)
    return report


def _operate(change: Mismatch, own: Tensor, given: Tensor, report: OfficialLoadReport) -> Tensor:
    """The tensor that a model with other classes or queries starts from."""
    report.fresh.append(change.key)
    if not change.key.startswith(_QUERIES):
        if not change.key.startswith("denoising."):  # whose table may have a row more than there are classes
            report.classes = (change.given[0], change.wanted[0])
        return own
    # rows are group by group (Group DETR): what both have of groups, and of the queries in each
    theirs, ours = (rows.unflatten(0, (groups, -1)) for rows, groups in zip((given, own), report.groups, strict=True))
    groups, queries = min(len(theirs), len(ours)), min(theirs.shape[1], ours.shape[1])
    if theirs.shape[1] != ours.shape[1] and not change.key.startswith("one_to_many"):
        report.queries = (theirs.shape[1], ours.shape[1])
    result = ours.clone()
    result[:groups, :queries] = theirs[:groups, :queries]
    return result.flatten(0, 1)


def _groups(rows: int, told: object, ours: int) -> int:
    """How many groups a file's queries are in: as it tells, else as in the model where that can be, else one."""
    counts = (told, ours) if told is None else (told,)
    return next((n for n in counts if isinstance(n, int) and n > 0 and rows % n == 0), 1)


def _advice(path: Path | None, given: Mapping[str, Tensor], diff: KeyDiff) -> str:
    """Which model the file is of, where whole tensors differ."""
    if not (diff.missing or diff.unexpected):
        return ""
    if path is not None and is_ours(path):
        return f"; the file holds a '{read_info(path).name}'"
    nearest = match(given, file=path)
    return f"; the file looks like '{nearest.name}'" if nearest.likely else "; the file is of no family known here"


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under their official names, aliases included, so that official loaders accept them.

    Where official files hold class names (those of the Relation-DETR repository do) and the model has any, they too.
    """
    if not isinstance(model, Detector):
        raise TypeError(f"to_official needs a detrkit model, got {type(model).__name__}")
    layout = backbone_layout(model)
    state = model.state_dict() | layout.constants_of(model)
    names = official_names(model, state)
    official = {name: layout.shaped(name, state[key]) for key in names for name in names[key]}
    if model.categories is not None and keeps_class_names(model):
        official[CLASS_NAMES] = encode_names(model.categories)
    return official
