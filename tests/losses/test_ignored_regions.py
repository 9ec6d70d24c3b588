"""Ignored regions: nothing that is found there is wrong in training, and they move with the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data import ImageRecord, TrainTransform
from detrkit.data.segments import Segments
from detrkit.losses import build_criterion
from detrkit.models import model_config
from detrkit.structures import Predictions, Target

BOX = torch.tensor([[0.5, 0.5, 0.2, 0.2]])


def loss(name: str, regions: torch.Tensor | None, *, score: float) -> tuple[float, torch.Tensor]:
    """Class loss and gradient of the logits: query 0 finds the object, query 1 something else at the right."""
    config = model_config(name, num_classes=2, num_queries=3, decoder_layers=1)
    criterion = build_criterion(config)
    slots = config.architecture.class_slots
    logits = torch.zeros(1, 1, 3, slots)
    logits[0, 0, 0, 0] = logits[0, 0, 1, 0] = score
    logits.requires_grad_(True)
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [0.85, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]]])
    target = Target(labels=torch.tensor([0]), boxes=BOX, ignored=regions)
    found = criterion(Predictions(logits, boxes), criterion.prepare([target]))
    value = found.terms["loss_class"]
    found.total.backward()
    assert logits.grad is not None
    return float(value), logits.grad[0, 0]


@pytest.mark.parametrize("name", ["de_detr_lite0", "dape_lite0", "conditional_detr_lite0"])
def test_what_is_found_in_a_region_is_not_wrong(name: str) -> None:
    plain, gradient = loss(name, None, score=3.0)
    empty, _ = loss(name, torch.zeros(0, 4), score=3.0)
    assert empty == plain
    region = torch.tensor([[0.9, 0.5, 0.2, 0.4]])  # from 0.8 on: three quarters of the second box
    ignored, without = loss(name, region, score=3.0)
    assert ignored < plain
    assert float(gradient[1].abs().sum()) > 0
    assert float(without[1].abs().sum()) == 0
    assert torch.equal(without[[0, 2]], gradient[[0, 2]])
    over_the_object = torch.tensor([[0.5, 0.5, 0.3, 0.3]])
    kept, of_object = loss(name, over_the_object, score=3.0)
    assert kept == plain, "a matched query learns its object"
    assert torch.equal(of_object, gradient)
    beside = torch.tensor([[0.98, 0.5, 0.14, 0.4]])  # a fifth of the second box
    assert loss(name, beside, score=3.0)[0] == plain


def crowd_record() -> ImageRecord:
    yes = np.array([False, True])
    segments = Segments(
        boxes=np.array([[5.0, 5, 10, 10], [60, 10, 30, 20]]),
        labels=np.array([0, 0]),
        areas=np.ones(2),
        crowd=yes,
        outside=yes & False,
        things=yes | True,
    )
    return ImageRecord(image_id=1, path=Path("a.png"), file_name="a.png", width=100, height=50, segments=segments)


def test_regions_move_with_the_image() -> None:
    """The region is painted: where it is in the picture after any transform, it is in the target."""
    pixels = np.zeros((50, 100, 3), dtype=np.uint8)
    pixels[10:30, 60:90] = 255
    transform = TrainTransform(
        short_sides=(40, 60),
        max_side=200,
        flip=0.5,
        vertical_flip=0.5,
        crop_short_sides=(50, 70),
        crop_size=(40, 60),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        ignore_crowds=True,
    )
    seen = 0
    for seed in range(20):
        torch.manual_seed(seed)
        sample = transform(Image.fromarray(pixels), crowd_record())
        bright = sample.image[0] > 0.5
        assert sample.target.ignored is not None
        if not len(sample.target.ignored):
            assert bright.float().mean() < 0.02
            continue
        seen += 1
        rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
        height, width = bright.shape
        x, y, w, h = (sample.target.ignored[0] * torch.tensor([width, height] * 2)).tolist()
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose([x - w / 2, y - h / 2, x + w / 2, y + h / 2], [int(e) for e in edges], atol=1.5)
    assert seen > 10
    plain = replace(transform, ignore_crowds=False)(Image.fromarray(pixels), crowd_record())
    assert plain.target.ignored is None
