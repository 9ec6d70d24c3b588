"""Turning segments into the objects of a task, by one table of rules."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from detrkit.data.annotations import objects_of
from detrkit.data.geometry import Geometry
from detrkit.data.packed_masks import PackedMasks, pack
from detrkit.data.segments import TASKS, Segments
from tests.data.trees import segments

SIZE = (40, 30)


def test_detection_takes_single_objects_clipped_to_the_image() -> None:
    found = segments(
        [(4, 3, 14, 15), (-5, -5, 5, 99), (0, 0, 9, 9), (50, 0, 60, 9)],
        labels=[2, 0, 1, 1],
        crowd=[False, False, True, False],
    )
    found.outside[3] = True
    objects = objects_of(found, size=SIZE)
    assert objects.labels.tolist() == [2, 0]
    assert objects.boxes.tolist() == [[4, 3, 14, 15], [0, 0, 5, 30]]
    assert objects.boxes.dtype == torch.float64
    assert objects.masks is objects.is_thing is objects.is_copy is None
    assert found.boxes[1].tolist() == [-5, -5, 10, 104], "segments are as in the file"


def test_an_image_without_annotations_has_no_objects() -> None:
    objects = objects_of(Segments.none(), size=SIZE)
    assert (objects.boxes.shape, objects.labels.dtype) == ((0, 4), torch.int64)


def square(x: int, y: int, side: int) -> bytes:
    return pack([[x, y, x + side, y, x + side, y + side, x, y + side]])


@pytest.fixture
def scene() -> Segments:
    """Two cars that overlap, a crowd of cars, two parts of the sky, and a car whose mask is empty."""
    found = segments(
        [(0, 0, 4, 4), (2, 2, 8, 8), (20, 0, 30, 10), (0, 20, 5, 25), (10, 20, 15, 25), (30, 0, 40, 9)],
        labels=[0, 0, 0, 1, 1, 0],
        crowd=[False, False, True, False, False, False],
    )
    masks = [square(0, 0, 4), square(2, 2, 6), square(20, 0, 10), square(0, 20, 5), square(10, 20, 5)]
    masks.append(pack([[38.1, 5.1, 38.2, 5.1, 38.2, 5.2]]))
    return replace(found, things=np.array([True] * 3 + [False] * 2 + [True]), masks=PackedMasks.of(masks))


@pytest.mark.parametrize(
    ("task", "labels", "boxes", "areas"),
    [
        ("inst", [0, 0], [[0, 0, 4, 4], [2, 2, 8, 8]], [16, 36]),
        ("sem", [0, 1], [[0, 0, 30, 10], [0, 20, 15, 25]], [16 + 36 - 4 + 100, 50]),
        ("pan", [0, 0, 1], [[0, 0, 4, 4], [2, 2, 8, 8], [0, 20, 15, 25]], [16, 36, 50]),
    ],
)
def test_tasks_with_masks(scene: Segments, task: str, labels: list[int], boxes: list[Any], areas: list[int]) -> None:
    objects = objects_of(scene, size=SIZE, task=task)
    assert objects.masks is not None
    assert objects.is_thing is not None
    assert objects.masks.dtype == objects.is_thing.dtype == torch.bool
    assert objects.masks.shape == (len(labels), 30, 40)
    assert objects.labels.tolist() == labels
    assert objects.boxes.tolist() == boxes
    assert objects.masks.sum(dim=(1, 2)).tolist() == areas
    assert objects.is_thing.tolist() == [label == 0 for label in labels]


def test_masks_are_drawn_on_the_transformed_image_and_vanish_with_a_crop(scene: Segments) -> None:
    objects = objects_of(
        scene, size=SIZE, task="inst", geometry=Geometry.whole(SIZE).cropped((5, 5, 10, 20)).resized(20, 40)
    )
    assert objects.masks is not None
    assert objects.boxes.tolist() == [[0, 0, 6, 6]], "the first car is not in the crop"
    assert objects.masks.shape == (1, 20, 40)


def test_detection_takes_things_alone(scene: Segments) -> None:
    objects = objects_of(scene, size=SIZE)
    assert objects.labels.tolist() == [0, 0, 0]
    assert objects.masks is None


@pytest.mark.parametrize("task", TASKS)
def test_no_objects_in_any_task(task: str) -> None:
    objects = objects_of(Segments.none(), size=SIZE, task=task)
    assert objects.boxes.shape == (0, 4)
    assert objects.masks is None or objects.masks.shape == (0, 30, 40)


def test_masks_that_were_not_read() -> None:
    with pytest.raises(ValueError, match=r"task 'inst' needs masks, but these segments were read without"):
        objects_of(segments([(0, 0, 4, 4)]), size=SIZE, task="inst")


def test_task_names() -> None:
    assert set(TASKS) == {"det", "inst", "sem", "pan"}
    with pytest.raises(ValueError, match=r"task 'inst_' is unknown\. Did you mean 'inst'"):
        objects_of(Segments.none(), size=SIZE, task="inst_")


def test_selecting_segments_selects_in_every_column() -> None:
    found = segments([(0, 0, 2, 2), (1, 1, 5, 5)], labels=[7, 8], areas=[3, 9], crowd=[True, False])
    one = found[np.array([False, True])]
    assert len(one) == 1
    assert (one.boxes.tolist(), one.labels.tolist(), one.areas.tolist()) == ([[1, 1, 4, 4]], [8], [9])
    assert (one.crowd.tolist(), one.outside.tolist(), one.single.tolist()) == ([False], [False], [True])


def test_reading_annotations_does_not_import_torch() -> None:
    code = "import sys; from detrkit.data.coco_json import read_json; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
