"""Recipes: one typed, validated YAML file determines a run.

An unknown key is an error that names the nearest valid key. Only ``model`` accepts further keys: the fields of the
configuration of the chosen model, which ``create_model`` checks.
"""

from __future__ import annotations

from detrkit.config.loading import load_recipe, override_values
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
    "override_values",
]
