"""Pictures in memory: every layout, order of channels and type of number gives the picture, or a refusal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data.images import read_image
from detrkit.errors import DataError

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
PICTURE[0, 0], PICTURE[0, 1] = 255, 0
ALPHA = np.concatenate([PICTURE, np.full((6, 9, 1), 7, np.uint8)], axis=2)


def pixels(source: Any, **options: Any) -> np.ndarray:
    return np.asarray(read_image(source, **options))


# --- types of numbers -------------------------------------------------------------------------------------------------

INTEGERS = [np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64]
FLOATS = [np.float16, np.float32, np.float64]


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_of_any_width_hold_8_or_16_bits(kind: Any) -> None:
    assert np.array_equal(pixels(PICTURE.astype(kind)), PICTURE)
    if kind is not np.int16:
        assert np.array_equal(pixels(PICTURE.astype(kind) * 257), PICTURE)


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_floats_are_shares_of_white_or_8_bits_up_to_rounding(kind: Any, scale: float) -> None:
    values = (PICTURE / 255 * scale).astype(kind)
    assert np.array_equal(pixels(values), PICTURE)
    values[0, 0, 0], values[0, 1, 0] = scale * (1 + 9e-4), -9e-4 * scale
    assert np.array_equal(pixels(values), PICTURE), "rounding is cut off"


def test_bool_is_black_and_white() -> None:
    assert np.array_equal(pixels(PICTURE > 128), np.where(PICTURE > 128, 255, 0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (PICTURE.astype(int) - 1, "-1 to 254"),
        (PICTURE.astype(int) * 1000, "0 to 255000"),
        (PICTURE / 255 * 2 - 1, "undo a normalisation"),
        (PICTURE / 255 * 1.1, "clip it to 0 to 1"),
        (PICTURE / 255 * 10, "0 to 10 "),
        (PICTURE / 255 * 300, "0 to 300"),
        (np.where(PICTURE > 254, np.nan, PICTURE / 255), "replace NaN"),
        (np.where(PICTURE > 254, np.inf, PICTURE / 255), "0 to inf"),
        (PICTURE.astype(complex), "complex128"),
        (PICTURE.astype(str), "convert it to numpy.uint8"),
        (PICTURE.astype(object), "object"),
    ],
)
def test_values_of_no_known_range_are_refused(values: Any, message: str) -> None:
    """None of them becomes a black or clipped picture in silence."""
    with pytest.raises(DataError, match=message):
        pixels(values)


def test_12_bits_in_16_are_said_to_be_dark() -> None:
    with pytest.warns(UserWarning, match="16-bit values up to 4080 of 65535 are an almost black image; multiply"):
        pixels(PICTURE.astype(np.uint16) * 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels(PICTURE.astype(np.uint16) * 256)


@pytest.mark.parametrize("highest", [200, 4000, 65535])
def test_a_file_of_16_bits_is_scaled_from_its_full_range(tmp_path: Path, highest: int) -> None:
    """A dark file does not become bright because its values would fit into 8 bits."""
    values = np.linspace(0, highest, 48).reshape(6, 8).astype(np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        found = pixels(tmp_path / f"a.{suffix}")
        np.testing.assert_allclose(found[..., 0], values / 257, atol=0.51)


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (ALPHA, PICTURE),
        (PICTURE[..., 0], np.repeat(PICTURE[..., :1], 3, axis=2)),
        (PICTURE[..., :1], np.repeat(PICTURE[..., :1], 3, axis=2)),
        (PICTURE[::-1, ::-2], PICTURE[::-1, ::-2]),
        (np.asfortranarray(PICTURE), PICTURE),
        (np.ma.masked_array(PICTURE), PICTURE),
    ],
)
@pytest.mark.parametrize("tensor", [False, True])
def test_arrays_and_tensors(array: Any, expected: Any, tensor: bool) -> None:
    if tensor:
        array = torch.from_numpy(np.ascontiguousarray(array))
        array = array.permute(2, 0, 1) if array.ndim == 3 else array
    assert np.array_equal(pixels(array), expected)


def test_tensors_of_any_type_and_with_gradients() -> None:
    channels_first = torch.from_numpy(PICTURE).permute(2, 0, 1)
    for kind in (torch.float32, torch.float64):
        assert np.array_equal(pixels((channels_first / 255).to(kind)), PICTURE)
    assert np.abs(pixels((channels_first / 255).bfloat16()).astype(int) - PICTURE).max() <= 1
    assert np.array_equal(pixels(channels_first.long()), PICTURE)
    assert np.array_equal(pixels(torch.nn.Parameter(channels_first / 255)), PICTURE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PICTURE.transpose(2, 0, 1), r"if its channels come first: array\.transpose\(1, 2, 0\)"),
        (torch.from_numpy(PICTURE), r"if its channels come last: tensor\.permute\(2, 0, 1\)"),
        (PICTURE[None], r"passed as a list of images: list\(array\)"),
        (torch.zeros(2, 3, 5, 5), r"passed as a list of images: list\(tensor\)"),
        (np.zeros((0, 4, 3), np.uint8), "is not an image"),
        (np.zeros((4, 4, 2), np.uint8), "is not an image"),
        (np.zeros(7), "is not an image"),
        (torch.zeros(7), "is not an image"),
    ],
)
def test_other_shapes_are_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pixels(source)


# --- order of channels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turned",
    [
        lambda: PICTURE[..., ::-1],
        lambda: ALPHA[..., [2, 1, 0, 3]],
        lambda: torch.from_numpy(PICTURE).permute(2, 0, 1).flip(0),
        lambda: PICTURE[..., ::-1] / 255,
    ],
)
def test_bgr_is_turned_where_it_is_stated(turned: Callable[[], Any]) -> None:
    assert np.array_equal(pixels(turned(), channels="bgr"), PICTURE)
    assert np.array_equal(pixels(turned()), PICTURE[..., ::-1]), "it is never guessed"


def test_files_and_pillow_images_know_their_order(tmp_path: Path) -> None:
    image = Image.fromarray(PICTURE)
    image.save(tmp_path / "a.png")
    for source in (image, tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), PICTURE[..., :1]):
        assert np.array_equal(pixels(source, channels="bgr"), pixels(source))
