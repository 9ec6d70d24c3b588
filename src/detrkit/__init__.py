"""detrkit: detection transformers that train on your data.

This module gives access to the whole public API. Heavy packages are imported on first use: ``import detrkit`` does not
load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from detrkit.config import Recipe, load_recipe
    from detrkit.data import load_dataset
    from detrkit.errors import CheckpointError, DataError, DetrkitError, RecipeError, RunError
    from detrkit.evaluation.evaluate import evaluate
    from detrkit.facade import Model
    from detrkit.hub import from_pretrained, push_to_hub
    from detrkit.inference.predictor import Predictor
    from detrkit.metrics import Score, score_cityscapes, score_coco, score_lvis, score_panoptic, score_semantic
    from detrkit.models import create_model, list_models
    from detrkit.structures import (
        Batch,
        Categories,
        Category,
        Detection,
        Detections,
        PanopticMap,
        Predictions,
        SemanticMap,
        Target,
    )
    from detrkit.training import RunResult, auto_recipe, train
    from detrkit.weights import load, load_official, save, to_official

_HOMES = {
    "detrkit.config": ["Recipe", "load_recipe"],
    "detrkit.data": ["load_dataset"],
    "detrkit.errors": ["CheckpointError", "DataError", "DetrkitError", "RecipeError", "RunError"],
    "detrkit.evaluation.evaluate": ["evaluate"],
    "detrkit.facade": ["Model"],
    "detrkit.hub": ["from_pretrained", "push_to_hub"],
    "detrkit.inference.predictor": ["Predictor"],
    "detrkit.metrics": ["Score", "score_cityscapes", "score_coco", "score_lvis", "score_panoptic", "score_semantic"],
    "detrkit.models": ["create_model", "list_models"],
    "detrkit.structures": [
        "Batch",
        "Categories",
        "Category",
        "Detection",
        "Detections",
        "PanopticMap",
        "Predictions",
        "SemanticMap",
        "Target",
    ],
    "detrkit.training": ["RunResult", "auto_recipe", "train"],
    "detrkit.weights": ["load", "load_official", "save", "to_official"],
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_PACKAGES = [
    "config",
    "data",
    "errors",
    "evaluation",
    "export",
    "hub",
    "inference",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "runtime",
    "structures",
    "training",
    "weights",
]

__all__ = [
    "Batch",
    "Categories",
    "Category",
    "CheckpointError",
    "DataError",
    "Detection",
    "Detections",
    "DetrkitError",
    "Model",
    "PanopticMap",
    "Predictions",
    "Predictor",
    "Recipe",
    "RecipeError",
    "RunError",
    "RunResult",
    "Score",
    "SemanticMap",
    "Target",
    "__version__",
    "auto_recipe",
    "create_model",
    "evaluate",
    "from_pretrained",
    "list_models",
    "load",
    "load_dataset",
    "load_official",
    "load_recipe",
    "push_to_hub",
    "save",
    "score_cityscapes",
    "score_coco",
    "score_lvis",
    "score_panoptic",
    "score_semantic",
    "to_official",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a package such as ``detrkit.models``, on first use."""
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    elif name in _PACKAGES:
        value = import_module(f"detrkit.{name}")
    else:
        raise AttributeError(f"module 'detrkit' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
