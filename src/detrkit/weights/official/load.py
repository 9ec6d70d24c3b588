"""Load official checkpoints into our models, and write our models under official names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from detrkit.errors import CheckpointError, first_few
from detrkit.models.detector import Detector
from detrkit.nn.lora import merged_state
from detrkit.structures import Categories
from detrkit.structures.categories import spelled_alike
from detrkit.weights.official.class_names import CLASS_NAMES, decode_names, encode_names, guess_categories
from detrkit.weights.official.keydiff import IGNORED, KeyDiff, Mismatch, compare
from detrkit.weights.official.keymaps import backbone_layout, keeps_class_names, official_names, without_wrapper
from detrkit.weights.official.recognise import recognise
from detrkit.weights.ours import CheckpointInfo, is_ours, read_info
from detrkit.weights.reading import read_contents, refuse_not_finite

__all__ = ["OfficialLoadReport", "load_official", "official_names", "to_official"]

# Tensors whose number of rows depends on the number of classes or queries; ``new_head=True`` allows other numbers.
_CLASS_HEADS = ("class_embed.", "enc_class_embed.", "one_to_many_class_embed.", "denoising.label_encoder.")
_QUERIES = ("query_embed.", "tgt_embed.", "refpoint_embed.", "one_to_many_embed.")
# What a file of a detector lacks for a model with masks; its absence, too, is allowed only on request.
_MASK_HEAD = "mask_head."


@dataclass(frozen=True)
class ClassRows:
    """For each class of a model its row in the class heads of a file."""

    rows: list[int | None]
    """Rows of the file: that of the name, whatever its letter case, spaces and underscores. With as many classes, names
    that the file does not have take the rows that are left, in order; else they are None and start new."""
    named: list[str]
    """Classes that the file has, too."""
    kept: dict[str, str]
    """Other classes of the model -> the class of the file whose row they take over."""
    new: list[str]
    """Classes of the model that start new."""
    given: int
    """Classes of the file."""

    @classmethod
    def match(cls, given: Categories, wanted: Categories) -> Self | None:
        """Match by name, then by names that only case, spaces and underscores tell apart.

        None where names and order agree, or where the numbers differ and no name is in both.
        """
        old, new = ([str(category.name or category.id) for category in classes] for classes in (given, wanted))
        if old == new:
            return None
        rows: list[int | None] = [None] * len(new)
        for spelling in (str, spelled_alike):
            left = {spelling(old[row]): row for row in reversed(range(len(old))) if row not in rows}
            rows = [left.pop(spelling(name), None) if row is None else row for name, row in zip(new, rows, strict=True)]
        named = [name for name, found in zip(new, rows, strict=True) if found is not None]
        others = [name for name, found in zip(new, rows, strict=True) if found is None]
        if len(old) != len(new):
            return cls(rows, named, {}, others, len(old)) if named else None
        free = iter(sorted(set(range(len(old))) - set(rows)))
        full = [next(free) if row is None else row for row in rows]
        kept = {name: old[row] for name, row, found in zip(new, full, rows, strict=True) if found is None}
        return cls([*full], named, kept, [], len(old))

    def apply(self, own: Tensor, given: Tensor) -> Tensor:
        """The tensor of a class head with the rows of the file; further rows, such as no-object, follow the classes."""
        result = own.clone()
        for place, row in enumerate(self.rows):
            if row is not None:
                result[place] = given[row]
        if len(own) - len(self.rows) == len(given) - self.given:
            result[len(self.rows) :] = given[self.given :]
        return result

    def remark(self) -> str:
        """A sentence about it."""
        follow = f"the rows of the class heads follow the names {first_few(self.named, 12)}"
        parts = [follow] if self.named else []
        if self.new:
            parts.append(f"{first_few(self.new, 12)} start{'s' * (len(self.new) == 1)} new")
        if self.kept:
            old, new = (first_few(list(names), 12) for names in (self.kept.values(), self.kept))
            parts.append(f"the head trained as {old} is kept for {new} (as many classes with other names)")
        return "; ".join(parts)


@dataclass
class OfficialLoadReport:
    """Result of :func:`load_official`."""

    loaded: int = 0
    """Number of tensors loaded in full."""
    ignored: list[str] = field(default_factory=list)
    """Names in the file that are not weights."""
    fresh: list[str] = field(default_factory=list)
    """Tensors that kept their initial values, in full (class heads) or in part (queries)."""
    classes: tuple[int, int] | None = None
    """Class outputs of the file and of the model, where the numbers differ."""
    queries: tuple[int, int] | None = None
    """Queries per group of the file and of the model, where the numbers differ."""
    class_rows: ClassRows | None = None
    """Where the rows of the class heads come from, if the classes of the file have other names or another order."""
    groups: tuple[int, int] = (1, 1)
    """Query groups of the file and of the model."""

    def remarks(self) -> list[str]:
        """Sentences about tensors that were not loaded in full; empty where everything fitted."""
        lines = []
        if self.class_rows is not None:
            lines.append(self.class_rows.remark())
        elif self.classes is not None:
            count = sum(key.startswith(_CLASS_HEADS) for key in self.fresh)
            given, wanted = self.classes
            lines.append(
                f"{given} class outputs in the file, {wanted} here: {count} tensors of the class heads start new"
            )
        if self.queries is not None:
            groups = f" in each of {min(self.groups)} groups" if min(self.groups) > 1 else ""
            lines.append(f"{_count_remark('queries', *self.queries)}{groups}")
        if self.groups[0] != self.groups[1]:
            lines.append(_count_remark("groups of queries", *self.groups))
        if masks := sum(key.startswith(_MASK_HEAD) for key in self.fresh):
            lines.append(f"the file has no mask head: {masks} tensors of the mask head start new")
        return lines


def _count_remark(what: str, given: int, wanted: int) -> str:
    new = f", {wanted - given} start new" if wanted > given else ""
    return f"{given} {what} in the file, {wanted} here: {min(given, wanted)} are taken over{new}"


def _names(model: Detector, given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Our key -> accepted names in the file.

    Of three layouts the one that the file has most names of: official names, official names of the detector alone where
    the official model wraps one, our own names (one of our checkpoints).
    """
    official = official_names(model)
    counters = [key for key in model.state_dict() if key.endswith("num_batches_tracked")]
    layouts = [official, without_wrapper(model, official), {key: [key] for key in [*official, *counters]}]
    return max(layouts, key=lambda names: sum(any(name in given for name in accepted) for accepted in names.values()))


