"""Export of models: files give the boxes of the checkpoint, the proof fails where they do not, bad input is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

import detrkit
from detrkit.cli.main import run
from detrkit.data import load_dataset
from detrkit.errors import CheckpointError, DataError
from detrkit.evaluation.finished import evaluate_finished
from detrkit.export.export import export_model
from detrkit.export.onnx_file import onnx_model, with_half_weights, write_onnx
from detrkit.export.openvino_files import openvino_model
from detrkit.export.parity import Comparison, prove
from detrkit.models import Detector
from detrkit.nn.salience.encoder import SalienceFilter
from detrkit.nn.tokens import Tokens
from detrkit.ops.ms_deform_attn import ms_deform_attn
from detrkit.runtime.light_predictor import LightPredictor
from detrkit.structures import Detections
from detrkit.weights.artefact import open_artefact
from tests.models.tester import add_noise_to_weights
from tests.runtime.planted_files import planted_info, planted_onnx
from tests.small import small_model

STANDARD = {"", "ai.onnx"}
IMAGES = Path(detrkit.__file__).parent / "assets" / "blood_cells" / "images"


def _small(name: str, **options: object) -> Detector:
    """A model whose weights are noise, so that no output is constant."""
    model = small_model(name, eval_short_side=64, eval_max_side=96, **options).eval()
    add_noise_to_weights(model)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    """The smallest model as ONNX, for batches of any number of images of 96x96; tracing others takes longer."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    model = _small("detr_r50", encoder_layers=1, decoder_layers=1)
    result = export_model(model, path, format="onnx", size=(96, 96))
    assert result.parity is not None
    assert result.parity.agrees
    return model, path


class _Filter(nn.Module):
    """The salience filter alone: scores (B, 64) and valid cells (B, 3, 2) -> the tokens that the last layer keeps."""

    shapes = ((6, 8), (3, 4), (2, 2))

    def __init__(self) -> None:
        super().__init__()
        self.filter = SalienceFilter(levels=(0.4, 0.8, 1.0), layers=(1.0, 0.6), mask_padding=True)

    def forward(self, scores: Tensor, cells: Tensor) -> Tensor:
        masks = []
        for level, (height, width) in enumerate(self.shapes):
            columns, rows = (cells[:, level, axis, None, None] for axis in (0, 1))
            inside = (torch.arange(width) < columns) & (torch.arange(height)[:, None] < rows)
            masks.append(~inside.flatten(1))
        empty = scores[..., None]
        focus = self.filter(scores, Tokens(empty, empty, torch.cat(masks, 1), self.shapes, cells))[-1]
        return torch.zeros_like(scores).scatter(1, focus.index, focus.kept.float())


