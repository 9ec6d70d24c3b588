"""``detrkit.evaluate``: the numbers of ``detrkit score`` for a checkpoint and data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.config import Recipe, find_recipe, load_recipe, override_values
from detrkit.data import DetectionDataset
from detrkit.data.formats import describes_data
from detrkit.devices import resolve_device
from detrkit.errors import DataError, RecipeError
from detrkit.evaluation.loop import Progress, evaluate_model
from detrkit.evaluation.recipe_data import load_recipe_data
from detrkit.evaluation.settings import check_overrides, evaluation_config
from detrkit.inference.device import Precision
from detrkit.metrics import ScoreJson
from detrkit.models import Detector
from detrkit.runtime.info import is_artefact
from detrkit.weights import load
from detrkit.weights.artefact import open_artefact
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
            memory, an exported model (``.onnx``, ``.xml``, ``.pt2``), or an official ``.pth``.
            The model of a ``.pth`` is that of the recipe or is recognised from its tensors; its labels are category ids
            of the data.
        data: a data folder, a recipe (file, name, mapping) or a loaded data set.
        overrides: ``section.key=value`` settings: where the data are, image sizes, post-processing (``model.nms=0.7``).
            Keys that have no effect on an evaluation, or would need another network, are refused.
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
    given = override_values(overrides)
    check_overrides(given, loaded=isinstance(data, DetectionDataset))
    recipe = load_recipe({}, overrides) if isinstance(data, DetectionDataset) else _recipe(data, overrides)
    model, built = _model(checkpoint, recipe)
    config = evaluation_config(model, recipe, given, built=built)
    dataset = data if isinstance(data, DetectionDataset) else load_recipe_data(recipe, split, config.architecture.task)
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
        if not path.exists():
            try:
                find_recipe(data)
            except RecipeError as error:
                raise DataError(f"{data}: no such data folder; {error}") from error
    return load_recipe(data, overrides)


def _model(checkpoint: str | Path | Detector, recipe: Recipe) -> tuple[Detector, bool]:
    """The model, and whether it was built with the options of the recipe, as for an official file."""
    if isinstance(checkpoint, Detector):
        return checkpoint, False
    path = find_checkpoint(checkpoint)
    if is_artefact(path):
        return open_artefact(path), False
    if is_ours(path):
        return load(path), False
    wanted = recipe.model.name if "name" in recipe.model.model_fields_set else None
    opened = open_official(path, name=wanted, options=recipe.model.overrides)
    for remark in opened.remarks(classes=False):
        warnings.warn(f"{path}: {remark} (model.name=NAME and model.OPTION=VALUE say otherwise)", stacklevel=2)
    return opened.model, True
