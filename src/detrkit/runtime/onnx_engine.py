"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from detrkit.runtime.engines import failed, refused
from detrkit.runtime.info import METADATA_KEY, ArtefactInfo

__all__ = ["OnnxEngine"]


class OnnxEngine:
    """An ONNX file on the CPU; see :class:`~detrkit.runtime.engines.Engine`."""

    def __init__(self, path: Path, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only: warnings of its optimizer mean nothing to users
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise refused(path, "ONNX Runtime", error) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.info = ArtefactInfo.from_json(metadata.get(METADATA_KEY), path)
        self._path = path
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def run(self, images: NDArray[np.generic], padding_mask: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
        """Run a batch."""
        feed = {
            name: value for name, value in (("images", images), ("padding_mask", padding_mask)) if name in self._inputs
        }
        try:
            found = self._session.run(self._outputs, feed)
        except Exception as error:  # as above
            raise failed(self._path, "ONNX Runtime", images.shape, error) from error
        return dict(zip(self._outputs, found, strict=True))
