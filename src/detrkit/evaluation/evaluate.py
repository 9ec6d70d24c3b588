"""``detrkit.evaluate``: a checkpoint and data in, the numbers of ``detrkit score`` out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.config import Recipe, load_recipe
from detrkit.data import DetectionDataset, load_dataset
from detrkit.errors import CheckpointError, RecipeError
from detrkit.evaluation.loop import Progress, evaluate_model
from detrkit.inference.device import Precision, resolve_device
from detrkit.metrics import ScoreJson
from detrkit.models import Architecture, Detector, DetectorConfig
from detrkit.models.config import Postprocessing, option_names
from detrkit.weights import load
from detrkit.weights.find import find_checkpoint
from detrkit.weights.official.pth import open_official
from detrkit.weights.ours import is_ours

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

__all__ = ["evaluate"]


def evaluate(
    checkpoint: str | Path | Detector,
    data: str | Path | Mapping[str, object] | Recipe | DetectionDataset,
    *,
    overrides: Sequence[str] | Mapping[str, object] = (),
    batch_size: int = 1,
    workers: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    split: str = "val",
    progress: Progress | None = None,
) -> ScoreJson:
    """Score of a checkpoint on the validation images of a data folder or recipe: LVIS AP on LVIS, else COCO AP.

    Under ``accelerate launch`` the processes share the images and all get the score.

    Args:
        checkpoint: our ``.safetensors``, a run folder, a URL, the name of embedded or pulled weights, a model in
            memory, or an official ``.pth`` (its model is the recipe's, or read off its tensors; its labels are category
            ids of the data).
        data: a data folder, a recipe (file, name, mapping) or a loaded data set.
        overrides: ``section.key=value`` of the recipe; with a data folder those of ``data`` and ``model`` apply, e.g.
            ``model.nms=0.7``.
        batch_size: 1 is exact, see ``evaluate_model``.
        workers: processes that read images.
        device: ``"auto"`` or a torch device.
        precision: of the forward pass.
        split: train, val or test.
        progress: called with (images done, images in all).

    Returns:
        ``{"protocol": "coco", "iou_type": "bbox", "metrics": {…}, "per_class": {name: {…}}}``, fractions or None; the
        protocol is "lvis" on LVIS.

    Raises:
        DataError, RecipeError, CheckpointError: what cannot be used; the message names it.
    """
    chosen = resolve_device(device)
    if isinstance(data, DetectionDataset):
        recipe, dataset = None, data
    else:
        recipe = _recipe(data, overrides)
        dataset = _dataset(recipe, split)
    model = _model(checkpoint, recipe)
    config = _settings(checkpoint, model, recipe)
    accelerator = _accelerator(chosen)
    score = evaluate_model(
        model.to(chosen if accelerator is None else accelerator.device),
        dataset,
        config=config,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        precision=precision,
        accelerator=accelerator,
    )
    return score.to_json()


def _accelerator(device: torch.device) -> Accelerator | None:
    """The processes of ``accelerate launch``, where there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device.type == "cpu")


def _recipe(
    data: str | Path | Mapping[str, object] | Recipe, overrides: Sequence[str] | Mapping[str, object]
) -> Recipe:
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
    wanted = recipe.model.name if recipe is not None and "name" in recipe.model.model_fields_set else None
    if is_ours(path):
        model = load(path)
        if recipe is not None and wanted not in (None, model.name):
            raise CheckpointError(f"{path}: holds a '{model.name}', but {recipe.source} is for a '{wanted}'")
        return model
    opened = open_official(path, name=wanted, options=None if recipe is None else recipe.model.overrides)
    for remark in opened.remarks(classes=False):
        warnings.warn(f"{path}: {remark} (model.name=NAME and model.OPTION=VALUE say otherwise)", stacklevel=2)
    return opened.model


def _settings(
    checkpoint: str | Path | Detector, model: Detector, recipe: Recipe | None
) -> DetectorConfig[Architecture]:
    """The model's configuration with the recipe's image sizes and, of a checkpoint, its post-processing.

    The model itself, which may be the caller's, stays as it is.
    """
    if recipe is None:
        return model.config
    changes: dict[str, object] = {**recipe.data.image_sizes()}
    if not isinstance(checkpoint, Detector):
        changes |= {key: value for key, value in recipe.model.overrides.items() if key in option_names(Postprocessing)}
    try:
        return model.config.replace(**changes)
    except ValueError as error:
        raise RecipeError(f"{recipe.source}: model: {error}") from error
