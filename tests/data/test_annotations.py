"""Turning segments into the objects of a task, by one table of rules."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from detrkit.data.annotations import TASKS, Segments, objects_of
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


@pytest.mark.parametrize("task", [name for name, rules in TASKS.items() if rules.masks])
def test_tasks_with_masks_are_not_implemented_yet(task: str) -> None:
    with pytest.raises(NotImplementedError, match=f"task '{task}' needs masks"):
        objects_of(Segments.none(), size=SIZE, task=task)


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
