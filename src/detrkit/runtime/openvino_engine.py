"""OpenVINO files (``.xml`` with ``.bin``) on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from detrkit.errors import CheckpointError
from detrkit.runtime.engines import failed, refused
from detrkit.runtime.info import METADATA_KEY, ArtefactInfo

__all__ = ["OpenVINOEngine"]


class OpenVINOEngine:
    """An OpenVINO file on the CPU, computed in float32; see :class:`~detrkit.runtime.engines.Engine`."""

    def __init__(self, path: Path, *, threads: int) -> None:
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise CheckpointError(f"{weights}: missing; an OpenVINO model is two files, {path.name} and {weights.name}")
        try:
            model = openvino.Core().read_model(str(path), str(weights))
        except Exception as error:  # RuntimeError and its own types
            raise refused(path, "OpenVINO", error) from error
        text = model.get_rt_info([METADATA_KEY]).value if model.has_rt_info([METADATA_KEY]) else None
        self.info = ArtefactInfo.from_json(text, path)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # newer CPUs would take bfloat16
        }
        try:
            self._compiled = openvino.Core().compile_model(model, "CPU", options)
        except Exception as error:  # as above
            raise refused(path, "OpenVINO", error) from error
        self._path = path
        self._inputs = [entry.get_any_name() for entry in self._compiled.inputs]
        self._outputs = [entry.get_any_name() for entry in self._compiled.outputs]
        self._request = self._compiled.create_infer_request()
        self._lock = threading.Lock()  # a request serves one thread at a time

    def run(self, images: NDArray[np.generic], padding_mask: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
        """Run a batch."""
        feed = {
            name: value for name, value in (("images", images), ("padding_mask", padding_mask)) if name in self._inputs
        }
        try:
            with self._lock:
                found = self._request.infer(feed)
                return {name: np.array(found[index]) for index, name in enumerate(self._outputs)}
        except Exception as error:  # as above
            raise failed(self._path, "OpenVINO", images.shape, error) from error
