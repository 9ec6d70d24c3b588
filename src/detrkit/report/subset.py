"""The detections of a set that reach their thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrkit.report.scored_set import ScoredSet

__all__ = ["above", "threshold_of_each", "with_found"]


def threshold_of_each(
    overall: float | None, per_class: Sequence[float | None], *, default: float
) -> NDArray[np.float64]:
    """(K,) the threshold of each class: its own, else that of all, else the default."""
    return np.array([_first(own, overall, default) for own in per_class], dtype=np.float64)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def above(data: ScoredSet, thresholds: NDArray[np.float64]) -> ScoredSet:
    """The set with only the detections that reach the threshold of their class."""
    return with_found(data, data.found.score >= thresholds[data.found.label])


def with_found(data: ScoredSet, kept: NDArray[np.bool_]) -> ScoredSet:
    """The set with only some of its detections (D,)."""
    found, index = data.found, np.flatnonzero(kept)
    masks: list[Any] | None = None if found.masks is None else [found.masks[position] for position in index.tolist()]
    columns = {name: getattr(found, name)[index] for name in ("image", "label", "boxes", "score", "lenient")}
    return replace(data, found=replace(found, **columns, masks=masks))
