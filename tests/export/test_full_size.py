"""Models of published size at 512 pixels, with weights made from names: ONNX and OpenVINO give the same boxes.

With ``DETRKIT_RECORD=FOLDER`` the comparisons are written to ``FOLDER/export_<model>.json``.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.data.images import read_image
from detrkit.data.records import ImageRecord
from detrkit.export.example_images import example_images
from detrkit.export.export import export_model
from detrkit.export.onnx_file import OPSETS
from detrkit.export.openvino_files import openvino_model, write_openvino
from detrkit.export.parity import prove
from detrkit.inference.preprocess import eval_transform
from detrkit.models import Detector, create_model
from detrkit.weights.artefact import open_artefact
from tests.golden.harness import Case, keyed

MODELS = [
    "detr_r50",
    "deformable_detr_r50",
    "dino_r50_4scale",
    "relation_detr_r50",
    "salience_detr_r50",
    "dape_r50",
]
SIDE = 512
IMAGES = 3


def keyed_model(name: str, shared: Path) -> Detector:
    """The model with weights made from their official names; the grids of sampling points keep their start."""
    model = create_model(name, dropout=0.0, eval_short_side=SIDE, eval_max_side=SIDE)
    if (shared / "golden" / name).is_dir():
        weights = Case.read(shared, name, {}).weights
    else:
        make = keyed(shared / "golden").keyed_array
        weights = {
            key: value if key.endswith("sampling_offsets.bias") else torch.from_numpy(make(key, value.shape))
            for key, value in detrkit.to_official(model).items()
            if value.is_floating_point()
        }
    detrkit.load_official(model, weights)
    return model.eval()


@pytest.mark.slow  # minutes per model
@pytest.mark.parametrize("name", MODELS)
def test_the_same_boxes(name: str, shared: Path, tmp_path: Path) -> None:
    import onnx

    model = keyed_model(name, shared)
    transform = eval_transform(model.config, canvas=(SIDE, SIDE))
    pictures = [read_image(path) for path in example_images(None, None)[:IMAGES]]
    images = [transform(picture, ImageRecord.unlabelled(picture)).image for picture in pictures]
    path = tmp_path / "model.onnx"
    info = export_model(model, path, format="onnx", batch=1, size=(SIDE, SIDE), proof=False).info
    write_openvino(openvino_model(onnx.load(path)), tmp_path / "model.xml", info)
    record: dict[str, Any] = {"model": name, "side": SIDE, "opset": OPSETS[0], "weights": "made from names"}
    with torch.no_grad():
        scores = model(images[0][None]).logits[-1]
    assert scores.std() > 0.01, "all queries are alike: nothing is compared"
    for file in (path, path.with_suffix(".xml")):
        (found,) = prove(model, open_artefact(file), images, batches=(1,))
        record[file.suffix[1:]] = {**asdict(found), "agrees": found.agrees}
    if "DETRKIT_RECORD" in os.environ:
        target = Path(os.environ["DETRKIT_RECORD"]) / f"export_{name}.json"
        target.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    assert record["onnx"]["agrees"], record
    assert record["xml"]["agrees"], record
