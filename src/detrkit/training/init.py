"""Starting from a checkpoint: the same family, possibly another number of classes."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from detrkit.errors import CheckpointError
from detrkit.models import Detector
from detrkit.weights import load, load_official

__all__ = ["start_from"]


def start_from(model: Detector, path: Path) -> None:
    """Fill ``model`` from one of our ``.safetensors`` or an official ``.pth``.

    Where the file has another number of classes the class heads start new, and a line on stderr says so.

    Raises:
        CheckpointError: no such file, another family, or shapes that differ in more than the number of classes.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint (model.init)")
    if path.suffix != ".safetensors":
        load_official(model, path, new_head=True)
        return
    other = load(path)
    replaced = transplant(model, other, path)
    if replaced:
        old, new = other.config.num_classes, model.config.num_classes
        print(
            f"{path}: {old} classes, the data have {new}: {len(replaced)} tensors of the class head start new",
            file=sys.stderr,
        )


def transplant(model: Detector, other: Detector, path: Path) -> list[str]:
    """Copy every tensor of ``other`` that fits; returns the names of class-head tensors that do not.

    Raises:
        CheckpointError: names differ (another family), or shapes differ elsewhere than in the number of classes.
    """
    own, given = model.state_dict(), other.state_dict()
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unexpected:
        first = (missing or unexpected)[0]
        raise CheckpointError(
            f"{path}: a '{other.name}' does not fit '{model.name}': {len(missing)} tensors missing, "
            f"{len(unexpected)} unexpected, the first: {first}"
        )
    old, new = other.config.num_classes, model.config.num_classes
    replaced, wrong = [], []
    for name, tensor in own.items():
        if tensor.shape == given[name].shape:
            tensor.copy_(given[name])
        elif _only_classes_differ(tensor, given[name], new, old):
            replaced.append(name)
        else:
            wrong.append(f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}")
    if wrong:
        raise CheckpointError(f"{path}: {len(wrong)} tensors of '{model.name}' have another shape: {wrong[0]}")
    return replaced


def _only_classes_differ(own: Tensor, given: Tensor, new: int, old: int) -> bool:
    """Rows are classes (K, or K + 1 with no-object) in both, and nothing else differs."""
    extra = own.shape[0] - new
    return extra in (0, 1) and given.shape[0] == old + extra and own.shape[1:] == given.shape[1:]
