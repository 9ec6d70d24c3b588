"""A run planned by time: how many steps its minutes have room for, and where in its schedule it is."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TypedDict

from detrkit.training.schedule import Schedule

__all__ = ["ClockState", "RunClock"]

# For what comes after the last evaluation (pictures, the page of the run) a share of the time is kept, but at least so
# many seconds, for which a short run gives up a larger share.
CLOSING = 0.03
CLOSING_SECONDS, OF_SHORT_RUNS = 20.0, 0.12
WORTH = 0.02  # a plan that is off by less is kept
INERTIA = 0.9  # of the mean of step times: about the last ten steps count


class ClockState(TypedDict):
    """:class:`RunClock` as it is stored in a checkpoint."""

    seconds: float
    budget: float
    total: int
    first_total: int
    anchor: tuple[int, float]
    per_step: float
    per_evaluation: float


class RunClock:
    """Plans the number of optimizer steps of a run that has so many minutes, again after every step.

    The time counts from the beginning to the end of the run, evaluations and pictures included, over all
    sessions of a resumed run but not between them. The position in the schedule moves evenly towards 1, whatever the
    plan becomes: with a new plan later steps are longer or shorter, and no learning rate jumps.

    Args:
        minutes: the time.
        began: when it began, by ``time.monotonic``; None: now.
    """

    def __init__(self, minutes: float, *, began: float | None = None) -> None:
        self.budget = 60 * minutes
        self.total = self.first_total = 0  # steps planned now, and at the beginning
        self.per_step = self.per_evaluation = 0.0
        self.closing = 0.0  # evaluations: what is scored for the report after the last one
        self.between_evaluations = 0  # steps; 0: there is only the one at the end, if any
        self._began, self._earlier = time.monotonic() if began is None else began, 0.0
        self._anchor = (0, 0.0)
        self._other_budget = False
        self._before: float | None = None  # end of the step before; None: something else came in between

    @property
    def seconds(self) -> float:
        """Spent so far, over all sessions."""
        return self._earlier + time.monotonic() - self._began

    @property
    def planned(self) -> bool:
        """Whether there is a plan."""
        return self.first_total > 0

    def begin(self, *, per_step: float, per_evaluation: float, now: float, step: int = 0, phase: float = 0.0) -> None:
        """The first plan, from measured seconds.

        Args:
            per_step: of a step.
            per_evaluation: of a whole evaluation; 0: there is none.
            now: spent so far.
            step: steps that were done before there was a plan.
            phase: position in the schedule after them.
        """
        self.per_step, self.per_evaluation, self._anchor = per_step, per_evaluation, (step, phase)
        self.total = self.first_total = step + max(1, self._steps_left(now))

    def phase(self, step: int) -> float:
        """Position of a step in the schedule, from 0 at the beginning to 1 at the planned end."""
        first, phase = self._anchor
        return min(1.0, phase + (1 - phase) * (step - first) / max(1, self.total - first))

    def factor(self, schedule: Schedule, step: int) -> float:
        """Factor on the learning rates in a step: of the schedule, stretched over the planned steps."""
        if not self.planned:
            return schedule(step)
        warmup = min(schedule.warmup, self.first_total // 10)
        return replace(schedule, warmup=warmup)(step, phase=self.phase(step))

    def tick(self, step: int, now: float) -> None:
        """A step has been done; with several processes ``now`` is the time of the first on all of them."""
        if self._before is not None:
            self.per_step = INERTIA * self.per_step + (1 - INERTIA) * (now - self._before)
        self._before = now
        self._plan_again(step, now)

    def resumed(self, step: int, now: float) -> None:
        """The run goes on in another session; with other minutes there is another plan."""
        if self._other_budget:
            self._plan_again(step, now)

    def _plan_again(self, step: int, now: float) -> None:
        left = self._steps_left(now)
        if abs(left - (self.total - step)) > WORTH * (self.total - step):
            phase = self.phase(step)
            self._anchor, self.total = (step, phase), step + left

    def evaluated(self, seconds: float) -> None:
        """An evaluation, and what followed it, took so long."""
        self.per_evaluation, self._before = seconds, None

    def state(self) -> ClockState:
        """The state for a checkpoint."""
        return {
            "seconds": self.seconds,
            "budget": self.budget,
            "total": self.total,
            "first_total": self.first_total,
            "anchor": self._anchor,
            "per_step": self.per_step,
            "per_evaluation": self.per_evaluation,
        }

    def load_state(self, state: ClockState) -> None:
        """Continue from :meth:`state`."""
        self._earlier, self._anchor = state["seconds"], (state["anchor"][0], state["anchor"][1])
        self.total, self.first_total = state["total"], state["first_total"]
        self.per_step, self.per_evaluation = state["per_step"], state["per_evaluation"]
        self._other_budget = state["budget"] != self.budget

    def _steps_left(self, now: float) -> int:
        """Steps that the rest of the time has room for, beside their evaluations and the one at the end."""
        closing = max(CLOSING * self.budget, min(CLOSING_SECONDS, OF_SHORT_RUNS * self.budget))
        room = self.budget - now - closing - (1 + self.closing) * self.per_evaluation
        steps = room / max(self.per_step, 1e-9)
        for _ in range(3 if self.between_evaluations else 0):  # fewer steps may have fewer evaluations
            evaluations = max(0, int(steps / self.between_evaluations))
            steps = (room - evaluations * self.per_evaluation) / max(self.per_step, 1e-9)
        return max(0, int(steps))
