"""What a run will cost on this machine, measured on a few steps before the first epoch, and said in words."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import torch

from detrkit.data.checked import was_checked
from detrkit.errors import DataError
from detrkit.evaluation.loop import predict_dataset
from detrkit.training.memory import PeakMemory
from detrkit.training.rehearsal import optimizer_bytes, without_trace
from detrkit.training.task import MINIMUM_STEPS, SHORT_FINE_TUNING, SHORT_STEPS, Validation

if TYPE_CHECKING:
    from detrkit.training.trainer import Trainer

__all__ = ["Cost", "measure_cost", "plan_run", "say_cost", "short_remark"]

STEPS = 3  # that are measured; the first one warms up
IMAGES = 3  # of the validation data, likewise
AT_END = 50  # training images at most, which are scored for the report of a run


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was measured.

    Attributes:
        step: seconds of an optimizer step.
        evaluation: seconds of a whole evaluation; 0 where there is none.
        memory: bytes at the peak of a step.
    """

    step: float
    evaluation: float
    memory: int


def measure_cost(trainer: Trainer) -> Cost | None:
    """Measure steps on the first batches without an update: weights, statistics and random states stay as they are.

    Returns:
        The cost, or None where a training image cannot be read: the training will say so.
    """
    device, times = trainer.accelerator.device, [time.monotonic()]
    with without_trace(trainer.model):
        try:
            with PeakMemory(device) as memory:
                trainer.training_mode()
                for group in islice(trainer.groups(), min(STEPS, trainer.batches)):
                    trainer.backward([batch.to(device) for batch in group])
                    _wait(device)
                    times.append(time.monotonic())
            validation = trainer.task.validation
            per_image = 0.0 if validation is None else _seconds_per_image(trainer, validation)
        except DataError:
            return None
        finally:
            trainer.meter.clear()
    measured = [after - before for before, after in pairwise(times)]
    # compiled are the first step and, with another canvas, the second
    rest = measured[-1:] if trainer.recipe.training.compile else measured[1:] or measured
    images = 0 if validation is None else len(validation.data)
    return Cost(
        step=sum(rest) / len(rest),
        evaluation=per_image * images / trainer.accelerator.num_processes,
        memory=memory.peak + optimizer_bytes(trainer.parameters),
    )


def _seconds_per_image(trainer: Trainer, validation: Validation) -> float:
    device, batch = trainer.accelerator.device, trainer.evaluation_batch
    found = predict_dataset(
        trainer.evaluated_model,
        validation.data,
        batch_size=batch,
        device=device,
        precision=trainer.recipe.training.precision,
    )
    times = [time.monotonic()]
    for _ in islice(found, max(IMAGES, 2 * batch)):  # all images of a batch come at once
        _wait(device)
        times.append(time.monotonic())
    found.close()
    images = len(times) - 1
    if images <= batch:  # the first batch, which warms up, is the only one
        return (times[-1] - times[0]) / max(1, images)
    return (times[-1] - times[batch]) / (images - batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plan_run(trainer: Trainer) -> None:
    """Before the first epoch: plan the steps of a run of so many minutes, and say what the run will cost."""
    clock, estimate = trainer.clock, trainer.recipe.logging.estimate
    if clock is not None and trainer.task.validation is not None:
        if trainer.recipe.logging.plots:
            clock.closing = min(AT_END, len(trainer.task.train_data)) / max(1, len(trainer.task.validation.data))
        clock.between_evaluations = (trainer.recipe.training.evaluate_every or 0) * trainer.steps_per_epoch
    unplanned = clock is not None and not clock.planned
    if unplanned or (trainer.step == 0 and estimate):
        with trainer.interrupt.immediate():
            cost = measure_cost(trainer)
        if cost is not None and clock is not None and unplanned:
            clock.begin(
                per_step=trainer.of_first(cost.step),
                per_evaluation=trainer.of_first(cost.evaluation),
                now=trainer.of_first(clock.seconds),
                step=trainer.step,
                phase=min(1.0, trainer.step / trainer.total_steps),
            )
            trainer.follow_clock()
        if cost is not None and estimate:
            say_cost(trainer, cost)
    if clock is not None and clock.planned:
        clock.resumed(trainer.step, trainer.of_first(clock.seconds))
        trainer.follow_clock()
    if remark := short_remark(trainer):
        trainer.progress.print(remark)


def say_cost(trainer: Trainer, cost: Cost, *, checking: bool = False) -> None:
    """Print what the run will cost, which settings change it, and, where it was never done, how to check the data.

    checking: this is a check of the data itself.
    """
    every = (trainer.recipe.training.evaluate_every or 0) * trainer.steps_per_epoch
    evaluations = math.ceil(trainer.total_steps / every) if every and trainer.task.validation is not None else 0
    training, evaluating = trainer.total_steps * cost.step, evaluations * cost.evaluation
    rate = 60 / max(cost.step, 1e-9)
    text = (
        f"cost here: {_counted(trainer.total_steps, 'optimizer step')} at {_rate(rate)} a minute (measured on {STEPS}) "
        f"take {_in_words(training)}"
    )
    if evaluations:
        images = len(trainer.task.validation.data) if trainer.task.validation is not None else 0
        text += (
            f", {_counted(evaluations, 'evaluation')} of {_counted(images, 'image')} {_in_words(evaluating)}: about "
            f"{_in_words(training + evaluating)}"
        )
    trainer.progress.print(f"{text}, and {cost.memory / 1e9:.1f} GB of memory")
    trainer.progress.print(
        "  time: training.minutes=60 plans the run for an hour, training.iterations sets its steps, "
        "training.evaluate_every its evaluations; time and memory: data.short_sides; memory: training.batch_size with "
        "training.accumulate"
    )
    root = trainer.recipe.data.root
    if not (checking or was_checked(root)):
        trainer.progress.print(f"  these data were never checked; labels that spoil a run: detrkit data check {root}")
    trainer.log(
        "cost",
        steps_per_minute=round(rate, 3),
        seconds=round(training + evaluating, 1),
        memory_gb=round(cost.memory / 1e9, 3),
        checked=was_checked(root),
    )


def short_remark(trainer: Trainer) -> str:
    """A warning where a run is too short for its model to learn; else empty."""
    section, steps = trainer.recipe.training, trainer.total_steps
    if steps >= (SHORT_STEPS if trainer.recipe.model.init is None else SHORT_FINE_TUNING):
        return ""
    key = "minutes" if section.minutes is not None else "epochs" if section.iterations is None else "iterations"
    return (
        f"warning: {steps} optimizer steps are too short for a detection transformer (usual outcome: AP 0); "
        f"{MINIMUM_STEPS} and more work: raise training.{key}"
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _in_words(seconds: float) -> str:
    """3 d 4 h, 2 h 31 min, 4 min, 20 s."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
