"""Training: one readable loop on accelerate, with optimizer, schedule, EMA, checkpoints and loggers."""

from __future__ import annotations

from detrkit.training.auto.recipe import auto_recipe
from detrkit.training.run import RunResult, train

__all__ = ["RunResult", "auto_recipe", "train"]
