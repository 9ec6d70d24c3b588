"""JPEGs over the pixel limit are decoded smaller, and what is found is in pixels of the full size."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.cli.predict import predict_images
from detrkit.data import pixel_limit
from detrkit.data.images import read_image
from detrkit.errors import DataError
from detrkit.inference.prediction_folder import PredictionFolder
from detrkit.inference.predictor import Predictor
from detrkit.inference.sources import find_images
from tests.inference.color_detector import ColorDetector, picture
from tests.inference.planted_detector import CELL, ROD, Planted, PlantedDetector, rectangle

SIZE = (1003, 801)
OBJECTS = ((0, (160, 80, 480, 240)), (2, (600, 400, 960, 760)))
SCENE = picture(SIZE, *OBJECTS)


def jpeg(path: Path, image: Image.Image = SCENE, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, quality=95, subsampling=0, exif=exif)
    return path


def color(max_pixels: int | None, **options: int) -> Predictor:
    return Predictor(ColorDetector(**options), device="cpu", max_pixels=max_pixels)


@pytest.mark.parametrize(("limit", "factor"), [(400_000, 2), (60_000, 4), (13_000, 8)])
def test_boxes_are_those_of_the_full_size(tmp_path: Path, limit: int, factor: int) -> None:
    path = jpeg(tmp_path / "a.jpg")
    with pytest.warns(UserWarning, match=rf"a\.jpg: 1003x801 pixels .* decoded at 1/{factor} of the size"):
        found = color(limit).predict(path)
    whole = color(None).predict(path)
    assert found.image_size == whole.image_size == (801, 1003)
    assert found.labels.tolist() == whole.labels.tolist()
    assert np.abs(found.boxes - whole.boxes).max() <= 2 * 801 / 64, "two pixels of what the model sees"


@pytest.mark.parametrize("orientation", [3, 6])
def test_photos_on_their_side(tmp_path: Path, orientation: int) -> None:
    stored = SCENE.transpose(Image.Transpose.ROTATE_180 if orientation == 3 else Image.Transpose.ROTATE_90)
    path = jpeg(tmp_path / "a.jpg", stored, orientation)
    with pytest.warns(UserWarning, match="1/4"):
        found = color(60_000).predict(path)
    assert found.image_size == (801, 1003)
    boxes = dict(zip(found.labels.tolist(), found.boxes, strict=True))
    for label, box in OBJECTS:
        assert np.abs(boxes[label] - box).max() <= 2 * 801 / 64


def test_masks_are_those_of_the_full_size(tmp_path: Path) -> None:
    full = (512, 640)
    things = [rectangle(full, 64, 64, 256, 192), rectangle(full, 320, 128, 576, 448)]
    planted = [Planted(label, mask) for label, mask in zip((CELL, ROD), things, strict=True)]
    path = jpeg(tmp_path / "a.jpg", Image.new("RGB", (640, 512)))
    predictor = Predictor(PlantedDetector([planted], eval_short_side=256), device="cpu", max_pixels=100_000)
    with pytest.warns(UserWarning, match="1/2"):
        found = predictor.predict(path, task="inst")
    assert found.masks is not None
    assert found.masks.shape == (2, *full)
    for label, true in zip((CELL, ROD), things, strict=True):
        mask = found.masks[found.labels.tolist().index(label)]
        assert (mask & true).sum() / (mask | true).sum() > 0.95
    with pytest.raises(DataError, match="more than --max-pixels"):
        predictor.predict(path, task="sem")


def test_what_is_refused_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jpeg(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="more than --max-pixels 60000"):
        color(60_000, eval_short_side=300, eval_max_side=400).predict(path)  # 1/4 is smaller than the model sees
    SCENE.save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: 1003x801 pixels"):
        color(60_000).predict(tmp_path / "a.png")
    with pytest.raises(DataError, match="more than --max-pixels 100"):
        color(100).predict(path)
    with pytest.raises(DataError, match="more than --max-pixels"):
        read_image(path, max_pixels=400_000)  # training and evaluation never decode less than the file has
    monkeypatch.setattr(pixel_limit, "free_memory", lambda: 1e6)
    with pytest.raises(DataError, match="more than --max-pixels"):
        color(400_000).predict(path)  # masks of the full size would not fit into memory


def test_pictures_within_the_limit_are_read_whole(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    SCENE.save(buffer, format="JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert color(SIZE[0] * SIZE[1]).open(buffer.getvalue()).image.size == SIZE


def test_a_folder_of_predictions(tmp_path: Path) -> None:
    jpeg(tmp_path / "a.jpg")
    predictor = color(60_000)
    folder = PredictionFolder(tmp_path / "out", predictor.categories)
    with pytest.warns(UserWarning, match="1/4"):
        predict_images(predictor, find_images([str(tmp_path / "a.jpg")]), folder, threshold=0.3, skip=True)
    folder.write()
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(row["width"], row["height"]) for row in written["images"]] == [SIZE]
    with pytest.warns(UserWarning, match="1/4"):
        found = predictor.predict(tmp_path / "a.jpg", 0.3)
    assert [row["bbox"] for row in written["annotations"]] == [row["bbox"] for row in found.to_coco(1)]
    with Image.open(tmp_path / "out" / "images" / "a.png") as drawn:
        assert drawn.size == (251, 201)
