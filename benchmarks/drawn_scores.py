"""AP of a run on drawn sets of its validation images, without and with NMS, so that runs can be compared in pairs.

All runs draw the same images, so the difference of two runs is known for every draw: most of what images do to AP is in
both. Over seeds, too, pairs are drawn (bootstrap; Efron, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

from detrkit.config import load_recipe
from detrkit.evaluation.split_detections import detect_split
from detrkit.metrics.instances import InstanceMetric
from detrkit.metrics.result_files import read_results
from detrkit.report.intervals import drawn_ap
from detrkit.report.matching import COCO_IOUS, match_objects
from detrkit.report.mistakes import find_mistakes
from detrkit.report.scored_set import scored_set

NMS = 0.7
ROUNDS = 300
CONFIDENT = 0.3  # score from which a second detection of an object counts as a double


def suppressed(rows: Sequence[Any], threshold: float) -> list[Any]:
    """COCO results after NMS of each class in each image."""
    if not rows:
        return []
    corners = torch.tensor([row["bbox"] for row in rows])
    corners[:, 2:] += corners[:, :2]
    images = {image: place for place, image in enumerate({row["image_id"] for row in rows})}
    classes = 1 + max(row["category_id"] for row in rows)
    groups = torch.tensor([images[row["image_id"]] * classes + row["category_id"] for row in rows])
    kept = batched_nms(corners, torch.tensor([row["score"] for row in rows]), groups, threshold)
    return [rows[index] for index in kept.tolist()]


def drawn_scores(folder: Path) -> dict[str, Any]:
    """For "plain" and "nms": AP, AP50, AP of drawn sets (the set itself first), and doubles per object of the last
    weights of a run."""
    found = detect_split(folder / "last" / "model.safetensors", load_recipe(folder))
    metric = found.metric
    assert isinstance(metric, InstanceMetric)
    scores = {}
    for name, rows in (("plain", found.rows), ("nms", suppressed(found.rows, NMS))):
        results = read_results(rows, metric.truth, iou_type=metric.iou_type)
        data = scored_set(metric, results, image_ids=found.image_ids)
        drawn, _ = drawn_ap(data, match_objects(data, ious=COCO_IOUS), rounds=ROUNDS)
        score = metric.score(results, image_ids=found.image_ids)
        confident = [row for row in rows if row["score"] >= CONFIDENT]
        sure = scored_set(
            metric, read_results(confident, metric.truth, iou_type=metric.iou_type), image_ids=found.image_ids
        )
        scores[name] = {
            **{key: score.metrics[key] for key in ("AP", "AP50")},
            "drawn": [round(float(value), 5) for value in drawn],
            "doubles": round(find_mistakes(sure).count("duplicate") / len(sure.truth), 4),
        }
    return scores


def paired_difference(
    rows: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], which: str, confidence: float = 0.95
) -> tuple[float, float, float, int] | None:
    """Mean difference in AP of runs of the same data, length, size and seed, the ends of its interval over images and
    seeds, and the number of pairs; None without pairs."""
    key = lambda row: tuple(row[name] for name in ("data", "percent", "iterations", "size", "seed"))  # noqa: E731
    others = {key(row): row for row in base if "scores" in row}
    pairs = [
        np.subtract(row["scores"][which]["drawn"], others[key(row)]["scores"][which]["drawn"])
        for row in rows
        if "scores" in row and key(row) in others
    ]
    if not pairs:
        return None
    table = np.stack(pairs)  # pairs x (1 + draws)
    seeds = np.random.default_rng(0).integers(len(pairs), size=(len(pairs), table.shape[1] - 1))
    drawn = np.take_along_axis(table[:, 1:], seeds, axis=0).mean(axis=0)
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(table[:, 0].mean()), float(low), float(high), len(pairs)


def difference(found: list[dict[str, Any]], base: list[dict[str, Any]], which: str) -> str:
    """Mean difference in AP in pairs of one seed, with its 95 % interval over images and seeds."""
    if found is base:
        return "–"
    result = paired_difference(found, base, which)
    if result is None:
        return "–"
    mean, low, high, pairs = result
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f}, {'one seed' if pairs == 1 else f'{pairs} seeds'})"
