"""Runs planned by minutes: the plan, the schedule under it, and what a checkpoint keeps of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from detrkit.config import load_recipe
from detrkit.training import clock as clocks
from detrkit.training import train
from detrkit.training.clock import RunClock
from detrkit.training.loggers import read_log
from detrkit.training.schedule import Schedule
from tests.training.fakes import fake_task, last_state, make_recipe, scores

COSINE = Schedule(kind="cosine", total_steps=1000, warmup=0)


def simulated(minutes: float, *, step: Any, evaluation: float = 0.0, every: int = 0, guess: float = 1.0) -> Any:
    """(seconds at the end, learning rate factors) of a run whose step number n takes ``step(n)`` seconds."""
    clock = RunClock(minutes)
    clock.between_evaluations = every
    clock.begin(per_step=guess, per_evaluation=evaluation, now=0.0)
    now, factors = 0.0, []
    for number in itertools.count(1):
        factors.append(clock.factor(COSINE, number - 1))
        now += step(number)
        clock.tick(number, now)
        finished = number >= clock.total
        if finished or (every and number % every == 0):
            now += evaluation
            clock.evaluated(evaluation)
        if finished:
            return now, factors


@pytest.mark.parametrize(
    "case",
    [
        {"step": lambda n: 1.0},
        {"step": lambda n: 1.0, "evaluation": 20.0, "every": 50},
        {"step": lambda n: 1.0, "evaluation": 60.0},
        {"step": lambda n: 3.0, "guess": 1.0},  # the measured steps were too quick
        {"step": lambda n: 0.3, "guess": 1.0},
        {"step": lambda n: 1.0 if n < 100 else 2.5},  # somebody else begins to compute
        {"step": lambda n: 2.5 if n < 60 else 0.7, "evaluation": 10.0, "every": 40},
    ],
)
def test_the_time_is_kept(case: Any) -> None:
    seconds, factors = simulated(10.0, **case)
    assert 0.93 * 600 < seconds < 1.0 * 600
    assert factors[0] == 1
    assert factors[-1] < 0.01, "the schedule ends with the run"
    assert max(a - b for a, b in itertools.pairwise(factors)) < 0.05, "no learning rate jumps"
    assert all(a >= b for a, b in itertools.pairwise(factors))


def test_drops_move_with_the_length() -> None:
    clock = RunClock(60)
    clock.begin(per_step=1.0, per_evaluation=0.0, now=0.0)
    clock.total = clock.first_total = 200
    stepwise = Schedule(kind="step", total_steps=1000, drop_steps=(800,), warmup=50)
    factors = [clock.factor(stepwise, step) for step in range(200)]
    assert factors[159] == 1
    assert factors[160] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(10 / 20), "a tenth of the steps warms up at most"


def test_a_plan_is_restored() -> None:
    clock = RunClock(10)
    clock.begin(per_step=1.0, per_evaluation=5.0, now=0.0)
    for number in range(1, 40):
        clock.tick(number, 3.0 * number)
    other = RunClock(10)
    other.load_state(clock.state())
    assert (other.total, other.phase(40)) == (clock.total, clock.phase(40))
    assert other.seconds == pytest.approx(clock.seconds, abs=1.0)


class Slow:
    """A clock that goes on by a second whenever somebody looks at it: once a step, and once a checkpoint."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


def slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same slow clock wherever a plan looks at one."""
    clock = Slow()
    monkeypatch.setattr(clocks, "time", clock)
    monkeypatch.setattr("detrkit.training.run.time", clock)


def test_a_run_of_a_minute_and_its_second_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    settings = {"evaluate_every": 1000, "minutes": 1, "logging.estimate": True, "logging.every": 10}
    with fake_task(tmp_path, evaluate=scores(0.1)):
        train(make_recipe(tmp_path, **settings))
        log = read_log(tmp_path / "run" / "log.jsonl")
        assert next(row for row in log if row["event"] == "cost")["steps_per_minute"] > 0
        state = last_state(tmp_path / "run")
        steps = state["position"]["step"]
        assert 30 < steps < 60, "24 steps are those of the recipe without minutes"
        assert state["clock"]["seconds"] < 70
        train(tmp_path / "run", resume=True)  # no time is left
        assert last_state(tmp_path / "run")["position"]["step"] == steps
        train(tmp_path / "run", resume=True, minutes=2)
        assert steps + 30 < last_state(tmp_path / "run")["position"]["step"] < 120


def test_a_run_by_epochs_gets_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    with fake_task(tmp_path):
        train(make_recipe(tmp_path, epochs=2, evaluate_every=0, schedule={"kind": "constant", "warmup": 0}))
        train(tmp_path / "run", resume=True, minutes=1)
    assert 8 + 20 < last_state(tmp_path / "run")["position"]["step"] < 8 + 60


def test_minutes_of_a_recipe() -> None:
    assert load_recipe({}, ["minutes=60"]).training.minutes == 60
    assert load_recipe({}, ["minutes=60", "training.epochs=40"]).training.epochs == 40
