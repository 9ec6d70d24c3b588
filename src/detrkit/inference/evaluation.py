"""Evaluating a model on a data set: all top-k detections of every image against the original annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from detrkit.data import DetectionDataset, EvalTransform, build_loader
from detrkit.data.dataset import SampleTransform
from detrkit.errors import DataError
from detrkit.inference.device import Precision, autocast, resolve_device
from detrkit.inference.postprocess import postprocess
from detrkit.metrics import Score, score_coco, score_lvis
from detrkit.models import Detector, DetectorConfig
from detrkit.structures import Batch, Categories, Category

__all__ = ["Progress", "Results", "detect", "eval_transform", "evaluate_model", "label_categories"]

Progress = Callable[[int, int], None]
"""Called with (images done, images in all) of this process."""

SCORES: dict[str, Callable[..., Score]] = {"coco": score_coco, "lvis": score_lvis}
"""How results are scored, by the data set's protocol."""


@dataclass
class Results:
    """COCO results rows in the data set's category ids, and the ids of the images they were looked for in."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    image_ids: set[int] = field(default_factory=set)

    def add(self, image_id: int, rows: list[dict[str, Any]]) -> None:
        """Keeps the rows of one image, unless that image was there already."""
        if image_id not in self.image_ids:
            self.image_ids.add(image_id)
            self.rows.extend(rows)


def evaluate_model(
    model: nn.Module,
    dataset: DetectionDataset,
    *,
    batch_size: int = 1,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    precision: Precision = "fp32",
    accelerator: Any = None,
    transform: SampleTransform | None = None,
) -> Score:
    """Box score of a model on a data set, by its protocol: LVIS on LVIS, else COCO.

    On several processes each gets the score of the whole set.

    batch_size: 1 is exact; larger batches pad images, which moves the official models' scores by about 1e-3 ·
    device: where the model is (None: where its parameters are) · accelerator: an ``accelerate.Accelerator`` whose
    processes share the images · transform: instead of the model's own evaluation resize and normalisation.

    Every part of the model is in the mode (training or evaluation) it was in afterwards. Images that could not be read
    (``on_error="skip"``) count neither as found nor as missed.

    Raises:
        DataError: an image cannot be read, or the data set has classes that the model does not know.
    """
    results = detect(
        model,
        dataset,
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
        precision=precision,
        accelerator=accelerator,
        transform=transform,
    )
    truth = dataset.coco_ground_truth()
    truth["images"] = [row for row in truth["images"] if row["id"] in results.image_ids]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in results.image_ids]
    return SCORES[dataset.protocol](truth, results.rows)


def detect(
    model: nn.Module,
    dataset: DetectionDataset,
    *,
    batch_size: int = 1,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    precision: Precision = "fp32",
    accelerator: Any = None,
    transform: SampleTransform | None = None,
) -> Results:
    """All detections of a model on a data set as COCO results; arguments as in :func:`evaluate_model`."""
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    detector = _unwrapped(model, accelerator)
    categories, ids = label_categories(detector, dataset)
    target = next(detector.parameters()).device if device is None else resolve_device(device)
    dataset = dataset.with_transform(transform or eval_transform(detector.config))
    batches = _batches(dataset.aspect_ratios, batch_size)[rank::world]
    loader = build_loader(dataset, batches, workers=workers, size_divisor=detector.config.size_divisor)

    results, done, total = Results(), 0, sum(map(len, batches))
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    try:
        for batch in loader:
            for image_id, rows in _batch_rows(detector, batch.to(target), categories, ids, precision):
                results.add(image_id, rows)
            done += len(batch)
            if progress is not None:
                progress(done, total)
    finally:
        for module, training in modes:
            module.training = training
    return results if world == 1 else _gather(results)


@torch.no_grad()
def _batch_rows(
    model: Detector, batch: Batch, categories: Categories, ids: Sequence[int | None], precision: Precision
) -> list[tuple[int, list[dict[str, Any]]]]:
    """(image id, COCO rows) of every image of a batch."""
    with autocast(batch.images.device, precision):
        predictions = model(batch.images, batch.padding_mask)
    sizes = [target.original_size for target in batch.targets]
    found = postprocess(predictions, sizes, config=model.config, categories=categories)
    result = []
    for target, detections in zip(batch.targets, found, strict=True):
        rows = detections.to_coco(target.image_id)
        for row, label in zip(rows, detections.labels, strict=True):
            row["category_id"] = ids[label]
        result.append((target.image_id, [row for row in rows if row["category_id"] is not None]))
    return result


def _gather(results: Results) -> Results:
    """The results of all processes; an image that two of them had counts once."""
    from accelerate.utils import gather_object

    rows_of: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in results.image_ids}
    for row in results.rows:
        rows_of[row["image_id"]].append(row)
    merged = Results()
    for image_id, rows in sorted(gather_object(list(rows_of.items())), key=lambda item: item[0]):
        merged.add(image_id, rows)
    return merged


def _batches(aspect_ratios: Sequence[float], batch_size: int) -> list[list[int]]:
    """Every index once; images of like shape share a batch, so that little is padded."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = list(range(len(aspect_ratios)))
    if batch_size > 1:
        order.sort(key=lambda index: aspect_ratios[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _unwrapped(model: nn.Module, accelerator: Any) -> Detector:
    inner = model if accelerator is None else accelerator.unwrap_model(model)
    if not isinstance(inner, Detector):
        raise TypeError(f"evaluation needs a detrkit model, got {type(inner).__name__}")
    return inner


def eval_transform(
    config: DetectorConfig, *, short_side: int | None = None, max_side: int | None = None
) -> EvalTransform:
    """How a model wants images at evaluation and prediction; sizes that are given replace its own."""
    return EvalTransform(
        short_side=short_side or config.eval_short_side,
        max_side=max_side or config.eval_max_side,
        resize=config.eval_resize,
        mean=config.image_mean or (),
        std=config.image_std or (),
    )


def label_categories(model: Detector, dataset: DetectionDataset) -> tuple[Categories, list[int | None]]:
    """The model's classes in label order, and for each the data set's category id (None: the data set lacks it).

    Classes are matched by id and name, else by name alone. A model without class names takes those of the data set:
    label k is its k-th class, or, with more labels than classes, the class with id k (official COCO models).

    Raises:
        DataError: a class that has boxes in the data set is unknown to the model.
    """
    theirs = dataset.categories
    count = model.config.num_classes
    own = model.categories
    if own is None:
        if count == len(theirs):
            return theirs, list(theirs.ids)
        if any(not 0 <= category_id < count for category_id in theirs.ids):
            raise DataError(
                f"{dataset.name}: {len(theirs)} classes, but the model has {count} and does not say which they are"
            )
        names = {category.id: category.name for category in theirs}
        own = Categories(Category(label, names.get(label)) for label in range(count))
        return own, [label if label in names else None for label in range(count)]

    by_name: dict[str | None, int] = {category.name: category.id for category in theirs if category.name is not None}
    pairs = set(theirs)
    ids = [category.id if category in pairs else by_name.get(category.name) for category in own]
    known = set(ids)
    used = {int(label) for record in dataset.records for label in record.labels}
    missing = [str(theirs[label].name or theirs[label].id) for label in sorted(used) if theirs[label].id not in known]
    if missing:
        listed = ", ".join(str(category.name) for category in own.named[:12])
        more = ", …" if len(own.named) > 12 else ""
        raise DataError(
            f"{dataset.name}: the model does not know {', '.join(missing)}; its classes: {listed}{more}. "
            "Evaluate it on data with its classes, or train on these data (model.init=CHECKPOINT starts from it)"
        )
    return own, ids
