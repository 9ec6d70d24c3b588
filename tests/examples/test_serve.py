"""The server of ``examples/serve``: the objects of ``LightPredictor``, and a clear answer to what is no image."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.runtime import LightPredictor
from tests.runtime.planted_files import planted_info, planted_onnx

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve"


def module_of(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoded(height: int = 60, width: int = 90) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return planted_onnx(tmp_path / "model.onnx", planted_info())


@pytest.fixture
def client(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("DETRKIT_MODEL", str(model))
    monkeypatch.setenv("DETRKIT_MAX_BYTES", "100000")
    with TestClient(module_of("app").app) as client:
        yield client


def test_it_answers_what_the_predictor_finds(client: TestClient, model: Path) -> None:
    answer = client.post("/predict?threshold=0.4", content=encoded()).json()
    expected = LightPredictor(model).predict_all([encoded()], 0.4)[0]
    assert (answer["height"], answer["width"]) == (60, 90)
    assert len(expected.scores) > 3
    assert [row["name"] for row in answer["objects"]] == list(expected.names)
    assert [row["category_id"] for row in answer["objects"]] == expected.category_ids.tolist()
    np.testing.assert_allclose([row["box"] for row in answer["objects"]], expected.boxes, rtol=1e-6)
    np.testing.assert_allclose([row["score"] for row in answer["objects"]], expected.scores, rtol=1e-6)


def test_health(client: TestClient) -> None:
    assert client.get("/health").json()["classes"] == ["bolt", "nut", "washer"]


@pytest.mark.parametrize(
    ("body", "query", "status", "words"),
    [
        (b"no image", "", 400, "cannot"),
        (b"", "", 400, ""),
        (b"x" * 100_001, "", 413, "at most 100000 bytes"),
        (encoded(), "?threshold=2", 422, ""),
    ],
)
def test_what_it_cannot_use(client: TestClient, body: bytes, query: str, status: int, words: str) -> None:
    answer = client.post(f"/predict{query}", content=body)
    assert answer.status_code == status
    assert words in answer.text


def test_a_wrong_model_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    monkeypatch.setenv("DETRKIT_MODEL", str(tmp_path / "model.onnx"))
    with pytest.raises(Exception, match=r"model\.onnx"), TestClient(module_of("app").app):
        pass
