"""Cityscapes' three evaluations once more, slowly and step by step, from the description of the official code.

Nothing of ``detrkit`` is used: labels, rules and sums are written out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

STUFF = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23)
THINGS = (24, 25, 26, 27, 28, 31, 32, 33)
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)

Array = Any
Found = tuple[Array, int, float]  # mask, label, score


def _label(value: int) -> int:
    return value // 1000 if value >= 1000 else value


def instance_ap(images: list[tuple[Array, list[Found]]]) -> dict[int, list[float]]:
    """Ten APs of every class, nan where there is no object that counts."""
    table: dict[int, list[float]] = {}
    for label in THINGS:
        table[label] = [_ap(images, label, step / 20) for step in range(10, 20)]
    return table


def _ap(images: list[tuple[Array, list[Found]]], label: int, overlap: float) -> float:
    scores: list[tuple[float, bool]] = []
    missed, have_truth, have_found = 0, False, False
    for values, found in images:
        records = {int(v): values == v for v in np.unique(values) if _label(int(v)) == label}
        kept = [(mask, score) for mask, own, score in found if own == label and mask.any()]
        have_found |= bool(kept)
        iou = {
            (key, place): (record & mask).sum() / (record | mask).sum()
            for key, record in records.items()
            for place, (mask, _) in enumerate(kept)
        }
        for key, record in records.items():
            if key < 1000 or record.sum() < 100:
                continue
            have_truth = True
            over = [kept[place][1] for place in range(len(kept)) if iou[key, place] > overlap]
            if not over:
                missed += 1
                continue
            over.remove(best := max(over))
            scores.append((best, True))
            scores.extend((score, False) for score in over)
        for place, (mask, score) in enumerate(kept):
            if any(iou[key, place] > overlap for key in records):
                continue
            ignored = sum(int((mask & (values == v)).sum()) for v in VOID)
            ignored += sum(int((mask & record).sum()) for key, record in records.items() if key < 1000)
            ignored += sum(int((mask & record).sum()) for record in records.values() if record.sum() < 100)
            if ignored / mask.sum() <= overlap:
                scores.append((score, False))
    if not have_truth:
        return math.nan
    if not have_found or not scores:
        return 0.0
    hits = sum(hit for _, hit in scores)
    precision, recall = [], []
    for threshold in sorted({score for score, _ in scores}):
        true = sum(hit for score, hit in scores if score >= threshold)
        precision.append(true / sum(score >= threshold for score, _ in scores))
        recall.append(true / (hits + missed))
    precision.append(1.0)
    recall.append(0.0)
    around = [recall[0], *recall, 0.0]
    return sum(p * (around[place] - around[place + 2]) / 2 for place, p in enumerate(precision))


def pixel_iou(images: list[tuple[Array, Array]]) -> dict[int, float]:
    """IoU of the 19 classes from label images of ground truth and of results; nan where there is nothing to divide."""
    matrix = [[0] * 34 for _ in range(34)]
    for values, found in images:
        for value, label in zip(values.ravel().tolist(), found.ravel().tolist(), strict=True):
            matrix[_label(value)][label] += 1
    table = {}
    for label in (*STUFF, *THINGS):
        hit = matrix[label][label]
        missed = sum(matrix[label]) - hit
        false = sum(matrix[other][label] for other in (*STUFF, *THINGS) if other != label)
        table[label] = hit / (hit + missed + false) if hit + missed + false else math.nan
    return table


def panoptic_quality(images: list[tuple[Array, Array, dict[int, int]]]) -> dict[int, float]:
    """PQ by label of instance images and (map, label of each segment); nan where a class does not occur."""
    sums = {label: [0.0, 0, 0, 0] for label in (*STUFF, *THINGS)}
    for values, found, label_of in images:
        void = np.isin(values, [v for v in np.unique(values) if _label(int(v)) not in sums])
        true = {int(v): values == v for v in np.unique(values[~void])}
        groups = {key for key in true if key < 1000 and key in THINGS}
        matched: set[tuple[str, int]] = set()
        for key, record in true.items():
            for segment, label in label_of.items():
                mask = found == segment
                if key in groups or _label(key) != label:
                    continue
                union = int(record.sum()) + int(mask.sum()) - int((record & mask).sum()) - int((mask & void).sum())
                iou = int((record & mask).sum()) / union
                if iou > 0.5:
                    sums[label][0] += iou
                    sums[label][1] += 1
                    matched |= {("true", key), ("found", segment)}
        for key in true:
            if key not in groups and ("true", key) not in matched:
                sums[_label(key)][3] += 1
        for segment, label in label_of.items():
            mask = found == segment
            excused = int((mask & void).sum()) + (int((mask & true[label]).sum()) if label in groups else 0)
            if ("found", segment) not in matched and excused / int(mask.sum()) <= 0.5:
                sums[label][2] += 1
    return {
        label: iou / (hit + false / 2 + missed / 2) if hit + false + missed else math.nan
        for label, (iou, hit, false, missed) in sums.items()
    }
