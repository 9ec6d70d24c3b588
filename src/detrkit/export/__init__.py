"""Exporting models: ONNX, OpenVINO and torch.export files, each with a proof that it gives the same boxes.

Modules are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
    from detrkit.export.bench import bench
    from detrkit.export.export import ExportResult, export_model
    from detrkit.export.parity import Parity, prove

__getattr__ = import_on_use(
    __name__,
    {"bench": ["bench"], "export": ["ExportResult", "export_model"], "parity": ["Parity", "prove"]},
)
__all__ = ["ExportResult", "Parity", "bench", "export_model", "prove"]
