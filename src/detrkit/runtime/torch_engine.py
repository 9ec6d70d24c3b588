"""Files of torch.export (``.pt2``); not part of the distribution without torch."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detrkit.runtime.engines import failed, logging_from, refused
from detrkit.runtime.info import METADATA_KEY, ArtefactInfo

__all__ = ["TorchEngine"]


class TorchEngine:
    """An exported program of torch; see :class:`~detrkit.runtime.engines.Engine`.

    The number of threads is torch's own (``torch.set_num_threads``).
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        extra = {METADATA_KEY: ""}
        try:
            with logging_from(logging.CRITICAL, "torch.export"):  # torch logs the traceback of a damaged file
                program = torch.export.load(path, extra_files=extra)
        except Exception as error:  # zipfile, pickle and its own types
            raise refused(path, "torch.export", error) from error
        self.info = ArtefactInfo.from_json(extra[METADATA_KEY], path)
        self._module = program.module()
        self._names = ["boxes", "scores", "labels"] if self.info.with_postprocess else ["logits", "boxes", "masks"]
        self._path = path

    @torch.no_grad()
    def run(self, images: NDArray[np.generic], padding_mask: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
        """Run a batch."""
        try:
            found = self._module(torch.from_numpy(images), torch.from_numpy(padding_mask))
        except Exception as error:  # guards of the program raise several types
            raise failed(self._path, "torch.export", images.shape, error) from error
        return {name: value.numpy() for name, value in zip(self._names, found, strict=False)}
