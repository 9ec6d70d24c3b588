"""``detrkit.evaluate``: the numbers of ``detrkit score`` for a checkpoint and data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.config import Recipe, load_recipe
from detrkit.data import DetectionDataset, load_dataset
from detrkit.data.formats import describes_data
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
    """Score a checkpoint on the validation images of a data folder or recipe: LVIS AP for LVIS data, else COCO AP.

    Under ``accelerate launch`` the processes share the images, and every process gets the score.

    Args:
        checkpoint: our ``.safetensors``, a run folder, a URL, the name of embedded or pulled weights, a model in
            memory, or an official ``.pth``. The model of a ``.pth`` is that of the recipe or is recognised from its
            tensors; its labels are category ids of the data.
        data: a data folder, a recipe (file, name, mapping) or a loaded data set.
        overrides: ``section.key=value`` settings of the recipe; with a data folder, settings of ``data`` and ``model``
            apply, e.g. ``model.nms=0.7``.
        batch_size: 1 is exact, see ``evaluate_model``.
        workers: number of processes that read images.
        device: ``"auto"`` or a torch device.
        precision: precision of the forward pass.
        split: train, val or test.
        progress: called with (images done, total images).

    Returns:
        ``{"protocol": "coco", "iou_type": "bbox", "metrics": {…}, "per_class": {name: {…}}}`` with fractions or None;
        for LVIS data the protocol is "lvis".

    Raises:
        DataError, RecipeError, CheckpointError: the data, recipe or checkpoint cannot be used; the message names it.
    """
    chosen = resolve_device(device)
    recipe = None if isinstance(data, DetectionDataset) else _recipe(data, overrides)
    model = _model(checkpoint, recipe)
    config = _evaluation_config(checkpoint, model, recipe)
    if isinstance(data, DetectionDataset):
        dataset = data
    else:
        assert recipe is not None
        dataset = _dataset(recipe, split, config.architecture.task)
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
    """An accelerator if ``accelerate launch`` started several processes, else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device.type == "cpu")


def _recipe(
    data: str | Path | Mapping[str, object] | Recipe, overrides: Sequence[str] | Mapping[str, object]
) -> Recipe:
    """Load a recipe; a data folder or the file of a data set becomes ``data.root`` of the default recipe."""
    if isinstance(data, str | Path):
        path = Path(data)
        if describes_data(path) or (path.is_dir() and not (path / "recipe.yaml").is_file()):
            return load_recipe({"data": {"root": str(data)}}, overrides)
    return load_recipe(data, overrides)


def _dataset(recipe: Recipe, split: str, task: str) -> DetectionDataset:
    files = recipe.data.train if split == "train" else recipe.data.val
    return load_dataset(
        recipe.data.root,
        split=split,
        format=recipe.data.format,
        annotations=files.annotations,
        images=files.images,
        on_error=recipe.data.on_error,
        task=task,
        max_detections=recipe.data.max_detections,
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


def _evaluation_config(
    checkpoint: str | Path | Detector, model: Detector, recipe: Recipe | None
) -> DetectorConfig[Architecture]:
    """The model's configuration with the image sizes of the recipe and, for a checkpoint, its post-processing.

    The model itself is not changed, since it may belong to the caller.
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
