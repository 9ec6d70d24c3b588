"""``detrkit.evaluate``: a checkpoint and data in, the numbers of ``detrkit score`` out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detrkit.config import Recipe, load_recipe
from detrkit.data import DetectionDataset, load_dataset
from detrkit.errors import CheckpointError, RecipeError
from detrkit.inference.checkpoints import find_checkpoint
from detrkit.inference.device import Precision, resolve_device
from detrkit.inference.evaluation import Progress, eval_transform, evaluate_model
from detrkit.models import Detector
from detrkit.weights import load
from detrkit.weights.checkpoint import is_ours
from detrkit.weights.convert import open_official

__all__ = ["evaluate"]

_POSTPROCESSING = {"top_k", "nms", "nms_decay"}


def evaluate(
    checkpoint: str | Path | Detector,
    data: str | Path | Mapping[str, Any] | Recipe | DetectionDataset,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    batch_size: int = 1,
    workers: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    split: str = "val",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Box score of a checkpoint on the validation images of a data folder or recipe: LVIS AP on LVIS, else COCO AP.

    checkpoint: our ``.safetensors``, a run folder, a URL, the name of embedded or pulled weights, a model in memory, or
    an official ``.pth`` (its model is the recipe's, or read off its tensors; its labels are category ids of the data) ·
    data: a data folder, a recipe (file, name, mapping) or a loaded data set · overrides: ``section.key=value`` of the
    recipe; with a data folder those of ``data`` and ``model`` apply, e.g. ``model.nms=0.7`` · batch_size: 1 is exact,
    see ``evaluate_model`` · split: train, val or test.

    Under ``accelerate launch`` the processes share the images and all get the score.

    Returns:
        ``{"protocol": "coco", "iou_type": "bbox", "metrics": {…}, "per_class": {name: {…}}}``, fractions or None; the
        protocol is "lvis" on LVIS.

    Raises:
        DataError, RecipeError, CheckpointError: what cannot be used; the message names it.
    """
    chosen = resolve_device(device)
    recipe: Recipe | None = None
    if isinstance(data, DetectionDataset):
        dataset = data
    else:
        recipe = _recipe(data, overrides)
        dataset = _dataset(recipe, split)
    model = _model(checkpoint, recipe)
    sizes = None if recipe is None else recipe.data
    transform = eval_transform(
        model.config,
        short_side=None if sizes is None else sizes.eval_short_side,
        max_side=None if sizes is None else sizes.eval_max_side,
    )
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=chosen.type == "cpu")
        chosen = accelerator.device
    score = evaluate_model(
        model.to(chosen),
        dataset,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        precision=precision,
        accelerator=accelerator,
        transform=transform,
    )
    return score.to_json()


def _recipe(data: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] | Mapping[str, Any]) -> Recipe:
    """The recipe that is meant; a data folder becomes the ``data.root`` of the default one."""
    if isinstance(data, str | Path) and Path(data).is_dir() and not (Path(data) / "recipe.yaml").is_file():
        return load_recipe({"data": {"root": str(data)}}, overrides)
    return load_recipe(data, overrides)


def _dataset(recipe: Recipe, split: str) -> DetectionDataset:
    files = recipe.data.train if split == "train" else recipe.data.val
    return load_dataset(
        recipe.data.root,
        split=split,
        format=recipe.data.format,
        annotations=files.annotations,
        images=files.images,
        on_error=recipe.data.on_error,
    )


def _model(checkpoint: str | Path | Detector, recipe: Recipe | None) -> Detector:
    if isinstance(checkpoint, Detector):
        return checkpoint
    path = find_checkpoint(checkpoint)
    if is_ours(path):
        return _ours(path, recipe)
    named = recipe is not None and "name" in recipe.model.model_fields_set
    opened = open_official(
        path,
        name=recipe.model.name if recipe is not None and named else None,
        options=None if recipe is None else recipe.model.overrides,
    )
    for remark in opened.remarks(classes=False):
        warnings.warn(f"{path}: {remark} (model.name=NAME and model.OPTION=VALUE say otherwise)", stacklevel=2)
    return opened.model


def _ours(path: Path, recipe: Recipe | None) -> Detector:
    """One of our checkpoints; of the recipe's model options those of post-processing apply."""
    model = load(path)
    if recipe is None:
        return model
    if "name" in recipe.model.model_fields_set and recipe.model.name != model.name:
        raise CheckpointError(f"{path}: holds a '{model.name}', but {recipe.source} is for a '{recipe.model.name}'")
    chosen = {key: value for key, value in recipe.model.overrides.items() if key in _POSTPROCESSING}
    try:
        model.config = replace(model.config, **chosen)
    except ValueError as error:
        raise RecipeError(f"{recipe.source}: model: {error}") from error
    return model
