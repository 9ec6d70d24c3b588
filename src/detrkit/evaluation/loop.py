"""Evaluation of a model on a data set: top-k detections of every image, and their score."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from detrkit.data import DetectionDataset, build_loader
from detrkit.devices import resolve_device
from detrkit.evaluation.class_ids import ClassMap, match_classes
from detrkit.inference.answers import Frame, answer
from detrkit.inference.device import Precision, autocast
from detrkit.inference.modes import evaluating
from detrkit.inference.preprocess import eval_transform
from detrkit.inference.tasks import Answer
from detrkit.metrics import Metric, Score, metric_for
from detrkit.models import Architecture, Detector, DetectorConfig
from detrkit.structures import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Progress", "evaluate_model", "predict_dataset"]

Progress = Callable[[int, int], None]
"""Called with (images done, total images) of this process."""

T = TypeVar("T")


def evaluate_model(
    model: nn.Module,
    dataset: DetectionDataset,
    *,
    metric: Metric[Any] | None = None,
    config: DetectorConfig[Architecture] | None = None,
    batch_size: int = 1,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    precision: Precision = "fp32",
    accelerator: Accelerator | None = None,
    seen: Callable[[int, Answer], None] | None = None,
) -> Score:
    """Score a model on a data set with the data set's protocol.

    With several processes, every process gets the score of the whole data set. Afterwards all modules are in their
    previous mode (training or evaluation). Objects of unreadable images (``on_error="skip"``) do not count as missed.

    Args:
        model: a ``Detector``, or a ``Detector`` wrapped by the accelerator.
        dataset: the data set; its own transform is not used.
        metric: metric of the data set, so that several evaluations share its prepared ground truth; it is reset after
            the call. None: a new metric.
        config: settings of image preparation and post-processing; None: those of the model.
        batch_size: 1 is exact; larger batches pad images, which changes the scores of official models by about 1e-3.
        workers: number of processes that read images.
        device: device of the inputs; None: the device of the model's parameters.
        progress: called after every batch.
        precision: precision of the forward pass.
        accelerator: its processes share the images.
        seen: called with the id and the answer of every image of this process.

    Raises:
        DataError: an image cannot be read, or the data set has classes that the model does not have.
        TypeError: the model is not a detrkit model.
    """
    metric = metric_for(dataset) if metric is None else metric
    found = predict_dataset(
        model,
        dataset,
        config=config,
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
        precision=precision,
        accelerator=accelerator,
    )
    try:
        with closing(found):
            for image_id, detections in found:
                metric.update(image_id, detections)
                if seen is not None:
                    seen(image_id, detections)
        if accelerator is not None and accelerator.num_processes > 1:
            metric.merge(_gather)
        return metric.compute()
    finally:
        metric.reset()  # free the memory before the next epoch of training


def predict_dataset(
    model: nn.Module,
    dataset: DetectionDataset,
    *,
    config: DetectorConfig[Architecture] | None = None,
    batch_size: int = 1,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    precision: Precision = "fp32",
    accelerator: Accelerator | None = None,
) -> Generator[tuple[int, Answer], None, None]:
    """Yield (image id, detections with labels of the data set) for every image of this process.

    Arguments as in :func:`evaluate_model`. An image that replaces an unreadable one is yielded twice.
    """
    detector = _unwrapped(model, accelerator)
    config = detector.config if config is None else config
    classes = match_classes(detector, dataset)
    target = next(detector.parameters()).device if device is None else resolve_device(device)
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    batches = _batches(dataset.aspect_ratios, batch_size)[rank::world]
    dataset = dataset.with_transform(eval_transform(config, canvas=detector.canvas))
    loader = build_loader(dataset, batches, workers=workers, size_divisor=config.input.size_divisor)

    done, total = 0, sum(map(len, batches))
    with evaluating(detector):
        for batch in loader:
            yield from _answer_batch(detector, batch.to(target), config, classes, precision, dataset.task)
            done += len(batch)
            if progress is not None:
                progress(done, total)


@torch.no_grad()
def _answer_batch(
    model: Detector,
    batch: Batch,
    config: DetectorConfig[Architecture],
    classes: ClassMap,
    precision: Precision,
    task: str,
) -> list[tuple[int, Answer]]:
    with autocast(batch.images.device, precision):
        predictions = model(batch.images, batch.padding_mask)
    height, width = batch.images.shape[-2:]
    frames = [Frame((height, width), target.size, target.original_size) for target in batch.targets]
    found = answer(predictions, frames, config=config, categories=classes.model, task=task)
    return [
        (target.image_id, classes.in_data(one, image_id=target.image_id))
        for target, one in zip(batch.targets, found, strict=True)
    ]


def _gather(state: T) -> list[T]:
    """The states of all processes in the order of their ranks."""
    from accelerate.utils import gather_object

    states: list[T] = gather_object([state])
    return states


def _batches(aspect_ratios: Sequence[float], batch_size: int) -> list[list[int]]:
    """Batches with every index once; images of similar shape share a batch, which keeps padding small."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = list(range(len(aspect_ratios)))
    if batch_size > 1:
        order.sort(key=lambda index: aspect_ratios[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _unwrapped(model: nn.Module, accelerator: Accelerator | None) -> Detector:
    inner = model if accelerator is None else accelerator.unwrap_model(model)
    if not isinstance(inner, Detector):
        raise TypeError(f"evaluation needs a detrkit model, got {type(inner).__name__}")
    return inner
