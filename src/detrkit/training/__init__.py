"""Training: one readable loop on accelerate, with optimizer, schedule, EMA, checkpoints and loggers."""

from __future__ import annotations

from detrkit.training.auto.recipe import auto_recipe
from detrkit.training.callbacks import Callback, Evaluation, Step
from detrkit.training.curve import learning_curve
from detrkit.training.run import RunResult, train

__all__ = ["Callback", "Evaluation", "RunResult", "Step", "auto_recipe", "learning_curve", "train"]
