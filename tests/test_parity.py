"""Threads and processes predict alike, memory stays flat, and two commands at once do not spoil each other's files."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """``benchmarks/parity.py``, found by its name so that the processes it starts find it too."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("parity")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_differences_and_growth_are_measured(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, boxes = np.array([0.9, 0.5]), np.zeros((2, 4))
    assert benchmark.difference([(scores, boxes)], [(scores, boxes)]) == 0
    assert benchmark.difference([(scores, boxes)], [(scores - 0.1, boxes)]) == pytest.approx(0.1)
    assert benchmark.difference([(scores, boxes)], [(scores[:1], boxes[:1])]) == float("inf")
    assert benchmark.resident() > 10
    kept: list[int] = []
    monkeypatch.setattr(benchmark, "resident", lambda: float(len(kept)))
    assert benchmark.growth(kept.append, 60) == 39, "what is kept after the first third"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dape_lite0", "mask_dape_lite0"])
def test_threads_and_processes_predict_alike(benchmark: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = benchmark.parity(name)
    assert set(found) == {"again", "8 threads", "4 processes"}
    assert max(found.values()) <= benchmark.TOLERANCE


@pytest.mark.slow
def test_memory_is_flat_over_predictions_and_training_steps(benchmark: ModuleType) -> None:
    assert benchmark.growth_of_predictions("dape_lite0", 300) <= benchmark.GROWTH
    assert benchmark.growth_of_training("dape_lite0", 200) <= benchmark.GROWTH


@pytest.mark.slow
def test_two_predictions_into_one_folder_at_once(tmp_path: Path) -> None:
    """One of them is written whole; the other is too, or says why not."""
    pictures = tmp_path / "in"
    pictures.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 48), (40 * number, 0, 0)).save(pictures / f"{number}.png")
    command = [sys.executable, "-m", "detrkit", "predict", str(pictures), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes
    assert set(codes) <= {0, 2}
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or "another prediction is being written here" in error
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 6
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 6
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()], "neither drafts nor locks are left"
