"""Masks are drawn where the image is: exactly as by pycocotools without transforms, within one pixel with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as oracle

from detrkit.data.geometry import Geometry
from detrkit.data.packed_masks import PackedMasks, pack, pack_value, unpack
from detrkit.data.rasterise import draw_masks, rle_of, tight_boxes

WIDTH, HEIGHT = 90, 71
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def random_polygons(seed: int) -> list[list[float]]:
    """One to three polygons, partly outside the image."""
    random = np.random.default_rng(seed)
    return [
        np.round(random.uniform(-20, 110, 2 * random.integers(3, 9)), 2).tolist() for _ in range(random.integers(1, 4))
    ]


def official(polygons: list[list[float]]) -> Mask:
    return np.asarray(oracle.decode(oracle.merge(oracle.frPyObjects(polygons, HEIGHT, WIDTH)))).astype(bool)


def draw(packed: bytes, geometry: Geometry, **options: Any) -> Mask:
    return draw_masks(PackedMasks.of([packed]), np.zeros(1, np.int64), geometry, **options)[0]


@settings(max_examples=80)
@given(st.integers(0, 10_000))
def test_an_image_as_it_is_has_the_masks_of_pycocotools(seed: int) -> None:
    polygons = random_polygons(seed)
    expected = official(polygons)
    geometry = Geometry.whole((WIDTH, HEIGHT))
    assert np.array_equal(draw(pack(polygons), geometry), expected)
    rle = oracle.encode(np.asfortranarray(expected.astype(np.uint8)))
    assert np.array_equal(draw(pack(rle), geometry), expected)
    assert np.array_equal(draw(pack_value(9), geometry, segment_map=expected * 9), expected)
    for packed in (pack(polygons), pack(rle)):
        content = unpack(packed)
        assert isinstance(content, list | dict)
        assert rle_of(content, (WIDTH, HEIGHT)) == rle


@settings(max_examples=80)
@given(st.integers(0, 10_000))
def test_crops_and_flips_move_every_pixel(seed: int) -> None:
    polygons = random_polygons(seed)
    mask = official(polygons)
    random = np.random.default_rng(seed)
    geometry = Geometry.whole((WIDTH, HEIGHT))
    for _ in range(4):
        operation = random.integers(3)
        if operation == 2:
            top, left = (int(v) for v in random.integers(-10, 30, 2))
            size = int(random.integers(20, 60)), int(random.integers(20, 60))
            geometry = geometry.cropped((top, left, *size))
            padded = np.pad(mask, 100)
            mask = padded[100 + top : 100 + top + size[0], 100 + left : 100 + left + size[1]]
        else:
            geometry = geometry.flipped(vertically=bool(operation))
            mask = mask[::-1] if operation else mask[:, ::-1]
    original = official(polygons)
    rle = oracle.encode(np.asfortranarray(original.astype(np.uint8)))
    assert np.array_equal(draw(pack(rle), geometry), mask)
    assert np.array_equal(draw(pack_value(1), geometry, segment_map=original.astype(np.uint8)), mask)
    # the rasteriser of polygons is not symmetric, and closes outlines at a border
    assert (draw(pack(polygons), geometry) != mask).mean() < 0.08


@pytest.mark.parametrize("packed", ["polygon", "rle", "map"])
@pytest.mark.parametrize("size", [(143, 181), (35, 44), (71, 33), (11, 200)])
def test_resized_masks_and_boxes_agree_within_one_pixel(packed: str, size: tuple[int, int]) -> None:
    box = np.array([10.0, 8.0, 61.0, 57.0])
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[8:57, 10:61] = 1
    content = {
        "polygon": pack([[10, 8, 61, 8, 61, 57, 10, 57]]),
        "rle": pack(oracle.encode(mask)),
        "map": pack_value(1),
    }[packed]
    geometry = Geometry.whole((WIDTH, HEIGHT)).flipped().resized(*size)
    drawn = draw(content, geometry, segment_map=mask)
    assert drawn.shape == size
    scale = np.array([size[1] / WIDTH, size[0] / HEIGHT] * 2)
    expected = np.array([WIDTH - box[2], box[1], WIDTH - box[0], box[3]]) * scale
    assert np.abs(tight_boxes(drawn[None])[0] - expected).max() <= 1.0
    assert abs(drawn.mean() - mask.mean()) < 0.06


def test_masks_of_a_group_are_united() -> None:
    packed = [pack([[0, 0, 10, 0, 10, 10, 0, 10]]), pack([[20, 20, 30, 20, 30, 30, 20, 30]]), pack_value(4)]
    values = np.zeros((HEIGHT, WIDTH), np.int32)
    values[50:60, 50:70] = 4
    masks = draw_masks(PackedMasks.of(packed), np.array([0, 1, 0]), Geometry.whole((WIDTH, HEIGHT)), values)
    assert tight_boxes(masks).tolist() == [[0, 0, 70, 60], [20, 20, 30, 30]]
    assert masks[0].sum() == 100 + 200


def test_tight_boxes_end_behind_the_last_pixel() -> None:
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 2, 3] = True
    masks[1, 0, 0] = masks[1, 4, 6] = True
    assert tight_boxes(masks).tolist() == [[3, 2, 4, 3], [0, 0, 7, 5], [0, 0, 0, 0]]
    assert tight_boxes(masks[:0]).shape == (0, 4)
