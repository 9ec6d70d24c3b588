"""The strong augmentation: strengths and probabilities as in the preset; boxes follow their objects."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.config import load_recipe
from detrkit.data import photometric
from detrkit.data.transforms import TrainTransform
from detrkit.errors import RecipeError
from tests.data.test_transforms import corners, make_record

NOISE = Image.fromarray(np.random.default_rng(0).integers(60, 180, (24, 32, 3), dtype=np.uint8))


def changes(
    function: Callable[[Image.Image], Image.Image], image: Image.Image, count: int = 80
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """The differences between ``count`` results of the function and the image."""
    torch.manual_seed(0)
    before = np.asarray(image, np.float64)
    return [np.asarray(function(image), np.float64) - before for _ in range(count)]


def test_brightness_and_contrast_rise_by_10_to_30_percent() -> None:
    flat = Image.new("RGB", (4, 4), (50, 50, 50))
    found = [float(change.mean()) for change in changes(photometric._brighten, flat)]
    assert min(found) >= 50 * 0.1 + 255 * 0.1 - 1
    assert max(found) <= 50 * 0.3 + 255 * 0.3 + 1
    assert max(found) - min(found) > 30


def test_colour_channels_are_shifted_separately_by_up_to_10_levels() -> None:
    flat = Image.new("RGB", (4, 4), (50, 100, 150))
    moved = np.array([change[0, 0] for change in changes(photometric._shift_rgb, flat)])
    assert np.abs(moved).max() <= 10
    assert (moved.min(axis=0) < -7).all()
    assert (moved.max(axis=0) > 7).all()
    assert len({tuple(row) for row in moved.tolist()}) > 60


def test_hue_saturation_and_value_stay_within_the_presets_limits() -> None:
    colour = (200, 100, 100)
    flat = Image.new("RGB", (4, 4), colour)
    before = colorsys.rgb_to_hsv(*(value / 255 for value in colour))
    hues, others = [], []
    for change in changes(photometric._shift_hsv, flat):
        after = colorsys.rgb_to_hsv(*((change[0, 0] + colour) / 255))
        hues.append((after[0] - before[0] + 0.5) % 1 - 0.5)
        others.append((after[1] - before[1], after[2] - before[2]))
    assert 30 < 360 * max(map(abs, hues)) < 43
    assert min(hues) < 0 < max(hues)
    reach = np.abs(others).max(axis=0) * 255
    assert 20 < reach[0] < 34
    assert 15 < reach[1] < 22


def test_every_change_is_as_frequent_as_in_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the calls of each operation; a changed channel order is visible in the result."""
    seen: Counter[str] = Counter()
    for name in ("_brighten", "_shift_rgb", "_shift_hsv", "_compress"):
        real = getattr(photometric, name)

        def note(image: Image.Image, name: str = name, real: Callable[..., Image.Image] = real) -> Image.Image:
            seen[name] += 1
            return real(image)

        monkeypatch.setattr(photometric, name, note)
    image = Image.new("RGB", (8, 8), (200, 100, 40))
    torch.manual_seed(0)
    results = [photometric.distort_colours(image) for _ in range(600)]
    assert {(result.size, result.mode) for result in results} == {((8, 8), "RGB")}
    assert seen["_shift_rgb"] + seen["_shift_hsv"] == 600
    assert 240 < seen["_shift_rgb"] < 360
    assert 85 < seen["_brighten"] < 155
    assert 85 < seen["_compress"] < 155
    reordered = sum(np.asarray(result)[0, 0].argmax() != 0 for result in results)
    assert 20 < reordered < 65  # four of the six orders put another channel first


def test_blur_and_compression_change_the_image_only_slightly() -> None:
    smooth = NOISE.resize((96, 72), Image.Resampling.BICUBIC)
    assert all(0 < np.abs(change).mean() < 8 for change in changes(photometric._compress, smooth, 10))
    torch.manual_seed(0)
    rough = [np.asarray(photometric.distort_colours(NOISE), np.float64) for _ in range(120)]
    detail = [np.abs(np.diff(pixels, axis=1)).mean() for pixels in rough]
    assert min(detail) < 0.6 * float(np.median(detail)), "some are blurred"


def test_boxes_follow_the_shift_and_the_flips() -> None:
    image = Image.new("RGB", (160, 96))
    image.paste((255, 255, 255), (0, 40, 20, 60))
    transform = TrainTransform(
        short_sides=(96,), crop=False, vertical_flip=0.5, augmentation="strong", mean=(0,) * 3, std=(1,) * 3
    )
    places = set()
    for seed in range(60):
        torch.manual_seed(seed)
        sample = transform(image, make_record([[0, 40, 20, 60]], 160, 96))
        assert sample.image.shape[1:] == (96, 160)
        bright = sample.image.amin(0) > 0.65
        rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
        seen = torch.stack((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        box = corners(sample)[0]
        assert (box - seen).abs().max() <= 1.01
        places.add(tuple(box.round().int().tolist()))
    assert len(places) > 20
    assert all(x2 - x1 <= 20 for x1, _, x2, _ in places)
    assert max(y1 for _, y1, _, _ in places) <= 40 + 6
    assert min(x2 - x1 for x1, _, x2, _ in places) < 18  # cut off at the border


def test_boxes_that_are_shifted_out_are_dropped() -> None:
    transform = TrainTransform(short_sides=(96,), crop=False, flip=0, augmentation="strong")
    boxes = [[0, 0, 4, 4], [40, 40, 60, 60]]
    kept = set()
    for seed in range(40):
        torch.manual_seed(seed)
        sample = transform(Image.new("RGB", (160, 96)), make_record(boxes, 160, 96))
        assert (sample.target.boxes[:, 2:] > 0).all()
        kept.add(tuple(sample.target.labels.tolist()))
    assert kept == {(0, 1), (1,)}


def test_recipe_keys() -> None:
    recipe = load_recipe({}, ["data.augmentation=strong", "data.crop_size=[576,900]", "data.crop_short_sides=[600]"])
    assert (recipe.data.augmentation, recipe.data.crop_size) == ("strong", (576, 900))
    plain = load_recipe({}).data
    assert (plain.augmentation, plain.crop_short_sides, plain.crop_size) == ("detr", [400, 500, 600], (384, 600))
    with pytest.raises(RecipeError, match="crop_size"):
        load_recipe({}, ["data.crop_size=[900,576]"])
    with pytest.raises(RecipeError, match="strong"):
        load_recipe({}, ["data.augmentation=weak"])
    jitter = load_recipe({}, ["data.augmentation=lsj", "data.lsj_size=[512,1024]", "data.lsj_scale=[0.5,2]"]).data
    assert (jitter.augmentation, jitter.lsj_size, jitter.lsj_scale) == ("lsj", (512, 1024), (0.5, 2))
    with pytest.raises(RecipeError, match=r"lsj_scale is \[least, most\]"):
        load_recipe({}, ["data.lsj_scale=[2,0.5]"])
    assert (plain.colors, load_recipe({}, ["data.colors=ssd"]).data.colors) == ("none", "ssd")


def test_colours_of_ssd() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    seen = {np.asarray(change)[0, 0, 0] + 100 for change in changes(photometric.jitter_colours, grey, 300)}
    assert min(seen) in range(34, 45)  # darker by 32, then half of the contrast
    assert max(seen) in range(175, 199)
    torch.manual_seed(0)
    unchanged = sum(photometric.jitter_colours(NOISE) is NOISE for _ in range(300))
    assert 5 < unchanged < 40, "one in 16"
