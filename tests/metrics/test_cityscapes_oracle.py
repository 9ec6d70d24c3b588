"""Scores of Cityscapes against a second implementation, on drawn images with all that the label images may hold."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detrkit.data.gtfine_files import LABEL_CLASSES
from detrkit.metrics import score_panoptic, score_semantic
from detrkit.metrics.cityscapes import CityscapesMetric
from detrkit.structures import Categories, Category, Detections, Masks
from detrkit.structures.segment_maps import ids_to_rgb
from tests.metrics.cityscapes_oracle import STUFF, THINGS, instance_ap, panoptic_quality, pixel_iou

SIZE = (30, 40)
NAME_OF = {one.label: one.name for one in LABEL_CLASSES}
# few classes, so that they meet: road, sky; void; groups; objects; caravans and trailers
VALUES = (7, 23, 0, 4, 24, 26, 29, 24_000, 24_003, 26_000, 26_002, 26_007, 27_000, 29_000, 30_001)
FOUND = (7, 23, 24, 26, 27)
MANY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def rectangles(draw: st.DrawFn) -> Any:
    """A box in multiples of five: many have the least area that counts, and overlaps are ratios of small numbers."""
    x, y = 5 * draw(st.integers(0, 6)), 5 * draw(st.integers(0, 4))
    mask = np.zeros(SIZE, bool)
    mask[y : y + 5 * draw(st.integers(1, 4)), x : x + 5 * draw(st.integers(1, 4))] = True
    return mask


@st.composite
def label_images(draw: st.DrawFn, values: tuple[int, ...] = VALUES) -> Any:
    image = np.full(SIZE, draw(st.sampled_from((0, 7, 23))), np.int32)
    for mask in draw(st.lists(rectangles(), max_size=8)):
        image[mask] = draw(st.sampled_from(values))
    return image


SCORES = st.sampled_from((0.1, 0.4, 0.4, 0.5, 0.9))
DETECTIONS = st.lists(st.tuples(rectangles(), st.sampled_from(THINGS[:4]), SCORES), max_size=7)
SETS = st.lists(st.tuples(label_images(), DETECTIONS), min_size=1, max_size=3)


class Truth:
    """Label images by image id."""

    protocol, iou_type, max_detections = "cityscapes", "segm", None

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def coco_ground_truth(self) -> dict[str, object]:
        raise AssertionError("not read")

    def instance_ids(self, image_id: int) -> Any:
        return self.images[image_id]


def detections(rows: list[Any], classes: Categories) -> Detections:
    ranked = sorted(rows, key=lambda row: -row[2])
    masks = Masks.of(np.stack([row[0] for row in ranked]) if ranked else np.zeros((0, *SIZE), bool), SIZE)
    return Detections(
        boxes=masks.boxes,
        scores=np.array([row[2] for row in ranked], np.float64),
        labels=np.array([THINGS.index(row[1]) for row in ranked], np.int64),
        categories=classes,
        image_size=SIZE,
        masks=masks,
    )


def same(ours: float | None, theirs: float) -> bool:
    return ours is None if math.isnan(theirs) else ours == pytest.approx(theirs, abs=1e-9)


@MANY
@given(SETS)
def test_instances(images: list[Any]) -> None:
    classes = Categories(Category(number, NAME_OF[label]) for number, label in enumerate(THINGS, start=1))
    metric = CityscapesMetric.of(Truth([values for values, _ in images]))
    for number, (_, rows) in enumerate(images):
        metric.update(number, detections(rows, classes))
    score = metric.compute()
    expected = instance_ap(images)
    for label, values in expected.items():
        assert same(score.per_class[NAME_OF[label]]["AP"], float(np.mean(values))), NAME_OF[label]
        assert same(score.per_class[NAME_OF[label]]["AP50"], values[0])
    defined = [values for values in expected.values() if not math.isnan(values[0])]
    assert same(score.metrics["AP"], float(np.mean(defined)) if defined else math.nan)


def write_truth(root: Path, images: list[Any]) -> list[str]:
    """gtFine of these label images; the names of the frames."""
    shutil.rmtree(root, ignore_errors=True)
    folder = root / "gtFine" / "val" / "bonn"
    folder.mkdir(parents=True)
    (root / "found").mkdir()
    names = [f"bonn_{number:06d}_000019" for number in range(len(images))]
    for name, values in zip(names, images, strict=True):
        Image.fromarray(values.astype(np.uint16)).save(folder / f"{name}_gtFine_instanceIds.png")
    return names


@MANY
@given(images=st.lists(st.tuples(label_images(), label_images((*FOUND, 0, 29))), min_size=1, max_size=2))
def test_pixels(tmp_path: Path, images: list[Any]) -> None:
    for name, (_, found) in zip(write_truth(tmp_path, [values for values, _ in images]), images, strict=True):
        Image.fromarray(found.astype(np.uint8)).save(tmp_path / "found" / f"{name}_pred.png")
    score = score_semantic(tmp_path, tmp_path / "found")
    expected = pixel_iou(images)
    for label, value in expected.items():
        assert same(score.per_class[NAME_OF[label]]["IoU"], value), NAME_OF[label]
    counted = any(np.isin(values // np.where(values >= 1000, 1000, 1), (*STUFF, *THINGS)).any() for values, _ in images)
    assert same(score.metrics["mIoU"], float(np.nanmean(list(expected.values()))) if counted else math.nan)


@MANY
@given(images=st.lists(st.tuples(label_images(), label_images((1, 2, 3, 4))), min_size=1, max_size=2), data=st.data())
def test_panoptic(tmp_path: Path, images: list[Any], data: st.DataObject) -> None:
    names = write_truth(tmp_path, [values for values, _ in images])
    rows, told = [], []
    for name, (values, found) in zip(names, images, strict=True):
        label_of = {int(number): data.draw(st.sampled_from(FOUND)) for number in np.unique(found).tolist() if number}
        told.append((values, found, label_of))
        Image.fromarray(ids_to_rgb(found)).save(tmp_path / "found" / f"{name}.png")
        segments = [{"id": number, "category_id": label} for number, label in label_of.items()]
        rows.append({"image_id": name, "file_name": f"{name}.png", "segments_info": segments})
    (tmp_path / "found.json").write_text(json.dumps({"annotations": rows}))
    score = score_panoptic(tmp_path / "gtFine", tmp_path / "found.json")
    expected = panoptic_quality(told)
    for label, value in expected.items():
        assert same(score.per_class[NAME_OF[label]]["PQ"], value), NAME_OF[label]
    for group, labels in (("PQ", (*STUFF, *THINGS)), ("PQ_things", THINGS), ("PQ_stuff", STUFF)):
        defined = [expected[label] for label in labels if not math.isnan(expected[label])]
        assert same(score.metrics[group], float(np.mean(defined)) if defined else math.nan)