def load_official(
    model: nn.Module,
    state_dict_or_path: Mapping[str, Tensor] | str | Path,
    *,
    new_head: bool = False,
    check_finite: bool = True,
) -> OfficialLoadReport:
    """Load an official state dict, or one of our checkpoints, into one of our models.

    Aliases (several names of one tensor) are accepted and must be equal; leftovers of profilers are ignored. A model
    without class names takes the class names in the file (files of the Relation-DETR repository hold them).

    Args:
        model: from :func:`detrkit.create_model`.
        state_dict_or_path: names -> tensors, or a ``.pth`` / ``.safetensors`` file.
        new_head: allow other classes, another number of queries, and a file without mask head. The rows of the class
            heads, and of the label table of denoising, follow the names of the classes where file and model have names
            (the classes of an official COCO file are known). A class that the file does not have keeps its initial
            values, or, where the file has as many classes, takes over a row that is left. A mask head that the file
            lacks keeps its initial values. Of the query embeddings the first ones are copied, as many as both have, per
            group in Group DETR. Everything else must fit.
        check_finite: refuse weights that are NaN or infinite.

    Raises:
        CheckpointError: missing, unexpected or mismatched keys (all named), aliases that differ, or NaN. The model is
            unchanged.
    """
    if not isinstance(model, Detector):
        raise TypeError(f"load_official needs a detrkit model, got {type(model).__name__}")
    if isinstance(state_dict_or_path, Mapping):
        path, where, given, ours, file_groups = None, "", dict(state_dict_or_path), None, None
        arguments: Mapping[str, object] = {}
    else:
        path, where = Path(state_dict_or_path), f"{state_dict_or_path}: "
        contents = read_contents(path)
        given, arguments = contents.state, contents.arguments
        ours = read_info(path) if is_ours(path) else None
        file_groups = contents.arguments.get("group_detr") if ours is None else ours.config.get("groups", 1)
    own, names = model.state_dict(), _names(model, given)
    diff = compare(names, own, given)
    resized = {
        item.key: item
        for item in diff.mismatched
        if item.key.startswith(_CLASS_HEADS + _QUERIES) and item.given[1:] == item.wanted[1:]
    }
    masks = [key for key in names if key.startswith(_MASK_HEAD)]
    lacking = {names[key][0] for key in masks} if not any(names[key][0] in given for key in masks) else set()
    if remaining := (diff.without(resized.values(), missing=lacking) if new_head else diff):
        problem = f"{where}weights do not fit model '{model.name}': {remaining.summary()}"
        if not diff.without(resized.values(), missing=lacking):
            differs = ["another class or query count"] * bool(resized) + ["no mask head"] * bool(lacking)
            raise CheckpointError(f"{problem}; {', '.join(differs)}: pass new_head=True to keep what fits")
        raise CheckpointError(problem + _advice(path, ours, given, remaining))
    report = OfficialLoadReport(ignored=[key for key in given if key.endswith(IGNORED)])
    report.fresh += masks if lacking else []
    if (
        new_head
        and model.categories is not None
        and (classes := _classes_of(model, ours, given, arguments)) is not None
    ):
        report.class_rows = ClassRows.match(classes, model.categories)
    for key, accepted in names.items():
        present = [name for name in accepted if name in given]
        if not present:  # not a weight: the model keeps its own value
            continue
        value = given[present[0]]
        for alias in present[1:]:
            if not torch.equal(given[alias], value):
                raise CheckpointError(
                    f"{where}'{alias}' and '{present[0]}' must be the same tensor but differ in this file"
                )
        if key in resized:
            if key.startswith(_QUERIES):
                groups = int(str(model.config.flat().get("groups", 1)))
                report.groups = (_group_count(len(value), file_groups, groups), groups)
            own[key] = _load_partially(resized[key], own[key], value, report)
        else:
            own[key] = value.to(own[key].dtype).reshape(own[key].shape)
            if report.class_rows is not None and key.startswith(_CLASS_HEADS):
                own[key] = report.class_rows.apply(own[key], own[key])
            report.loaded += 1
    if check_finite:
        refuse_not_finite(own, path)
    model.load_state_dict(own)
    if model.categories is None and report.classes is None and CLASS_NAMES in given:
        model.categories = decode_names(given[CLASS_NAMES], model.config.architecture.num_classes)
    return report


