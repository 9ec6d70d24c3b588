"""Inspect a checkpoint file: one of ours, an official one, or an unknown one compared with the nearest model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from detrkit.errors import CheckpointError
from detrkit.models import entry
from detrkit.structures.categories import CategoryRow
from detrkit.weights.official.class_names import guess_categories
from detrkit.weights.official.keydiff import KeyGroup
from detrkit.weights.official.recognise import on_meta, recognise
from detrkit.weights.ours import is_ours, read_info
from detrkit.weights.reading import read_contents

__all__ = ["Inspection", "inspect_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Contents of a checkpoint file."""

    path: str
    kind: str
    """"detrkit" (one of ours), "official" (fits a registered model) or "unknown"."""
    size: int
    """Bytes."""
    tensors: int
    """Number of tensors."""
    model: str
    """Registry name of the model, or of the nearest model."""
    family: str
    config: dict[str, object]
    """Configuration of the model."""
    parameters: int | None = None
    """Number of parameters; None where the file fits no model."""
    also: tuple[str, ...] = ()
    """Other models with the same tensors."""
    assumed: tuple[str, ...] = ()
    """Options that the file does not show."""
    categories: list[CategoryRow] | None = None
    """The classes, where known."""
    parts: tuple[str, ...] = ()
    """Keys of a training checkpoint: the weights and everything beside them."""
    arguments: dict[str, object] = field(default_factory=dict)
    """Training arguments of an official checkpoint."""
    recipe: dict[str, object] | None = None
    """Recipe of one of our checkpoints."""
    extra: dict[str, object] = field(default_factory=dict)
    """Further metadata of one of our checkpoints."""
    shared: int = 0
    """Number of tensors that agree with the nearest model."""
    difference: tuple[KeyGroup, ...] = ()
    """Names that do not agree, grouped by kind and prefix."""

    def to_json(self) -> dict[str, object]:
        """All fields as JSON values."""
        return {**asdict(self), "arguments": {key: _plain(value) for key, value in self.arguments.items()}}


def inspect_checkpoint(path: str | Path) -> Inspection:
    """Inspect a checkpoint file without running code from it.

    Raises:
        CheckpointError: no such file, an unreadable file, or a file that would run code when loaded.
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
    found = recognise(contents.state, arguments=contents.arguments, file=path)
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
