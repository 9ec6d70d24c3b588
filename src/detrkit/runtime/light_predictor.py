"""Objects in images from an exported model, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.data.arrays import Channels, check_channels, normalised
from detrkit.data.images import ImageSource, read_image
from detrkit.errors import CheckpointError, DataError, RunError
from detrkit.runtime.choose import Chosen, chosen_objects
from detrkit.runtime.engines import Engine, open_engine
from detrkit.runtime.prepare import on_canvas, resized
from detrkit.structures.call_values import at_least_one, checked_threshold
from detrkit.structures.categories import Categories, Category
from detrkit.structures.detections import Detections
from detrkit.structures.thresholds import DEFAULT_THRESHOLD, Thresholds

__all__ = ["LightPredictor"]


class LightPredictor:
    """Finds objects with an exported model; needs numpy, Pillow and the engine of the file's format.

    Boxes, scores and classes are those of :class:`detrkit.Predictor` with the same file. Masks need torch.

    Args:
        path: ``.onnx``, ``.xml`` or ``.pt2`` of ``detrkit export``.
        threads: threads of the CPU; None: one per core that this process may use.
        batch_size: images per call, where the file takes any number.
        threshold: the default score threshold; None: that of each class in the checkpoint, or 0.3 where it has none.
        channels: order of the colours of arrays, ``"rgb"`` or ``"bgr"``.
        engine: the file, where it is open already.
        classes: names (or ids of the data set) of the classes to find; None: all.
        max_detections: detections of an image at most; None: the model's own top-k.

    Raises:
        CheckpointError: the file is missing or damaged.
        DataError: the model answers no boxes, or has no such class.
        DetrkitError: the engine is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        batch_size: int = 1,
        threshold: float | None = None,
        channels: Channels = "rgb",
        engine: Engine | None = None,
        classes: str | int | Sequence[str | int] | None = None,
        max_detections: int | None = None,
    ) -> None:
        batch_size = at_least_one("batch_size", batch_size)
        self.engine = open_engine(path, threads=threads) if engine is None else engine
        self.info = self.engine.info
        if self.info.task == "sem":
            raise DataError(f"{path}: this model answers 'sem', classes of pixels, which needs detrkit with torch")
        self.threshold: float | NDArray[np.float32] = DEFAULT_THRESHOLD
        if threshold is not None:
            self.threshold = checked_threshold(threshold)
        elif self.info.thresholds is not None and self.info.task == "det":
            self.threshold = Thresholds.from_json(self.info.thresholds).by_label.astype(np.float32)
        self.channels = check_channels(channels)
        self.batch_size = self.info.batch or batch_size
        number = self.info.config.get("num_classes")
        if not isinstance(number, int):
            raise CheckpointError(
                f"{path}: its detrkit metadata says no number of classes; export the checkpoint again"
            )
        self.categories = self.info.categories or Categories(Category(n, f"class {n}") for n in range(number))
        usable = np.array([category.name is not None and category.is_thing for category in self.categories])
        self._usable = None if usable.all() else usable
        self._wanted = None
        if classes is not None:
            self._wanted = np.isin(np.arange(len(self.categories)), self.categories.labels_of(classes))
        self.max_detections = None if max_detections is None else at_least_one("max_detections", max_detections)

    def predict(
        self,
        images: ImageSource | Sequence[ImageSource],
        threshold: float | None = None,
        *,
        channels: Channels | None = None,
    ) -> Detections | list[Detections]:
        """Find objects in one image, or in every image of a list.

        Args:
            images: path, Pillow image, array (H, W, 3) or (H, W), encoded bytes or an open file; or a list of these.
            threshold: minimum score, inclusive; None: that of the predictor.
            channels: order of the colours of arrays; None: that of the predictor.

        Returns:
            ``Detections`` in pixels of the upright image, best first; a list for a list.

        Raises:
            DataError: an image cannot be read.
            RunError: the model gives NaN, or its engine fails.
        """
        if isinstance(images, list | tuple):
            return self.predict_all(images, threshold, channels=channels)
        (found,) = self.predict_all([cast("ImageSource", images)], threshold, channels=channels)
        return found

    def predict_all(
        self, images: Sequence[ImageSource], threshold: float | None = None, *, channels: Channels | None = None
    ) -> list[Detections]:
        """Find objects in every image of a list; see :meth:`predict`."""
        limit = self.threshold if threshold is None else checked_threshold(threshold)
        order = self.channels if channels is None else check_channels(channels)
        return [
            found
            for start in range(0, len(images), self.batch_size)
            for found in self._batch(images[start : start + self.batch_size], limit, order)
        ]

    def prepare(self, pictures: Sequence[Image.Image]) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Upright RGB pictures -> the input of the model, with as many images as it takes."""
        rule, size = self.info.preprocess, self.info.size
        small = [resized(picture, rule, size) for picture in pictures]
        if self.info.with_postprocess:
            pixels = [np.asarray(image, np.float32).transpose(2, 0, 1) for image in small]
        else:
            pixels = [normalised(image, rule.mean, rule.std) for image in small]
        return on_canvas(pixels, self.info)

    def choose(
        self, outputs: dict[str, NDArray[np.float32]], index: int, threshold: float | NDArray[np.float32]
    ) -> Chosen:
        """The objects of one image of a batch, boxes in [0, 1].

        Raises:
            RunError: the outputs are NaN.
        """
        if any(
            np.isnan(value[index]).any() if name == "logits" else not np.isfinite(value[index]).all()
            for name, value in outputs.items()
            if name in ("boxes", "logits", "scores")
        ):
            raise RunError("the model predicts NaN: the file is damaged, or its precision is too low")
        if self.info.with_postprocess:
            scores, labels = outputs["scores"][index], outputs["labels"][index].astype(np.int64)
            found = Chosen(scores, labels, outputs["boxes"][index], np.zeros_like(labels))
            least = threshold[labels] if isinstance(threshold, np.ndarray) else np.float32(threshold)
            kept = (scores >= least) & (scores > 0)
            if self._wanted is not None:
                kept &= self._wanted[labels]
            return found.take(np.flatnonzero(kept)[: self.max_detections])
        return chosen_objects(
            outputs["logits"][index],
            outputs["boxes"][index],
            self.info.rules,
            usable=self._usable,
            wanted=self._wanted,
            most=self.max_detections,
            threshold=threshold,
        )

    def detections(
        self,
        outputs: dict[str, NDArray[np.float32]],
        index: int,
        picture: Image.Image,
        threshold: float | NDArray[np.float32],
    ) -> Detections:
        """The detections of one image of a batch, in pixels of the picture.

        Raises:
            RunError: the outputs are NaN.
        """
        chosen = self.choose(outputs, index, threshold)
        scale = np.array([picture.width, picture.height] * 2, np.float32)
        return Detections(
            boxes=(chosen.boxes * scale).clip(0, scale).astype(np.float32),
            scores=chosen.scores.astype(np.float32),
            labels=chosen.labels,
            categories=self.categories,
            image_size=(picture.height, picture.width),
        )

    def _batch(
        self, sources: Sequence[ImageSource], threshold: float | NDArray[np.float32], channels: Channels
    ) -> list[Detections]:
        pictures = [read_image(source, channels=channels) for source in sources]
        outputs = self.engine.run(*self.prepare(pictures))
        found = [self.detections(outputs, index, picture, threshold) for index, picture in enumerate(pictures)]
        paths = [Path(source) if isinstance(source, str | Path) else None for source in sources]
        return [replace(one, path=path) for one, path in zip(found, paths, strict=True)]
