"""The best evaluation of a run so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypedDict

from detrkit.metrics import Score

__all__ = ["Best", "BestState"]


class BestState(TypedDict, total=False):
    """What a checkpoint keeps of it."""

    epoch: int | None
    metrics: dict[str, float | None]
    headline: list[str]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation of a run so far.

    Attributes:
        epoch: after which it was, counted from 1; None: there was none yet.
        metrics: its numbers.
        headline: names of the few numbers that a summary shows; the first of them chose it.
    """

    epoch: int | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    headline: tuple[str, ...] = ()

    @property
    def value(self) -> float | None:
        """The number that chose it; None where there is none, or where the data leave it undefined."""
        return self.metrics.get(self.headline[0]) if self.headline else None

    def beaten_by(self, score: Score) -> bool:
        """Whether a later evaluation is better; while the number is undefined, the last weights are the best."""
        return self.value is None or (score.value is not None and score.value > self.value)

    def state(self) -> BestState:
        """For a checkpoint."""
        return {"epoch": self.epoch, "metrics": dict(self.metrics), "headline": list(self.headline)}

    @classmethod
    def from_state(cls, state: BestState) -> Self:
        """From :meth:`state`, or from what version 0.1 kept: it had no headline, which were the first three numbers."""
        metrics = state["metrics"]
        return cls(epoch=state["epoch"], metrics=metrics, headline=tuple(state.get("headline", list(metrics)[:3])))
