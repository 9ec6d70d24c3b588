"""Statistics compared with counts by hand, and drawings of the labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.data import ImageRecord, load_dataset
from detrkit.data.statistics import statistics
from detrkit.drawing import draw_labels
from detrkit.structures import Categories, Category
from tests.data.trees import coco_tree, segments


def record(boxes: Any, **columns: Any) -> ImageRecord:
    """The record of a 200 x 150 image with boxes xyxy."""
    found = segments(boxes, **columns)
    return ImageRecord(image_id=1, path=Path("x.png"), file_name="x.png", width=200, height=150, segments=found)


def test_counts(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    path = root / "annotations" / "instances_train.json"
    data = json.loads(path.read_text())
    data["annotations"].append({"id": 9, "image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1})
    data["annotations"].append({"id": 10, "image_id": 2, "category_id": 1, "bbox": [0, 0, 0, 9]})
    path.write_text(json.dumps(data))
    found = statistics(load_dataset(root, on_error="skip"))
    assert (found.images, found.empty_images, found.boxes, found.crowd, found.left_out) == (3, 1, 3, 1, 1)
    assert [(row.id, row.name, row.boxes, row.images) for row in found.classes] == [(1, "bolt", 1, 1), (2, "nut", 2, 2)]
    assert [row.small for row in found.classes] == [0.3651, 0.3558]  # 10.95 / 30; between 6.93 / 30 and 21.91 / 30
    assert found.boxes_per_image == (0, 0.1, 0.5, 1, 1.5, 1.9, 2)
    assert found.box_sizes is not None
    assert (found.box_sizes[0], found.box_sizes[-1]) == (6.9282, 21.9089)
    assert found.box_aspects is not None
    assert (found.box_aspects[0], found.box_aspects[-1]) == (0.8333, 1.3333)
    assert found.coco_sizes == (3, 0, 0)
    assert found.image_sizes == ((40, 30, 3),)
    assert json.loads(json.dumps(found.to_json()))["classes"][1]["boxes"] == 2


def test_a_split_without_boxes(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    path = root / "annotations" / "instances_train.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "annotations": []}))
    found = statistics(load_dataset(root))
    assert (found.boxes, found.box_sizes, found.coco_sizes) == (0, None, (0, 0, 0))
    assert [row.small for row in found.classes] == [None, None]


def test_drawings_show_boxes_and_crowd() -> None:
    crowded = record([[20, 40, 90, 120], [110, 5, 190, 140]], crowd=[False, True])
    image = Image.new("RGB", (200, 150))
    drawn = np.asarray(draw_labels(image, crowded, Categories([Category(1, "bolt"), Category(2, "häuser")])))
    assert np.asarray(image).max() == 0  # the original is not changed
    for x, y in ((20, 80), (89, 80), (50, 119), (110, 80), (150, 72)):  # edges, and the cross of the crowd
        assert drawn[y, x].any(), (x, y)
    assert not drawn[80, 55].any()
    assert tuple(drawn[80, 20]) != tuple(drawn[80, 110])


def test_names_and_edges_at_the_border_are_visible() -> None:
    at_border = record([[180, 60, 200, 150]])
    categories = Categories([Category(1, "a long class name")])
    drawn = np.asarray(draw_labels(Image.new("RGB", (200, 150)), at_border, categories))
    assert drawn[100, 199].any(), "the right edge"
    assert drawn[149, 190].any(), "the bottom edge"
    chip = np.flatnonzero(drawn[55].any(axis=1))  # the caption, moved left until it fits
    assert chip[0] < 150
