"""The interface of an evaluation protocol: it takes one result per image and computes the score at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Literal, Protocol, Self, TypeVar

from detrkit.metrics.score import Score

__all__ = ["AnnotatedData", "Gather", "IouType", "Metric", "PerImageMetric"]

IouType = Literal["bbox", "segm"]
"""What objects are matched by: boxes or masks."""

Result = TypeVar("Result", contravariant=True)
Extract = TypeVar("Extract")
State = TypeVar("State")


class AnnotatedData(Protocol):
    """The part of a data set that a metric reads."""

    @property
    def protocol(self) -> str:
        """Name of the evaluation protocol: a key of ``detrkit.metrics.PROTOCOLS``."""

    @property
    def iou_type(self) -> IouType:
        """Whether objects are matched by boxes or by masks."""

    @property
    def max_detections(self) -> int | None:
        """Detections of an image that AP counts; None: as many as the protocol says."""

    def coco_ground_truth(self) -> Mapping[str, object]:
        """COCO annotations as a mapping, with the ids of the data set."""


class Gather(Protocol):
    """Exchange of a state between processes."""

    def __call__(self, state: State, /) -> list[State]:
        """The states of all processes in the order of their ranks; every process must call it."""


class Metric(ABC, Generic[Result]):
    """A protocol with the prepared ground truth of one data set.

    ``Result`` is the prediction for one image, such as ``Detections``. Objects of images without a result do not count
    as missed. Every image counts once, even if several updates or processes have a result for it.

    Attributes:
        protocol: name of the protocol.
        headline: the numbers of a summary; the first one selects the best weights of a run.
        class_columns: the columns of a table of classes; the table is sorted by the first one.
    """

    protocol: ClassVar[str]
    headline: ClassVar[tuple[str, ...]]
    class_columns: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def of(cls, data: AnnotatedData) -> Self:
        """The metric for a data set.

        Raises:
            DataError: the data set lacks information that the protocol needs.
        """

    @property
    def primary(self) -> str:
        """Name of the number that selects the best weights of a run."""
        return self.headline[0]

    @abstractmethod
    def update(self, image_id: int, result: Result) -> None:
        """Add the result of one image."""

    @abstractmethod
    def merge(self, gather: Gather) -> None:
        """Add the results of all other processes; every process must call it."""

    @abstractmethod
    def reset(self) -> None:
        """Remove all results; the ground truth stays prepared."""

    @abstractmethod
    def compute(self) -> Score:
        """The score of all results since the last reset."""


class PerImageMetric(Metric[Result], Generic[Result, Extract]):
    """A metric that stores an extract of every result by image id."""

    def __init__(self) -> None:
        self.extracts: dict[int, Extract] = {}

    @abstractmethod
    def extract(self, image_id: int, result: Result) -> Extract:
        """The part of a result that the score needs; it is sent between processes, so it should be small."""

    def update(self, image_id: int, result: Result) -> None:
        if image_id not in self.extracts:
            self.extracts[image_id] = self.extract(image_id, result)

    def merge(self, gather: Gather) -> None:
        merged: dict[int, Extract] = {}
        for extracts in reversed(gather(self.extracts)):  # the lowest rank with a result for an image counts
            merged |= extracts
        self.extracts = dict(sorted(merged.items()))

    def reset(self) -> None:
        self.extracts = {}
