from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.structures import Categories, Category, PanopticMap, Segment, SemanticMap
from detrkit.structures.segment_maps import MAX_ID, id_mismatch, ids_to_rgb, rgb_to_ids, segment_shapes

CATEGORIES = Categories([Category(3, "cell"), Category(8, "sky", is_thing=False, color=(1, 2, 3))])


def test_ids_survive_the_colours() -> None:
    """All places of the bytes, and many in between; uint8 arithmetic would overflow."""
    edges = [0, 1, 254, 255, 256, 257, 65535, 65536, 65537, MAX_ID - 1, MAX_ID]
    ids = np.array([*edges, *np.random.default_rng(0).integers(0, MAX_ID + 1, 4085)]).reshape(64, 64)
    for kind in (np.int32, np.int64, np.uint32):
        rgb = ids_to_rgb(ids.astype(kind))
        assert (rgb.shape, rgb.dtype) == ((64, 64, 3), np.uint8)
        assert np.array_equal(rgb_to_ids(rgb), ids)
    assert ids_to_rgb(np.array([[1 + 256 * 2 + 65536 * 3]])).tolist() == [[[1, 2, 3]]]
    wide = ids_to_rgb(ids).astype(np.int64)
    assert np.array_equal(wide @ [1, 256, 65536], ids)
    assert np.array_equal(rgb_to_ids(ids_to_rgb(ids)[::2, ::-3]), ids[::2, ::-3]), "not contiguous"


def test_every_id_survives() -> None:
    ids = np.arange(MAX_ID + 1, dtype=np.int32).reshape(4096, 4096)
    assert np.array_equal(rgb_to_ids(ids_to_rgb(ids)), ids)


def test_shapes_of_segments() -> None:
    ids = np.zeros((5, 7), dtype=np.int32)
    ids[1:3, 2:6] = 9
    ids[4] = 300
    ids[0, 0] = ids[4, 6] = 2
    shapes = segment_shapes(ids)
    assert shapes.ids.tolist() == [2, 9, 300]
    assert shapes.areas.tolist() == [2, 8, 6]
    assert shapes.boxes.tolist() == [[0, 0, 7, 5], [2, 1, 4, 2], [0, 4, 6, 1]]
    assert segment_shapes(np.zeros((3, 4), dtype=np.int32)).ids.tolist() == []
    assert segment_shapes(np.zeros((0, 4), dtype=np.int32)).boxes.shape == (0, 4)


def test_shapes_of_random_maps() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        ids = random.integers(0, 4, random.integers(1, 9, 2)) * 70000
        shapes = segment_shapes(ids)
        assert shapes.ids.tolist() == [number for number in np.unique(ids).tolist() if number]
        for number, area, box in zip(*shapes, strict=True):
            y, x = np.nonzero(ids == number)
            assert area == len(y)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]


def test_panoptic_rows_and_file(tmp_path: Path) -> None:
    ids = np.zeros((4, 6), dtype=np.int64)
    ids[:2] = 70000
    ids[3, 1:3] = 5
    found = PanopticMap(ids, (Segment(5, 0, 0.75), Segment(70000, 1)), CATEGORIES, path=Path("a.jpg"))
    assert found.ids.dtype == np.int32
    assert found.segments_info() == [
        {"id": 5, "category_id": 3, "area": 2, "bbox": [1, 3, 2, 1], "iscrowd": 0, "score": 0.75},
        {"id": 70000, "category_id": 8, "area": 12, "bbox": [0, 0, 6, 2], "iscrowd": 0, "score": 1.0},
    ]
    found.to_png(tmp_path / "a.png")
    assert np.array_equal(rgb_to_ids(np.asarray(Image.open(tmp_path / "a.png"))), ids)
    assert PanopticMap(np.zeros((2, 2), dtype=np.int32), (), CATEGORIES).segments_info() == []


@pytest.mark.parametrize(
    ("ids", "segments", "message"),
    [
        (np.ones((2, 2)), [Segment(1, 0)], "ids must be integers of shape"),
        (np.ones((2, 2), dtype=bool), [Segment(1, 0)], "ids must be integers of shape"),
        (np.ones(4, dtype=int), [Segment(1, 0)], "ids must be integers of shape"),
        (-np.ones((2, 2), dtype=int), [Segment(1, 0)], "between 0 and 16777215, but go from -1 to -1"),
        (np.full((2, 2), MAX_ID + 1), [Segment(MAX_ID + 1, 0)], "between 0 and 16777215"),
        (np.ones((2, 2), dtype=int), [Segment(1, 0), Segment(1, 1)], "segment id 1 is used twice"),
        (np.ones((2, 2), dtype=int), [Segment(1, 2)], "segment 1 has label 2, but there are 2 classes"),
        (np.ones((2, 2), dtype=int), [Segment(1, -1)], "segment 1 has label -1"),
        (np.ones((2, 2), dtype=int), [], "differ: segment 1 is in the map but not listed"),
        (np.zeros((2, 2), dtype=int), [Segment(1, 0)], "differ: segment 1 is listed but not in the map"),
    ],
)
def test_panoptic_maps_that_are_none(ids: Any, segments: list[Segment], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PanopticMap(ids, tuple(segments), CATEGORIES)


def test_id_mismatch_says_both_sides_and_not_all() -> None:
    assert id_mismatch([1, 2], [2, 1]) is None
    assert id_mismatch(range(1, 9), [9]) == (
        "segments 1, 2, 3, 4, 5, … are in the map but not listed; segment 9 is listed but not in the map"
    )


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_semantic_map_and_file(tmp_path: Path, kind: type) -> None:
    none = np.iinfo(kind).max
    found = SemanticMap(np.array([[0, 1, none]], dtype=kind), CATEGORIES)
    assert found.none == none
    found.to_png(tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[0, 1, none]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2), dtype=np.int64), "labels must be uint8 or uint16 of shape"),
        (np.zeros(4, dtype=np.uint8), "labels must be uint8 or uint16 of shape"),
        (np.full((2, 2), 2, dtype=np.uint8), "label 2 is in the map, but there are 2 classes"),
        (np.full((2, 2), 255, dtype=np.uint16), "label 255 is in the map"),
    ],
)
def test_semantic_maps_that_are_none(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticMap(labels, CATEGORIES)


def test_classes_that_do_not_fit_the_type() -> None:
    many = Categories(Category(number, str(number)) for number in range(256))
    with pytest.raises(ValueError, match="256 classes do not fit uint8, whose value 255 stands for no class"):
        SemanticMap(np.zeros((2, 2), dtype=np.uint8), many)
    assert SemanticMap(np.zeros((2, 2), dtype=np.uint16), many).none == 65535


def test_categories_as_json() -> None:
    """Things without colour are written as they always were."""
    assert CATEGORIES.to_json() == [
        {"id": 3, "name": "cell"},
        {"id": 8, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
    ]
    assert Categories.from_json(CATEGORIES.to_json()) == CATEGORIES
    assert Categories.from_json([{"id": 1, "name": "a", "isthing": 1}]) == (Category(1, "a"),)
