"""``train --check`` and the warnings of a run: four images that are learned or not, losses and classes that tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest

from detrkit.data.records import ImageRecord
from detrkit.models import list_models, model_config
from detrkit.models.presets import preset_task
from detrkit.report.scored_set import ScoredSet
from detrkit.training import preflight as module
from detrkit.training import train
from detrkit.training.overfit import Overfit, four_images
from detrkit.training.preflight import preflight
from detrkit.training.run import accelerator_of
from detrkit.training.watch import Watch, flat_loss, one_class
from tests.training.fakes import fake_task, make_recipe, make_task, scores


def found(*scores: float, steps: int = 400) -> Overfit:
    losses = tuple(np.linspace(9, 3, steps).tolist())
    return Overfit(metric="AP50", scores=scores, losses=losses, steps=steps, names=("a.png",))


def test_the_verdict_follows_the_scores() -> None:
    assert found(0.1, 0.5, 0.95).verdict == "learned"
    assert found(0.1, 0.2, 0.3, 0.5).verdict == "undecided"
    assert str(found(0.1, 0.2, 0.3, 0.5)).startswith("undecided: AP50 0.500 on 1 image after 400 steps and rising")
    assert found(0.0, 0.0, 0.0, steps=60).verdict == "undecided"
    assert "rising" not in str(found(0.0, 0.0, 0.0, steps=60))
    flat = found(0.3, 0.31, 0.3, 0.31)
    assert flat.verdict == "failed"
    assert "they are not learned: AP50 0.310 on 1 image after 400 steps (loss 8.9 to 3.1)" in str(flat)


def record(*labels: int) -> ImageRecord:
    return cast(ImageRecord, SimpleNamespace(labels=np.array(labels, dtype=np.int64)))


def test_four_images_have_as_many_classes_as_they_can() -> None:
    records = [record(), record(0), record(0, 0, 1), record(0), record(1, 0), record(2, 2, 2, 2), record(0)]
    assert four_images(records) == [5, 4, 1, 3]  # 2 is rare, 1 is in the smaller of two, then few objects
    assert four_images(records[:1]) == []
    assert four_images(records[:3]) == [2, 1]


def test_four_images_of_a_sound_set_are_tried(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Everything of a check but the labels: pictures, cost, and a verdict; what a run would use is left alone."""
    recipe = make_recipe(tmp_path, **{"training.epochs": 5})
    task = make_task(tmp_path, (1, 2, 0, 3, 1, 2, 2))
    with mock.patch.object(module, "build_task", return_value=task):
        outcome = preflight(recipe, accelerator_of(recipe), folder=tmp_path / "check", minutes=0.03)
    assert outcome.steps >= 1
    assert len(outcome.scores) >= 1
    assert len(outcome.names) == 4
    assert "2.png" not in outcome.names  # without objects
    assert len(outcome.losses) == outcome.steps
    assert sorted(path.name for path in tmp_path.rglob("check*")) == ["check", "check_batch0.jpg", "check_batch1.jpg"]
    assert not (tmp_path / "check" / "four_images").exists()
    said = capfd.readouterr().err
    assert "cost here: 20 optimizer steps" in said
    assert "never checked" not in said, "the labels were checked before"
    assert "what the model will see: " in said


def test_losses_that_stay_are_told() -> None:
    falling, flat = np.linspace(9, 3, 50).tolist(), [5.0] * 50
    assert flat_loss(flat, flat) == "the loss has not fallen (5.00, now 5.00)"
    assert flat_loss(flat, [4.0] * 50) == ""
    assert flat_loss(falling[:20], flat) == ""  # too early


def some(truth: list[int], detections: list[int]) -> ScoredSet:
    """A set of which the labels alone are read."""
    labelled = SimpleNamespace(label=np.array(truth), crowd=np.zeros(len(truth), dtype=bool))
    scored: Any = np.linspace(1, 0.1, len(detections))

    class Found(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.label)

    objects = Found(label=np.array(detections), score=scored)
    return cast(ScoredSet, SimpleNamespace(truth=labelled, found=objects, class_names=("red", "blue")))


def test_one_class_alone_is_told_where_the_labels_have_several() -> None:
    mixed = [0, 1] * 20
    assert one_class(some(mixed, [1] * 60)) == "blue"
    assert one_class(some(mixed, mixed)) is None
    assert one_class(some([0] * 40, [0] * 60)) is None
    assert one_class(some([0, 1], [1] * 60)) is None  # too few objects to tell
    assert one_class(some(mixed, [1] * 10)) is None


def test_a_run_that_finds_nothing_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides = {"training.epochs": 8, "training.evaluate_every": 1, "data.root": "some/data"}
    with fake_task(tmp_path, (1, 2), evaluate=scores(0.0)), mock.patch("detrkit.training.watch.SHORT_STEPS", 4):
        train(make_recipe(tmp_path, **overrides))
    said = capfd.readouterr().err
    assert said.count("warning: AP is 0.000 after 4 steps; 'detrkit train --data some/data --check' looks for") == 1
    with fake_task(tmp_path, (1, 2), evaluate=scores(0.3)), mock.patch("detrkit.training.watch.SHORT_STEPS", 4):
        train(make_recipe(tmp_path, **overrides), overwrite=True)
    assert "--check" not in capfd.readouterr().err


def test_a_loss_that_stays_is_told_during_the_run(tmp_path: Path) -> None:
    watch, said = Watch(), list[str]()
    trainer: Any = SimpleNamespace(
        recipe=make_recipe(tmp_path), progress=SimpleNamespace(print=said.append), step=0, folder=tmp_path
    )
    resumed = Watch()  # late in a run the loss may stay
    for number in range(1, 401):
        step: Any = SimpleNamespace(number=number, loss=7.0)
        watch.on_step(trainer, step)
        if number > 20:
            resumed.on_step(trainer, step)
    assert len(said) == 1
    assert "warning: the loss has not fallen (7.00, now 7.00), in 300 steps" in said[0]


def test_the_task_of_a_model_is_known_without_building_it() -> None:
    """``--check`` reads the labels that the model will need."""
    for name in list_models():
        assert preset_task(name) == model_config(name).architecture.task, name
    assert preset_task("no_such_model") == "det"
