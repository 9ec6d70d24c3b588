"""Score thresholds chosen at an evaluation, and where they are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detrkit.metrics import metric_for
from detrkit.structures import Categories, Category, Detections
from detrkit.training import train
from detrkit.training.chosen_thresholds import choose_thresholds, scored_answers
from detrkit.weights import read_info
from tests.training.fakes import CATEGORIES, TinyDetector, fake_task, last_state, make_images, make_recipe, same_state


def detections(image_id: int, boxes: np.ndarray, scores: list[float], labels: list[int]) -> Detections:
    order = np.argsort(-np.array(scores), kind="stable")
    return Detections(
        boxes=boxes.astype(np.float32)[order],
        scores=np.array(scores, dtype=np.float32)[order],
        labels=np.array(labels, dtype=np.int64)[order],
        categories=CATEGORIES,
        image_size=(32, 32),
        image_id=image_id,
    )


def test_the_classes_of_the_model_get_the_thresholds_of_the_data(tmp_path: Path) -> None:
    """Classes are matched by name: the model has them in another order, and one that the data do not have."""
    data = make_images(tmp_path, [2] * 24)
    answers = {}
    for record in data.records:
        right = [0.8, 0.6]  # red, blue
        boxes = np.concatenate([record.boxes, np.tile([0, 0, 3, 3], (2, 1))])
        answers[record.image_id] = detections(record.image_id, boxes, [*right, 0.7, 0.2], [0, 1, 0, 1])
    metric = metric_for(data)
    model = TinyDetector()
    model.categories = Categories([Category(1, "green"), Category(2, "blue"), Category(3, "red")])
    chosen = choose_thresholds(model, data, scored_answers(metric, answers))
    assert chosen is not None
    assert chosen.per_class == (None, pytest.approx(0.4), pytest.approx(0.75))
    assert chosen.overall == pytest.approx(0.4)


def test_without_a_right_detection_none_is_chosen(tmp_path: Path) -> None:
    data = make_images(tmp_path, [1])
    answers = {100: detections(100, np.array([[0, 0, 1, 1]]), [0.9], [0])}
    assert choose_thresholds(TinyDetector(), data, scored_answers(metric_for(data), answers)) is None
    assert scored_answers(metric_for(data), {}) is not None


def test_a_run_keeps_them_and_goes_on_with_them(tmp_path: Path) -> None:
    """In best/ and last/, which a finished run that is resumed writes anew, and equal to those of the state."""
    overrides = {"training.epochs": 40, "training.evaluate_every": 20}
    with fake_task(tmp_path, num_queries=8):
        train(make_recipe(tmp_path, **overrides))
        first = last_state(tmp_path / "run")
        infos = [read_info(tmp_path / "run" / place / "model.safetensors").thresholds for place in ("best", "last")]
        train(make_recipe(tmp_path, **overrides), resume=True)
    assert infos[0] is not None
    assert infos[1] is not None
    assert infos[1].to_json() == first["thresholds"]
    assert read_info(tmp_path / "run" / "last" / "model.safetensors").thresholds == infos[1]
    assert same_state(first, last_state(tmp_path / "run")) == []
