"""What is in a checkpoint file: ours, official, or neither, and then how it differs from what is nearest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from detrkit.errors import CheckpointError
from detrkit.models import entry
from detrkit.structures.categories import CategoryRow
from detrkit.weights.official.class_names import guess_categories
from detrkit.weights.official.keydiff import KeyGroup
from detrkit.weights.official.recognise import match, on_meta
from detrkit.weights.ours import is_ours, read_info
from detrkit.weights.reading import read_contents

__all__ = ["Inspection", "inspect_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a checkpoint file holds.

    kind: "detrkit" (one of ours), "official" (fits a model of the registry) or "unknown" · model: the model, or the
    nearest one · family · also: other models that the same tensors fit · parameters: of the model, where the file fits
    · config: the model's configuration · categories: the classes, where known · parts: what a training checkpoint holds
    besides the weights · arguments: its training arguments · recipe, extra: of one of ours · shared: tensors that agree
    with the nearest model · difference: the others by kind and prefix.
    """

    path: str
    kind: str
    size: int
    tensors: int
    model: str
    family: str
    config: dict[str, object]
    parameters: int | None = None
    also: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    categories: list[CategoryRow] | None = None
    parts: tuple[str, ...] = ()
    arguments: dict[str, object] = field(default_factory=dict)
    recipe: dict[str, object] | None = None
    extra: dict[str, object] = field(default_factory=dict)
    shared: int = 0
    difference: tuple[KeyGroup, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The same as what JSON can hold."""
        return {**asdict(self), "arguments": {key: _plain(value) for key, value in self.arguments.items()}}


def inspect_checkpoint(path: str | Path) -> Inspection:
    """Looks into a checkpoint file without running code from it.

    Raises:
        CheckpointError: no such file, unreadable, or one that would need to execute code to load.
    """
    path = Path(path)
    return _ours(path) if is_ours(path) else _official(path)


def _ours(path: Path) -> Inspection:
    info = read_info(path)
    try:
        model = on_meta(info.name, **info.config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: made for a model this version cannot build ({error})") from error
    return Inspection(
        path=str(path),
        kind="detrkit",
        size=path.stat().st_size,
        tensors=len(model.state_dict()),
        model=info.name,
        family=entry(info.name).family,
        config=info.config,
        parameters=_parameters(model),
        categories=None if info.categories is None else info.categories.to_json(),
        recipe=info.recipe,
        extra=info.extra,
    )


def _official(path: Path) -> Inspection:
    contents = read_contents(path)
    found = match(contents.state, arguments=contents.arguments, file=path)
    model = on_meta(found.name, **found.options)
    classes = model.config.architecture.num_classes
    categories = guess_categories(classes, contents.arguments, contents.state) if found.fits else None
    return Inspection(
        path=str(path),
        kind="official" if found.fits else "unknown",
        size=path.stat().st_size,
        tensors=len(contents.state),
        model=found.name,
        family=entry(found.name).family,
        config=model.config.flat(),
        parameters=_parameters(model) if found.fits else None,
        also=found.also,
        assumed=found.assumed,
        categories=None if categories is None else categories.to_json(),
        parts=contents.parts,
        arguments=contents.arguments,
        shared=found.shared,
        difference=tuple(found.diff.groups()),
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
