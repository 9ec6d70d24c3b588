"""Every registered model exports, in tiny size: ONNX with any batch and any size, then OpenVINO, with proof."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from detrkit.export.export import export_model
from detrkit.export.openvino_files import openvino_model, write_openvino
from detrkit.export.parity import prove
from detrkit.models import list_models
from detrkit.weights.artefact import open_artefact
from tests.models.tester import add_noise_to_weights, images, representatives
from tests.small import small_model


@pytest.mark.slow  # a minute per model
@pytest.mark.parametrize(
    "name", sorted(representatives() | {name for name in list_models() if name.endswith("_lite0")})
)
def test_it_exports_with_proof(name: str, tmp_path: Path) -> None:
    model = small_model(name, eval_short_side=96, eval_max_side=128).eval()
    add_noise_to_weights(model)
    result = export_model(model, tmp_path / "model.onnx", format="onnx")
    assert result.parity is not None
    assert result.parity.agrees, result.parity.comparisons
    write_openvino(openvino_model(onnx.load(result.path)), tmp_path / "model.xml", result.info)
    batch = [image for sizes in (((96, 128), (128, 96), (100, 130)),) for image in images(*sizes)[0]]
    found = prove(model, open_artefact(tmp_path / "model.xml"), batch, batches=(1, 3))
    assert all(one.agrees for one in found), found
