"""``detrkit eval``: output, arguments and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import detrkit.evaluation.evaluate as module
from detrkit.cli.main import run
from detrkit.errors import DataError
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
        ([], "is a checkpoint outside a run folder: say on which data with --data DIR"),
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
    assert run(["eval"]) == 2
    assert "needs a run folder, a recipe or --data DIR" in capfd.readouterr().err
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


def test_a_run_folder_is_evaluated_on_its_own_data(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in ``predict --model RUN``, the run is named once; its checkpoints name it too."""
    asked: list[tuple[str, str]] = []

    def evaluate(checkpoint: Any, data: Any, **_: Any) -> Any:
        asked.append((str(checkpoint), str(data)))
        raise DataError("enough")

    monkeypatch.setattr(module, "evaluate", evaluate)
    best = tmp_path / "run" / "best" / "model.safetensors"
    best.parent.mkdir(parents=True)
    best.write_bytes(b"")
    (tmp_path / "run" / "recipe.yaml").write_text("training: {epochs: 3}")
    elsewhere = tmp_path / "alone.safetensors"
    elsewhere.write_bytes(b"")
    here = str(tmp_path / "run")
    for words, expected in (
        ([here], (here, here)),
        ([here, "--data", str(folder)], (here, str(folder))),
        ([str(best)], (str(best), here)),
        (["--checkpoint", here], (here, here)),
        ([here, "--model", "other.safetensors"], ("other.safetensors", here)),
        (["--data", str(folder), "--model", here], (here, str(folder))),
    ):
        assert run(["eval", *words]) == 2
        assert asked.pop() == expected
    capfd.readouterr()
    assert run(["eval", str(elsewhere)]) == 2
    assert "is a checkpoint outside a run folder: say on which data with --data DIR" in capfd.readouterr().err
    assert run(["eval", str(elsewhere), "--data", str(folder)]) == 2
    assert asked.pop() == (str(elsewhere), str(folder))
