"""The predictor: reads an image, runs the model and answers a task in pixels of the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from PIL import Image

from detrkit.data.arrays import Channels, check_channels
from detrkit.data.images import ImageSource, Picture
from detrkit.data.records import ImageRecord
from detrkit.devices import resolve_device
from detrkit.errors import DataError, did_you_mean
from detrkit.inference.answers import Frame, answer, best_of
from detrkit.inference.device import Precision, autocast, check_precision
from detrkit.inference.mirror import fused, mirror_image, mirrored
from detrkit.inference.modes import evaluating, in_single_precision
from detrkit.inference.postprocess import default_categories
from detrkit.inference.preprocess import eval_transform
from detrkit.inference.sources import each_image, open_image
from detrkit.inference.tasks import ANSWERS, Answer, check_task, in_full_size, nms_threshold
from detrkit.models import Detector
from detrkit.models.presets import DEFAULT_MODEL
from detrkit.structures import Detections, PanopticMap, SemanticMap, Thresholds, pad_images
from detrkit.structures.call_values import at_least_one, checked_threshold, yes_or_no
from detrkit.structures.thresholds import DEFAULT_THRESHOLD
from detrkit.weights import open_checkpoint
from detrkit.weights.find import find_checkpoint
from detrkit.weights.published.addresses import is_url

__all__ = ["DEFAULT_THRESHOLD", "Predictor"]

_Many = list[Any] | tuple[Any, ...]
_Objects = Literal["det", "inst"]


class _Options(TypedDict, total=False):
    """What one call may choose differently from its predictor."""

    channels: Channels | None
    classes: str | int | Sequence[str | int] | None
    max_detections: int | None


@dataclass(frozen=True)
class _Call:
    """One call: least scores by task, order of the colours, labels that are asked for, most detections of an image."""

    thresholds: dict[str, float | Thresholds | None]
    channels: Channels
    wanted: list[int] | None
    most: int | None


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
        classes: names (or ids of the data set) of the classes to find; None: all.
        max_detections: detections of an image at most; None: the model's own top-k.
        tta: test-time augmentation: the mirror image is predicted too, in twice the time, and the objects of both are
            made one set (:mod:`detrkit.inference.mirror`); for the tasks ``"det"`` and ``"inst"``.

    One predictor may be used from several threads at once. A model in memory is moved to ``device``; it predicts in
    evaluation mode and is left in the mode it was in. One with weights in half (or double) precision is copied to
    float32; for speed choose ``precision``.

    Raises:
        CheckpointError: the weights are missing or cannot be read.
        DetrkitError: the machine has no such device.
        DataError: the model has no such class.
        ValueError: ``precision``, ``channels``, or a number is out of range.
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
        classes: str | int | Sequence[str | int] | None = None,
        max_detections: int | None = None,
        tta: bool = False,
    ) -> None:
        self.batch_size = at_least_one("batch_size", batch_size)
        self.threshold = None if threshold is None else checked_threshold(threshold)
        self.precision = check_precision(precision)
        self.channels = check_channels(channels)
        self.max_pixels = None if max_pixels is None else at_least_one("max_pixels", max_pixels)
        self.max_detections = None if max_detections is None else at_least_one("max_detections", max_detections)
        self.tta = yes_or_no("tta", tta)
        self.device = resolve_device(device)
        self.model = in_single_precision(_load(path_or_name)).to(self.device)
        config = self.model.config
        nms = nms_threshold(nms, nms_decay, config.postprocess.nms)
        if nms is not None:
            config = config.replace(nms=nms, nms_decay=nms_decay)
        self.config = config
        self.categories = self.model.categories or default_categories(config.architecture.num_classes)
        self._wanted = None if classes is None else self.categories.labels_of(classes)
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
        self, images: ImageSource, threshold: float | None = None, *, task: _Objects, **options: Unpack[_Options]
    ) -> Detections: ...

    @overload
    def predict(
        self, images: ImageSource, threshold: float | None = None, *, task: Literal["pan"], **options: Unpack[_Options]
    ) -> PanopticMap: ...

    @overload
    def predict(
        self, images: ImageSource, threshold: float | None = None, *, task: Literal["sem"], **options: Unpack[_Options]
    ) -> SemanticMap: ...

    @overload
    def predict(
        self, images: _Many, threshold: float | None = None, *, task: _Objects, **options: Unpack[_Options]
    ) -> list[Detections]: ...

    @overload
    def predict(
        self, images: _Many, threshold: float | None = None, *, task: Literal["pan"], **options: Unpack[_Options]
    ) -> list[PanopticMap]: ...

    @overload
    def predict(
        self, images: _Many, threshold: float | None = None, *, task: Literal["sem"], **options: Unpack[_Options]
    ) -> list[SemanticMap]: ...

    @overload
    def predict(
        self,
        images: ImageSource | _Many,
        threshold: float | None = None,
        task: str | None = None,
        **options: Unpack[_Options],
    ) -> Any: ...

    def predict(
        self,
        images: ImageSource | _Many,
        threshold: float | None = None,
        task: str | None = None,
        **options: Unpack[_Options],
    ) -> Any:
        """Answer a task for one image, or for every image of a list, a folder or a pattern.

        Args:
            images: path, URL, Pillow image, array (H, W, 3) or (H, W), tensor (C, H, W) or (H, W), encoded bytes or a
                file of them; a list of these; or a folder, or a pattern such as ``"photos/*.jpg"`` (``**`` for folders
                in folders), whose images are taken in the order of their names. Values: uint8; other integers up to
                255, or with 16 bits up to 65535; floats from 0 to 1, or to 255; bool.
            threshold: minimum score, inclusive, of detections, of segments, and of the class of a pixel; 0.0 keeps all
                top-k; None: that of the predictor, see ``threshold`` there.
            task: ``"det"``, ``"inst"``, ``"pan"`` or ``"sem"``, if the model answers it; None: the task that it was
                trained for.
            options: ``channels``, ``classes`` and ``max_detections`` for this call instead of those of the predictor.

        Returns:
            ``Detections`` for ``"det"`` and ``"inst"`` (with masks), ``PanopticMap`` or ``SemanticMap``; a list of them
            for a list, a folder or a pattern. All are in pixels of the upright image (EXIF applied). Boxes are xyxy,
            clipped to the image, highest score first.

        Raises:
            DataError: an image cannot be read, which the message names, or the model does not answer the task.
            RunError: the model predicts NaN.
            ValueError: ``threshold``, ``channels`` or ``max_detections`` is out of range.
        """
        sources, is_one = each_image(images)
        found = list(self.stream(sources, threshold, task, **options))
        return found[0] if is_one else found

    def stream(
        self,
        images: Iterable[ImageSource] | str | Path,
        threshold: float | None = None,
        task: str | None = None,
        **options: Unpack[_Options],
    ) -> Iterator[Any]:
        """Answer a task for images as they come: one answer after the other, ``batch_size`` images in memory at a time.

        ``for found in predictor.stream(frames): …`` works on a generator that never ends. Wrong arguments are errors
        of the call; an image that cannot be read is an error when its turn comes.

        Args:
            images: an iterable of images, a folder, or a pattern; see :meth:`predict`, as for the other arguments.

        Raises:
            DataError, RunError, ValueError: see :meth:`predict`.
        """
        chosen = check_task(self.config.architecture.task, task)
        call = self._call(threshold, [chosen], options)
        return (answers[chosen] for answers in self._stream(each_image(images)[0], call))

    @overload
    def answers(
        self,
        images: ImageSource,
        threshold: float | None = None,
        tasks: Sequence[str] | None = None,
        **options: Unpack[_Options],
    ) -> dict[str, Answer]: ...

    @overload
    def answers(
        self,
        images: _Many,
        threshold: float | None = None,
        tasks: Sequence[str] | None = None,
        **options: Unpack[_Options],
    ) -> list[dict[str, Answer]]: ...

    def answers(
        self,
        images: ImageSource | _Many,
        threshold: float | None = None,
        tasks: Sequence[str] | None = None,
        **options: Unpack[_Options],
    ) -> dict[str, Answer] | list[dict[str, Answer]]:
        """Answer several tasks from one forward pass: a dict by task, or a list of them for a list of images.

        Args:
            images: see :meth:`predict`.
            threshold: see :meth:`predict`.
            tasks: the tasks; None: all that the model answers.
            options: see :meth:`predict`.

        Raises:
            DataError, RunError, ValueError: see :meth:`predict`.
        """
        chosen = self.tasks if tasks is None else [check_task(self.config.architecture.task, task) for task in tasks]
        sources, is_one = each_image(images)
        found = list(self._stream(sources, self._call(threshold, chosen, options)))
        return found[0] if is_one else found

    def _call(self, threshold: float | None, tasks: Sequence[str], options: _Options) -> _Call:
        unknown = options.keys() - _Options.__annotations__.keys()
        if unknown:
            valid = ("threshold", "task", *_Options.__annotations__)
            raise TypeError(f"no option '{min(unknown)}'.{did_you_mean(min(unknown), valid)}")
        if self.tta and not set(tasks) <= {"det", "inst"}:
            raise DataError("tta makes one set of objects of two views: it is for the tasks det and inst")
        order, classes, most = options.get("channels"), options.get("classes"), options.get("max_detections")
        return _Call(
            thresholds={task: self._threshold(threshold, task) for task in tasks},
            channels=self.channels if order is None else check_channels(order),
            wanted=self._wanted if classes is None else self.categories.labels_of(classes),
            most=self.max_detections if most is None else at_least_one("max_detections", most),
        )

    def _stream(self, sources: Iterable[ImageSource], call: _Call) -> Iterator[dict[str, Answer]]:
        """The answers of every image, by task; what fails does so after the answers of the images before it."""
        waiting, failure = iter(sources), None
        while failure is None:
            batch: list[tuple[Picture, Path | None]] = []
            try:
                for source in islice(waiting, self.batch_size):
                    opened = self.open(source, channels=call.channels, tasks=tuple(call.thresholds))
                    batch.append((opened, _path(source)))
            except Exception as error:  # of an image, or of the caller's generator
                failure = error
            if batch:
                yield from self._batch(batch, call)
            elif failure is None:
                return
        raise failure

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
        chosen = self.threshold if threshold is None else checked_threshold(threshold)
        if chosen is not None or task not in ("det", "inst"):
            return chosen
        return self.default_thresholds(task) or DEFAULT_THRESHOLD

    def _batch(self, batch: Sequence[tuple[Picture, Path | None]], call: _Call) -> list[dict[str, Answer]]:
        pictures, paths = [opened.image for opened, _ in batch], [path for _, path in batch]
        found = (self._of_both_views if self.tta else self._answers)(pictures, paths, call)
        return [{task: in_full_size(found[task][k], opened) for task in found} for k, (opened, _) in enumerate(batch)]

    def _of_both_views(
        self, pictures: Sequence[Image.Image], paths: Sequence[Path | None], call: _Call
    ) -> dict[str, list[Answer]]:
        """Objects of the pictures and their mirror images, made one set, from two forward passes."""
        every = replace(call, thresholds=dict.fromkeys(call.thresholds))
        plain = self._answers(pictures, paths, every)
        mirror = self._answers([mirror_image(picture) for picture in pictures], paths, every)
        most = self.config.postprocess.top_k if call.most is None else call.most
        return {
            task: [
                best_of(fused(one, mirrored(other)), threshold, most)
                for one, other in zip(plain[task], mirror[task], strict=True)
                if isinstance(one, Detections) and isinstance(other, Detections)  # the only ones of these tasks
            ]
            for task, threshold in call.thresholds.items()
        }

    @torch.no_grad()
    def _answers(
        self, pictures: Sequence[Image.Image], paths: Sequence[Path | None], call: _Call
    ) -> dict[str, list[Answer]]:
        """The answers of one forward pass by task, in pixels of the pictures."""
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
        return {
            task: answer(
                predictions,
                frames,
                config=self.config,
                categories=self.categories,
                task=task,
                threshold=threshold,
                paths=paths,
                wanted=call.wanted,
                most=call.most,
            )
            for task, threshold in call.thresholds.items()
        }


def _load(path_or_name: str | Path | Detector) -> Detector:
    if isinstance(path_or_name, Detector):
        return path_or_name
    return open_checkpoint(find_checkpoint(path_or_name, fetch_names=True))


def _path(source: ImageSource) -> Path | None:
    return Path(source) if isinstance(source, str | Path) and not is_url(str(source)) else None
