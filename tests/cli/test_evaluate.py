"""``detrkit eval``: output, arguments and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import detrkit.evaluation.evaluate as module
from detrkit.cli.main import run
from tests.inference.color_detector import ColorDetector, coco_folder, picture


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of two images; every checkpoint is the colour detector."""
    (tmp_path / "best.safetensors").write_bytes(b"x")
    monkeypatch.setattr(module, "load", lambda path: ColorDetector())
    images = {"a.png": picture((96, 64), (0, (10, 20, 40, 50))), "b.png": picture((64, 80), (1, (5, 5, 30, 70)))}
    return coco_folder(tmp_path / "data", images, [("a.png", 3, [10, 20, 30, 30]), ("b.png", 5, [5, 5, 25, 65])])


def evaluate(folder: Path, *words: Any) -> int:
    checkpoint = str(folder.parent / "best.safetensors")
    return run(["eval", *map(str, words), "--checkpoint", checkpoint, "--device", "cpu", "--workers", "0"])


def test_data_folder_as_json(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, "--data", folder, "--json") == 0
    captured = capfd.readouterr()
    score = json.loads(captured.out)
    assert list(score) == ["protocol", "iou_type", "metrics", "per_class"]
    assert score["metrics"]["AP"] == pytest.approx(1.0)
    assert captured.err == ""


def test_recipe_with_overrides(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("training: {epochs: 3}\n")
    assert evaluate(folder, recipe, f"data.root={folder}", "--batch-size", 2, "--split", "train") == 0
    out = capfd.readouterr().out
    assert "1.000" in out
    assert "red" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a run folder, a recipe or --data DIR"),
        (["a.yaml", "b.yaml"], "one recipe, not 2"),
        (["--data", "nowhere"], "nowhere: no such data folder"),
        (["no_such_recipe"], "no_such_recipe"),
    ],
)
def test_unusable_arguments(folder: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, *words) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_checkpoint_is_needed_and_must_exist(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--data", str(folder)]) == 2
    assert "or --checkpoint" in capfd.readouterr().err
    assert run(["eval", "--data", str(folder), "--checkpoint", "none.safetensors"]) == 2
    assert "none.safetensors: no such checkpoint file" in capfd.readouterr().err


def test_only_the_first_process_prints(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert evaluate(folder, "--data", folder, "--json") == 0
    assert capfd.readouterr().out == ""
