"""Exported models in ``detrkit predict`` without torch: the boxes of :class:`detrkit.Predictor` with the same file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detrkit.data.images import ImageSource, Picture
from detrkit.inference.sources import open_image
from detrkit.inference.tasks import ANSWERS, Answer, check_task, in_full_size, nms_threshold
from detrkit.runtime.engines import Engine
from detrkit.runtime.info import ArtefactInfo, check_raw
from detrkit.runtime.light_predictor import LightPredictor
from detrkit.structures import Thresholds

__all__ = ["ArtefactPredictor", "answers_without_torch"]


def answers_without_torch(info: ArtefactInfo, task: str | None) -> bool:
    """Whether a file can answer a task (None: its own) without torch: it finds boxes, and names its classes.

    Raises:
        DataError: the model does not answer the task.
    """
    return check_task(info.task, task) == "det" and info.categories is not None


class ArtefactPredictor:
    """Finds objects with an exported model; see :class:`~detrkit.inference.tasks.ImagePredictor`.

    Args:
        engine: the file.
        path: its name in messages.
        batch_size: images per call, where the file takes as many.
        nms: IoU threshold of class-wise non-maximum suppression; None: the value in the file.
        nms_decay: factor for the scores of suppressed objects; see :class:`detrkit.Predictor`.
        max_pixels: pixels of the largest image that is decoded; None: as many as fit into memory.
        classes: names (or ids of the data set) of the classes to find; None: all.
        max_detections: detections of an image at most; None: the model's own top-k.

    Raises:
        CheckpointError: the file has its post-processing inside.
        DataError: the model answers no boxes, or has no such class.
    """

    def __init__(
        self,
        engine: Engine,
        path: Path,
        *,
        batch_size: int = 1,
        nms: float | None = None,
        nms_decay: float | None = None,
        max_pixels: int | None = None,
        classes: str | int | Sequence[str | int] | None = None,
        max_detections: int | None = None,
    ) -> None:
        check_raw(engine.info, path)
        self._light = LightPredictor(path, engine=engine, classes=classes, max_detections=max_detections)
        rules = self._light.info.rules
        nms = nms_threshold(nms, nms_decay, rules.nms)
        if nms is not None:
            self._light.info = replace(self._light.info, rules=replace(rules, nms=nms, nms_decay=nms_decay))
        self.batch_size = self._light.batch_size = min(batch_size, engine.info.batch or batch_size)
        self.max_pixels = max_pixels
        self.categories = self._light.categories

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the model answers, the one that it was trained for first; here only "det" is answered."""
        return ANSWERS[self._light.info.task]

    def default_thresholds(self, task: str) -> Thresholds | None:
        """The thresholds in the file, if they are those of the task."""
        stored = self._light.info.thresholds
        return Thresholds.from_json(stored) if stored is not None and task == self._light.info.task else None

    def open(self, source: ImageSource, *, tasks: Sequence[str] | None = None) -> Picture:
        """Read an image; a JPEG that is too large is decoded smaller, where the model sees it smaller still.

        Raises:
            DataError: it cannot be read, or is too large.
        """
        rule = self._light.info.preprocess
        sides = None if rule.max_side is None else (rule.short_side, rule.max_side)
        return open_image(source, max_pixels=self.max_pixels, seen=sides)

    def predict(self, images: Any, threshold: float | None = None, task: str | None = None) -> Any:
        """Find objects in one image, or in every image of a list; see :meth:`detrkit.Predictor.predict`."""
        many = isinstance(images, list | tuple)
        sources = images if many else [images]
        found: list[Answer] = []
        for start in range(0, len(sources), self.batch_size):
            opened = [self.open(source) for source in sources[start : start + self.batch_size]]
            answers = self._light.predict_all([picture.image for picture in opened], threshold)
            found += [in_full_size(one, picture) for one, picture in zip(answers, opened, strict=True)]
        return found if many else found[0]
