"""DETR's augmentation: sizes and pixels as in the official code, boxes that stay on their objects."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from detrkit.data.records import ImageRecord
from detrkit.data.scene import Scene
from detrkit.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    TrainTransform,
    normalised_pixels,
    resize_shape,
    truncated_shape,
)
from detrkit.structures import Objects, Sample
from tests.data.trees import segments


def make_record(boxes: Any, width: int, height: int) -> ImageRecord:
    return ImageRecord(
        image_id=7, path=Path("x.png"), file_name="x.png", width=width, height=height, segments=segments(boxes)
    )


def corners(sample: Sample) -> torch.Tensor:
    """Boxes as xyxy pixels of the transformed image."""
    centre, size = sample.target.boxes[:, :2], sample.target.boxes[:, 2:]
    height, width = sample.target.size
    return torch.cat([centre - size / 2, centre + size / 2], dim=1) * torch.tensor([width, height, width, height])


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray[Any, Any]]:
    return load_file(shared / "golden" / "op_preprocess" / "op_preprocess.safetensors")


@pytest.fixture(scope="module")
def pixels_abs(shared: Path) -> float:
    """The fixture's own tolerance."""
    info = json.loads((shared / "golden" / "op_preprocess" / "op_preprocess.json").read_text())
    return float(info["tolerance"]["pixels_abs"])


def test_official_sizes(golden: dict[str, Any], golden_count: dict[str, Any]) -> None:
    found = [resize_shape(height, width, 800, 1333) for height, width in golden["input_hw"].tolist()]
    assert found == [tuple(row) for row in golden["detr_resize_800_1333_hw"].tolist()]
    golden_count["cases"].add("op_preprocess")
    golden_count["tensors"] += 1


@pytest.mark.parametrize(("short", "longest"), [(24, 40), (48, 50), (48, 80)])
def test_official_pixels(
    golden: dict[str, Any], golden_count: dict[str, Any], pixels_abs: float, short: int, longest: int
) -> None:
    image = Image.fromarray(golden["image_uint8_hwc"])
    transform = EvalTransform(short_side=short, max_side=longest)
    sample = transform(image, make_record([], image.width, image.height))
    expected = golden[f"detr.size{short}_max{longest}"]
    assert sample.image.shape == expected.shape
    assert np.abs(sample.image.numpy() - expected).max() < pixels_abs
    golden_count["cases"].add("op_preprocess")
    golden_count["tensors"] += 1
    # another resampling is clearly different
    bicubic = np.asarray(image.resize(expected.shape[:0:-1], Image.Resampling.BICUBIC))
    assert np.abs((bicubic.transpose(2, 0, 1) / 255 - 0.45) / 0.226 - expected).max() > 0.1


def test_sizes_of_the_relation_repository(golden: dict[str, Any], golden_count: dict[str, Any]) -> None:
    sizes = golden["input_hw"].tolist()
    expected = [tuple(row) for row in golden["relation_detr_eval_resize_800_1333_hw"].tolist()]
    assert [truncated_shape(height, width, 800, 1333) for height, width in sizes] == expected
    golden_count["cases"].add("op_preprocess")
    golden_count["tensors"] += 1
    assert truncated_shape(375, 500, 800, 1333) == (799, 1066)
    exact = [min(800 / min(size), 1333 / max(size)) for size in sizes]
    assert [(int(h * r), int(w * r)) for (h, w), r in zip(sizes, exact, strict=True)] != expected
    assert truncated_shape(1, 5000, 800, 1333) == (1, 1332)


@pytest.mark.parametrize(("short", "longest"), [(24, 40), (48, 50), (48, 80)])
def test_pixels_of_the_relation_repository(
    golden: dict[str, Any], golden_count: dict[str, Any], pixels_abs: float, short: int, longest: int
) -> None:
    image = Image.fromarray(golden["image_uint8_hwc"])
    expected = golden[f"relation_detr.size{short}_max{longest}"]
    record = make_record([[10, 5, 30, 15]], image.width, image.height)
    sample = EvalTransform(short_side=short, max_side=longest, resize="float32_truncate")(image, record)
    assert sample.image.shape == expected.shape
    # torch resizes bytes: another version may round differently, by one grey level
    difference = np.abs(sample.image.numpy() - expected)
    assert difference.max() < 1 / 255 / min(IMAGENET_STD) + pixels_abs
    assert (difference > pixels_abs).mean() < 0.01
    golden_count["cases"].add("op_preprocess")
    golden_count["tensors"] += 1
    scale = np.array(expected.shape[:0:-1] * 2) / np.array(image.size * 2)
    assert corners(sample).numpy()[0] == pytest.approx(np.array([10, 5, 30, 15]) * scale, abs=1e-4)
    other = EvalTransform(short_side=short, max_side=longest)(image, record).image.numpy()
    assert other.shape != expected.shape or np.abs(other - expected).max() > 0.01  # Pillow rounds twice


