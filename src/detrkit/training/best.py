"""The best evaluation of a run so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypedDict

from detrkit.metrics import Score

__all__ = ["Best", "BestState"]


class BestState(TypedDict, total=False):
    """:class:`Best` as it is stored in a checkpoint."""

    epoch: int | None
    metrics: dict[str, float | None]
    headline: list[str]
    stale: int


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation of a run so far.

    Attributes:
        epoch: epoch of the evaluation, counted from 1; None before the first evaluation.
        metrics: metric names -> values.
        headline: names of the metrics for a summary; the first one decides which evaluation is best.
        stale: evaluations since then, none of which was better.
    """

    epoch: int | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    headline: tuple[str, ...] = ()
    stale: int = 0

    @property
    def value(self) -> float | None:
        """The deciding metric; None before the first evaluation, or where the data leave it undefined."""
        return self.metrics.get(self.headline[0]) if self.headline else None

    def beaten_by(self, score: Score) -> bool:
        """Whether a later evaluation is better; while the metric is undefined, the last weights are the best."""
        return self.value is None or (score.value is not None and score.value > self.value)

    def state(self) -> BestState:
        """The state for a checkpoint."""
        headline = list(self.headline)
        return {"epoch": self.epoch, "metrics": dict(self.metrics), "headline": headline, "stale": self.stale}

    @classmethod
    def from_state(cls, state: BestState) -> Self:
        """Restore :meth:`state`; the state of version 0.1 has no headline, its first three metrics are used."""
        metrics = state["metrics"]
        headline = tuple(state.get("headline", list(metrics)[:3]))
        return cls(epoch=state["epoch"], metrics=metrics, headline=headline, stale=state.get("stale", 0))
