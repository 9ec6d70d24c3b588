from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.data import load_dataset
from detrkit.errors import DataError
from detrkit.evaluation.class_ids import match_classes
from detrkit.evaluation.loop import evaluate_model, predict_dataset
from detrkit.structures import Categories, Category
from tests.evaluation.colors import BOXES, IMAGES
from tests.inference.color_detector import CATEGORIES, ColorDetector, coco_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "colors", IMAGES, BOXES)


def test_classes_are_matched_by_name_where_ids_differ(folder: Path) -> None:
    other = Categories([Category(0, "blue"), Category(1, "red"), Category(2, "green"), Category(3, "pink")])
    dataset = load_dataset(folder, split="val")
    model = ColorDetector(categories=other, num_classes=4, top_k=16)
    assert match_classes(model, dataset).labels == (2, 0, 1, None)
    for _, detections in predict_dataset(model, dataset):
        assert detections.categories == CATEGORIES
        assert len(detections) == 12, "4 of the top 16 belong to a class that the data do not have"
        assert {row["category_id"] for row in detections.to_coco()} == {3, 5, 9}


def test_a_model_without_class_names_uses_those_of_the_data(folder: Path) -> None:
    dataset = load_dataset(folder, split="val")
    classes = match_classes(ColorDetector(categories=None), dataset)
    assert (classes.model, classes.labels) == (CATEGORIES, (0, 1, 2))

    classes = match_classes(ColorDetector(categories=None, num_classes=11), dataset)
    assert {slot: label for slot, label in enumerate(classes.labels) if label is not None} == {3: 0, 5: 1, 9: 2}
    assert [category.name for category in classes.model.named] == ["red", "green", "blue"]

    with pytest.raises(DataError, match="3 classes, but the model has 5"):
        match_classes(ColorDetector(categories=None, num_classes=5), dataset)


def test_a_class_the_model_does_not_know_is_an_error(folder: Path) -> None:
    other = Categories([Category(0, "blue"), Category(1, "red"), Category(2, "yellow")])
    with pytest.raises(DataError, match="the model does not know green; its classes: blue, red, yellow"):
        evaluate_model(ColorDetector(categories=other), load_dataset(folder, split="val"))


def test_a_class_without_boxes_may_be_unknown(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "data", {"d.png": IMAGES["d.png"]}, BOXES[-1:])
    red_only = Categories([Category(3, "red"), Category(1, "x"), Category(2, "y")])
    assert evaluate_model(ColorDetector(categories=red_only), load_dataset(folder, split="val")).metrics["AP50"] > 0.99
