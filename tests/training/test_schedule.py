"""Learning rate as a function of the step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detrkit.config import ScheduleSection
from detrkit.training.schedule import Schedule, build_schedule


def section(**values: object) -> ScheduleSection:
    return ScheduleSection.model_validate(values)


def test_step_drops_where_an_epoch_begins() -> None:
    schedule = build_schedule(section(kind="step", drop=40), steps_per_epoch=7, total_steps=350)
    assert [schedule(step) for step in (0, 279, 280, 349)] == pytest.approx([1, 1, 0.1, 0.1])


def test_step_equals_torch() -> None:
    """The published schedule: StepLR with one step per epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.StepLR(optimizer, 4)
    schedule = build_schedule(section(drop=4), steps_per_epoch=3, total_steps=18)
    for epoch in range(6):
        assert [schedule(epoch * 3 + step) for step in range(3)] == pytest.approx([reference.get_last_lr()[0]] * 3)
        optimizer.step()
        reference.step()


def test_multistep_fractions_and_gamma() -> None:
    schedule = build_schedule(section(kind="multistep", drop=[3, 1.5], gamma=0.5), steps_per_epoch=10, total_steps=50)
    assert schedule.drop_steps == (15, 30)
    assert [schedule(step) for step in (14, 15, 29, 30)] == pytest.approx([1, 0.5, 0.5, 0.25])


def test_no_drop_given_means_80_percent() -> None:
    schedule = build_schedule(section(kind="step"), steps_per_epoch=10, total_steps=500)
    assert schedule.drop_steps == (400,)
    assert build_schedule(section(drop=[]), steps_per_epoch=10, total_steps=500)(499) == 1


def test_cosine_runs_from_one_to_zero_after_the_warm_up() -> None:
    schedule = build_schedule(section(kind="cosine", warmup=10), steps_per_epoch=10, total_steps=110)
    assert [schedule(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert schedule(10) == 1
    assert schedule(60) == pytest.approx(0.5)
    assert schedule(35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule(110) == pytest.approx(0, abs=1e-12)
    assert schedule(500) == pytest.approx(0, abs=1e-12)


@given(
    kind=st.sampled_from(["step", "multistep", "cosine", "constant"]),
    warmup=st.integers(0, 20),
    drops=st.lists(st.integers(1, 200), max_size=3),
)
def test_factors_stay_in_range_and_fall_after_the_warm_up(kind: str, warmup: int, drops: list[int]) -> None:
    schedule = Schedule(kind=kind, total_steps=200, drop_steps=tuple(drops), warmup=warmup)
    factors = [schedule(step) for step in range(200)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if kind == "constant":
        assert set(factors[warmup:]) == {1.0}
