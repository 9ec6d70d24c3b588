"""What an evaluation protocol is: told what was found in one image after the other, asked for the score at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from detrkit.metrics.score import Score

__all__ = ["AnnotatedData", "Gather", "Metric", "PerImage"]

Found = TypeVar("Found", contravariant=True)
Kept = TypeVar("Kept")
State = TypeVar("State")


class AnnotatedData(Protocol):
    """What a metric takes from a data set."""

    @property
    def protocol(self) -> str:
        """How results on its images are scored: a key of ``detrkit.metrics.PROTOCOLS``."""

    def coco_ground_truth(self) -> Mapping[str, object]:
        """The content of a COCO annotation file, with the data set's own ids."""


class Gather(Protocol):
    """Exchanges a state between processes."""

    def __call__(self, state: State, /) -> list[State]:
        """The states of all processes, in the order of their ranks; every process has to call it."""


class Metric(ABC, Generic[Found]):
    """One protocol on one data set, whose ground truth is prepared once.

    ``Found`` is what a model says of an image, such as ``Detections``. Images of which nothing was ever said count
    neither as found nor as missed, and an image counts once, however often and by however many processes it was met.

    Attributes:
        protocol: its name.
        headline: the few numbers that a summary shows; the first of them chooses the best weights of a run.
        class_columns: the numbers that a table of classes shows, the one that orders it first.
    """

    protocol: ClassVar[str]
    headline: ClassVar[tuple[str, ...]]
    class_columns: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def of(cls, data: AnnotatedData) -> Self:
        """The protocol on these data.

        Raises:
            DataError: the data do not have what the protocol needs.
        """

    @property
    def primary(self) -> str:
        """The number that chooses the best weights of a run."""
        return self.headline[0]

    @abstractmethod
    def update(self, image_id: int, found: Found) -> None:
        """Takes what was found in an image."""

    @abstractmethod
    def merge(self, gather: Gather) -> None:
        """Takes what the metrics of all other processes were told; every process calls it."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets what it was told; the ground truth stays prepared."""

    @abstractmethod
    def compute(self) -> Score:
        """The score of all that it was told since the last reset."""


class PerImage(Metric[Found], Generic[Found, Kept]):
    """A metric that keeps something of each image, by which it also knows what it has met."""

    def __init__(self) -> None:
        self.kept: dict[int, Kept] = {}

    @abstractmethod
    def keep(self, image_id: int, found: Found) -> Kept:
        """What the score needs of an image; it travels between processes, so it should be small."""

    def update(self, image_id: int, found: Found) -> None:
        if image_id not in self.kept:
            self.kept[image_id] = self.keep(image_id, found)

    def merge(self, gather: Gather) -> None:
        merged: dict[int, Kept] = {}
        for kept in reversed(gather(self.kept)):  # the lowest rank that met an image counts
            merged |= kept
        self.kept = dict(sorted(merged.items()))

    def reset(self) -> None:
        self.kept = {}
