"""Learning four images by heart: what a sound set and sound settings allow, and wrong labels do not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from detrkit.config import Recipe
from detrkit.data.records import ImageRecord
from detrkit.data.transforms import TrainTransform
from detrkit.metrics import metric_for
from detrkit.terminal import say
from detrkit.training.callbacks import Callback, Evaluation, Step
from detrkit.training.clock import RunClock
from detrkit.training.task import Task, Validation, epoch_sampler
from detrkit.training.trainer import Trainer
from detrkit.training.watch import one_class

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Overfit", "four_images", "overfit"]

IMAGES = 4
LEARNED = 0.9
EVALUATE_EVERY = 20  # steps
_ENOUGH = 200  # steps, after which a score that does not rise says something
_RISING = 0.02

Verdict = Literal["learned", "undecided", "failed"]


@dataclass(frozen=True, kw_only=True)
class Overfit:
    """How four images were learned.

    Attributes:
        metric: name of the number: AP50 of objects, the deciding one of maps.
        scores: its values, evaluated on the same images, every 20 steps.
        losses: of all steps.
        steps: how many.
        names: the images.
        only: the only class that is found; None where there are several.
    """

    metric: str
    scores: tuple[float, ...]
    losses: tuple[float, ...]
    steps: int
    names: tuple[str, ...]
    only: str | None = None

    @property
    def best(self) -> float:
        """The highest score."""
        return max(self.scores, default=0.0)

    @property
    def verdict(self) -> Verdict:
        """Whether the images were learned; undecided while the score rises, or after too few steps to tell."""
        if self.best > LEARNED:
            return "learned"
        half = len(self.scores) // 2
        rising = self.best - max(self.scores[:half], default=0.0) >= _RISING
        return "undecided" if rising or self.steps < _ENOUGH else "failed"

    def __str__(self) -> str:
        images, steps = (
            f"{n} {noun}{'s' * (n != 1)}" for n, noun in ((len(self.names), "image"), (self.steps, "step"))
        )
        what = f"{self.metric} {self.best:.3f} on {images} after {steps}"
        if self.verdict == "learned":
            return f"they are learned: {what}"
        if self.verdict == "undecided":
            known = len(self.scores) > 1 and self.best - self.scores[0] >= _RISING
            return f"undecided: {what}{' and rising' if known else ''}; more time: --minutes"
        loss = f"loss {np.mean(self.losses[:20]):.1f} to {np.mean(self.losses[-20:]):.1f}"
        only = f", and all that is found is '{self.only}'" if self.only else ""
        return (
            f"they are not learned: {what} ({loss}){only}. Look at {', '.join(self.names)}: are the boxes where the "
            "objects are, of the right class, and visible at this size?"
        )


def four_images(records: Sequence[ImageRecord], *, count: int = IMAGES) -> list[int]:
    """Places of images that together have as many classes as possible, each with few objects; those of rare classes
    first."""
    filled = [place for place, record in enumerate(records) if len(record.labels)]
    frequency: dict[int, int] = {}
    for place in filled:
        for label in set(records[place].labels.tolist()):
            frequency[label] = frequency.get(label, 0) + 1
    filled.sort(key=lambda place: len(records[place].labels))
    chosen: list[int] = []
    seen: set[int] = set()
    for label in sorted(frequency, key=lambda label: frequency[label]):
        if label not in seen and len(chosen) < count:
            place = next(place for place in filled if label in records[place].labels and place not in chosen)
            chosen.append(place)
            seen |= set(records[place].labels.tolist())
    return [*chosen, *(place for place in filled if place not in chosen)][:count]


def overfit(recipe: Recipe, task: Task, accelerator: Accelerator, *, folder: Path, minutes: float) -> Overfit:
    """Train the model of a task on four of its images, without augmentation, until AP50 on them is above 0.9.

    Changes the weights of the model.

    Args:
        recipe: its rates, precision and seed are used.
        task: model and data.
        accelerator: device.
        folder: for what a training writes; removed in the end.
        minutes: when to stop at the latest.
    """
    unique = task.train_data.unique_records()
    records = [unique[place] for place in four_images(unique)]
    data = replace(task.train_data, records=records * EVALUATE_EVERY, chances=None)
    data = data.with_transform(_plain(task))
    seen = replace(task.train_data, records=records, chances=None)
    small = replace(task, train_data=data, validation=Validation(data=seen, metric=metric_for(seen)))
    watch = _Until(LEARNED)
    quick = recipe.updated(
        training={
            **{"minutes": minutes, "iterations": None, "epochs": 10_000, "evaluate_every": 1, "patience": None},
            **{"batch_size": len(records), "accumulate": 1, "workers": 0, "ema": None, "output": str(folder)},
        },
        schedule={"kind": "constant", "warmup": 10, "drop": None},
        logging={"plots": False, "estimate": False, "every": 10**6},
    )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        trainer = Trainer(
            recipe=quick,
            task=small,
            sampler=epoch_sampler(quick, data, accelerator),
            accelerator=accelerator,
            folder=folder,
            callbacks=[watch],
            clock=RunClock(minutes),
            quiet=True,
        )
        trainer.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Overfit(
        metric=watch.metric,
        scores=tuple(watch.scores),
        losses=tuple(watch.losses),
        steps=trainer.step,
        names=tuple(record.file_name for record in records),
        only=watch.only,
    )


def _plain(task: Task) -> TrainTransform:
    """The preparation of training images without what is drawn at random."""
    given, size = task.train_data.transform, task.model.config.input
    assert isinstance(given, TrainTransform)
    sides = (size.eval_short_side,)
    still = replace(given, crop=False, augmentation="detr", colors="none", flip=0.0, vertical_flip=0.0)
    return replace(still, short_sides=sides, max_side=size.eval_max_side)


class _Until(Callback):
    """Remembers losses and scores, and ends the training when the images are learned."""

    def __init__(self, enough: float) -> None:
        self.enough, self.metric, self.only = enough, "AP50", ""
        self.scores: list[float] = []
        self.losses: list[float] = []

    def on_step(self, trainer: Trainer, step: Step) -> None:
        self.losses.append(step.loss)

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        score = evaluation.score
        self.metric = "AP50" if "AP50" in score.metrics else score.primary
        self.scores.append(score.metrics.get(self.metric) or 0.0)
        self.only = (one_class(evaluation.objects) or "") if evaluation.objects is not None else ""
        say(f"  step {trainer.step}: loss {self.losses[-1]:.2f}, {self.metric} {self.scores[-1]:.3f}")
        if self.scores[-1] > self.enough:
            trainer.stop("the images are learned")
