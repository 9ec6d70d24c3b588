"""Planted mistakes of ``benchmarks/suspects.py``: what they do to the labels, and that a detector that sees all of it
finds them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from detrkit.structures import Detections
from tests.data.test_suspects import CATEGORIES, record
from tests.scripts import imported_script

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def script() -> Any:
    with imported_script("suspects") as module:
        return module


def images(script: Any) -> Any:
    """100 images of four objects in a grid, and a detector that finds all of them."""
    rng, rows = np.random.default_rng(3), []
    for number in range(100):
        corners = np.array([[10, 10], [60, 8], [115, 12], [150, 60]]) + rng.uniform(0, 5, (4, 2))
        boxes = np.concatenate((corners, corners + np.array([30, 25])), axis=1)
        labels = rng.integers(0, 2, 4)
        objects = [(int(label), tuple(box)) for label, box in zip(labels, boxes.tolist(), strict=True)]
        scores = np.sort(rng.uniform(0.6, 0.95, 4))[::-1]
        found = Detections(boxes=boxes, scores=scores, labels=labels, categories=CATEGORIES, image_size=(100, 200))
        rows.append((SPLITS[number % 2], record(objects, image_id=number), found))
    return rows


@pytest.mark.parametrize("name", ["removed", "changed"])
def test_mistakes_are_planted_and_found(script: Any, name: str) -> None:
    sound = images(script)
    spoilt, planted = script.PLANT[name](sound, np.random.default_rng(1))
    assert len(planted) == 100
    for image, (_, before, _) in enumerate(sound):
        own = [one for one in planted if one.image == image]
        now = spoilt[image][1]
        kinds = Counter(one.kind for one in own)
        assert len(before.labels) == 4, "the sound set is unchanged"
        assert len(now.labels) == 4 - kinds["missing"]
        if name == "changed":
            assert (now.labels != before.labels).sum() == kinds["wrong_class"]
            apart = np.abs(now.boxes - before.boxes).max(axis=1)
            assert (apart > 1).sum() == kinds["loose"]
            assert apart.max() <= 15 + 1e-6
    ranked = script.ranked(spoilt)
    assert sum(script.count(ranked, planted).values()) >= 95
    assert script.count(ranked[:10], planted).total() == 10, "they come first"
    assert script.count(script.ranked(sound)[:150], planted).total() == 0
