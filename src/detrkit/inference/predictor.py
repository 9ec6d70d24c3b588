"""The predictor: reads an image, runs the model and returns boxes in pixels of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from detrkit.data.images import ImageSource
from detrkit.data.records import ImageRecord
from detrkit.inference.answers import postprocess
from detrkit.inference.device import Precision, autocast, resolve_device
from detrkit.inference.preprocess import eval_transform
from detrkit.inference.sources import open_image
from detrkit.models import Detector
from detrkit.models.presets import DEFAULT_MODEL
from detrkit.structures import Categories, Category, Detections, pad_images
from detrkit.weights import open_checkpoint
from detrkit.weights.find import find_checkpoint
from detrkit.weights.official.class_names import COCO_CATEGORIES, COCO_PANOPTIC_CATEGORIES
from detrkit.weights.published.download import is_url

__all__ = ["DEFAULT_NMS", "Predictor"]

DEFAULT_NMS = 0.7
"""The IoU threshold of NMS if none is given, as published (DE-DETR)."""


class Predictor:
    """Finds objects in images with a trained model.

    Args:
        path_or_name: a checkpoint (of detrkit, or an official one of a registered model), a run folder, a URL, the
            name of weights in the package or of published weights that were pulled, or a model in memory.
        device: ``"auto"`` (CUDA, else MPS, else CPU) or a torch device.
        batch_size: images per forward pass. Images of different sizes in a batch are padded, which changes scores
            slightly.
        threshold: the default score threshold of :meth:`predict`.
        nms: IoU threshold of class-wise non-maximum suppression; None: the value of the model's configuration.
        nms_decay: factor for the scores of suppressed objects, which are then kept. The IoU threshold is ``nms``, else
            that of the configuration, else 0.7. None: the value of the configuration, or, if ``nms`` is given,
            suppressed objects are removed.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    Raises:
        CheckpointError: the weights are missing or cannot be read.
        DetrkitError: the machine has no such device.
        ValueError: ``batch_size`` or ``threshold`` is out of range.
    """

    def __init__(
        self,
        path_or_name: str | Path | Detector = DEFAULT_MODEL,
        *,
        device: str | torch.device | None = "auto",
        batch_size: int = 1,
        threshold: float = 0.3,
        nms: float | None = None,
        nms_decay: float | None = None,
        precision: Precision = "fp32",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.threshold = _checked(threshold)
        self.precision: Precision = precision
        self.device = resolve_device(device)
        self.model = _load(path_or_name).to(self.device).eval()
        config = self.model.config
        if nms is None and nms_decay is not None:
            nms = DEFAULT_NMS if config.postprocess.nms is None else config.postprocess.nms
        if nms is not None:
            config = config.replace(nms=nms, nms_decay=nms_decay)
        self.config = config
        self.categories = self.model.categories or _default_categories(config.architecture.num_classes)
        self._transform = eval_transform(config)

    @overload
    def predict(self, images: ImageSource, threshold: float | None = None) -> Detections: ...

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...], threshold: float | None = None) -> list[Detections]: ...

    def predict(
        self, images: ImageSource | list[Any] | tuple[Any, ...], threshold: float | None = None
    ) -> Detections | list[Detections]:
        """Detect objects in one image, or in every image of a list.

        Args:
            images: path, URL, Pillow image, array (H, W, 3) RGB or (H, W) gray, or encoded bytes; or a list of these.
            threshold: minimum score, inclusive; 0.0 keeps all top-k; None: the threshold of the predictor.

        Returns:
            Detections, or a list of them for a list of images. Boxes are xyxy in pixels of the upright image (EXIF
            applied) and clipped to it, highest score first.

        Raises:
            DataError: an image cannot be read; the message names it.
            ValueError: ``threshold`` is out of range.
        """
        if isinstance(images, list | tuple):
            return list(self._stream(images, self._threshold(threshold)))
        return next(self._stream([images], self._threshold(threshold)))

    def _threshold(self, threshold: float | None) -> float:
        return self.threshold if threshold is None else _checked(threshold)

    def _stream(self, images: Sequence[ImageSource], threshold: float) -> Iterator[Detections]:
        for start in range(0, len(images), self.batch_size):
            yield from self._batch(images[start : start + self.batch_size], threshold)

    @torch.no_grad()
    def _batch(self, sources: Sequence[ImageSource], threshold: float) -> list[Detections]:
        pictures = [open_image(source) for source in sources]
        samples = [self._transform(picture, _record(picture)) for picture in pictures]
        images, mask = pad_images([sample.image for sample in samples], self.config.input.size_divisor)
        with autocast(self.device, self.precision):
            predictions = self.model(images.to(self.device), mask.to(self.device))
        sizes = [(picture.height, picture.width) for picture in pictures]
        found = postprocess(predictions, sizes, config=self.config, categories=self.categories)
        return [
            replace(detections.keep(detections.scores >= np.float32(threshold)), path=_path(source))
            for detections, source in zip(found, sources, strict=True)
        ]


def _default_categories(num_classes: int) -> Categories:
    """Classes of a model without class names: those of official COCO models if 91 or 250, else numbered ones."""
    for official in (COCO_CATEGORIES, COCO_PANOPTIC_CATEGORIES):
        if num_classes == len(official):
            return official
    return Categories(Category(label, f"class {label}") for label in range(num_classes))


def _checked(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a score between 0 and 1, got {threshold}")
    return threshold


def _load(path_or_name: str | Path | Detector) -> Detector:
    return path_or_name if isinstance(path_or_name, Detector) else open_checkpoint(find_checkpoint(path_or_name))


def _path(source: ImageSource) -> Path | None:
    return Path(source) if isinstance(source, str | Path) and not is_url(str(source)) else None


def _record(image: Image.Image) -> ImageRecord:
    """A record without annotations, as the evaluation transform requires one."""
    return ImageRecord(image_id=0, path=Path(), file_name="", width=image.width, height=image.height)
