"""``detrkit predict`` with an exported model: without torch, with the answers of the predictor that needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.cli.main import run
from detrkit.inference import artefact_predictor
from detrkit.runtime.engines import needs_no_torch
from tests.runtime.planted_files import planted_info, planted_onnx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    info = planted_info(thresholds={"overall": 0.4, "per_class": [0.3, None, 0.5]})
    return planted_onnx(tmp_path_factory.mktemp("model") / "model.onnx", info)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of different sizes and brightness, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(1)
    for number, size in enumerate(((120, 90), (70, 100), (64, 64))):
        pixels = generator.integers(0, 80 * (number + 1), (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--threshold 0.2",
        "--nms 0.3",
        "--nms-decay 0.1 --threshold 0",
        "--batch-size 2",
        "--threshold 1",
        "--no-images",
        "--on-error raise",
        "--task inst",
        "--max-pixels 5000",
    ],
)
def test_it_answers_as_with_torch(
    model: Path,
    images: Path,
    tmp_path: Path,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = []
    for with_torch in (False, True):
        if with_torch:
            monkeypatch.setattr(artefact_predictor, "answers_without_torch", lambda *_: False)
        out = tmp_path / str(with_torch)
        code = run(["predict", str(images), "--model", str(model), "--out", str(out), *words.split()])
        printed = capfd.readouterr()
        lines = [text.replace(str(out), "OUT") for text in (printed.out, printed.err)]
        files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
        found.append((code, lines, files))
    (code, lines, files), (wanted_code, wanted_lines, wanted_files) = found
    assert (code, lines) == (wanted_code, wanted_lines)
    assert files.keys() == wanted_files.keys()
    for name, path in files.items():
        if path.suffix == ".png":
            assert path.read_bytes() == wanted_files[name].read_bytes()
        elif name == "skipped.json":
            assert json.loads(path.read_bytes()) == json.loads(wanted_files[name].read_bytes())
        else:
            assert_equal_rows(json.loads(path.read_bytes()), json.loads(wanted_files[name].read_bytes()))


def assert_equal_rows(found: Any, wanted: Any) -> None:
    """Equal predictions, numbers to rounding: engines of both give the same, exp is another."""
    if isinstance(wanted, dict):
        assert found["images"] == wanted["images"]
        assert found["categories"] == wanted["categories"]
        found, wanted = found["annotations"], wanted["annotations"]
    assert len(found) == len(wanted)
    for row, other in zip(found, wanted, strict=True):
        assert row.keys() == other.keys()
        assert (row["image_id"], row["category_id"]) == (other["image_id"], other["category_id"])
        np.testing.assert_allclose([row["score"], *row["bbox"]], [other["score"], *other["bbox"]], atol=1e-4, rtol=1e-6)


def test_a_file_with_post_processing_inside_is_refused(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = planted_onnx(tmp_path / "inside.onnx", planted_info(with_postprocess=True))
    assert run(["predict", str(images), "--model", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "inside.onnx: has its post-processing inside" in capfd.readouterr().err


def test_bad_files_are_one_line(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "damaged.pt2").write_bytes(b"PK no archive")
    for name, message in (
        ("empty.onnx", "may be truncated"),
        ("damaged.pt2", "may be truncated"),
        ("gone.onnx", "no such checkpoint file"),
    ):
        assert run(["predict", str(images), "--model", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        error = capfd.readouterr().err
        assert name in error
        assert message in error
        assert error.count("\n") == 1


def test_which_files_need_no_torch() -> None:
    assert [name for name in ("a.onnx", "a.XML", "a.pt2", "a.safetensors", "dape_lite0") if needs_no_torch(name)] == [
        "a.onnx",
        "a.XML",
    ]