def test_openvino_filters_each_image_by_its_own_size() -> None:
    """It fused a product over two numbers with the one that followed, and took the ratios of other levels."""
    scores = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    cells = torch.tensor([[[8, 6], [4, 3], [2, 2]], [[4, 6], [2, 3], [1, 2]], [[8, 3], [4, 2], [2, 1]]]).float()
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(_Filter(), (scores, cells), dynamic_shapes=(batch, batch), strict=False)
    proto = onnx_model(program, ["kept"])
    names = [value.name for value in proto.graph.input]
    compiled = openvino.Core().compile_model(openvino_model(proto), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(dict(zip(names, (scores.numpy(), cells.numpy()), strict=True)))[0]
    wanted = _Filter()(scores, cells)
    assert wanted.sum(1).tolist() == [19, 9, 10]
    assert found.tolist() == wanted.tolist()


@pytest.mark.xdist_group("export")
def test_the_proof_is_beside_the_file(exported: tuple[Detector, Path]) -> None:
    _, path = exported
    found = json.loads((path.parent / "parity.json").read_text())
    assert found["agrees"] is True
    assert found["file"] == "model.onnx"
    assert [one["batch"] for one in found["comparisons"]] == [1, 3]
    for one in found["comparisons"]:
        assert one["images"] >= 8
        assert one["boxes"] <= 1e-3
        assert one["scores"] <= 1e-4
        assert one["canvas"] == [96, 96]


class Sampled(nn.Module):
    """The operator of deformable attention alone."""

    def forward(self, images: Tensor, padding_mask: Tensor) -> Tensor:
        """Values (B, S, H, D) and locations (B, Q, H, L, P, 2) -> (B, Q, H·D)."""
        weights = torch.full(padding_mask.shape[:-1], 0.25)
        return ms_deform_attn(images, ((3, 4), (2, 2)), padding_mask, weights)


def test_the_operator_becomes_grid_sample() -> None:
    """Of the standard, with the same result."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 16, 2, 4, generator=generator)
    locations = torch.rand(2, 5, 2, 2, 2, 2, generator=generator)
    program = torch.export.export(Sampled(), (values, locations), strict=False)
    model = onnx_model(program, ["sampled"])
    assert {node.domain for node in model.graph.node} | {entry.domain for entry in model.opset_import} <= STANDARD
    assert "GridSample" in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": values.numpy(), "padding_mask": locations.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), Sampled()(values, locations), atol=1e-6, rtol=0)


@pytest.mark.xdist_group("export")
def test_files_have_standard_operators_only(exported: tuple[Detector, Path]) -> None:
    model = onnx.load(exported[1])
    assert {entry.domain for entry in model.opset_import} <= STANDARD
    assert {node.domain for node in model.graph.node} <= STANDARD


@pytest.mark.xdist_group("export")
def test_predictors_take_the_file(exported: tuple[Detector, Path]) -> None:
    """The same objects as the checkpoint, with and without torch, apart from the padding to 96x96."""
    _, path = exported
    pictures = sorted(IMAGES.iterdir())[:3]
    full = detrkit.Predictor(path, threshold=0.0).predict(pictures)
    light = LightPredictor(path, threshold=0.0).predict_all(pictures)
    for one, other in zip(full, light, strict=True):
        assert len(one) == len(other) > 0
        torch.testing.assert_close(torch.from_numpy(one.scores), torch.from_numpy(other.scores), atol=1e-5, rtol=0)


@pytest.mark.xdist_group("export")
def test_openvino_gives_the_same(exported: tuple[Detector, Path], tmp_path: Path) -> None:
    from detrkit.export.openvino_files import openvino_model, write_openvino

    model, path = exported
    info = LightPredictor(path).info
    write_openvino(openvino_model(onnx.load(path)), tmp_path / "model.xml", info)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    found = open_artefact(tmp_path / "model.xml")
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, 64, 80, generator=generator) for _ in range(3)]
    assert all(one.agrees for one in prove(model, found, images, batches=(1, 3)))


@pytest.mark.xdist_group("export")
def test_the_proof_finds_another_model(exported: tuple[Detector, Path], tmp_path: Path) -> None:
    """The bias of one class, moved by 0.05, is enough."""
    model, path = exported
    changed = onnx.load(path)
    tensor = max(
        (one for one in changed.graph.initializer if "class_embed" in one.name and one.name.endswith("bias")),
        key=lambda one: one.name,
    )
    bias = numpy_helper.to_array(tensor).copy()
    bias[0] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    other = tmp_path / "changed.onnx"
    write_onnx(changed, other, LightPredictor(path).info)
    images = [torch.randn(3, 64, 80, generator=torch.Generator().manual_seed(1))] * 2
    (found,) = prove(model, open_artefact(other), images, batches=(1,))
    assert not found.agrees


@pytest.mark.xdist_group("export")
def test_half_weights_halve_the_file(exported: tuple[Detector, Path], tmp_path: Path) -> None:
    model, path = exported
    info = replace(LightPredictor(path).info, precision="fp16")
    half = tmp_path / "half.onnx"
    write_onnx(with_half_weights(onnx.load(path)), half, info)
    assert half.stat().st_size < 0.75 * path.stat().st_size
    images = [torch.randn(3, 64, 80, generator=torch.Generator().manual_seed(1))] * 2
    (found,) = prove(model, open_artefact(half), images, batches=(1,))
    assert 0 < found.scores < 0.05


def test_swaps_are_counted_up_to_a_limit() -> None:
    whole = Comparison(1, (96, 96), 8, 100, 5, 1e-4, 1e-5, None, 3, 3)
    assert whole.agrees
    assert not replace(whole, swapped=6).agrees
    assert not replace(whole, boxes=2e-3).agrees
    assert not replace(whole, scores=2e-4).agrees


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--format onnx --out model.xml", "model.xml: files of onnx end in .onnx"),
        ("--format onnx --precision int8 --out m.onnx", "onnx files have fp32, fp16"),
        ("--format openvino --precision int8 --out m.xml", "give --images DIR or --data DIR"),
        ("--format onnx --opset 11 --out m.onnx", "opset 11: give one from 18 to"),
        ("--size 320 417 --out m.onnx", "--size 320 417: this model needs multiples of 32, for example 320 448"),
        ("--size 320 --out m.onnx", "--size 320: give height and width in pixels"),
        ("--batch many --out m.onnx", "--batch many: give a number of images, or dynamic"),
        ("--images nowhere --out m.onnx", "nowhere: no such folder"),
        ("--format tflite", "Invalid value for '--format'"),
    ],
)
def test_options_that_cannot_be_used(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "dape_lite0", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error.replace("\n", " ")
    assert error.strip().count("detrkit: error:") == 1


@pytest.fixture(scope="module")
def blood_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's images as a data set of three classes: 9 images for training, 3 for validation."""
    folder = tmp_path_factory.mktemp("data") / "blood_cells"
    assert run(["data", "fetch", "blood_cells", "--out", str(folder)]) == 0
    return folder


def test_post_processing_inside(blood_cells: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = _small("detr_r50", encoder_layers=1, decoder_layers=1)
    result = export_model(model, path, format="onnx", size=(96, 96), with_postprocess=True, data=blood_cells)
    assert result.parity is not None
    assert result.parity.agrees
    assert result.parity.metric == "AP"
    assert result.parity.ap is not None
    assert None not in result.parity.ap.values()
    assert result.parity.ap["file"] == pytest.approx(result.parity.ap["checkpoint"], abs=1e-4)


def test_the_score_of_a_file_with_post_processing_inside(blood_cells: Path) -> None:
    dataset = load_dataset(blood_cells, split="val")

    class Perfect:
        """Gives the labelled objects, in the order of the images; ``moved``: of another class."""

        def __init__(self, moved: int) -> None:
            self.info, self.moved = planted_info(categories=None, config={"num_classes": 3}), moved
            self.records = iter(dataset.records)

        def predict_all(self, images: list[Image.Image], threshold: float) -> list[Detections]:
            record = next(self.records)
            labels = (record.labels + self.moved) % 3
            scores = np.ones(len(labels), np.float32)
            size = (record.height, record.width)
            boxes = record.boxes.astype(np.float32)
            return [
                Detections(boxes=boxes, scores=scores, labels=labels, categories=dataset.categories, image_size=size)
            ]

    assert evaluate_finished(Perfect(0), dataset).value == pytest.approx(1.0)
    assert evaluate_finished(Perfect(1), dataset).value == pytest.approx(0.0)


def test_what_is_wrong_with_the_images_is_said_before_tracing(
    blood_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detrkit.export.export.trace", lambda *_, **__: pytest.fail("traced"))
    empty, unlabelled, broken = (tmp_path / name for name in ("empty", "unlabelled", "broken"))
    for folder in (empty, unlabelled, broken):
        folder.mkdir()
    (unlabelled / "a.jpg").write_bytes(next(IMAGES.glob("*.jpg")).read_bytes())
    (broken / "a.jpg").write_bytes(b"none")
    model = _small("detr_r50", encoder_layers=1, decoder_layers=1, num_classes=2)
    for given, message in (
        ({"images": empty}, "empty: no images"),
        ({"images": broken}, "a.jpg: not an image"),
        ({"data": unlabelled}, "unlabelled"),
        ({"data": blood_cells}, "3 classes, but the model has 2"),
    ):
        with pytest.raises(DataError, match=message):
            export_model(model, tmp_path / "model.onnx", format="onnx", size=(96, 96), **given)


def test_an_exported_model_is_no_checkpoint(tmp_path: Path) -> None:
    path = planted_onnx(tmp_path / "model.onnx", planted_info())
    with pytest.raises(CheckpointError, match="is an exported model already"):
        export_model(path, tmp_path / "again.onnx", format="onnx")
