"""Score thresholds that were chosen on validation images: one for all classes, and one for each with enough objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_THRESHOLD", "Thresholds"]

DEFAULT_THRESHOLD = 0.3
"""The score threshold of detections and instances if neither the caller nor the checkpoint gives one."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Minimum scores, inclusive, of detections.

    Attributes:
        overall: for all classes.
        per_class: for each class in label order; None: ``overall``.
    """

    overall: float
    per_class: tuple[float | None, ...]

    def __post_init__(self) -> None:
        for value in (self.overall, *self.per_class):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"a threshold is a score between 0 and 1, got {value}")

    @property
    def by_label(self) -> NDArray[np.float64]:
        """(K,) the threshold of each class."""
        return np.array([self.overall if value is None else value for value in self.per_class], dtype=np.float64)

    def to_json(self) -> dict[str, object]:
        """Plain values for a checkpoint."""
        return {"overall": self.overall, "per_class": list(self.per_class)}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Thresholds:
        """Thresholds from :meth:`to_json`.

        Raises:
            ValueError: they are something else.
        """
        overall, per_class = values.get("overall"), values.get("per_class")
        if not isinstance(per_class, list) or not all(isinstance(one, float | int | None) for one in per_class):
            raise ValueError("'per_class' is not a list of numbers and nulls")
        if not isinstance(overall, float | int):
            raise ValueError("'overall' is not a number")
        return cls(overall=float(overall), per_class=tuple(None if one is None else float(one) for one in per_class))
