"""Checkpoints: our safetensors files, official state dicts (read and written), and the published checkpoint files.

Modules are imported on first use: the catalogue needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
    from detrkit.weights.inspection import Inspection, inspect_checkpoint
    from detrkit.weights.official.load import OfficialLoadReport, load_official, to_official
    from detrkit.weights.official.pth import open_checkpoint, open_official, save_official
    from detrkit.weights.ours import CheckpointInfo, load, read_info, save, verify
    from detrkit.weights.published.catalogue import CATALOGUE, OfficialFile
    from detrkit.weights.published.download import pulled_path
    from detrkit.weights.published.pull import pull
    from detrkit.weights.reading import read_state_dict

__getattr__ = import_on_use(
    __name__,
    {
        "inspection": ["Inspection", "inspect_checkpoint"],
        "official.load": ["OfficialLoadReport", "load_official", "to_official"],
        "official.pth": ["open_checkpoint", "open_official", "save_official"],
        "ours": ["CheckpointInfo", "load", "read_info", "save", "verify"],
        "published.catalogue": ["CATALOGUE", "OfficialFile"],
        "published.download": ["pulled_path"],
        "published.pull": ["pull"],
        "reading": ["read_state_dict"],
    },
)
__all__ = [
    "CATALOGUE",
    "CheckpointInfo",
    "Inspection",
    "OfficialFile",
    "OfficialLoadReport",
    "inspect_checkpoint",
    "load",
    "load_official",
    "open_checkpoint",
    "open_official",
    "pull",
    "pulled_path",
    "read_info",
    "read_state_dict",
    "save",
    "save_official",
    "to_official",
    "verify",
]