def test_sizes_of_cityscapes_and_of_very_thin_images() -> None:
    assert resize_shape(1024, 2048, 800, 1333) == (666, 1332)
    assert resize_shape(480, 640, 800, None) == (800, 1066)
    assert resize_shape(1, 5000, 800, 1333) == (1, 5000)
    assert resize_shape(5000, 2, 800, 1333) == (2500, 1)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 900), st.integers(900, 1400))
def test_resize_stays_within_bounds(height: int, width: int, short: int, longest: int) -> None:
    new_height, new_width = resize_shape(height, width, short, longest)
    assert min(new_height, new_width) <= short
    if min(height, width) * 20 > max(height, width):  # for very thin images, rounding adds more
        assert max(new_height, new_width) <= longest + 0.5 * max(height, width) / min(height, width)
    assert resize_shape(width, height, short, longest) == (new_width, new_height)


def test_evaluation_target() -> None:
    image = Image.new("RGB", (40, 20))
    sample = EvalTransform(short_side=40, max_side=100)(image, make_record([[10, 5, 30, 15]], 40, 20))
    assert sample.image.shape == (3, 40, 80)
    assert sample.target.boxes.tolist() == [[0.5, 0.5, 0.5, 0.5]]
    assert sample.target.labels.tolist() == [0]
    assert (sample.target.original_size, sample.target.size, sample.target.image_id) == ((20, 40), (40, 80), 7)
    assert type(sample.image) is type(sample.target.boxes) is torch.Tensor
    empty = EvalTransform(short_side=40)(image, make_record([], 40, 20))
    assert empty.target.boxes.shape == (0, 4)
    assert empty.target.labels.dtype == torch.int64


