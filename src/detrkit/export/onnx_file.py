"""Programs as ONNX files of standard operators."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import ExportedProgram

from detrkit.errors import DetrkitError, RunError, first_line
from detrkit.files import write_bytes
from detrkit.runtime.info import METADATA_KEY, ArtefactInfo

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSETS", "onnx_model", "with_half_weights", "write_onnx"]

OPSETS = range(18, 24)
"""Opsets that can be written."""

_HALVED = 64  # values of the smallest tensor that is stored in half precision


def onnx_model(program: ExportedProgram, outputs: Sequence[str], *, opset: int = OPSETS[0]) -> onnx.ModelProto:
    """Convert a program to ONNX.

    Runtimes optimise graphs when they load them, so that only constants are folded here.

    Raises:
        DetrkitError: onnx or onnxscript is not installed.
        RunError: the program has an operator without a counterpart in ONNX.
    """
    try:
        import onnx  # noqa: F401
        from onnxscript import optimizer
    except ModuleNotFoundError as error:
        raise DetrkitError(f"export to ONNX needs {error.name}: pip install 'detrkit[export]'") from error
    with _quietly():
        try:
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verbose=False,
                input_names=["images", "padding_mask"],
                output_names=list(outputs),
            )
        except Exception as error:  # the converter has many types
            raise RunError(f"this model cannot be converted to ONNX: {first_line(error)[:300]}") from error
        optimizer.fold_constants(converted.model)
        optimizer.remove_unused_nodes(converted.model)
        proto: onnx.ModelProto = converted.model_proto
    return proto


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights stored in float16 and cast on loading: half the file, computed in float32."""
    import onnx
    from onnx import numpy_helper

    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    casts = []
    for tensor in halved.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _HALVED:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue  # it would become infinite
        name, stored = tensor.name, f"{tensor.name}_half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], name=f"{name}_cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *halved.graph.node]
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    known = {node.output[0] for node in casts}
    described = [value for value in halved.graph.value_info if value.name not in known]
    del halved.graph.value_info[:]
    halved.graph.value_info.extend(described)
    return halved


def write_onnx(model: onnx.ModelProto, path: Path, info: ArtefactInfo) -> None:
    """Write an ONNX file with its metadata; whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=info.to_json())
    model.producer_name, model.producer_version = "detrkit", info.version
    write_bytes(path, model.SerializeToString())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress lines and warnings of the converter."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
