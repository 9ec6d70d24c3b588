"""Learning rate schedules as pure functions of the optimizer step: a resumed run needs no schedule state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from detrkit.config import ScheduleSection, TrainingSection

__all__ = ["Schedule", "build_schedule", "length_in_steps"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """``schedule(step)`` is the factor on every group's learning rate in optimizer step ``step`` (0-based).

    The factor is a linear warm-up over the first ``warmup`` steps, multiplied by ``gamma`` at each of ``drop_steps``
    (step and multistep), by a cosine from 1 after the warm-up to 0 at ``total_steps`` (cosine), or by 1 (constant).
    """

    kind: str
    total_steps: int
    drop_steps: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: int = 0

    def __call__(self, step: int, *, phase: float | None = None) -> float:
        """The factor. phase: part of the schedule that is over, where it is stretched over another number of steps."""
        factor = (step + 1) / self.warmup if step < self.warmup else 1.0
        place = step if phase is None else phase * self.total_steps
        if self.kind in ("step", "multistep"):
            factor *= self.gamma ** sum(place >= drop for drop in self.drop_steps)
        elif self.kind == "cosine" and step >= self.warmup:
            progress = max(0.0, place - self.warmup) / max(1, self.total_steps - self.warmup)
            factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return factor


def length_in_steps(section: TrainingSection, *, batches: int) -> int:
    """Optimizer steps of a run whose epochs have so many batches."""
    return section.iterations or (section.epochs or 1) * math.ceil(batches / section.accumulate)


def build_schedule(section: ScheduleSection, *, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Build the schedule of a recipe. Drops in epochs become optimizer steps; default: one drop at 80 %."""
    if section.drop is None:
        drops: tuple[int, ...] = (round(0.8 * total_steps / steps_per_epoch) * steps_per_epoch,)
    else:
        drops = tuple(sorted(round(epoch * steps_per_epoch) for epoch in section.drop))
    return Schedule(
        kind=section.kind, total_steps=total_steps, drop_steps=drops, gamma=section.gamma, warmup=section.warmup
    )
