"""One interface for all formats: images in, named arrays out. An engine is loaded when a file of its format is."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from detrkit.errors import CheckpointError, DetrkitError, RunError, first_line
from detrkit.runtime.info import FORMATS_OF_SUFFIX, ArtefactInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Engine", "logging_from", "needs_no_torch", "open_engine", "usable_cores"]

_ENGINES = {
    "onnx": ("onnx_engine", "OnnxEngine", "onnxruntime"),
    "openvino": ("openvino_engine", "OpenVINOEngine", "openvino"),
    "torch-export": ("torch_engine", "TorchEngine", "torch"),
}
"""Format -> module, class, and the package to install."""


@contextmanager
def logging_from(level: int, name: str) -> Iterator[None]:
    """Context in which a library logs nothing below a level: what concerns the user is said here."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


class Engine(Protocol):
    """An exported model that runs."""

    info: ArtefactInfo
    """Its metadata."""

    def run(self, images: NDArray[np.generic], padding_mask: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
        """Run a batch.

        Args:
            images: (B, 3, H, W) float32, normalised and padded at the right and bottom.
            padding_mask: (B, H, W) bool, True = padding.

        Returns:
            "logits" (B, Q, C), "boxes" (B, Q, 4) cxcywh in [0, 1] of the valid area, and, of models with masks, "masks"
            (B, Q, H/4, W/4) logits. With post-processing in the file: "boxes" (B, K, 4) xyxy, "scores", "labels".
        """
        ...


def needs_no_torch(path: str | Path) -> bool:
    """Whether a path has the ending of an exported model that another engine than torch runs."""
    return FORMATS_OF_SUFFIX.get(Path(path).suffix.lower(), "torch-export") != "torch-export"


def open_engine(path: str | Path, *, threads: int | None = None) -> Engine:
    """Open an exported model by the ending of its file.

    Args:
        path: ``.onnx``, ``.xml`` (OpenVINO, with the ``.bin`` beside it) or ``.pt2`` (needs torch).
        threads: threads of the CPU; None: one per core that this process may use.

    Raises:
        CheckpointError: the file is missing, damaged, or not from ``detrkit export``.
        DetrkitError: the package that runs this format is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if threads is not None and threads < 1:
        raise DetrkitError(f"threads must be at least 1, got {threads}")
    form = FORMATS_OF_SUFFIX.get(path.suffix.lower())
    if form is None:
        endings = ", ".join(FORMATS_OF_SUFFIX)
        raise CheckpointError(f"{path}: not an exported model, which ends in one of {endings}")
    module, name, package = _ENGINES[form]
    try:
        engine = getattr(import_module(f"detrkit.runtime.{module}"), name)
    except ModuleNotFoundError as error:
        raise DetrkitError(f"{path}: to run {form} files, install {package} ({error})") from error
    return cast("Engine", engine(path, threads=threads or usable_cores()))


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refused(path: Path, engine: str, error: BaseException) -> CheckpointError:
    """The error for a file that an engine does not load."""
    return CheckpointError(
        f"{path}: {engine} cannot load it, it may be truncated or damaged ({first_line(error)[:200]})"
    )


def failed(path: Path, engine: str, shape: tuple[int, ...], error: BaseException) -> RunError:
    """The error for a batch that an engine does not run."""
    return RunError(f"{path}: {engine} failed on images of shape {shape} ({first_line(error)[:200]})")
