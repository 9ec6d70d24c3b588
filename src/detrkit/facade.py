"""One object for those who want one: train, evaluate, predict and export by methods, thin over the public functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import detrkit
from detrkit.errors import CheckpointError, DataError, RecipeError
from detrkit.export import ExportResult, export_model
from detrkit.inference.predictor import Predictor
from detrkit.metrics import ScoreJson
from detrkit.models.presets import DEFAULT_MODEL, PRESETS
from detrkit.runtime.info import SUFFIX_OF_FORMAT
from detrkit.training import RunResult
from detrkit.weights.find import find_checkpoint

__all__ = ["Model"]


class Model:
    """A model through its life: ``Model("dape_lite0").train(data="my_data").predict("photo.jpg")``.

    Args:
        name: a registered model (``detrkit models``), or weights: a checkpoint, a run folder, an exported model, a URL,
            a name of weights in the package or of published ones.

    Attributes:
        weights: the weights that it predicts with, None before the first training of a model without any: those that
            were named, then the best ones of the last run.
        run: the last training, or None.

    Raises:
        CheckpointError: neither a model nor weights have this name.
    """

    def __init__(self, name: str | Path = DEFAULT_MODEL) -> None:
        self.name = str(name)
        self.weights: Path | None = None
        self.run: RunResult | None = None
        self._predictor: Predictor | None = None
        try:
            self.weights = find_checkpoint(name)
        except CheckpointError as error:
            if self.name in PRESETS:
                return
            near = get_close_matches(self.name, PRESETS, n=1, cutoff=0.8)
            raise CheckpointError(f"{error}; or a model: '{near[0]}'" if near else str(error)) from error

    def train(self, data: str | Path | None = None, recipe: Any = None, **overrides: Any) -> Model:
        """Train by :func:`detrkit.train`; returns this object with the best weights of the run.

        A registered model starts as its recipe says (a backbone from ImageNet), anything else from its weights
        (``model.init``). ``Model(name).train(data, **{"model.init": name})`` starts a registered name from its weights.

        Args:
            data: a data folder, for which :func:`detrkit.auto_recipe` chooses the settings where there is no recipe.
            recipe: a recipe instead (name, file, mapping), trained with this model.
            overrides: as for :func:`detrkit.train`, and ``resume``, ``overwrite``, ``callbacks``.

        Raises:
            DataError, RecipeError, CheckpointError, RunError: see :func:`detrkit.train`.
        """
        how = {key: overrides.pop(key) for key in ("resume", "overwrite", "callbacks") if key in overrides}
        if data is None and recipe is None:
            raise RecipeError("train needs data=DIR or a recipe")
        if data is not None:
            overrides["data.root"] = str(data)
        if self.name in PRESETS:
            overrides.setdefault("model.name", self.name)
        elif self.weights is not None:
            overrides.setdefault("model.init", str(self.weights))
        if recipe is None:
            recipe, overrides = detrkit.auto_recipe(str(data), overrides), {}
        self.run = detrkit.train(recipe, **how, **overrides)
        self.weights, self._predictor = self.run.best, None
        return self

    def evaluate(self, data: Any = None, **options: Any) -> ScoreJson:
        """Score the weights by :func:`detrkit.evaluate`; data: default those of the last training.

        Raises:
            DataError: there are no data, or they cannot be used.
            CheckpointError: there are no weights.
        """
        chosen = self.run.folder if data is None and self.run is not None else data
        if chosen is None:
            raise DataError("evaluate needs data=DIR: this model has not been trained here")
        return detrkit.evaluate(self._weights(), chosen, **options)

    def predict(self, images: Any, threshold: float | None = None, task: str | None = None, **options: Any) -> Any:
        """Answer by :meth:`detrkit.Predictor.predict`.

        Raises:
            CheckpointError: there are no weights.
            DataError, RunError, ValueError: see :meth:`detrkit.Predictor.predict`.
        """
        return self.predictor.predict(images, threshold, task, **options)

    def stream(self, images: Iterable[Any], threshold: float | None = None, **options: Any) -> Iterator[Any]:
        """Answer image by image, see :meth:`detrkit.Predictor.stream`."""
        return self.predictor.stream(images, threshold, **options)

    @property
    def predictor(self) -> Predictor:
        """The predictor of the weights, made once."""
        if self._predictor is None:
            self._predictor = Predictor(self._weights())
        return self._predictor

    def export(self, out: str | Path | None = None, *, format: Any = "onnx", **options: Any) -> ExportResult:
        """Export by :func:`detrkit.export.export_model`; out: default ``<name of the weights>`` with the ending.

        Raises:
            CheckpointError: there are no weights.
            DataError, RunError: see :func:`detrkit.export.export_model`.
        """
        weights = self._weights()
        stem = self.name if self.name in PRESETS else weights.stem
        target = Path(stem + SUFFIX_OF_FORMAT.get(format, "")) if out is None else out
        return export_model(weights, target, format=format, **options)

    def _weights(self) -> Path:
        if self.weights is None:
            raise CheckpointError(
                f"'{self.name}' has no trained weights in the package: train it first, or give a checkpoint"
            )
        return self.weights

    def __repr__(self) -> str:
        return f"Model({self.name!r}, weights={str(self.weights) if self.weights else None!r})"
