"""Models by name. Each name is a kind of model with settings that differ from its published default.

Modules are imported on first use: the list of models needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detrkit.models.config import Architecture, DetectorConfig
    from detrkit.models.detector import Detector
    from detrkit.models.presets import list_models
    from detrkit.models.registry import Entry, create_model, entry, model_config

_HOMES = {
    "config": ["Architecture", "DetectorConfig"],
    "detector": ["Detector"],
    "presets": ["list_models"],
    "registry": ["Entry", "create_model", "entry", "model_config"],
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Architecture",
    "Detector",
    "DetectorConfig",
    "Entry",
    "create_model",
    "entry",
    "list_models",
    "model_config",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
