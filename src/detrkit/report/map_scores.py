"""What is known about an evaluation of maps: the score of each class, and which classes its pixels are taken for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from detrkit.metrics.score import Score
from detrkit.report.confusion import Confusion

__all__ = ["MapScores", "read_map_scores"]


@dataclass(frozen=True, kw_only=True)
class MapScores:
    """An evaluation of maps.

    Attributes:
        score: its numbers, with the pixels of each class.
        columns: names of the numbers of a class, the deciding one first.
    """

    score: Score
    columns: tuple[str, ...]

    @property
    def confusion(self) -> Confusion:
        """The pixels of each class as they are found; found as none in the last column, nothing in the last row."""
        found = self.score.pixels
        classes = len(self.score.per_class)
        counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
        if found is not None:
            counts[:classes] = found
        return Confusion(names=(*self.score.per_class, "none"), counts=counts, of="pixels")

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the run folder."""
        one, pixels = self.score, self.score.pixels
        return {
            "protocol": one.protocol,
            "headline": list(one.headline),
            "columns": list(self.columns),
            "metrics": dict(one.metrics),
            "per_class": [{"name": name, **numbers} for name, numbers in one.per_class.items()],
            "pixels": None if pixels is None else pixels.tolist(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """From :meth:`to_json`."""
        rows = {str(row["name"]): {key: row[key] for key in values["columns"]} for row in values["per_class"]}
        pixels = None if values["pixels"] is None else np.array(values["pixels"], dtype=np.int64)
        if pixels is not None and pixels.shape != (len(rows), len(rows) + 1):
            raise ValueError(f"pixels of {len(rows)} classes, but of shape {pixels.shape}")
        headline = tuple(values["headline"])
        score = Score(values["protocol"], "segm", values["metrics"], rows, headline, pixels=pixels)
        return cls(score=score, columns=tuple(values["columns"]))


def read_map_scores(path: Path) -> MapScores | None:
    """The scores of maps that a run has kept; None where it has kept none."""
    try:
        return MapScores.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None
