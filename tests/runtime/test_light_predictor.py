"""Exported models without torch: the same objects as with torch, an import that is quick, and errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detrkit
from detrkit.errors import CheckpointError, DataError, DetrkitError
from detrkit.runtime.command import run_command
from detrkit.runtime.engines import open_engine
from detrkit.runtime.info import ArtefactInfo
from detrkit.runtime.light_predictor import LightPredictor
from tests.runtime.planted_files import planted_info, planted_onnx

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures of different sizes and brightness."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(1)
    paths = []
    for number, size in enumerate(((120, 90), (70, 100), (64, 64))):
        pixels = generator.integers(0, 80 * (number + 1), (size[1], size[0], 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    "changes",
    [{}, {"batch": 2}, {"size": (96, 96)}, {"batch": 3, "size": (64, 96)}],
    ids=["free", "batch", "size", "both"],
)
def test_both_predictors_find_the_same(changes: dict[str, object], images: list[Path], tmp_path: Path) -> None:
    path = planted_onnx(tmp_path / "model.onnx", planted_info(**changes))
    light = LightPredictor(path, threshold=0.2, batch_size=2).predict_all(images)
    full = detrkit.Predictor(path, threshold=0.2, batch_size=2).predict(images)
    assert len(light) == len(full) == 3
    assert len({len(found) for found in light}) > 1, "the images matter"
    for found, wanted in zip(light, full, strict=True):
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-3)
        assert found.category_ids.tolist() == wanted.category_ids.tolist()
        assert found.names == wanted.names
        assert found.path == wanted.path


def test_both_predictors_choose_classes_and_numbers_alike(images: list[Path], tmp_path: Path) -> None:
    path = planted_onnx(tmp_path / "model.onnx", planted_info())
    every = detrkit.Predictor(path, threshold=0.0).predict(images)
    name = every[0].names[0]
    for options in ({"classes": name}, {"max_detections": 2}, {"classes": [name], "max_detections": 1}):
        light = LightPredictor(path, threshold=0.0, **options).predict_all(images)
        full = detrkit.Predictor(path, threshold=0.0, **options).predict(images)
        assert [one.names for one in light] == [one.names for one in full]
        for found, wanted in zip(light, full, strict=True):
            assert len(wanted)
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    with pytest.raises(DataError, match="class 'none of these'"):
        LightPredictor(path, classes=["none of these"])


NO_TORCH = """
import sys, time
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "scipy", "pydantic", "typer", "rich", "yaml"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
from detrkit.runtime.command import run_command
code = run_command(sys.argv[1:3] + sys.argv[4:])
from detrkit.runtime import LightPredictor
found = LightPredictor(sys.argv[1], threshold=0.2).predict(sys.argv[3])
print(found.summary(), len(found.crops()), found.draw().size, found[0].name, file=sys.stderr)
sys.exit(code)
"""


def test_it_runs_without_torch(images: list[Path], tmp_path: Path) -> None:
    """With only the files of the small distribution, and everything else of detrkit's dependencies refused."""
    import tomllib

    table = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text(encoding="utf-8"))
    files = table["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source, target in files.items():
        place = tmp_path / "site" / target
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to((ROOT / "runtime" / source).resolve())
    path = planted_onnx(tmp_path / "model.onnx", planted_info())
    words = [sys.executable, "-c", NO_TORCH, str(path), str(images[0].parent), str(images[0]), "--threshold", "0.2"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wanted = detrkit.Predictor(path, threshold=0.2).predict(images)
    assert [row["file_name"] for row in found["images"]] == [path.name for path in images]
    rows = [row for number, one in enumerate(wanted, start=1) for row in one.to_coco(number)]
    assert [row["category_id"] for row in found["annotations"]] == [row["category_id"] for row in rows]
    np.testing.assert_allclose(
        [row["score"] for row in found["annotations"]], [row["score"] for row in rows], atol=1e-5
    )
    first = wanted[0]
    assert done.stderr.strip().endswith(f"{first.summary()} {len(first)} (120, 90) {first[0].name}")


def test_the_two_distributions_have_one_version() -> None:
    import tomllib

    for folder in (ROOT, ROOT / "runtime"):
        table = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        assert table["project"]["version"] == detrkit.__version__


def test_metadata_returns_as_it_was() -> None:
    info = planted_info(batch=2, size=(64, 96), licence="CC0-1.0", thresholds={"value": 0.4})
    assert ArtefactInfo.from_json(info.to_json(), Path("model.onnx")) == info


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("", "no detrkit metadata"),
        ("{", "is no JSON"),
        ("[]", "is a list, not a mapping"),
        ('{"schema": "detrkit-artefact-9"}', "written with metadata 'detrkit-artefact-9'.*export the checkpoint again"),
        ('{"schema": "detrkit-artefact-1", "name": "dape_lite0"}', "cannot be used"),
    ],
)
def test_metadata_that_cannot_be_used(metadata: str, message: str, tmp_path: Path) -> None:
    path = planted_onnx(tmp_path / "model.onnx", planted_info(), metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        open_engine(path)


def test_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = planted_onnx(tmp_path / "model.onnx", planted_info()).read_bytes()
    for name, content, message in (
        ("short.onnx", whole[: len(whole) // 2], "cannot load it, it may be truncated"),
        ("empty.onnx", b"", "cannot load it, it may be truncated"),
        ("alone.xml", b"<net/>", "alone.bin: missing; an OpenVINO model is two files"),
        ("model.tflite", whole, "not an exported model"),
        ("short.pt2", whole[:100], "cannot load it, it may be truncated"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            open_engine(path)
        assert "\n" not in str(error.value)
        assert name.partition(".")[0] in str(error.value)
    with pytest.raises(CheckpointError, match=r"gone\.onnx: no such file"):
        open_engine(tmp_path / "gone.onnx")
    with pytest.raises(DetrkitError, match="threads must be at least 1"):
        open_engine(tmp_path / "model.onnx", threads=0)
    semantic = planted_onnx(tmp_path / "sem.onnx", planted_info(task="sem"))
    with pytest.raises(DataError, match="answers 'sem'"):
        LightPredictor(semantic)
    assert run_command([str(tmp_path / "gone.onnx"), "x.jpg"]) == 2
    assert "detrkit-runtime: error:" in capsys.readouterr().err
