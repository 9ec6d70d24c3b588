"""The result of an evaluation: named numbers together with the protocol that defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """Numbers of one evaluation.

    protocol (``"coco"``) · iou_type ``"bbox"`` or ``"segm"`` · metrics: name to fraction in [0, 1], None where the
    protocol leaves it undefined (no ground truth of that kind) · per_class: class name to the same for that class.
    """

    protocol: str
    iou_type: str
    metrics: Mapping[str, float | None]
    per_class: Mapping[str, Mapping[str, float | None]]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, ready for ``json.dump``: protocol, iou_type, metrics, per_class."""
        return {
            "protocol": self.protocol,
            "iou_type": self.iou_type,
            "metrics": dict(self.metrics),
            "per_class": {name: dict(numbers) for name, numbers in self.per_class.items()},
        }
