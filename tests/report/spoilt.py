"""A good detector on drawn images, and eight ways to spoil its data or its training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.report.sets import Rows

SIDE = 240
NAMES = ("bolt", "nut", "screw")


class Case:
    """Data, detections on the validation images, and the log of a run; spoiled in place."""

    def __init__(self, seed: int, *, images: int = 40) -> None:
        self.rng = np.random.default_rng(seed)
        self.train, self.val = self._split(images), self._split(images)
        self.results = detected(self.val, self.rng)
        self.scores = (0.2, 0.5, 0.62, 0.66, 0.67, 0.67, 0.67, 0.67)
        self.steps = 3000
        self.short_side = SIDE
        self.copied = 0  # training images that are also validation images
        self.moved = (0, 0)  # of all labels, after the images were drawn

    def _split(self, images: int) -> dict[str, Any]:
        annotations: Rows = []
        for image in range(1, images + 1):
            for cell in self.rng.permutation(9)[: int(self.rng.integers(2, 7))].tolist():
                corner = np.array(divmod(cell, 3)) * 66 + 38 + self.rng.integers(0, 12, 2)
                size = self.rng.integers(26, 46, 2)
                label = int(self.rng.choice(3, p=[0.5, 0.3, 0.2]))
                box = [float(value) for value in (*corner, *size)]
                row = {"image_id": image, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, **row})
        return {
            "images": [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(1, images + 1)],
            "categories": [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)],
            "annotations": annotations,
        }

    def picture(self, split: dict[str, Any], image: int, shade: int) -> Image.Image:
        """A gray image with its objects as they were drawn, whatever has become of their labels."""
        picture = Image.new("RGB", (SIDE, SIDE), (shade, shade, shade + image % 40))
        canvas = ImageDraw.Draw(picture)
        for row in split.get("drawn", split["annotations"]):
            if row["image_id"] == image:
                x, y, w, h = row["bbox"]
                canvas.rectangle([x, y, x + w - 1, y + h - 1], fill=(40 + 60 * row["category_id"], 210, 30))
        return picture


def detected(truth: dict[str, Any], rng: np.random.Generator) -> Rows:
    """What a good detector finds: 94 % of the objects, a few wrong classes, some low scores where nothing is."""
    rows: Rows = []
    for row in truth["annotations"]:
        if rng.random() < 0.94:
            box = np.array(row["bbox"]) + rng.normal(0, 1.2, 4)
            label = row["category_id"] if rng.random() < 0.97 else int(rng.integers(1, 4))
            rows.append({**_where(row["image_id"], label, box), "score": float(rng.beta(9, 3))})
    for image in truth["images"]:
        for _ in range(int(rng.poisson(3))):
            box = [*rng.uniform(0, SIDE - 50, 2), *rng.uniform(20, 50, 2)]
            label = int(rng.integers(1, 4))
            rows.append({**_where(image["id"], label, np.array(box)), "score": float(rng.beta(2, 9))})
    return rows


def _where(image: int, label: int, box: np.ndarray) -> dict[str, Any]:
    return {"image_id": image, "category_id": label, "bbox": [float(value) for value in np.maximum(box, 1.0)]}


def too_short(case: Case) -> None:
    case.steps, case.scores = 120, (0.0, 0.001, 0.004)
    for row in case.results:
        row["bbox"] = [float(value) for value in (*case.rng.uniform(0, 180, 2), *case.rng.uniform(10, 60, 2))]


def ids_off_by_one(case: Case) -> None:
    for row in case.val["annotations"]:
        row["category_id"] = row["category_id"] % len(NAMES) + 1


def labels_removed(case: Case) -> None:
    for split in (case.train, case.val):
        split["drawn"] = split["annotations"]
        split["annotations"] = [row for row in split["annotations"] if case.rng.random() > 0.3]


def one_rare_class(case: Case) -> None:
    seen = 0
    kept = []
    for row in case.train["annotations"]:
        seen += row["category_id"] == 3
        if row["category_id"] != 3 or seen <= 5:
            kept.append(row)
    case.train["annotations"] = kept
    case.results = [row for row in case.results if row["category_id"] != 3 or case.rng.random() < 0.15]


def tiny_objects(case: Case) -> None:
    case.short_side = 48
    case.results = [row for row in case.results if case.rng.random() < 0.5]


def shared_images(case: Case) -> None:
    case.copied = 12


def boxes_off(case: Case) -> None:
    case.moved = (20, 20)
    for split in (case.train, case.val):
        split["drawn"] = copy.deepcopy(split["annotations"])
    for row in [*case.train["annotations"], *case.val["annotations"], *case.results]:
        row["bbox"][0] += 20
        row["bbox"][1] += 20


def duplicates(case: Case) -> None:
    for row in list(case.results):
        if row["score"] > 0.4:
            box = np.array(row["bbox"]) + case.rng.normal(0, 0.8, 4)
            score = float(row["score"] * case.rng.uniform(0.75, 1.0))
            case.results.append({**_where(row["image_id"], row["category_id"], box), "score": score})


SPOILT: dict[str, tuple[Callable[[Case], None], str]] = {
    "too short": (too_short, "too short"),
    "ids off by one": (ids_off_by_one, "mixed classes"),
    "30 % of labels removed": (labels_removed, "missing labels"),
    "a class with 5 boxes": (one_rare_class, "rare class"),
    "tiny objects": (tiny_objects, "tiny objects"),
    "the same images in both splits": (shared_images, "shared images"),
    "boxes off by 20 pixels": (boxes_off, "boxes off"),
    "duplicates": (duplicates, "duplicates"),
}
"""Fault -> what makes it, and the advice that should come first."""
