"""Tasks and their answers, as far as no network is needed: what ``detrkit predict`` knows of a predictor."""

from __future__ import annotations

from typing import Any, Protocol

from detrkit.data.images import ImageSource, Picture
from detrkit.errors import DataError
from detrkit.structures import Categories, Detections, PanopticMap, SemanticMap, Thresholds

__all__ = ["ANSWERS", "DEFAULT_NMS", "Answer", "ImagePredictor", "check_task", "in_full_size", "nms_threshold"]

DEFAULT_NMS = 0.7
"""The IoU threshold of NMS if none is given, as published (DE-DETR)."""

Answer = Detections | PanopticMap | SemanticMap

ANSWERS = {"det": ("det",), "inst": ("inst", "det"), "sem": ("sem",), "pan": ("pan", "inst", "det", "sem")}
"""The tasks that a model trained for a task answers, its own first."""


class ImagePredictor(Protocol):
    """A predictor; see :class:`detrkit.Predictor`."""

    batch_size: int
    categories: Categories

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the model answers, the one that it was trained for first."""

    def default_thresholds(self, task: str) -> Thresholds | None:
        """The thresholds of the checkpoint that hold for a task where no other is given."""

    def open(self, source: ImageSource, *, tasks: Any = None) -> Picture:
        """Read an image."""

    def predict(self, images: Any, threshold: float | None = None, task: str | None = None) -> Any:
        """Answer a task for one image, or for every image of a list."""


def check_task(own: str, task: str | None) -> str:
    """The task to answer; None is the model's own.

    Raises:
        DataError: the model does not answer it.
    """
    if task is None:
        return own
    if task not in ANSWERS[own]:
        raise DataError(f"task '{task}': this model was made for '{own}' and answers {', '.join(ANSWERS[own])}")
    return task


def nms_threshold(nms: float | None, nms_decay: float | None, own: float | None) -> float | None:
    """The IoU threshold that replaces the model's own, which is ``own``; None: none does."""
    if nms is None and nms_decay is not None:
        return DEFAULT_NMS if own is None else own
    return nms


def in_full_size(found: Answer, picture: Picture) -> Answer:
    """An answer for a picture that may have been decoded smaller, in pixels of the full size."""
    if not picture.is_reduced:
        return found
    assert isinstance(found, Detections)  # maps are made of full pictures alone
    return found.resized((picture.full_size[1], picture.full_size[0]))
