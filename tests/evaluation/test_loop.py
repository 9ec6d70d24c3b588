from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data import EvalTransform, load_dataset
from detrkit.errors import DataError, RunError
from detrkit.evaluation.loop import evaluate_model, predict_dataset
from detrkit.inference.predictor import Predictor
from detrkit.metrics import ScoreJson, metric_for, score_coco
from detrkit.structures import Detections
from tests.evaluation.colors import BOXES, IMAGES
from tests.inference.color_detector import ColorDetector, coco_folder, picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "colors", IMAGES, BOXES)


def test_a_perfect_detector_scores_one(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = ColorDetector().train()
    model.shift.requires_grad_(False)
    model.dropout.eval()
    score = evaluate_model(
        model, load_dataset(folder, split="val"), progress=lambda done, total: seen.append((done, total))
    )
    assert score.metrics["AP"] == pytest.approx(1.0)
    assert list(score.per_class) == ["red", "green", "blue"]
    assert all(numbers["AP"] == pytest.approx(1.0) for numbers in score.per_class.values())
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert model.training
    assert not model.dropout.training, "a module that was in evaluation mode stays in it"


def test_a_missed_object_lowers_the_score(folder: Path) -> None:
    path = folder / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"].append(
        {"id": 99, "image_id": 30, "category_id": 5, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    )
    path.write_text(json.dumps(content))
    score = evaluate_model(ColorDetector(), load_dataset(folder, split="val"))
    assert score.per_class["green"]["AR100"] == pytest.approx(0.5)
    assert score.per_class["red"]["AP"] == pytest.approx(1.0)


def test_every_top_k_detection_counts(folder: Path) -> None:
    found = dict(predict_dataset(ColorDetector(), load_dataset(folder, split="val")))
    assert {image_id: len(detections) for image_id, detections in found.items()} == dict.fromkeys((10, 20, 30, 40), 5)
    assert all(detections.image_id == image_id for image_id, detections in found.items())
    assert {category_id for detections in found.values() for category_id in detections.category_ids} <= {3, 5, 9}


def test_batches_and_workers_do_not_change_the_results(folder: Path) -> None:
    dataset = load_dataset(folder, split="val")
    one = list(predict_dataset(ColorDetector(), dataset))
    model = ColorDetector()
    many = list(predict_dataset(model, dataset, batch_size=3, workers=1))
    assert [shape[0] for shape in model.calls] == [3, 1]
    assert model.calls[1] == (1, 3, 64, 128), "images of similar shape share a batch"

    def rounded(found: Sequence[tuple[int, Detections]]) -> list[tuple[int, int, float, list[float]]]:
        rows = [row for _, detections in found for row in detections.to_coco()]
        return sorted(
            (row["image_id"], row["category_id"], round(row["score"], 5), [round(value, 2) for value in row["bbox"]])
            for row in rows
        )

    assert rounded(one) == rounded(many)


def test_the_configuration_is_that_of_the_model_unless_given(folder: Path) -> None:
    dataset = load_dataset(folder, split="val")
    model = ColorDetector(eval_short_side=32)
    evaluate_model(model, dataset)
    assert model.calls[0] == (1, 3, 32, 48)
    model.calls.clear()
    found = predict_dataset(model, dataset, config=model.config.replace(eval_short_side=16, top_k=2))
    assert [len(detections) for _, detections in found] == [2] * 4
    assert model.calls[0] == (1, 3, 16, 24)
    assert (model.config.eval_short_side, model.config.top_k) == (32, 5)
    assert isinstance(dataset.transform, EvalTransform)
    assert dataset.transform.short_side == 800, "the caller's data set keeps its transform"


def test_size_divisor_and_resizing_rule_are_those_of_the_model(folder: Path) -> None:
    """Evaluation and prediction resize and pad in the same way, as configured."""
    image = picture((80, 50), (0, (20, 10, 60, 40)))
    for resize, size in (("round", (40, 64)), ("float32_truncate", (39, 63))):
        model = ColorDetector(eval_short_side=40, eval_resize=resize)
        Predictor(model).predict(image)
        assert model.calls == [(1, 3, *size)]
    model = ColorDetector(eval_short_side=40, eval_resize="float32_truncate", size_divisor=32)
    found = Predictor(model).predict(image)
    assert found.boxes[0].tolist() == pytest.approx([20, 10, 60, 40], abs=2.5)
    evaluate_model(model, load_dataset(folder, split="val"), batch_size=2)
    assert {side % 32 for call in model.calls for side in call[2:]} == {0}
    assert model.calls[0] == (1, 3, 64, 64)


def test_unreadable_images_do_not_count(folder: Path) -> None:
    (folder / "images" / "val" / "b.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"b\.png"):
        evaluate_model(ColorDetector(), load_dataset(folder, split="val"))
    dataset = load_dataset(folder, split="val", on_error="skip")
    assert [image_id for image_id, _ in predict_dataset(ColorDetector(), dataset)] == [10, 30, 30, 40]
    for known in (
        dataset,
        load_dataset(folder, split="val", on_error="skip"),
    ):  # with known and with new unreadable images
        score = evaluate_model(ColorDetector(), known)
        assert score.metrics["AP"] == pytest.approx(1.0), "the image that replaces it counts once"
        assert score.per_class["green"]["AP"] is None


def test_one_metric_serves_many_evaluations(folder: Path) -> None:
    """Its ground truth is prepared once, and results of earlier evaluations are gone, even after a failure."""
    dataset = load_dataset(folder, split="val")
    metric = metric_for(dataset)
    blind = ColorDetector(top_k=1)
    blind.shift.data.fill_(float("nan"))
    with pytest.raises(RunError, match="the model predicts NaN"):
        evaluate_model(blind, dataset, metric=metric)
    for top_k in (5, 1, 5):
        model = ColorDetector(top_k=top_k)
        assert evaluate_model(model, dataset, metric=metric) == evaluate_model(model, dataset)


def test_detections_can_be_scored_through_to_coco(folder: Path) -> None:
    """``Detections`` has all values of a results list: category ids, image id, boxes in pixels."""
    dataset = load_dataset(folder, split="val")
    rows = [row for _, detections in predict_dataset(ColorDetector(), dataset) for row in detections.to_coco()]
    assert score_coco(dataset.coco_ground_truth(), rows).metrics["AP"] == pytest.approx(1.0)
    predictor = Predictor(ColorDetector(), threshold=0.0)
    images = [dataset.read_image(index) for index in range(len(dataset))]
    found = predictor.predict(images)
    rows = [
        row
        for detections, record in zip(found, dataset.records, strict=True)
        for row in detections.to_coco(record.image_id)
    ]
    assert score_coco(folder / "annotations" / "instances_val.json", rows).metrics["AP"] == pytest.approx(1.0)


def test_only_detrkit_models(folder: Path) -> None:
    with pytest.raises(TypeError, match="needs a detrkit model, got Linear"):
        evaluate_model(torch.nn.Linear(1, 1), load_dataset(folder, split="val"))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate_model(ColorDetector(), load_dataset(folder, split="val"), batch_size=0)


def _rank(rank: int, world: int, port: int, folder: str) -> tuple[int, ScoreJson, list[int]]:
    """Number of forward passes, score and image ids of one process of a distributed evaluation."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = ColorDetector()
    dataset = load_dataset(folder, split="val")
    score = evaluate_model(model, dataset, accelerator=accelerator)
    mine = [image_id for image_id, _ in predict_dataset(ColorDetector(), dataset, accelerator=accelerator)]
    accelerator.end_training()
    return len(model.calls), score.to_json(), mine


def test_two_processes_share_the_images_and_both_get_the_score(folder: Path) -> None:
    # five images on two processes: three and two
    picture((64, 64), (1, (8, 8, 50, 50))).save(folder / "images" / "val" / "e.png")
    path = folder / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 50, "file_name": "e.png", "width": 64, "height": 64})
    path.write_text(json.dumps(content))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        answers = list(pool.map(_rank, range(2), [2] * 2, [port] * 2, [str(folder)] * 2))
    alone = evaluate_model(ColorDetector(), load_dataset(folder, split="val")).to_json()
    assert answers == [(3, alone, [10, 30, 50]), (2, alone, [20, 40])]


def test_exif_rotated_images_are_scored_upright(tmp_path: Path) -> None:
    """A phone photo: the stored image is rotated, the boxes belong to the upright image."""
    upright = picture((96, 64), (0, (10, 20, 40, 50)))
    folder = coco_folder(tmp_path / "phone", {"a.png": upright}, BOXES[:1])
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(folder / "images" / "val" / "a.png", exif=exif)
    ((_, detections),) = predict_dataset(ColorDetector(), load_dataset(folder, split="val"))
    np.testing.assert_allclose(detections.boxes[0], [10, 20, 40, 50], atol=1e-3)


def test_crowd_regions_absorb_detections(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "crowd", {"a.png": IMAGES["a.png"], "d.png": IMAGES["d.png"]}, [BOXES[0], BOXES[3]])
    path = folder / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    score = evaluate_model(ColorDetector(top_k=1), load_dataset(folder, split="val"))
    assert score.metrics["AP"] == pytest.approx(1.0)
