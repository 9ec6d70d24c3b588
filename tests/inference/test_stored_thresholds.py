"""Score thresholds in a checkpoint: kept by saving and loading, used where no other is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detrkit.cli.predict import thresholds_line
from detrkit.inference.predictor import Predictor
from detrkit.structures import Thresholds
from detrkit.weights import load, read_info, save
from tests.inference.color_detector import CATEGORIES, ColorDetector, picture
from tests.small import small_model

PICTURE = picture((96, 64), (0, (10, 20, 40, 50)), (2, (50, 8, 90, 28)), brightness=140)  # scores 0.55


def test_each_class_has_its_own() -> None:
    model = ColorDetector()
    everything = Predictor(model, device="cpu").predict(PICTURE, threshold=0.0)
    model.thresholds = Thresholds(overall=0.02, per_class=(0.6, None, 0.5))
    predictor = Predictor(model, device="cpu")
    found = predictor.predict(PICTURE)
    least = np.array([0.6, 0.02, 0.5])[everything.labels]
    assert found.labels.tolist() == everything.labels[everything.scores >= least].tolist()
    assert 0 not in found.labels
    assert 2 in found.labels
    assert predictor.thresholds == model.thresholds


def test_a_given_threshold_wins() -> None:
    model = ColorDetector()
    model.thresholds = Thresholds(overall=0.9, per_class=(None, None, None))
    assert len(Predictor(model, device="cpu").predict(PICTURE)) == 0
    assert len(Predictor(model, device="cpu").predict(PICTURE, threshold=0.5)) == 2
    assert len(Predictor(model, device="cpu", threshold=0.5).predict(PICTURE)) == 2
    assert Predictor(model, device="cpu", threshold=0.5).default_thresholds("det") is None


def test_without_thresholds_it_is_as_before() -> None:
    assert len(Predictor(ColorDetector(), device="cpu").predict(PICTURE)) == 2
    assert Predictor("dape_lite0", device="cpu").thresholds is None


def test_saving_and_loading_keeps_them(tmp_path: Path) -> None:
    model = small_model("detr_lite0")
    assert load(save(model, tmp_path / "none.safetensors")).thresholds is None
    model.thresholds = Thresholds(overall=0.4, per_class=(0.25, None, 0.5))
    path = save(model, tmp_path / "some.safetensors")
    assert load(path).thresholds == read_info(path).thresholds == model.thresholds
    assert load(save(load(path), tmp_path / "again.safetensors")).thresholds == model.thresholds


def test_a_threshold_is_a_score() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        Thresholds(overall=0.5, per_class=(1.5,))


@pytest.mark.parametrize(
    ("per_class", "text"),
    [
        ((0.25, 0.5, 0.75), "red 0.25, green 0.50, blue 0.75"),
        ((0.25, None, None), "red 0.25, else 0.40"),
        ((None, None, None), "0.40"),
    ],
)
def test_thresholds_in_words(per_class: tuple[float | None, ...], text: str) -> None:
    line = thresholds_line(Thresholds(overall=0.4, per_class=per_class), CATEGORIES)
    assert line.startswith(f"score thresholds: {text} (")
