"""Build data sets, model and criterion of a recipe; errors in the recipe and the data are found here."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from detrkit.config import Recipe
from detrkit.data import DetectionDataset
from detrkit.data.repeats import images_of_classes
from detrkit.data.samplers import AspectRatioBatchSampler
from detrkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform
from detrkit.errors import CheckpointError, DataError, RecipeError, first_line
from detrkit.evaluation.recipe_data import load_recipe_data
from detrkit.losses import Criterion, FederatedClasses, build_classes, build_criterion
from detrkit.metrics import Metric, metric_for
from detrkit.models import Detector, create_model, model_config
from detrkit.models.config import Architecture, DetectorConfig
from detrkit.nn.backbone.imagenet import require_packaged
from detrkit.structures import Categories
from detrkit.training.frozen_parts import choose_parts
from detrkit.weights import load_official
from detrkit.weights.find import find_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "Task",
    "Validation",
    "build_model",
    "build_task",
    "epoch_sampler",
    "load_split",
    "require_boxes",
    "resolve",
    "start_from",
    "task_of",
]

MINIMUM_STEPS = 3000  # a detection transformer learns little in fewer optimizer steps
SHORT_STEPS = 1500  # below this the usual outcome is AP 0
SHORT_FINE_TUNING = 300  # the same for a model that starts from a trained detector; new heads need some steps too
STEPS_BETWEEN_EVALUATIONS = 100


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Validation data and their metric, which is used for all evaluations of a run."""

    data: DetectionDataset
    metric: Metric[Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Model, criterion and data of a run; without validation data there is no evaluation."""

    model: Detector
    criterion: Criterion
    train_data: DetectionDataset
    validation: Validation | None


def task_of(recipe: Recipe) -> str:
    """The task of the model of a recipe: det, inst, sem or pan.

    Raises:
        RecipeError: unknown model or option.
    """
    section = recipe.model
    try:
        return model_config(section.name, **section.overrides).architecture.task
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{recipe.source}: model: {error}") from error


def load_split(recipe: Recipe, split: str) -> DetectionDataset:
    """Load the training or validation images ("train", "val") of a recipe.

    Raises:
        DataError: images or annotations cannot be used.
    """
    return load_recipe_data(recipe, split, task_of(recipe), sampled=split == "train")


def build_task(recipe: Recipe) -> Task:
    """Build data sets, model and criterion of a recipe.

    Raises:
        DataError: images or annotations cannot be used.
        RecipeError: the model does not have an option, or the options contradict the data.
        CheckpointError: ``model.init`` or backbone weights cannot be used.
    """
    train_data = load_split(recipe, "train")
    require_boxes(train_data, recipe.data.root)
    val_data = _validation_data(recipe)
    model = build_model(recipe, train_data.categories)
    choose_parts(model, recipe)
    if val_data is not None:
        _check_classes(train_data, val_data)  # an error now, not at the first evaluation
    config = model.config
    transform = TrainTransform(
        short_sides=config.input.train_short_sides,
        max_side=config.input.train_max_side,
        crop=recipe.data.crop,
        crop_short_sides=tuple(recipe.data.crop_short_sides),
        crop_size=recipe.data.crop_size,
        augmentation=recipe.data.augmentation,
        lsj_size=recipe.data.lsj_size,
        lsj_scale=recipe.data.lsj_scale,
        colors=recipe.data.colors,
        flip=recipe.data.flip,
        vertical_flip=recipe.data.vertical_flip,
        ignore_crowds=recipe.data.ignore_crowds,
        mean=config.input.image_mean or IMAGENET_MEAN,
        std=config.input.image_std or IMAGENET_STD,
    )
    return Task(
        model=model,
        criterion=build_criterion(config, federated=_federated(recipe, config, train_data)),
        train_data=train_data.with_transform(transform),
        validation=None if val_data is None else Validation(data=val_data, metric=metric_for(val_data)),
    )


def _validation_data(recipe: Recipe) -> DetectionDataset | None:
    if recipe.training.evaluate_every == 0:
        return None
    try:
        return load_split(recipe, "val")
    except DataError as error:
        raise DataError(f"{error} (training.evaluate_every=0 trains without validation images)") from error


def _federated(recipe: Recipe, config: DetectorConfig[Architecture], data: DetectionDataset) -> FederatedClasses | None:
    """The class sampling of the federated loss; None where the recipe does not use it."""
    number = recipe.training.federated_classes
    if number is None:
        return None
    if build_classes(config).exclusive:
        raise RecipeError(
            f"{recipe.source}: training.federated_classes needs a model with model.classification=focal, but "
            f"{recipe.model.name} has '{config.architecture.classification}'"
        )
    images = {record.image_id: record.labels for record in data.records}  # repeated images count once
    counts = images_of_classes(list(images.values()), num_classes=len(data.categories))
    return FederatedClasses(image_counts=torch.from_numpy(counts), number=number)


def epoch_sampler(recipe: Recipe, data: DetectionDataset, accelerator: Accelerator) -> AspectRatioBatchSampler:
    """The batches of an epoch of this process."""
    return AspectRatioBatchSampler(
        aspect_ratios=data.aspect_ratios,
        chances=data.chances,
        batch_size=recipe.training.batch_size,
        seed=recipe.training.seed,
        shuffle=True,
        drop_last=False,  # losses are normalised per batch, so a small last batch does no harm
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def require_boxes(train_data: DetectionDataset, root: str) -> None:
    """Check that the training data have at least one box.

    Raises:
        DataError: no training image has a box.
    """
    if any(len(record.labels) for record in train_data.records):
        return
    crowd = sum(len(record.crowd_labels) for record in train_data.records)
    crowd_note = f" ({crowd} crowd or difficult regions are not trained on)" if crowd else ""
    errors_note = (
        f"; {len(train_data.load_errors)} left out, the first: {train_data.load_errors[0]}"
        if train_data.load_errors
        else ""
    )
    raise DataError(
        f"{root}: none of the {len(train_data)} training images has a box{crowd_note}{errors_note}: there is nothing "
        f"to learn. Are the labels where the format wants them? 'detrkit data check {root}' looks"
    )


def _check_classes(train_data: DetectionDataset, val_data: DetectionDataset) -> None:
    """Check that every class of the validation data can be learned. Classes match by name, so ids may differ.

    Raises:
        DataError: only the validation data have a class.
    """
    known = set(train_data.categories.names)
    used = {int(label) for record in val_data.records for label in record.labels}
    names = [val_data.categories[label].name for label in sorted(used)]
    missing = [str(name) for name in names if name not in known]
    if missing:
        listed = ", ".join(map(str, train_data.categories.names[:12]))
        raise DataError(
            f"{val_data.name}: the validation images have boxes of {', '.join(missing)}, which the training "
            f"annotations do not list (they list {listed}); give both the same categories"
        )


def require_backbone(recipe: Recipe) -> None:
    """Ask for the weight package of the backbone before anything is read, if the model will need it.

    Raises:
        CheckpointError: it is not installed; the message says how to install it.
    """
    section = recipe.model
    if section.pretrained_backbone and section.init is None and section.backbone_weights == "package":
        backbone = section.overrides.get("backbone") or model_config(section.name).architecture.backbone
        require_packaged(str(backbone))


def build_model(recipe: Recipe, categories: Categories) -> Detector:
    """Build the model of a recipe for these classes, with ImageNet weights or the weights of ``model.init``.

    Image sizes in the ``data`` section become part of the model configuration, so that checkpoints contain them.

    Raises:
        RecipeError: unknown model or option (names the nearest), or another number of classes than the data have.
        CheckpointError: the weights cannot be used.
    """
    section, data = recipe.model, recipe.data
    options = section.overrides | data.image_sizes()
    wanted = options.pop("num_classes", None)
    if wanted is not None and wanted != len(categories):
        raise RecipeError(
            f"{recipe.source}: model.num_classes = {wanted}, but the data set {data.root} has {len(categories)} "
            f"classes; leave it out, the number follows the data"
        )
    weights: bool | str = False
    if section.pretrained_backbone and section.init is None:
        weights = section.backbone_weights or True  # True looks for an installed weight package first
    try:
        model = create_model(section.name, num_classes=len(categories), pretrained_backbone=weights, **options)
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{recipe.source}: model: {error}") from error
    except (RuntimeError, MemoryError) as error:  # torch has no other error for a network that does not fit
        raise RecipeError(f"{recipe.source}: model: cannot be built ({first_line(error)})") from error
    model.categories = categories
    if section.init is not None:
        start_from(model, section.init)
    return model


def resolve(recipe: Recipe, *, batches_per_epoch: int, folder: Path) -> Recipe:
    """Fill in the recipe values that depend on the data, as in ``<run>/recipe.yaml``.

    Defaults: ``epochs`` 50, or more to reach 3000 optimizer steps; ``evaluate_every`` one epoch, or more to have at
    least 100 steps between evaluations; ``drop`` after 80 % of the epochs.
    """
    steps = math.ceil(batches_per_epoch / recipe.training.accumulate)
    training: dict[str, object] = {"output": str(folder)}
    epochs = recipe.training.epochs
    if recipe.training.iterations is None and epochs is None:
        epochs = training["epochs"] = max(50, math.ceil(MINIMUM_STEPS / steps))
    if recipe.training.evaluate_every is None:
        training["evaluate_every"] = max(1, math.ceil(STEPS_BETWEEN_EVALUATIONS / steps))
    schedule: dict[str, object] = {}
    if recipe.schedule.drop is None and recipe.schedule.kind in ("step", "multistep"):
        length = epochs if epochs is not None else (recipe.training.iterations or 1) / steps
        schedule["drop"] = [round(0.8 * length, 3)]
    return recipe.updated(training=training, schedule=schedule)


def start_from(model: Detector, source: str | Path) -> None:
    """Load initial weights from a checkpoint, ours or official, into ``model``.

    Rows of class heads follow the names of the classes, and start new where the file does not have the class; where the
    number of queries differs, the first queries are copied. Lines on stderr say so.

    Args:
        model: the model, changed in place.
        source: a file, a run folder, a URL, or the name of embedded or pulled weights.

    Raises:
        CheckpointError: no such checkpoint, another family, or other shapes that differ.
    """
    try:
        path = find_checkpoint(source)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (model.init)") from error
    for remark in load_official(model, path, new_head=True).remarks():
        print(f"{path}: {remark}", file=sys.stderr)
