"""What must not be read: pictures that do not fit into memory, pipes and devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data import pixel_limit
from detrkit.data.coco_json import read_json
from detrkit.data.doctor import check
from detrkit.data.formats import find_sources
from detrkit.data.images import image_size, read_image
from detrkit.data.label_maps import is_rgb_png
from detrkit.data.listing import read_text
from detrkit.data.xml_files import read_xml
from detrkit.errors import DataError
from detrkit.files import beginning
from tests.inference.color_detector import coco_folder


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A small file with 36 megapixels."""
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((4000, 9000), np.uint8)).save(path)
    return path


def test_a_picture_larger_than_the_memory_is_refused_before_it_is_decoded(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_limit, "free_memory", lambda: 4e8)
    message = r"large\.png: 9000x4000 pixels \(36 megapixels\) take about 0\.6 GB, but 0\.4 GB of memory are free"
    for source in (large, large.read_bytes()):
        with pytest.raises(DataError, match=message):
            read_image(source, name=str(large))
    monkeypatch.setattr(pixel_limit, "free_memory", lambda: 4e9)
    assert read_image(large).size == (9000, 4000)


def test_a_limit_of_pixels(large: Path) -> None:
    with pytest.raises(DataError, match=r"36 megapixels\) are more than --max-pixels 35000000"):
        read_image(large, max_pixels=35_000_000)
    assert read_image(large, max_pixels=36_000_000).size == (9000, 4000)


def test_what_pillow_refuses_is_said_plainly(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
    with pytest.raises(DataError, match=r"large\.png: more than 20 megapixels; cut it into tiles"):
        read_image(large)


def test_free_memory_is_a_number_of_bytes_and_follows_the_limits_of_the_process() -> None:
    import resource

    assert pixel_limit.free_memory() > 0
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (1, hard))
        assert pixel_limit.free_memory() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.mark.parametrize("name", ["pipe.jpg", "zero.jpg"])
def test_pipes_and_devices_are_not_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "pipe.jpg":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=rf"{name}: not a regular file but a pipe, a socket or a device"):
            read(path)


def test_data_check_names_a_pipe_and_goes_on(tmp_path: Path) -> None:
    pictures = {name: Image.new("RGB", (64, 48)) for name in ("a.png", "b.png")}
    root = coco_folder(tmp_path / "data", pictures, [("b.png", 3, [1, 2, 20, 20])])
    for split in ("train", "val"):
        pipe = root / "images" / split / "a.png"
        pipe.unlink()
        os.mkfifo(pipe)
    report = check(find_sources(root))
    assert any("not a regular file" in example for found in report.findings for example in found.examples)


@pytest.mark.parametrize("place", ["data.yaml", "labels/train/a.txt", "coco.json", "a.xml", "masks/a.png"])
def test_annotations_that_are_pipes_or_devices_are_not_opened(tmp_path: Path, place: str) -> None:
    """Reading them would never end, or take all memory."""
    pipe = tmp_path / place
    pipe.parent.mkdir(parents=True, exist_ok=True)
    readers: dict[str, Callable[[Path], object]] = {
        ".yaml": read_text,
        ".txt": read_text,
        ".json": lambda path: read_json(path, "annotation"),
        ".xml": read_xml,
        ".png": is_rgb_png,
    }
    for device in (False, True):
        if device:
            pipe.unlink()
            pipe.symlink_to("/dev/zero")
        else:
            os.mkfifo(pipe)
        with pytest.raises(DataError, match="not a regular file but a pipe, a socket or a device"):
            readers[pipe.suffix](pipe)
        assert beginning(pipe, 10) == b""
