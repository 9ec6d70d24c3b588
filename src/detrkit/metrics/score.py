"""The result of an evaluation: named numbers with their protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

__all__ = ["Numbers", "Score", "ScoreJson"]

Numbers = Mapping[str, float | None]
"""Name -> fraction in [0, 1]; None if the number is undefined (no ground truth)."""


class ScoreJson(TypedDict):
    """A score as ``detrkit score --json`` prints it."""

    protocol: str
    iou_type: str
    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Score:
    """Numbers of one evaluation.

    Attributes:
        protocol: name of the protocol, such as ``"coco"``.
        iou_type: ``"bbox"`` or ``"segm"``.
        metrics: numbers over all classes.
        per_class: the same numbers for each class, by class name.
        headline: names of the numbers of a summary; the first one selects the best weights of a run.
    """

    protocol: str
    iou_type: str
    metrics: Numbers
    per_class: Mapping[str, Numbers]
    headline: tuple[str, ...]

    @property
    def primary(self) -> str:
        """Name of the number that selects the best weights of a run."""
        return self.headline[0]

    @property
    def value(self) -> float | None:
        """Value of the primary number."""
        return self.metrics.get(self.primary)

    def to_json(self) -> ScoreJson:
        """Plain dictionaries, ready for ``json.dump``: protocol, iou_type, metrics, per_class."""
        return {
            "protocol": self.protocol,
            "iou_type": self.iou_type,
            "metrics": dict(self.metrics),
            "per_class": {name: dict(numbers) for name, numbers in self.per_class.items()},
        }
