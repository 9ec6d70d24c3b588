"""Recipes: one typed, validated YAML file decides a run.

Unknown keys are refused with the nearest valid one. Only ``model`` takes further keys: every field of the chosen
model's configuration (``create_model`` checks those).
"""

from __future__ import annotations

from detrkit.config.loading import load_recipe
from detrkit.config.recipe_files import find_recipe, list_recipes
from detrkit.config.schema import (
    DataSection,
    LoggingSection,
    ModelSection,
    OptimizerSection,
    Recipe,
    ScheduleSection,
    SplitFiles,
    TrainingSection,
)

__all__ = [
    "DataSection",
    "LoggingSection",
    "ModelSection",
    "OptimizerSection",
    "Recipe",
    "ScheduleSection",
    "SplitFiles",
    "TrainingSection",
    "find_recipe",
    "list_recipes",
    "load_recipe",
]