def marked(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A black image with a white rectangle in the box."""
    array = np.zeros((height, width, 3), np.uint8)
    array[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(array)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.booleans())
def test_boxes_stay_on_their_object(seed: int, crop: bool) -> None:
    box = (30, 20, 90, 70)
    transform = TrainTransform(
        short_sides=(60, 80, 100), max_side=150, crop=crop, crop_short_sides=(60, 90), crop_size=(50, 80),
        mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    torch.manual_seed(seed)
    sample = transform(marked(120, 90, box), make_record([box], 120, 90))
    bright = sample.image[0] > 0.5
    if not len(sample.target):
        assert bright.float().mean() < 0.05
        return
    rows, columns = torch.nonzero(bright.any(dim=1)).flatten(), torch.nonzero(bright.any(dim=0)).flatten()
    seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert (corners(sample)[0] - seen).abs().max() <= 2.0


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(8, 120),
    st.integers(8, 120),
    st.lists(st.tuples(st.floats(0, 0.99), st.floats(0, 0.99), st.floats(1e-5, 1), st.floats(1e-5, 1)), max_size=5),
)
def test_boxes_stay_inside_and_positive(seed: int, width: int, height: int, parts: list[Any]) -> None:
    boxes = [(x * width, y * height, min(x + w, 1) * width, min(y + h, 1) * height) for x, y, w, h in parts]
    transform = TrainTransform(short_sides=(16, 32, 48), max_side=64, crop_short_sides=(24, 40), crop_size=(16, 40))
    torch.manual_seed(seed)
    sample = transform(Image.new("RGB", (width, height)), make_record(boxes, width, height))
    target = sample.target
    assert tuple(sample.image.shape[1:]) == target.size
    assert len(target.boxes) == len(target.labels) <= len(boxes)
    assert ((target.boxes >= 0) & (target.boxes <= 1)).all()
    assert (target.boxes[:, 2:] > 0).all()
    edges = corners(sample) / torch.tensor([*target.size[::-1], *target.size[::-1]])
    assert ((edges >= -1e-6) & (edges <= 1 + 1e-6)).all()


def test_flip_twice_is_identity() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    transform = TrainTransform(short_sides=(30,), crop=False, flip=1.0, mean=(0, 0, 0), std=(1, 1, 1))

    def flip(pixels: Any, boxes: Any) -> tuple[Any, torch.Tensor]:
        sample = transform(Image.fromarray(pixels), make_record(boxes, 40, 30))
        return (sample.image * 255).round().byte().permute(1, 2, 0).numpy(), corners(sample)

    once, boxes = flip(pixels, [[3, 4, 20, 25]])
    assert np.array_equal(once, pixels[:, ::-1])
    torch.testing.assert_close(boxes, torch.tensor([[20.0, 4, 37, 25]]))
    twice, boxes = flip(once, boxes.numpy())
    assert np.array_equal(twice, pixels)
    torch.testing.assert_close(boxes, torch.tensor([[3.0, 4, 20, 25]]))


def test_all_published_choices_occur() -> None:
    defaults = TrainTransform()
    assert tuple(defaults.short_sides) == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (defaults.max_side, defaults.flip, defaults.crop) == (1333, 0.5, True)
    assert (tuple(defaults.crop_short_sides), defaults.crop_size) == ((400, 500, 600), (384, 600))
    image, record = Image.new("RGB", (64, 48)), make_record([], 64, 48)
    torch.manual_seed(0)
    plain = TrainTransform(short_sides=(48, 51, 54), crop=False)
    assert {plain(image, record).target.size for _ in range(40)} == {(48, 64), (51, 68), (54, 72)}
    cropped = TrainTransform(short_sides=(48, 51, 54), max_side=100, crop_short_sides=(40, 60), crop_size=(38, 60))
    shapes = {cropped(image, record).target.size for _ in range(60)}
    assert {(48, 64), (51, 68), (54, 72)} < shapes  # with probability 0.5 there is no crop
    assert len({round(width / height, 2) for height, width in shapes}) > 10
    assert all(min(shape) <= 54 and max(shape) <= 100 for shape in shapes)


def test_a_crop_drops_only_objects_completely_outside() -> None:
    transform = TrainTransform(crop_short_sides=(100,), crop_size=(50, 50), short_sides=(50,), flip=0)
    boxes = [[0, 0, 100, 100], [0, 0, 5, 5], [60, 60, 100, 100]]
    kept = []
    for seed in range(60):
        torch.manual_seed(seed)
        sample = transform(Image.new("RGB", (100, 100)), make_record(boxes, 100, 100))
        labels = sample.target.labels.tolist()
        assert 0 in labels  # the first box contains every crop
        kept.append(tuple(labels))
        for label, box in zip(labels, corners(sample).tolist(), strict=True):
            assert box[2] > box[0], label
    assert (0,) in kept
    assert (0, 1, 2) in kept  # no crop
    assert (0, 2) in kept


@dataclass(frozen=True, kw_only=True)
class WeightedObjects(Objects):
    """Objects with an additional field."""

    weights: Tensor | None = None


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["detr", "strong", "lsj"]))
def test_other_fields_follow_their_boxes(seed: int, augmentation: Any) -> None:
    record = make_record([(8, 6, 60, 50), (70, 40, 110, 80), (0, 60, 16, 88)], 120, 90)
    scene = Scene.of(Image.new("RGB", (120, 90)), record)
    assert scene.objects is not None
    scene = replace(scene, objects=WeightedObjects(**vars(scene.objects), weights=torch.tensor([0.0, 10, 20])))
    transform = TrainTransform(
        short_sides=(60, 90), max_side=150, crop_short_sides=(60, 90), crop_size=(40, 60), vertical_flip=0.5,
        augmentation=augmentation, lsj_size=(100, 80),
    )  # fmt: skip
    torch.manual_seed(seed)
    found = transform.augment(scene).objects
    assert isinstance(found, WeightedObjects)
    assert found.weights is not None
    assert found.weights.tolist() == [10.0 * label for label in found.labels.tolist()]


def test_normalised_pixels_are_those_of_torchvision_bit_for_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    expected = F.normalize(F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True), IMAGENET_MEAN, IMAGENET_STD)
    found = normalised_pixels(image, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(found, expected)
    assert found.is_contiguous()
