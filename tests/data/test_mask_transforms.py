"""Masks through the transforms and into a batch: on their object, tight boxes, nothing empty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from detrkit.data.loader import collate
from detrkit.data.packed_masks import PackedMasks, pack, pack_value
from detrkit.data.records import ImageRecord
from detrkit.data.scene import Scene
from detrkit.data.transforms import EvalTransform, TrainTransform
from detrkit.structures import Sample, Target
from tests.data.trees import segments

WIDTH, HEIGHT = 121, 89  # odd
BOXES = [(30, 20, 91, 70), (0, 60, 16, 88)]
COLORS = [(255, 0, 0), (0, 255, 0)]


def rectangle(box: tuple[int, int, int, int], kind: str) -> bytes:
    left, top, right, bottom = box
    if kind == "polygon":
        return pack([[left, top, right, top, right, bottom, left, bottom]])
    runs = [left * HEIGHT + top]
    for _ in range(right - left):
        runs += [bottom - top, HEIGHT - (bottom - top)]
    runs[-1] = (WIDTH - right) * HEIGHT + HEIGHT - bottom
    return pack({"size": [HEIGHT, WIDTH], "counts": runs})


def record(kind: str = "polygon", boxes: Any = BOXES) -> ImageRecord:
    masks = PackedMasks.of([rectangle(box, kind) for box in boxes])
    return ImageRecord(
        image_id=7, path=Path("x.png"), file_name="x.png", width=WIDTH, height=HEIGHT,
        segments=replace(segments(boxes), masks=masks),
    )  # fmt: skip


def image() -> Image.Image:
    """Black, with a rectangle in its own colour channel for each object."""
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    for box, color in zip(BOXES, COLORS, strict=True):
        picture.paste(color, box)
    return picture


def tight(mask: Tensor) -> Tensor:
    """xyxy of a mask that is not empty."""
    rows, columns = torch.nonzero(mask.any(dim=1)).flatten(), torch.nonzero(mask.any(dim=0)).flatten()
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def pixels(target: Target) -> Tensor:
    """Boxes as xyxy in pixels of the valid area."""
    centre, size = target.boxes[:, :2], target.boxes[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1) * torch.tensor([*target.size[::-1]] * 2)


def check(sample: Sample) -> None:
    target = sample.target
    assert target.masks is not None
    assert target.masks.shape == (len(target), *sample.image.shape[1:])
    seen = sample.image > 0.5
    for label in range(len(BOXES)):
        number = int(seen[label].sum())
        rows = torch.nonzero(target.labels == label).flatten().tolist()
        assert len(rows) <= 1
        if not rows:
            assert number <= 2 * max(seen.shape[1:]), "at most an edge is seen of an object without mask"
            continue
        mask = target.masks[rows[0]]
        assert mask.any(), "no empty mask"
        torch.testing.assert_close(pixels(target)[rows[0]], tight(mask).float(), rtol=0, atol=1e-3)
        if number:
            assert (tight(seen[label]) - tight(mask)).abs().max() <= 1, "within a pixel of what is seen"


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(["polygon", "rle"]), st.sampled_from(["detr", "strong", "lsj"]))
def test_masks_stay_on_their_objects(seed: int, kind: str, augmentation: Any) -> None:
    transform = TrainTransform(
        short_sides=(61, 97), max_side=151, crop_short_sides=(61, 97), crop_size=(41, 67), vertical_flip=0.5,
        augmentation=augmentation, lsj_size=(103, 87), mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    torch.manual_seed(seed)
    sample = transform(image(), record(kind), "inst")
    if augmentation == "strong":  # colours are shuffled
        assert sample.target.masks is not None
        for mask, box in zip(sample.target.masks, pixels(sample.target), strict=True):
            torch.testing.assert_close(box, tight(mask).float(), rtol=0, atol=1e-3)
    else:
        check(sample)


@pytest.mark.parametrize("kind", ["polygon", "rle"])
@pytest.mark.parametrize("resize", ["round", "float32_truncate"])
def test_evaluation_resize(kind: str, resize: Any) -> None:
    check(
        EvalTransform(short_side=133, max_side=150, resize=resize, mean=(0,) * 3, std=(1,) * 3)(
            image(), record(kind), "inst"
        )
    )


def test_detection_with_masks_in_the_data_is_as_without() -> None:
    transform = TrainTransform(short_sides=(61, 97), crop_short_sides=(61, 97), crop_size=(41, 67))
    for seed in range(20):
        torch.manual_seed(seed)
        with_masks = transform(image(), record(), "det").target
        torch.manual_seed(seed)
        without = transform(image(), replace(record(), segments=segments(BOXES)), "det").target
        assert torch.equal(with_masks.boxes, without.boxes)
        assert with_masks.masks is with_masks.is_thing is None


def test_large_scale_jittering_covers_scales_and_places() -> None:
    transform = TrainTransform(augmentation="lsj", lsj_size=(60, 100), flip=0)
    shapes, tops, lefts = [], set(), set()
    picture = Image.fromarray(np.indices((HEIGHT, WIDTH)).transpose(1, 2, 0).repeat(2, 2)[..., :3].astype(np.uint8))
    for seed in range(300):
        torch.manual_seed(seed)
        scene = transform.augment(Scene.of(picture, record(), "inst"))
        shapes.append((scene.image.height, scene.image.width))
        if scene.geometry.y.step < 0.8:
            tops.add(round(scene.geometry.y.offset))
            lefts.add(round(scene.geometry.x.offset))
    heights = [height for height, _ in shapes]
    assert max(heights) == 60
    assert min(heights) < 8, "a tenth of the size"
    assert max(width for _, width in shapes) == 100
    assert 0.4 < np.mean([height == 60 for height in heights]) < 0.65, "half of the scales are above 1"
    assert len(tops) > 15
    assert len(lefts) > 15


def test_a_batch_pads_masks_to_its_canvas() -> None:
    transform = EvalTransform(short_side=45)
    small = transform(image(), record(), "inst")
    empty = transform(image().resize((60, 200)), replace(record(boxes=[]), width=60, height=200), "inst")
    batch = collate([small, empty], size_divisor=32)
    canvas = tuple(batch.images.shape[-2:])
    assert canvas == (160, 64)
    first, second = batch.targets
    assert first.masks is not None
    assert second.masks is not None
    assert first.masks.shape == (2, *canvas)
    assert second.masks.shape == (0, *canvas)
    assert first.masks.dtype == torch.bool
    assert not first.masks[:, batch.padding_mask[0]].any()
    assert small.target.masks is not None
    assert torch.equal(first.masks[:, : first.size[0], : first.size[1]], small.target.masks)
    torch.testing.assert_close(pixels(first)[0], tight(first.masks[0]).float(), rtol=0, atol=1e-3)
    together = Target.cat([first, second])
    assert together.masks is not None
    assert len(together.masks) == 2
    moved = batch.to("meta").targets[0].masks
    assert moved is not None
    assert moved.device.type == "meta"


def test_values_of_a_segment_map_need_it() -> None:
    found = record()
    values = PackedMasks.of([pack_value(1), pack_value(2)])
    with pytest.raises(AssertionError, match="segment map"):
        EvalTransform()(image(), replace(found, segments=replace(found.segments, masks=values)), "inst")
