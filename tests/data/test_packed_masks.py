"""Segmentations are packed without loss, and refused in plain words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as oracle

from detrkit.data.packed_masks import PackedMasks, pack, pack_value, size_problem, unpack
from detrkit.errors import DataError

TRIANGLE = [1, 1, 5.25, 1, 5, 7.1]
RLE = {"size": [4, 5], "counts": [3, 2, 15]}


def test_polygons_come_back_exactly() -> None:
    parts = unpack(pack([TRIANGLE, [0.1, 0.2, 3, 4, 5, 6, 7, 8]]))
    assert isinstance(parts, list)
    assert [part.ravel().tolist() for part in parts] == [TRIANGLE, [0.1, 0.2, 3, 4, 5, 6, 7, 8]]


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 999))
def test_every_kind_of_rle_is_the_same_mask(height: int, width: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    compressed = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    runs = np.diff(edges, prepend=0).tolist()
    for counts in (compressed["counts"], compressed["counts"].decode(), runs):
        assert unpack(pack({"size": [height, width], "counts": counts})) == compressed


@pytest.mark.parametrize("rest", [[3, 4], [3, 4, 17, 12], []])
def test_points_and_lines_beside_a_polygon_are_left_out(rest: list[float]) -> None:
    assert pack([rest, TRIANGLE]) == pack([TRIANGLE, rest]) == pack([TRIANGLE])
    if rest:  # of which pycocotools draws nothing
        drawn = [
            oracle.decode(oracle.merge(oracle.frPyObjects(parts, 20, 20))) for parts in ([TRIANGLE, rest], [TRIANGLE])
        ]
        assert np.array_equal(*drawn)


def test_a_value_of_a_segment_map() -> None:
    assert [unpack(pack_value(value)) for value in (0, 255, 2**24 - 1)] == [0, 255, 2**24 - 1]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "is missing"),
        ([], "is empty"),
        ("polygon", "is a str, not a list of polygons or an RLE object"),
        ([1, 1, 5, 1, 5, 5], r"must be a list of polygons, .*; wrap it in another list"),
        ([[1, 1, 5, 1]], "has a polygon with 2 points; it needs at least 3"),
        ([[1, 1], [5, 1], [5, 5]], r"is a list of points; write each polygon as one list"),
        ([TRIANGLE, [1, 1, 5]], r"has a polygon \(part 2 of 2\) with an odd number of coordinates"),
        ([TRIANGLE, [[1, 1], [5, 1]]], r"has a polygon \(part 2 of 2\) that is nested"),
        ([[1, 1, 5, 1, 5, 5, 3]], r"an odd number of coordinates \(7\)"),
        ([[1, 1, 5, 1, 5, float("nan")]], "a coordinate that is not finite"),
        ([[1, 1, 5, 1, 5, "x"]], "a coordinate that is not a number"),
        ([[[1, 1], [5, 1], [5, 5]]], "nested"),
        ({"counts": [20]}, r"an RLE whose size None is not \[height, width\]"),
        ({"size": [4, 5], "counts": [3, 2]}, "an RLE of 5 pixels, but its size 4x5 has 20"),
        ({"size": [4, 5], "counts": [3, -2, 19]}, "counts are not all whole numbers"),
        ({"size": [4, 5], "counts": 7}, "counts are a int"),
        ({"size": [4, 5], "counts": "05"}, "an RLE of 5 pixels"),
        ({"size": [4, 5], "counts": "~~"}, "damaged"),
        ({"size": [4, 5], "counts": "P"}, "damaged"),
    ],
)
def test_malformed_segmentations(segmentation: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack(segmentation)


def test_the_size_of_an_rle_must_be_that_of_the_image() -> None:
    assert size_problem(pack(RLE), 5, 4) is None
    assert size_problem(pack([TRIANGLE]), 1, 1) is None
    assert size_problem(pack(RLE), 4, 5) == "is an RLE for 5x4 pixels, but the image is 4x5"


def test_selecting_and_joining_share_the_buffer() -> None:
    masks = PackedMasks.of([pack([TRIANGLE]), b"", pack(RLE)])
    last = masks[np.array([False, False, True])]
    assert last.buffer is masks.buffer
    assert unpack(last.packed(0)) == unpack(pack(RLE))
    assert unpack(masks.packed(1)) is None
    assert PackedMasks.cat([last, masks]).buffer is masks.buffer
    other = PackedMasks.of([pack_value(7)])
    joined = PackedMasks.cat([last, other, masks[:1]])
    assert len(joined) == 3
    assert unpack(joined.packed(0)) == unpack(pack(RLE))
    assert unpack(joined.packed(1)) == 7
    assert joined.packed(2) == masks.packed(0)
