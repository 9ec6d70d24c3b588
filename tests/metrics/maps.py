"""Small panoptic and semantic cases on disk, and slow references that count pixel by pixel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.structures.segment_maps import ids_to_rgb

CAR, DOG, SKY, ROAD = 1, 2, 10, 11
CATEGORIES: list[Any] = [
    {"id": CAR, "name": "car", "isthing": 1},
    {"id": DOG, "name": "dog", "isthing": 1},
    {"id": SKY, "name": "sky", "isthing": 0},
    {"id": ROAD, "name": "road", "isthing": 0},
]

Ids = NDArray[np.integer]
Side = tuple[Ids, Mapping[int, int]]
"""Segment ids (H, W), and the category of each id; a negative category is a crowd."""


def save_ids(path: Path, ids: Ids) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids_to_rgb(ids)).save(path)


def rows(ids: Ids, segments: Mapping[int, int]) -> list[dict[str, Any]]:
    """segments_info with areas as in the map."""
    return [
        {"id": key, "category_id": abs(kind), "area": int((ids == key).sum()), "iscrowd": int(kind < 0)}
        for key, kind in segments.items()
    ]


def side(folder: Path, name: str, sides: Sequence[Side]) -> dict[str, Any]:
    """Writes the PNG files of ground truth or results; the annotations of its JSON."""
    annotations = []
    for number, (ids, segments) in enumerate(sides, start=1):
        save_ids(folder / name / f"{number}.png", ids)
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": rows(ids, segments)})
    return {"annotations": annotations}


def truth_json(folder: Path, sides: Sequence[Side]) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": f"{number}.jpg", "height": ids.shape[0], "width": ids.shape[1]}
        for number, (ids, _) in enumerate(sides, start=1)
    ]
    return {**side(folder, "gt", sides), "images": images, "categories": CATEGORIES}


def case(folder: Path, truth: Sequence[Side], found: Sequence[Side]) -> dict[str, Path]:
    """gt.json with gt/ and found.json with found/, as arguments of ``score_panoptic``."""
    contents = {"gt": truth_json(folder, truth), "found": side(folder, "found", found)}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return {"ground_truth": folder / "gt.json", "results": folder / "found.json"}


def random_side(random: np.random.Generator, shape: tuple[int, int], *, crowds: bool) -> Side:
    """Rectangles over one another on void; at most one segment of a stuff class, as COCO has it."""
    ids = np.zeros(shape, dtype=np.int64)
    segments: dict[int, int] = {}
    for key in random.choice(np.arange(1, 2**24), 9, replace=False).tolist():
        kind = int(random.choice([CAR, CAR, DOG, DOG, SKY, ROAD]))
        if kind in (SKY, ROAD) and kind in segments.values():
            continue
        top, left = (int(random.integers(0, side - 4)) for side in shape)
        ids[top : top + random.integers(4, shape[0]), left : left + random.integers(4, shape[1])] = key
        segments[key] = -kind if crowds and kind in (CAR, DOG) and random.random() < 0.3 else kind
    return ids, {key: kind for key, kind in segments.items() if (ids == key).any()}


def moved(random: np.random.Generator, truth: Side) -> Side:
    """Results that are near the truth: shifted, some segments of another class, void filled here and there."""
    ids, segments = truth
    shifted = np.roll(ids, random.integers(-2, 3, 2), (0, 1))
    found = {
        key: int(random.choice([CAR, DOG, SKY, ROAD])) if random.random() < 0.2 else abs(kind)
        for key, kind in segments.items()
    }
    extra = shifted == 0
    extra[:, : ids.shape[1] // 2] = False
    if extra.any():
        shifted = np.where(extra, 77, shifted)
        found[77] = CAR
    return shifted, found


def slow_counts(truth: Side, found: Side) -> dict[int, list[float]]:
    """Category to IoU sum, matches, false and missed: every pair of segments as sets of pixels."""

    def pixels(ids: Ids, key: int) -> set[tuple[int, int]]:
        return {(y, x) for y in range(ids.shape[0]) for x in range(ids.shape[1]) if ids[y, x] == key}

    void = pixels(truth[0], 0)
    true = {key: pixels(truth[0], key) for key in truth[1]}
    seen = {key: pixels(found[0], key) for key in found[1]}
    counts = {category: [0.0, 0, 0, 0] for category in (CAR, DOG, SKY, ROAD)}
    free_true = {key for key, kind in truth[1].items() if kind > 0}
    free_found = set(seen)
    for key, kind in truth[1].items():
        for other, category in found[1].items():
            if kind != category:
                continue
            iou = len(true[key] & seen[other]) / len(true[key] | (seen[other] - void))
            if iou > 0.5:
                counts[kind][0] += iou
                counts[kind][1] += 1
                free_true.discard(key)
                free_found.discard(other)
    for key in free_true:
        counts[truth[1][key]][3] += 1
    for other in free_found:
        crowd = [key for key, kind in truth[1].items() if kind == -found[1][other]][-1:]
        excused = void.union(*(true[key] for key in crowd))
        if len(seen[other] & excused) / len(seen[other]) <= 0.5:
            counts[found[1][other]][2] += 1
    return counts
