"""The result of an evaluation: named numbers with their protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Numbers", "NumbersJson", "Score", "ScoreJson"]

Numbers = Mapping[str, float | None]
"""Name -> fraction in [0, 1]; None if the number is undefined (no ground truth)."""

NumbersJson = dict[str, float | None] | dict[str, dict[str, float | None]]
"""The same in JSON; one such object for each group of classes where a protocol has groups (things, stuff)."""


class ScoreJson(TypedDict):
    """A score as ``detrkit score --json`` prints it."""

    protocol: str
    iou_type: str
    metrics: NumbersJson
    per_class: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Score:
    """Numbers of one evaluation.

    Attributes:
        protocol: name of the protocol, such as ``"coco"``.
        iou_type: ``"bbox"`` or ``"segm"`` (masks).
        metrics: numbers over all classes.
        per_class: the same numbers for each class, by class name.
        headline: names of the numbers of a summary; the first one selects the best weights of a run.
        pixels: (K, K + 1) of maps, how many pixels that are labelled as a class (row) are found as a class (column), or
            in the last column as none; None for objects.
    """

    protocol: str
    iou_type: str
    metrics: Numbers
    per_class: Mapping[str, Numbers]
    headline: tuple[str, ...]
    pixels: NDArray[np.int64] | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def primary(self) -> str:
        """Name of the number that selects the best weights of a run."""
        return self.headline[0]

    @property
    def value(self) -> float | None:
        """Value of the primary number."""
        return self.metrics.get(self.primary)

    def metrics_json(self) -> NumbersJson:
        """The numbers over all classes as JSON has them."""
        return dict(self.metrics)

    def to_json(self) -> ScoreJson:
        """Plain dictionaries, ready for ``json.dump``: protocol, iou_type, metrics, per_class."""
        return {
            "protocol": self.protocol,
            "iou_type": self.iou_type,
            "metrics": self.metrics_json(),
            "per_class": {name: dict(numbers) for name, numbers in self.per_class.items()},
        }
