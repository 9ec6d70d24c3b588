"""Convert checkpoint files: official ``.pth`` <-> our ``.safetensors``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from detrkit.errors import CheckpointError
from detrkit.files import replacing
from detrkit.models import create_model
from detrkit.models.detector import Detector
from detrkit.runtime.info import is_artefact
from detrkit.structures import Categories
from detrkit.weights.artefact import open_artefact
from detrkit.weights.official.class_names import CITYSCAPES_CATEGORIES, guess_categories
from detrkit.weights.official.load import load_official, to_official
from detrkit.weights.official.recognise import Recognition, recognise
from detrkit.weights.ours import is_ours, load
from detrkit.weights.reading import read_contents

__all__ = ["Opened", "open_checkpoint", "open_official", "save_official"]


@dataclass(frozen=True)
class Opened:
    """An official checkpoint as one of our models."""

    model: Detector
    """The model, with classes where the file holds class names."""
    recognition: Recognition
    categories: Categories | None
    """The probable classes of the model; None where they are not known."""

    def remarks(self, *, classes: bool = True) -> list[str]:
        """Assumptions about what the file does not show; ``classes``: include those about class names."""
        found = self.recognition
        lines = []
        if found.also:
            lines.append(f"taken for '{found.name}'; the same tensors fit {', '.join(found.also)}")
        if found.assumed:
            options = ", ".join(f"{key}={found.options[key]}" for key in found.assumed)
            lines.append(f"{options} is assumed: nothing in the file tells")
        if classes and self.categories is CITYSCAPES_CATEGORIES:
            lines.append(f"its {len(self.categories)} class slots are taken for the classes of Cityscapes")
        return lines


def open_official(
    path: str | Path,
    *,
    name: str | None = None,
    options: Mapping[str, object] | None = None,
    check_finite: bool = True,
) -> Opened:
    """Open an official checkpoint as a model in evaluation mode; its sizes are inferred from the tensors.

    Args:
        path: ``.pth`` or safetensors under official names.
        name: registry name of the model; if None, it is inferred too.
        options: model options that the file does not show (``num_heads``, ``dilation``, ``nms``) or that you want to
            change (``top_k``).
        check_finite: refuse weights that are NaN or infinite.

    Raises:
        CheckpointError: the file is unreadable, unsafe, or fits no registered model; the message names what differs.
    """
    contents = read_contents(path)
    found = recognise(contents.state, arguments=contents.arguments, name=name, options=options, file=path)
    if name is None and not found.fits:
        what = f"nearest to '{found.name}', but {found.diff.summary()}" if found.likely else "of no family known here"
        raise CheckpointError(f"{path}: {what} ('detrkit weights inspect {path}' shows the difference)")
    model = create_model(found.name, **found.options)
    try:
        load_official(model, contents.state, check_finite=check_finite)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    categories = guess_categories(model.config.architecture.num_classes, contents.arguments, contents.state)
    return Opened(model.eval(), found, categories)


def open_checkpoint(path: str | Path, *, check_finite: bool = True) -> Detector:
    """Open any checkpoint, ours or official, or an exported model, as a model in evaluation mode with its classes.

    ``check_finite``: refuse weights that are NaN or infinite.

    Raises:
        CheckpointError: as :func:`open_official` and :func:`detrkit.weights.load`.
    """
    if is_artefact(path):
        return open_artefact(path)
    if is_ours(Path(path)):
        return load(path, check_finite=check_finite)
    opened = open_official(path, check_finite=check_finite)
    opened.model.categories = opened.categories
    for remark in opened.remarks():
        warnings.warn(f"{path}: {remark} ('detrkit weights convert' lets you say otherwise)", stacklevel=2)
    return opened.model


def save_official(model: Detector, path: str | Path) -> Path:
    """Write ``{"model": state dict}`` under official names, aliases included, so that the official code loads it.

    Raises:
        CheckpointError: the file cannot be written; an earlier file is untouched.
    """
    path = Path(path)
    try:
        with replacing(path) as draft:
            torch.save({"model": to_official(model)}, draft)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise CheckpointError(f"{path}: cannot be written ({error}); an earlier file there is untouched") from error
    return path
