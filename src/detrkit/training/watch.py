"""Signs that a training goes wrong, looked for while it runs: a loss that stays, nothing found, one class only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detrkit.report import ScoredSet
from detrkit.training.callbacks import Callback, Evaluation, Step
from detrkit.training.task import SHORT_FINE_TUNING, SHORT_STEPS

if TYPE_CHECKING:
    from detrkit.training.trainer import Trainer

__all__ = ["Watch", "flat_loss", "one_class"]

_AFTER = 300  # steps, after which the loss has fallen in every sound run
_WINDOW = 50
_FALLEN = 0.98
_NOTHING = 1e-3
_ALL, _MOST = 0.99, 0.8  # share of the class among detections, and in the ground truth


class Watch(Callback):
    """Warns once for each sign; the run goes on."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: list[float] = []
        self._said: set[str] = set()
        self._whole = False  # the run was seen from its beginning

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Look at the loss, where the run is seen from its first step; one from a detector may have learned before."""
        if step.number == 1:
            self._whole = trainer.recipe.model.init is None
        if self._whole and np.isfinite(step.loss):
            if len(self._first) < _WINDOW:
                self._first.append(step.loss)
            self._last = [*self._last[-_WINDOW + 1 :], step.loss]
        if step.number % _WINDOW == 0 and step.number >= _AFTER and (text := flat_loss(self._first, self._last)):
            self._say(trainer, "loss", f"{text}, in {step.number} steps")

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """Look at what is found."""
        enough = SHORT_STEPS if trainer.recipe.model.init is None else SHORT_FINE_TUNING
        if trainer.step < enough:
            return
        score = evaluation.score
        if score.value is not None and score.value < _NOTHING:
            self._say(trainer, "nothing", f"{score.primary} is {score.value:.3f} after {trainer.step} steps")
        elif evaluation.objects is not None and (name := one_class(evaluation.objects)):
            self._say(trainer, "one class", f"after {trainer.step} steps all that is found is '{name}'")

    def _say(self, trainer: Trainer, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            root = trainer.recipe.data.root
            trainer.progress.print(
                f"warning: {text}; 'detrkit train --data {root} --check' looks for faults of the labels and tries "
                "to learn four images"
            )


def flat_loss(first: list[float], last: list[float]) -> str:
    """In words, that the last losses are no lower than the first ones; empty where they are."""
    if len(first) < _WINDOW or len(last) < _WINDOW:
        return ""
    before, now = float(np.median(first)), float(np.median(last))
    return "" if now < _FALLEN * before else f"the loss has not fallen ({before:.2f}, now {now:.2f})"


def one_class(data: ScoredSet) -> str | None:
    """The only class among the surest detections, as many as there are objects, where the labels have several."""
    objects = np.bincount(data.truth.label[~data.truth.crowd], minlength=len(data.class_names))
    count = int(objects.sum())
    if count < 20 or objects.max() > _MOST * count or len(data.found) < count:
        return None
    surest = np.argsort(-data.found.score, kind="stable")[:count]
    found = np.bincount(data.found.label[surest], minlength=len(data.class_names))
    return data.class_names[int(found.argmax())] if found.max() >= _ALL * count else None
