"""What more labels would bring: the same run on nested parts of the training images, and the curve through its scores.

Every part is a run of its own, with the same recipe, the same number of optimizer steps and the same validation images;
its last weights are scored. A finished run is not repeated, an interrupted one goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit.config import Recipe, load_recipe
from detrkit.data import DetectionDataset
from detrkit.data.once import read_once
from detrkit.data.subsets import subset_size
from detrkit.errors import DataError, RecipeError, first_few
from detrkit.files import write_bytes
from detrkit.metrics import metric_for
from detrkit.metrics.instances import InstanceMetric
from detrkit.metrics.result_files import read_results
from detrkit.report.growth import CurvePoint, Growth, measure_growth
from detrkit.report.scored_set import ScoredSet, scored_set
from detrkit.structures import Detections
from detrkit.structures.detections import result_rows
from detrkit.terminal import say
from detrkit.training.callbacks import Callback, Evaluation
from detrkit.training.folder import refuse_other_length, run_folder
from detrkit.training.run import train
from detrkit.training.schedule import length_in_steps
from detrkit.training.task import load_split, require_boxes, task_of

__all__ = ["FRACTIONS", "learning_curve"]

FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""Parts of the training images that are tried."""

LEAST_IMAGES = 5  # of a part, and for validation
ANSWERS = "answers.json"
"""The detections of the last weights in the validation images, in the folder of a run."""

