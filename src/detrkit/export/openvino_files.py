"""ONNX models as OpenVINO files, also in int8."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.errors import DetrkitError, RunError
from detrkit.files import replacing
from detrkit.runtime.engines import logging_from
from detrkit.runtime.info import METADATA_KEY, ArtefactInfo

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

__all__ = ["openvino_model", "quantized", "write_openvino"]

Batch = tuple["NDArray[np.generic]", "NDArray[np.bool_]"]


def openvino_model(model: onnx.ModelProto) -> Any:
    """Convert an ONNX model.

    Raises:
        DetrkitError: OpenVINO is not installed.
        RunError: it does not take the model.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise DetrkitError(f"export to OpenVINO needs {error.name}: pip install 'detrkit[export]'") from error
    try:
        return openvino.Core().read_model(io.BytesIO(model.SerializeToString()))
    except Exception as error:  # RuntimeError and its own types
        raise RunError(f"OpenVINO does not take this model: {str(error).strip()[:300]}") from error


def quantized(model: Any, batches: Sequence[Batch]) -> Any:
    """The model in int8, by NNCF's post-training quantisation.

    batches: prepared images and padding masks from which the ranges of values are measured.

    Raises:
        DetrkitError: NNCF is not installed.
    """
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise DetrkitError("int8 needs nncf: pip install 'detrkit[export]'") from error
    inputs = [{"images": images, "padding_mask": mask} for images, mask in batches]
    with logging_from(logging.ERROR, "nncf"):
        return nncf.quantize(
            model, nncf.Dataset(inputs), subset_size=len(inputs), model_type=nncf.ModelType.TRANSFORMER
        )


def write_openvino(model: Any, path: Path, info: ArtefactInfo) -> None:
    """Write ``path`` (.xml) and its ``.bin``; the weights first, so that an ``.xml`` always finds them.

    Raises:
        RunError: they cannot be written.
    """
    import openvino

    model.set_rt_info(info.to_json(), [METADATA_KEY])
    try:
        with replacing(path) as draft, replacing(path.with_suffix(".bin")) as weights:
            xml = draft.with_suffix(".xml")  # the library chooses the name of the weights by that of the .xml
            try:
                openvino.save_model(model, xml, compress_to_fp16=info.precision == "fp16")
                xml.replace(draft)
                xml.with_suffix(".bin").replace(weights)
            finally:
                xml.unlink(missing_ok=True)
                xml.with_suffix(".bin").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error
