"""Images of every kind are read as upright 8-bit RGB; errors name the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.data.images import image_size, read_image
from detrkit.errors import DataError

# Red top left, green top right, blue bottom left: all rotations and mirror images look different.
CORNERS = np.zeros((8, 16, 3), np.uint8)
CORNERS[:4, :8], CORNERS[:4, 8:], CORNERS[4:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)

# How a camera stores the upright image for each EXIF orientation.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


def oriented(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](CORNERS))).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = oriented(tmp_path / f"photo.{suffix}", orientation)
    image = read_image(path)
    assert np.abs(np.asarray(image).astype(int) - CORNERS).mean() < 20  # WebP is lossy
    assert image_size(path) == image.size == (16, 8)
    assert read_image(image).size == (16, 8)  # already upright: not rotated again
    assert np.array_equal(np.asarray(read_image(image)), np.asarray(image))
    if suffix == "tif":  # Pillow rotates these itself
        return
    stored = read_image(path, apply_exif=False)
    assert stored.size == STORED[orientation](CORNERS).shape[1::-1]
    assert read_image(stored).size == stored.size


def test_the_image_size_in_the_annotations_overrides_exif(tmp_path: Path) -> None:
    path = oriented(tmp_path / "photo.png", 6)
    assert read_image(path, frame=(16, 8)).size == (16, 8)  # annotated upright
    unrotated = read_image(path, frame=(8, 16))  # annotated as stored
    assert np.array_equal(np.asarray(unrotated), STORED[6](CORNERS))
    with pytest.raises(DataError, match=r"photo\.png: the image is 16x8 pixels but its annotations say 20x30"):
        read_image(path, frame=(20, 30))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(CORNERS).save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert read_image(path).size == image_size(path) == (16, 8)


GRAY = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gray_of(source: Any) -> np.ndarray[Any, Any]:
    """The channel of a gray image, after a check that all three are equal."""
    array = np.asarray(read_image(source))
    assert array.dtype == np.uint8
    assert array.shape == (16, 16, 3)
    assert np.array_equal(array[..., 0], array[..., 1])
    assert np.array_equal(array[..., 0], array[..., 2])
    return array[..., 0]


def test_gray_palette_and_alpha_keep_their_values() -> None:
    gray = Image.fromarray(GRAY)
    for image in (gray, gray.convert("LA"), gray.convert("RGBA"), gray.convert("P"), gray.convert("RGB")):
        assert np.array_equal(gray_of(encoded(image, "PNG")), GRAY)
    assert np.array_equal(gray_of(encoded(gray.convert("P"), "PNG", transparency=bytes(range(256)))), GRAY)


def test_one_bit_becomes_black_and_white() -> None:
    bits = Image.fromarray(GRAY > 100)
    assert bits.mode == "1"
    assert np.array_equal(gray_of(encoded(bits, "PNG")), np.where(GRAY > 100, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_from_their_full_range(kind: str) -> None:
    deep = Image.fromarray(GRAY.astype(np.uint16) * 257)
    assert deep.mode.startswith("I")
    assert np.array_equal(gray_of(encoded(deep, kind)), GRAY)


def test_cmyk_becomes_rgb() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow make red
    red = np.asarray(read_image(encoded(ink, "JPEG", quality=95)))
    assert red.shape == (16, 16, 3)
    assert np.abs(red.astype(int) - (255, 0, 0)).max() < 8


def test_arrays() -> None:
    for array in (GRAY, GRAY[..., None], GRAY.astype(np.uint16) * 257, GRAY / 255, (GRAY / 255).astype(np.float32)):
        assert np.array_equal(gray_of(array), GRAY)
    assert np.array_equal(gray_of(GRAY > 100), np.where(GRAY > 100, 255, 0))
    assert np.array_equal(np.asarray(read_image(CORNERS)), CORNERS)
    assert np.array_equal(np.asarray(read_image(np.dstack([CORNERS, CORNERS[..., :1]]))), CORNERS)
    for wrong in (np.zeros((4, 4, 2)), np.zeros((0, 4)), np.zeros(5), np.full((4, 4), np.nan), np.full((4, 4), -1)):
        with pytest.raises(DataError):
            read_image(wrong)


def test_a_given_image_is_not_changed(tmp_path: Path) -> None:
    with Image.open(oriented(tmp_path / "photo.png", 6)) as image:
        assert read_image(image).size == (16, 8)
        assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize("name", ["häuser 写真.jpg", "with space.jpg"])
def test_errors_name_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match="no such image file") as error:
        read_image(path)
    assert name in str(error.value)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    assert read_image(str(path)).size == (64, 64)
    data = path.read_bytes()
    for damaged in (b"", b"hello", data[: len(data) // 2], data[:20]):
        path.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            read_image(path)
        assert name in str(error.value)
        with pytest.raises(DataError):
            read_image(damaged)
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)


def test_a_truncated_png_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    with pytest.raises(DataError, match="truncated or damaged"):
        read_image(data[: len(data) // 2])


def test_the_error_for_other_sources_names_their_type() -> None:
    source: Any = 3
    with pytest.raises(TypeError, match="not int"):
        read_image(source)
