"""Which settings of a recipe an evaluation uses: every override is applied, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from detrkit.config import Recipe
from detrkit.errors import CheckpointError, RecipeError, did_you_mean
from detrkit.models import Architecture, Detector, DetectorConfig
from detrkit.models.config import Input, Postprocessing, option_names

__all__ = ["check_overrides", "evaluation_config"]

_OPTIONS = frozenset(option_names(Postprocessing) + option_names(Input)) - {"train_short_sides", "train_max_side"}
_SIZES = frozenset({"data.eval_short_side", "data.eval_max_side"})
_FILES = frozenset(
    {"data.root", "data.format", "data.on_error", "data.max_detections"}
    | {f"data.{split}.{key}" for split in ("train", "val") for key in ("annotations", "images")}
)
_ARGUMENTS = frozenset({"batch_size", "workers", "device", "precision"})  # keys of training that are arguments here


def check_overrides(given: Mapping[str, object], *, loaded: bool) -> None:
    """Check that an evaluation uses every key outside ``model``.

    Args:
        given: dotted keys and values of the overrides.
        loaded: the data set is loaded already, so that its files cannot be chosen.

    Raises:
        RecipeError: a key that has no effect; the message names it.
    """
    for key in given:
        section, _, name = key.partition(".")
        if section == "model" and name not in ("init", "pretrained_backbone", "backbone_weights"):
            continue
        if key in _FILES and loaded:
            raise RecipeError(f"override '{key}': the data set is loaded already")
        if key not in _FILES | _SIZES:
            hint = f"; give --{name.replace('_', '-')} (in Python {name}=…)" if name in _ARGUMENTS else ""
            raise RecipeError(f"override '{key}': it has no effect on an evaluation{hint}")


def evaluation_config(
    model: Detector, recipe: Recipe, given: Mapping[str, object], *, built: bool
) -> DetectorConfig[Architecture]:
    """The model's configuration with image preparation and post-processing of a recipe; the model is not changed.

    Args:
        model: the model, loaded or in memory.
        recipe: the recipe with its overrides.
        given: dotted keys and values of the overrides.
        built: the model was built with the options of the recipe (an official file).

    Raises:
        CheckpointError: the recipe is for another model.
        RecipeError: an option that the model does not have or that needs another network, or a value out of range.
    """
    wanted = recipe.model.name if "name" in recipe.model.model_fields_set else None
    if wanted not in (None, model.name) and not built:
        raise CheckpointError(f"the checkpoint holds a '{model.name}', but {recipe.source} is for a '{wanted}'")
    config, options = model.config, recipe.model.overrides
    own, architecture = config.flat(), option_names(type(config.architecture))
    for key, value in options.items():
        where = f"override 'model.{key}'" if f"model.{key}" in given else recipe.source
        if key not in own:
            raise RecipeError(f"{where}: model '{model.name}' has no option '{key}'.{did_you_mean(key, own)}")
        if key in _OPTIONS or built or own[key] == value:
            continue
        differs = f"{where}: the checkpoint has {key} = {own[key]}, not {value}"
        if f"model.{key}" in given:
            raise RecipeError(f"{differs}; an evaluation changes only image preparation and post-processing")
        if key in architecture:
            warnings.warn(differs, stacklevel=3)
    changes = {key: value for key, value in options.items() if key in _OPTIONS} | recipe.data.image_sizes()
    try:
        return config.replace(**changes)
    except ValueError as error:
        raise RecipeError(f"{recipe.source}: model: {error}") from error