_NEVER_BEFORE_THE_END = 10**9  # epochs


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of the training images, and the run on it."""

    fraction: float
    images: int
    seed: int
    folder: Path


@read_once()
def learning_curve(
    recipe: str | Path | Mapping[str, object] | Recipe,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0,),
    minutes: float | None = None,
    folder: str | Path | None = None,
    **overrides: object,
) -> Growth:
    """Train on nested parts of the training images; what twice the labels would bring, with an interval.

    All runs have the optimizer steps that the recipe has for all images (``iterations=200`` sets them), or the same
    time. A seed chooses the parts (``data.sample_seed``) and everything else that is random in a run.

    Args:
        recipe: as for :func:`detrkit.train`; ``detrkit.auto_recipe(folder)`` chooses one.
        fractions: parts of the training images in (0, 1], at least two; the largest is what is extrapolated from.
        seeds: of the runs on each part; several show how much of a difference is luck.
        minutes: of all runs together, each has the same share; None: as long as the recipe says.
        folder: of the runs; None: the run folder of the recipe with ``-learning-curve`` behind it.
        overrides: recipe keys, as for :func:`detrkit.train`.

    Raises:
        DataError: no validation images, too few images, or they cannot be used.
        RecipeError: unknown key or value, or a model of maps.
        CheckpointError, RunError: see :func:`detrkit.train`.
        Interrupted: Ctrl-C; called again, it goes on.
    """
    loaded = load_recipe(recipe, overrides)
    root = run_folder(loaded)
    root = root.with_name(f"{root.name}-learning-curve") if folder is None else Path(folder)
    _check_recipe(loaded, minutes)
    parts, validation = _plan(loaded, fractions=fractions, seeds=seeds, folder=root)
    same = _same_length(loaded, minutes=minutes, runs=len(parts))
    metric = metric_for(validation)
    assert isinstance(metric, InstanceMetric)  # of the tasks that _check_recipe lets pass
    answers = []
    for number, part in enumerate(parts, start=1):
        say(f"run {number} of {len(parts)}: {part.images} images, seed {part.seed}")
        answers.append(_train(same, part))
    seen = set.intersection(*(set(one["image_ids"]) for one in answers))
    scored = [_scored(metric, one["detections"], seen) for one in answers]
    points = [
        CurvePoint(fraction=part.fraction, images=part.images, seed=part.seed, scored=one)
        for part, one in zip(parts, scored, strict=True)
    ]
    return measure_growth(points)


def _check_recipe(recipe: Recipe, minutes: float | None) -> None:
    task = task_of(recipe)
    if task not in ("det", "inst"):
        raise RecipeError(
            f"a learning curve compares AP, and {recipe.model.name} is of task {task}: choose a model of boxes or "
            "instances (model.task=inst)"
        )
    if recipe.data.sample_rate is not None:
        raise RecipeError("data.sample_rate: a learning curve draws its own parts of the images; leave it out")
    if minutes is not None and not 0 < minutes < math.inf:
        raise RecipeError(f"minutes = {minutes:g}: give the curve a time above 0")


def _plan(
    recipe: Recipe, *, fractions: Sequence[float], seeds: Sequence[int], folder: Path
) -> tuple[list[_Part], DetectionDataset]:
    """The runs, the smallest part first, and the validation images.

    Raises:
        DataError: they can show nothing.
        RecipeError: fractions or seeds cannot be used.
    """
    wrong = [value for value in fractions if not 0 < value <= 1]
    if wrong:
        raise RecipeError(f"fractions: {wrong[0]:g} is not in (0, 1]")
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise RecipeError(f"seeds: give different numbers from 0 on, got {list(seeds)}")
    whole, validation = _images(recipe)
    total = len(whole.unique_records())
    sizes = {subset_size(total, rate=value): value for value in sorted(fractions)}
    if len(sizes) < 2:
        raise RecipeError(f"fractions: a curve needs at least two different numbers of images, got {list(sizes)}")
    smallest, fraction = min(sizes.items())
    if smallest < LEAST_IMAGES:
        raise DataError(
            f"{recipe.data.root}: the smallest part, {fraction:.4g} of {total} images, has {smallest}; at least "
            f"{LEAST_IMAGES} are needed: begin with a larger part (--fractions), or label more images first"
        )
    parts = [
        _Part(fraction=value, images=images, seed=seed, folder=folder / f"{images}_images_seed{seed}")
        for images, value in sizes.items()
        for seed in seeds
    ]
    for part in parts:
        _note_missing_classes(load_split(_of_part(recipe, part), "train"), validation, part, recipe.data.root)
    return parts, validation


def _note_missing_classes(train_data: DetectionDataset, validation: DetectionDataset, part: _Part, root: str) -> None:
    """Say which classes of the validation images a part cannot teach; one that has no box at all ends it now."""
    require_boxes(train_data, root)
    taught, asked = (
        {str(data.categories[int(label)].name) for record in data.records for label in record.labels}
        for data in (train_data, validation)
    )
    if missing := sorted(asked - taught):
        say(
            f"note: the {part.images} images of seed {part.seed} have no label of {first_few(missing, 5)}: AP 0 there, "
            "so the curve rises more steeply"
        )


def _images(recipe: Recipe) -> tuple[DetectionDataset, DetectionDataset]:
    """All training images, and the validation images.

    Raises:
        DataError: none, too few, or without objects.
    """
    root = recipe.data.root
    whole = load_split(recipe.updated(data={"repeat": 1, "sampling": "uniform"}), "train")
    require_boxes(whole, root)
    try:
        validation = load_split(recipe, "val")
    except DataError as error:
        raise DataError(
            f"{error}. A learning curve compares scores on validation images; to set some apart: "
            f"detrkit data split {root} --val 0.2 --out {root.rstrip('/')}_split"
        ) from error
    labelled = sum(bool(len(record.labels)) for record in validation.records)
    if labelled < LEAST_IMAGES:
        raise DataError(
            f"{root}: {labelled} validation images have an object; at least {LEAST_IMAGES} are needed to compare scores"
        )
    return whole, validation


def _same_length(recipe: Recipe, *, minutes: float | None, runs: int) -> Recipe:
    """The recipe of all runs, with the length that it has for all images."""
    steps = recipe.training.iterations
    if steps is None and minutes is None and recipe.training.minutes is None:
        images = len(load_split(recipe, "train"))
        batches = math.ceil(images / (1 if recipe.training.auto_batch else recipe.training.batch_size))
        steps = length_in_steps(recipe.training, batches=batches)
    length: dict[str, object] = {} if steps is None else {"iterations": steps, "epochs": None}
    if minutes is not None:
        length["minutes"] = minutes / runs
    return recipe.updated(
        training={**length, "evaluate_every": _NEVER_BEFORE_THE_END, "patience": None, "seeds": None},
        logging={"plots": False},
    )


def _train(recipe: Recipe, part: _Part) -> dict[str, Any]:
    """What the last weights of a run find: ids of the images, and detections as COCO results."""
    kept = part.folder / ANSWERS
    begun = part.folder.is_dir()
    try:
        refuse_other_length(part.folder, recipe)
        train(_of_part(recipe, part), resume=True, callbacks=[_KeepAnswers()])
    except (DataError, RecipeError) as error:
        if not begun:
            raise
        raise type(error)(f"{error}. To begin the curve anew: another --out, or delete {part.folder.parent}") from error
    try:
        content: dict[str, Any] = json.loads(kept.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{kept}: the detections of this finished run cannot be read ({error}); delete {part.folder} to repeat it"
        ) from error
    return content


def _of_part(recipe: Recipe, part: _Part) -> Recipe:
    """The recipe of the run on a part."""
    return recipe.updated(
        data={
            "sample_rate": part.fraction,
            "sample_seed": part.seed,
            "sample_repeat": False,
            "repeat": max(1, round(recipe.data.repeat / part.fraction)),  # epochs keep their length, and drops with it
        },
        training={"output": str(part.folder), "seed": part.seed},
    )


class _KeepAnswers(Callback):
    """Writes what the last evaluation found beside the weights."""

    def on_evaluate(self, trainer: Any, evaluation: Evaluation) -> None:
        found = {number: one for number, one in evaluation.answers.items() if isinstance(one, Detections)}
        content = {"image_ids": sorted(found), "detections": result_rows(found)}
        write_bytes(trainer.folder / ANSWERS, json.dumps(content, separators=(",", ":")).encode())


def _scored(metric: InstanceMetric, detections: Sequence[Mapping[str, Any]], images: set[int]) -> ScoredSet:
    """The detections of the images, with their ground truth."""
    rows = [row for row in detections if row["image_id"] in images]
    results = read_results(rows, metric.truth, iou_type=metric.iou_type)
    return scored_set(metric, results, image_ids=sorted(images))
