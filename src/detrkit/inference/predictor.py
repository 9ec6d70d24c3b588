"""The predictor: reads an image, runs the model and answers a task in pixels of the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from detrkit.data.arrays import Channels, check_channels
from detrkit.data.images import ImageSource, Picture
from detrkit.data.records import ImageRecord
from detrkit.devices import resolve_device
from detrkit.inference.answers import Frame, answer
from detrkit.inference.device import Precision, autocast
from detrkit.inference.modes import evaluating, in_single_precision
from detrkit.inference.postprocess import default_categories
from detrkit.inference.preprocess import eval_transform
from detrkit.inference.sources import open_image
from detrkit.inference.tasks import ANSWERS, Answer, check_task, in_full_size, nms_threshold
from detrkit.models import Detector
from detrkit.models.presets import DEFAULT_MODEL
from detrkit.structures import Detections, PanopticMap, SemanticMap, Thresholds, pad_images
from detrkit.structures.thresholds import DEFAULT_THRESHOLD
from detrkit.weights import open_checkpoint
from detrkit.weights.find import find_checkpoint
from detrkit.weights.published.addresses import is_url

__all__ = ["DEFAULT_THRESHOLD", "Predictor"]

_Many = list[Any] | tuple[Any, ...]
_Objects = Literal["det", "inst"]


class Predictor:
    """Answers the tasks of a trained model: objects in images, their masks, segments, classes of pixels.

    Args:
        path_or_name: a checkpoint (of detrkit, or an official one of a registered model), an exported model (``.onnx``,
            ``.xml`` or ``.pt2`` of ``detrkit export``, on the CPU), a run folder, a URL, a repository of the hub
            (``hf://OWNER/NAME``), the name of weights in the package or of published weights, which are downloaded
            when they are first used, or a model in memory.
        device: ``"auto"`` (CUDA, else MPS, else CPU) or a torch device.
        batch_size: images per forward pass. Images of different sizes in a batch are padded, which changes scores
            slightly.
        threshold: the default score threshold of :meth:`predict`, for every task. None: for detections and instances
            that of each class in the checkpoint (:attr:`thresholds`), or 0.3 where it has none for the task;
            ``panoptic_threshold`` of the configuration for panoptic segments, none for classes of pixels.
        nms: IoU threshold of class-wise non-maximum suppression; None: the value of the model's configuration.
        nms_decay: factor for the scores of suppressed objects, which are then kept. The IoU threshold is ``nms``, else
            that of the configuration, else 0.7. None: the value of the configuration, or, if ``nms`` is given,
            suppressed objects are removed.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        channels: order of the colours of arrays and tensors: ``"rgb"``, or ``"bgr"`` for images that OpenCV has read
            (``cv2.imread``, ``VideoCapture``). Files, encoded bytes and Pillow images know theirs.
        max_pixels: pixels of the largest image that is decoded; None: as many as fit into the memory that is free. For
            boxes and masks a larger JPEG is decoded at a half, quarter or eighth, with a warning.

    One predictor may be used from several threads at once. A model in memory is moved to ``device``; it predicts in
    evaluation mode and is left in the mode it was in. One with weights in half (or double) precision is copied to
    float32; for speed choose ``precision``.

    Raises:
        CheckpointError: the weights are missing or cannot be read.
        DetrkitError: the machine has no such device.
        ValueError: ``batch_size``, ``threshold`` or ``channels`` is out of range.
    """

    def __init__(
        self,
        path_or_name: str | Path | Detector = DEFAULT_MODEL,
        *,
        device: str | torch.device | None = "auto",
        batch_size: int = 1,
        threshold: float | None = None,
        nms: float | None = None,
        nms_decay: float | None = None,
        precision: Precision = "fp32",
        channels: Channels = "rgb",
        max_pixels: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.threshold = None if threshold is None else _checked(threshold)
        self.precision: Precision = precision
        self.channels = check_channels(channels)
        self.max_pixels = max_pixels
        self.device = resolve_device(device)
        self.model = in_single_precision(_load(path_or_name)).to(self.device)
        config = self.model.config
        nms = nms_threshold(nms, nms_decay, config.postprocess.nms)
        if nms is not None:
            config = config.replace(nms=nms, nms_decay=nms_decay)
        self.config = config
        self.categories = self.model.categories or default_categories(config.architecture.num_classes)
        self._transform = eval_transform(config, canvas=self.model.canvas)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the model answers, the one that it was trained for first."""
        return ANSWERS[self.config.architecture.task]

    @property
    def thresholds(self) -> Thresholds | None:
        """The score thresholds of the checkpoint, chosen on validation images by the highest F1; None: it has none.

        They are those of the task that the model was trained for: the scores of instances weigh the quality of masks,
        those of their boxes do not.
        """
        return self.model.thresholds

    def default_thresholds(self, task: str) -> Thresholds | None:
        """The thresholds of the checkpoint that hold for a task where no other is given."""
        return self.thresholds if self.threshold is None and task == self.config.architecture.task else None

    @overload
    def predict(
        self, images: ImageSource, threshold: float | None = None, *, task: _Objects, channels: Channels | None = None
    ) -> Detections: ...

    @overload
    def predict(
        self,
        images: ImageSource,
        threshold: float | None = None,
        *,
        task: Literal["pan"],
        channels: Channels | None = None,
    ) -> PanopticMap: ...

    @overload
    def predict(
        self,
        images: ImageSource,
        threshold: float | None = None,
        *,
        task: Literal["sem"],
        channels: Channels | None = None,
    ) -> SemanticMap: ...

    @overload
    def predict(
        self, images: _Many, threshold: float | None = None, *, task: _Objects, channels: Channels | None = None
    ) -> list[Detections]: ...

    @overload
    def predict(
        self, images: _Many, threshold: float | None = None, *, task: Literal["pan"], channels: Channels | None = None
    ) -> list[PanopticMap]: ...

    @overload
    def predict(
        self, images: _Many, threshold: float | None = None, *, task: Literal["sem"], channels: Channels | None = None
    ) -> list[SemanticMap]: ...

    @overload
    def predict(
        self,
        images: ImageSource | _Many,
        threshold: float | None = None,
        task: str | None = None,
        *,
        channels: Channels | None = None,
    ) -> Any: ...

    def predict(
        self,
        images: ImageSource | _Many,
        threshold: float | None = None,
        task: str | None = None,
        *,
        channels: Channels | None = None,
    ) -> Any:
        """Answer a task for one image, or for every image of a list.

        Args:
            images: path, URL, Pillow image, array (H, W, 3) or (H, W), tensor (3, H, W) or (H, W), or encoded bytes; or
                a list of these. Values: uint8; other integers up to 255, or with 16 bits up to 65535; floats from 0 to
                1, or to 255; bool.
            threshold: minimum score, inclusive, of detections, of segments, and of the class of a pixel; 0.0 keeps all
                top-k; None: that of the predictor, see ``threshold`` there.
            task: ``"det"``, ``"inst"``, ``"pan"`` or ``"sem"``, if the model answers it; None: the task that it was
                trained for.
            channels: order of the colours of arrays and tensors, ``"rgb"`` or ``"bgr"`` (OpenCV); None: that of the
                predictor.

        Returns:
            ``Detections`` for ``"det"`` and ``"inst"`` (with masks), ``PanopticMap`` or ``SemanticMap``; a list of them
            for a list of images. All are in pixels of the upright image (EXIF applied). Boxes are xyxy, clipped to
            the image, highest score first.

        Raises:
            DataError: an image cannot be read, which the message names, or the model does not answer the task.
            RunError: the model predicts NaN.
            ValueError: ``threshold`` or ``channels`` is out of range.
        """
        chosen = check_task(self.config.architecture.task, task)
        found = [answers[chosen] for answers in self._stream(images, threshold, [chosen], channels)]
        return found if isinstance(images, list | tuple) else found[0]

    @overload
    def answers(
        self,
        images: ImageSource,
        threshold: float | None = None,
        tasks: Sequence[str] | None = None,
        *,
        channels: Channels | None = None,
    ) -> dict[str, Answer]: ...

    @overload
    def answers(
        self,
        images: _Many,
        threshold: float | None = None,
        tasks: Sequence[str] | None = None,
        *,
        channels: Channels | None = None,
    ) -> list[dict[str, Answer]]: ...

    def answers(
        self,
        images: ImageSource | _Many,
        threshold: float | None = None,
        tasks: Sequence[str] | None = None,
        *,
        channels: Channels | None = None,
    ) -> dict[str, Answer] | list[dict[str, Answer]]:
        """Answer several tasks from one forward pass: a dict by task, or a list of them for a list of images.

        Args:
            images: see :meth:`predict`.
            threshold: see :meth:`predict`.
            tasks: the tasks; None: all that the model answers.
            channels: see :meth:`predict`.

        Raises:
            DataError, RunError, ValueError: see :meth:`predict`.
        """
        chosen = self.tasks if tasks is None else [check_task(self.config.architecture.task, task) for task in tasks]
        found = list(self._stream(images, threshold, chosen, channels))
        return found if isinstance(images, list | tuple) else found[0]

    def _stream(
        self, images: ImageSource | _Many, threshold: float | None, tasks: Sequence[str], channels: Channels | None
    ) -> Iterator[dict[str, Answer]]:
        """The answers of every image, by task."""
        thresholds = {task: self._threshold(threshold, task) for task in tasks}
        order = self.channels if channels is None else check_channels(channels)
        sources = images if isinstance(images, list | tuple) else [images]
        for start in range(0, len(sources), self.batch_size):
            yield from self._batch(sources[start : start + self.batch_size], thresholds, order)

    def open(self, source: ImageSource, *, channels: Channels = "rgb", tasks: Sequence[str] | None = None) -> Picture:
        """Read an image as :meth:`predict` does.

        For detections and instances a JPEG that is too large is decoded smaller, where the model sees it smaller still;
        maps (``"pan"``, ``"sem"``) take the memory of the full size anyway.

        Raises:
            DataError: it cannot be read, or is too large.
        """
        reducible = set(self.tasks[:1] if tasks is None else tasks) <= {"det", "inst"}
        sides = (self.config.input.eval_short_side, self.config.input.eval_max_side)
        return open_image(source, channels=channels, max_pixels=self.max_pixels, seen=sides if reducible else None)

    def _threshold(self, threshold: float | None, task: str) -> float | Thresholds | None:
        chosen = self.threshold if threshold is None else _checked(threshold)
        if chosen is not None or task not in ("det", "inst"):
            return chosen
        return self.default_thresholds(task) or DEFAULT_THRESHOLD

    @torch.no_grad()
    def _batch(
        self, sources: Sequence[ImageSource], thresholds: Mapping[str, float | Thresholds | None], channels: Channels
    ) -> list[dict[str, Answer]]:
        opened = [self.open(source, channels=channels, tasks=tuple(thresholds)) for source in sources]
        pictures = [picture.image for picture in opened]
        samples = [self._transform(picture, ImageRecord.unlabelled(picture)) for picture in pictures]
        images, mask = pad_images([sample.image for sample in samples], self.config.input.size_divisor)
        with evaluating(self.model), autocast(self.device, self.precision):
            predictions = self.model(images.to(self.device), mask.to(self.device))
        frames = [
            Frame(
                canvas=(images.shape[-2], images.shape[-1]),
                valid=(sample.image.shape[-2], sample.image.shape[-1]),
                original=(picture.height, picture.width),
            )
            for sample, picture in zip(samples, pictures, strict=True)
        ]
        found = {
            task: answer(
                predictions,
                frames,
                config=self.config,
                categories=self.categories,
                task=task,
                threshold=threshold,
                paths=[_path(source) for source in sources],
            )
            for task, threshold in thresholds.items()
        }
        return [
            {task: in_full_size(answers[index], picture) for task, answers in found.items()}
            for index, picture in enumerate(opened)
        ]


def _checked(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a score between 0 and 1, got {threshold}")
    return threshold


def _load(path_or_name: str | Path | Detector) -> Detector:
    if isinstance(path_or_name, Detector):
        return path_or_name
    return open_checkpoint(find_checkpoint(path_or_name, fetch_names=True))


def _path(source: ImageSource) -> Path | None:
    return Path(source) if isinstance(source, str | Path) and not is_url(str(source)) else None
