"""The cost of a run, measured before its first epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.data.checked import note_checked, was_checked
from detrkit.errors import DataError
from detrkit.training import train
from detrkit.training.loggers import read_log
from tests.training.fakes import fake_task, last_state, make_recipe, same_state

ESTIMATE = {"logging.estimate": True}


def test_cost_is_said_and_changes_no_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = []
    for name, settings in (("with", ESTIMATE), ("without", {})):
        with fake_task(tmp_path / name, (1, 2, 0, 1, 3)):
            train(make_recipe(tmp_path / name, epochs=2, evaluate_every=1, ema=0.9, **settings))
        states.append(last_state(tmp_path / name / "run"))
        states[-1]["recipe"]["logging"] = None
        said = capsys.readouterr().err
        assert ("cost here: 6 optimizer steps at" in said) == (name == "with")
        if name == "with":
            assert "2 evaluations of 5 images" in said
            assert " GB of memory" in said
            assert "training.minutes=60" in said
            assert "detrkit data check data" in said
    assert same_state(*states) == []
    rows = [row for row in read_log(tmp_path / "with" / "run" / "log.jsonl") if row["event"] == "cost"]
    assert len(rows) == 1
    assert rows[0]["steps_per_minute"] > 1
    assert rows[0]["memory_gb"] > 0.01


def test_a_resumed_run_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_task(tmp_path, (1, 2)):
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0, **ESTIMATE))
        capsys.readouterr()
        train(make_recipe(tmp_path, epochs=2, evaluate_every=0, **ESTIMATE), resume=True)
    assert "cost here" not in capsys.readouterr().err


def test_an_unreadable_image_is_the_training_s_to_report(tmp_path: Path) -> None:
    with fake_task(tmp_path, (1, 1)):
        recipe = make_recipe(tmp_path, epochs=1, evaluate_every=0, **ESTIMATE)
        train(recipe)
        for image in (tmp_path / "images").glob("*.png"):
            image.write_bytes(b"")
    # the images are made anew by fake_task: break them as they are read
    with fake_task(tmp_path, (1, 1)), pytest.MonkeyPatch.context() as patch:
        patch.setattr("detrkit.data.dataset.DetectionDataset.read_image", _broken)
        with pytest.raises(DataError, match="Step 0 is saved"):
            train(recipe, overwrite=True)


def _broken(*_: object) -> None:
    raise DataError("img.png: cannot be read")


def test_a_checked_folder_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.yaml").touch()
    assert not was_checked(tmp_path / "data")
    note_checked(tmp_path / "data")
    assert was_checked(tmp_path / "data")
    assert was_checked(tmp_path / "data" / "data.yaml")
    assert not was_checked(tmp_path)
