"""``training.batch_size: auto``: the batch that fits, and the step that it leaves as it is."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from detrkit.config import load_recipe
from detrkit.errors import RecipeError, RunError
from detrkit.training import batch_fit, train
from detrkit.training.batch_fit import largest_batch
from tests.training.fakes import fake_task, last_state, make_recipe, same_state

GB = 10**9


@pytest.mark.parametrize(
    ("room", "batch"), [(3.9, 2), (4.0, 3), (10.0, 9), (1000.0, 64), (1.9, 0), (2.0, 1)], ids=lambda value: str(value)
)
def test_a_line_through_two_measured_peaks(room: float, batch: int) -> None:
    """Weights and the like take 1 GB, and every image another one."""
    assert largest_batch({1: 2 * GB, 2: 3 * GB}, room=room * GB, most=64) == batch


def test_steps_without_a_measurable_peak_set_no_limit() -> None:
    assert largest_batch({2: 0, 4: 0}, room=1.0, most=16) == 16
    assert largest_batch({2: 0, 4: 0}, room=-1.0, most=16) == 0


def test_noise_makes_no_image_free() -> None:
    assert largest_batch({2: 2 * GB, 4: 2 * GB}, room=4 * GB, most=64) == 10


def measured(fitting: int) -> mock._patch[mock.MagicMock]:
    return mock.patch.object(batch_fit, "largest_batch", lambda peaks, room, most: min(fitting, most))


@pytest.mark.parametrize(("fitting", "batch", "parts"), [(64, 4, 1), (3, 2, 2), (1, 1, 4)])
def test_the_rest_is_accumulated(tmp_path: Path, fitting: int, batch: int, parts: int) -> None:
    with fake_task(tmp_path, (1, 2, 0, 1, 2), dropout=0.0), measured(fitting):
        train(make_recipe(tmp_path, epochs=2, evaluate_every=0, batch_size="auto", lr_batch_size=4))
    recipe = load_recipe(tmp_path / "run").training
    assert (recipe.batch_size, recipe.accumulate) == (batch, parts)
    assert last_state(tmp_path / "run")["position"]["step"] == 4


def test_measuring_changes_no_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = []
    for name, size in (("auto", "auto"), ("given", 4)):
        with fake_task(tmp_path / name, (1, 2, 0, 1, 2)):
            train(make_recipe(tmp_path / name, epochs=2, evaluate_every=0, batch_size=size, lr_batch_size=4))
            if name == "auto":
                said = capsys.readouterr().err
                assert "training.batch_size = 4, accumulate = 1: a step took at its peak 2 images" in said
                train(tmp_path / name / "run", resume=True, batch_size="auto")  # what the run began with
                assert "at its peak" not in capsys.readouterr().err
        states.append(last_state(tmp_path / name / "run"))
    assert same_state(*states) == []


def test_without_a_total_as_many_as_fit(tmp_path: Path) -> None:
    with fake_task(tmp_path, (1, 2, 0, 1, 2, 1, 1)), measured(7):
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0, batch_size="auto"))
    assert load_recipe(tmp_path / "run").training.batch_size == 4  # a power of two


def test_nothing_fits(tmp_path: Path) -> None:
    with fake_task(tmp_path), measured(0), pytest.raises(RunError, match=r"not even one image fits; lower data\.short"):
        train(make_recipe(tmp_path, batch_size="auto"))
    assert not (tmp_path / "run").exists()


def test_other_words_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"training\.batch_size = 'automatic': .*valid integer"):
        load_recipe({}, ["training.batch_size=automatic"])
