"""Panoptic segments against a reference that goes pixel by pixel, and against Hugging Face transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.inference.segmentation import FoundSegments, ImageMasks, PanopticRules, panoptic_segments
from detrkit.losses import ClassLoss, Focal, Softmax
from tests.inference.planted_detector import DenseView

IS_THING = torch.tensor([True, True, False, False])


def segments(masks: Tensor, logits: Tensor, classes: ClassLoss, rules: PanopticRules) -> FoundSegments:
    """Ours, of masks (Q, h, w) at the size of the image."""
    size = (masks.shape[1], masks.shape[2])
    view = ImageMasks(DenseView(masks[None]), 0, size, size, size)
    return panoptic_segments(view, logits, classes=classes, is_thing=IS_THING, rules=rules)


def as_sets(ids: Tensor, labels: dict[int, int]) -> list[tuple[int, frozenset[int]]]:
    """Class and pixels of every segment, in the order of their numbers."""
    flat = ids.flatten().tolist()
    return [
        (label, frozenset(k for k, value in enumerate(flat) if value == number)) for number, label in labels.items()
    ]


def slow(masks: Tensor, scores: list[float], weights: list[float], labels: list[int], rules: PanopticRules) -> Any:
    """The published rules, one pixel after another: the query with the highest weight times probability has the pixel;
    a query stays if it has won enough of the pixels where its probability is at least one half."""
    p = masks.sigmoid().tolist()
    places = [(y, x) for y in range(masks.shape[1]) for x in range(masks.shape[2])]
    used = [query for query, score in enumerate(scores) if score > rules.threshold]
    won: dict[int, list[tuple[int, int]]] = {query: [] for query in used}
    for y, x in places if used else []:
        won[max(used, key=lambda query: weights[query] * p[query][y][x])].append((y, x))
    found: list[tuple[int, frozenset[int]]] = []
    for query in used:
        own = [place for place in places if p[query][place[0]][place[1]] >= 0.5]
        kept = frozenset(y * masks.shape[2] + x for y, x in won[query] if p[query][y][x] >= 0.5)
        if not kept or len(won[query]) / len(own) < rules.overlap:
            continue
        label = labels[query]
        known = [place for place, (other, _) in enumerate(found) if other == label]
        if known and not IS_THING[label]:
            found[known[0]] = (label, found[known[0]][1] | kept)
        else:
            found.append((label, kept))
    return found


@pytest.mark.parametrize("classes", [Softmax(), Focal(), Focal(temperature=None)], ids=str)
def test_segments_are_those_of_a_slow_reference(classes: ClassLoss) -> None:
    """Random smooth masks, among them empty ones, ones that others cover, and several of one class of stuff."""
    counts = []
    for seed in range(25):
        draw = torch.Generator().manual_seed(seed)
        queries = 1 + seed % 9
        masks = 6 * F.interpolate(torch.randn(1, queries, 4, 5, generator=draw), size=(12, 15), mode="bicubic")[0]
        logits = 4 * torch.randn(queries, len(IS_THING) + classes.no_object, generator=draw)
        rules = PanopticRules(threshold=(0.0, 0.25, 0.8)[seed % 3], overlap=(0.8, 0.5, 0.0)[seed // 3 % 3])
        score, label = classes.ranked(logits)
        weight = classes.sharpened(logits).amax(-1)
        found = segments(masks, logits, classes, rules)
        wanted = slow(masks, score.tolist(), weight.tolist(), label.tolist(), rules)
        assert as_sets(found.ids, dict(enumerate(found.labels, start=1))) == wanted
        counts.append(len(wanted))
    assert {1, 2, 3} <= set(counts), "the cases have segments"


@pytest.fixture(scope="module")
def oracle() -> Any:
    """The post-processing of transformers, which the tests need: it belongs to the extra ``dev``."""
    from transformers import Mask2FormerImageProcessor

    return Mask2FormerImageProcessor()


@pytest.mark.parametrize("seed", range(4))
def test_segments_are_those_of_transformers(oracle: Any, seed: int) -> None:
    """On masks that it resizes to 384 x 384.

    It weighs areas by scores and gives pixels below one half away too, so scores here are 1 and something claims every
    pixel; and it gives a number twice where a thing follows merged stuff, so stuff comes last.
    """
    draw = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 2, 3, 2])
    small = F.interpolate(torch.randn(1, len(labels), 5, 5, generator=draw), size=(96, 96), mode="bicubic")[0]
    masks = 8 * small - 8
    masks[-1] = 0.5  # everywhere, where nothing else is
    logits = torch.zeros(len(labels), len(IS_THING) + 1)
    logits[torch.arange(len(labels)), labels] = 60.0
    logits[3] = torch.tensor([0.0, 0.0, 0.0, 0.0, 60.0])  # no object
    overlap = 0.5 + 1e-6
    outputs = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])
    (wanted,) = oracle.post_process_panoptic_segmentation(
        outputs, threshold=0.5, overlap_mask_area_threshold=overlap, label_ids_to_fuse={2, 3}
    )
    size = (384, 384)
    view = ImageMasks(DenseView(masks[None]), 0, size, size, size)
    rules = PanopticRules(threshold=0.5, overlap=overlap)
    found = panoptic_segments(view, logits, classes=Softmax(), is_thing=IS_THING, rules=rules)
    theirs = {row["id"]: row["label_id"] for row in wanted["segments_info"]}
    assert 2 <= len(theirs) < len(labels) - 1
    assert as_sets(found.ids, dict(enumerate(found.labels, start=1))) == as_sets(wanted["segmentation"], theirs)
