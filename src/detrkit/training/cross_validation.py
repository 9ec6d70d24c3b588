"""Detections by models that have not seen the image: each of K models is trained on the other parts of the data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from detrkit.config import Recipe
from detrkit.data import DetectionDataset, ImageRecord
from detrkit.data.subsets import choose
from detrkit.devices import resolve_device
from detrkit.errors import DataError
from detrkit.evaluation.loop import Progress, predict_dataset
from detrkit.files import write_json
from detrkit.structures import Detections
from detrkit.terminal import say
from detrkit.training.folder import refuse_other_length
from detrkit.training.run import train
from detrkit.weights import load

__all__ = ["fold_of_images", "unseen_detections"]


def fold_of_images(records: list[ImageRecord], folds: int, *, seed: int = 0) -> list[int]:
    """The fold of each image, of equal size up to one; it depends on the names and the seed alone.

    Raises:
        DataError: fewer images than folds, or fewer than two folds.
    """
    if folds < 2:
        raise DataError(f"folds = {folds}: cross-validation needs at least 2")
    if len(records) < folds:
        raise DataError(f"folds = {folds}: there are only {len(records)} images")
    names = [record.file_name for record in records]
    found = np.zeros(len(names), dtype=int)
    for fold in range(1, folds):  # larger subsets contain smaller ones: what each adds is a fold
        found[choose(names, round(len(names) * (folds - fold) / folds), seed)] = fold
    return [int(value) for value in found]


def unseen_detections(
    recipe: Recipe,
    data: DetectionDataset,
    *,
    folds: int,
    folder: Path,
    device: str = "auto",
    progress: Progress | None = None,
) -> Iterator[tuple[ImageRecord, Detections]]:
    """Train a model for every fold, and yield its detections in the images that it was not trained on.

    The runs are in ``folder``; those that are there already are not repeated, and an interrupted one goes on.

    Args:
        recipe: of every run, but for data and output.
        data: the images.
        folds: number of parts.
        folder: folder of the runs.
        device: of training and prediction.
        progress: called as in ``predict_dataset``, for each fold.

    Raises:
        DataError, RecipeError, CheckpointError, RunError: see :func:`detrkit.train`.
    """
    records = data.unique_records()
    of = fold_of_images(records, folds)
    root = Path(os.path.commonpath([os.path.abspath(record.path.parent) for record in records]))
    paths = {record.image_id: record.path for record in records}
    names = {own: Path(os.path.relpath(os.path.abspath(path), root)).as_posix() for own, path in paths.items()}
    for fold in range(folds):
        say(f"fold {fold + 1} of {folds}")
        part = DetectionDataset(
            records=[record for record, own in zip(records, of, strict=True) if own != fold],
            categories=data.categories,
            task=data.task,
        )
        content = part.coco_ground_truth()
        for image in content["images"]:
            image["file_name"] = names[image["id"]]
        run = folder / f"fold{fold}_of_{folds}"
        annotations = folder / f"{run.name}_train.json"
        write_json(annotations, content, force=True)
        files = recipe.data.train.model_copy(update={"annotations": os.path.abspath(annotations), "images": str(root)})
        own = recipe.updated(
            data={"root": str(root), "format": "coco", "train": files, "sample_rate": None},
            training={"output": str(run), "evaluate_every": 0, "device": device, "seeds": None},
        )
        refuse_other_length(run, own)
        result = train(own, resume=True)
        model = load(result.best).to(resolve_device(device))
        seen = [record for record, place in zip(records, of, strict=True) if place == fold]
        rest = DetectionDataset(records=seen, categories=data.categories, task=data.task)
        by_id = {record.image_id: record for record in seen}
        for image_id, found in predict_dataset(model, rest, progress=progress):
            if isinstance(found, Detections):
                yield by_id[image_id], replace(found, path=by_id[image_id].path)
