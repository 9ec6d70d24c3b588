"""Models by name. Each name is a kind of model with settings that differ from its published default.

Modules are imported on first use: the list of models needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
    from detrkit.models.config import Architecture, DetectorConfig
    from detrkit.models.detector import Detector
    from detrkit.models.presets import list_models
    from detrkit.models.registry import Entry, create_model, entry, model_config

__getattr__ = import_on_use(
    __name__,
    {
        "config": ["Architecture", "DetectorConfig"],
        "detector": ["Detector"],
        "presets": ["list_models"],
        "registry": ["Entry", "create_model", "entry", "model_config"],
    },
)
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
