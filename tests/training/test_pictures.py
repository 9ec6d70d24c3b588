"""The pictures of a run folder: which there are, that they show the data, and that they never end a run."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from detrkit.training import pictures, train
from detrkit.training.pictures import PICTURES
from tests.training.fakes import fake_task, last_state, make_recipe, same_state

DRAWN = {"logging.plots": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps with pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    with fake_task(folder, (1, 2, 0, 1)):
        train(make_recipe(folder, epochs=3, evaluate_every=1, **DRAWN))
    return folder / "run"


def test_all_pictures_are_there(run: Path) -> None:
    missing = {name for name in PICTURES if not (run / name).is_file()}
    assert missing == {"val_1.jpg"}  # four images fit on one sheet
    for name in set(PICTURES) - missing:
        with Image.open(run / name) as picture:
            picture.load()
            assert np.asarray(picture.convert("L")).std() > 2, name  # something is drawn


def test_pictures_change_no_weight(run: Path, tmp_path: Path) -> None:
    with fake_task(tmp_path, (1, 2, 0, 1)):
        train(make_recipe(tmp_path, epochs=3, evaluate_every=1))
    assert not set(PICTURES) & {path.name for path in (tmp_path / "run").iterdir()}
    states = [last_state(folder) for folder in (run, tmp_path / "run")]
    for state in states:
        del state["recipe"]["logging"]
    assert same_state(*states) == []


def test_a_failure_to_draw_is_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = mock.patch.object(pictures, "draw_batch", side_effect=ValueError("no font\nat all"))
    with fake_task(tmp_path, (1, 2, 0, 1)), broken:
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0, **DRAWN))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "picture" in line]
    assert len(warnings) == 1
    assert "warning: a picture of the run cannot be drawn (ValueError: no font)" in warnings[0]
    assert last_state(tmp_path / "run")["position"]["step"] == 2
    assert (tmp_path / "run" / "labels.png").is_file()


def test_a_new_run_removes_the_pictures_of_the_old_one(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("last", *PICTURES[:2]):
        (folder / name).touch()
    (folder / "val_9.jpg").touch()
    with fake_task(tmp_path, (1, 2)):
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0), overwrite=True)
    assert not (folder / PICTURES[0]).exists()
    assert (folder / "val_9.jpg").exists()  # not ours