def _classes_of(
    model: Detector, ours: CheckpointInfo | None, given: Mapping[str, Tensor], arguments: Mapping[str, object]
) -> Categories | None:
    """The classes that a file names, or those of a well-known data set with as many."""
    if ours is not None:
        return ours.categories
    heads = [official_names(model, [key])[key] for key in model.state_dict() if key.startswith(_CLASS_HEADS[0])]
    rows = next((len(given[name]) for names in heads for name in names if name in given), 0)
    architecture = model.config.architecture
    return guess_categories(rows - (architecture.class_slots - architecture.num_classes), arguments, given)


def _load_partially(change: Mismatch, own: Tensor, given: Tensor, report: OfficialLoadReport) -> Tensor:
    """The initial tensor of a model with another number of classes or queries than the file; noted in ``report``."""
    report.fresh.append(change.key)
    if not change.key.startswith(_QUERIES):
        if not change.key.startswith("denoising."):  # the label table may have one row more than there are classes
            report.classes = (change.given[0], change.wanted[0])
        return own if report.class_rows is None else report.class_rows.apply(own, given.to(own.dtype))
    # rows are ordered by group (Group DETR): copy the groups and the queries per group that both have
    theirs, ours = (rows.unflatten(0, (groups, -1)) for rows, groups in zip((given, own), report.groups, strict=True))
    groups, queries = min(len(theirs), len(ours)), min(theirs.shape[1], ours.shape[1])
    if theirs.shape[1] != ours.shape[1] and not change.key.startswith("one_to_many"):
        report.queries = (theirs.shape[1], ours.shape[1])
    result = ours.clone()
    result[:groups, :queries] = theirs[:groups, :queries]
    return result.flatten(0, 1)


def _group_count(rows: int, in_file: object, in_model: int) -> int:
    """Number of query groups of a file: as the file says, else as in the model if it divides ``rows``, else one."""
    counts = (in_file, in_model) if in_file is None else (in_file,)
    return next((n for n in counts if isinstance(n, int) and n > 0 and rows % n == 0), 1)


def _advice(path: Path | None, ours: CheckpointInfo | None, given: Mapping[str, Tensor], diff: KeyDiff) -> str:
    """End of an error message: the model that the file belongs to, where tensors are missing or unexpected."""
    if not (diff.missing or diff.unexpected):
        return ""
    if ours is not None:
        return f"; the file holds a '{ours.name}'"
    nearest = recognise(given, file=path)
    return f"; the file looks like '{nearest.name}'" if nearest.likely else "; the file is of no family known here"


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model under their official names, aliases included, so that official loaders accept them.

    Class names are included where official files hold them (those of the Relation-DETR repository do).
    """
    if not isinstance(model, Detector):
        raise TypeError(f"to_official needs a detrkit model, got {type(model).__name__}")
    layout = backbone_layout(model)
    state = merged_state(model) | layout.constants_of(model)
    names = official_names(model, state)
    official = {name: layout.reshape(name, state[key]) for key in names for name in names[key]}
    if model.categories is not None and keeps_class_names(model):
        official[CLASS_NAMES] = encode_names(model.categories)
    return official
