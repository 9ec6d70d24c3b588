"""Checkpoints: our safetensors files, and official state dicts to and from ours."""

from detrkit.weights.checkpoint import CheckpointInfo, load, read_info, save
from detrkit.weights.official import OfficialLoadReport, load_official, read_state_dict, to_official

__all__ = [
    "CheckpointInfo",
    "OfficialLoadReport",
    "load",
    "load_official",
    "read_info",
    "read_state_dict",
    "save",
    "to_official",
]
