from __future__ import annotations

import numpy as np
import pytest

from detrkit.structures import Categories, Category, Detections

OWN = Categories([Category(0, "cat"), Category(1, "dog"), Category(2, "unicorn")])
DATA = Categories([Category(18, "dog"), Category(17, "cat")])


@pytest.fixture
def found() -> Detections:
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
    scores = np.array([0.9, 0.8, 0.7, 0.6], dtype=np.float32)
    labels = np.array([0, 2, 1, 0])
    masks = np.arange(4)[:, None, None] == np.arange(6).reshape(2, 3)
    return Detections(
        boxes=boxes, scores=scores, labels=labels, categories=OWN, image_size=(20, 30), masks=masks, image_id=7
    )


def test_relabelled_detections_are_written_with_the_other_ids(found: Detections) -> None:
    other = found.relabel([1, 0, None], DATA)
    assert other.names == ["cat", "dog", "cat"]
    assert other.labels.tolist() == [1, 0, 1]
    rows = other.to_coco()
    assert [row["category_id"] for row in rows] == [17, 18, 17]
    assert [row["score"] for row in rows] == found.scores[[0, 2, 3]].tolist()
    assert [row["bbox"] for row in rows] == [[0, 1, 2, 2], [8, 9, 2, 2], [12, 13, 2, 2]]
    assert other.masks is not None
    assert [mask.sum() for mask in other.masks] == [1, 1, 1]
    assert found.names == ["cat", "unicorn", "dog", "cat"], "the original is unchanged"


def test_no_class_of_the_detections_is_in_the_other_set(found: Detections) -> None:
    other = found.relabel([None] * 3, DATA)
    assert len(other) == 0
    assert other.to_coco() == []
    assert (other.image_id, other.image_size) == (7, (20, 30))


def test_to_coco_needs_an_image_id(found: Detections) -> None:
    assert {row["image_id"] for row in found.to_coco()} == {7}
    assert {row["image_id"] for row in found.to_coco(5)} == {5}
    found.image_id = None
    with pytest.raises(ValueError, match="needs an image id"):
        found.to_coco()
