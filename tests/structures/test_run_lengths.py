"""Run lengths of masks: the same text as COCO's own encoder, and back."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from detrkit.structures import Masks


@pytest.mark.parametrize("share", [0, 0.05, 0.3, 0.7, 0.95, 1])
def test_the_text_equals_that_of_pycocotools(share: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 14, 2)
        bitmap = rng.random((height, width)) < share
        expected = coco.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"]
        assert Masks.encode(bitmap[None]) == [expected]
        masks = Masks([expected], (int(height), int(width)))
        np.testing.assert_array_equal(masks[0], bitmap)
        x2, y2 = int(width), int(height)
        np.testing.assert_array_equal(masks.part(0, (1, 1, x2, y2)), bitmap[1:, 1:])
        assert masks.areas.tolist() == [bitmap.sum()]


def test_masks_that_touch_the_top_and_the_bottom() -> None:
    bitmaps = np.zeros((3, 6, 5), dtype=bool)
    bitmaps[0, :, 1:3], bitmaps[1, 3:, 2], bitmaps[1, :2, 3], bitmaps[2] = True, True, True, True
    expected = [coco.encode(np.asfortranarray(one, dtype=np.uint8))["counts"] for one in bitmaps]
    assert Masks.encode(bitmaps) == expected
    assert Masks.encode(bitmaps[:0]) == []


def test_masks_at_another_size() -> None:
    small = np.random.default_rng(0).random((2, 5, 7)) > 0.5
    twice = small.repeat(2, axis=1).repeat(2, axis=2)
    assert np.array_equal(np.asarray(Masks.of(small, (5, 7)).resized((10, 14))), twice)
    odd = Masks.of(small, (5, 7)).resized((9, 13))
    assert (odd.shape, odd.size) == ((2, 9, 13), (9, 13))
    assert np.asarray(odd)[:, 0, 0].tolist() == small[:, 0, 0].tolist()
    assert np.asarray(odd)[:, -1, -1].tolist() == small[:, -1, -1].tolist()
