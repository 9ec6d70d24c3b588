"""Images without torch are the same as with torch, and objects are chosen as with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data.arrays import normalised
from detrkit.data.records import ImageRecord
from detrkit.data.transforms import EvalTransform
from detrkit.inference.postprocess import select
from detrkit.losses.classes import Focal, Softmax
from detrkit.runtime.choose import chosen_objects
from detrkit.runtime.info import Preprocess, Rules
from detrkit.runtime.prepare import resized


@pytest.mark.parametrize("resize", ["round", "float32_truncate"])
@pytest.mark.parametrize("canvas", [None, (64, 48)])
@pytest.mark.parametrize("size", [(200, 150), (61, 97), (40, 30), (64, 64), (333, 20)])
def test_prepared_images_are_those_of_torch(size: tuple[int, int], canvas: tuple[int, int] | None, resize: str) -> None:
    """To 1e-5: bit for bit after the resize.

    Where torch computes without fused multiply-add, its float32 resize rounds other sums up and down: then single
    values may be one grey level off.
    """
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    sides = {"short_side": 64, "max_side": 96, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    record = ImageRecord(image_id=0, path=Path(), file_name="", width=size[0], height=size[1])
    wanted = EvalTransform(**sides, resize=resize, canvas=canvas)(image, record).image.numpy()
    rule = Preprocess(**sides, resize=resize)
    found = normalised(resized(image, rule, canvas), rule.mean, rule.std)
    assert found.shape == wanted.shape
    assert canvas is None or (found.shape[1] <= canvas[0] and found.shape[2] <= canvas[1])
    differs = np.abs(found - wanted) > 1e-5
    if resize == "float32_truncate" and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        levels = np.abs(found - wanted) * 255 * np.array(sides["std"])[:, None, None]
        assert levels.max() < 1.01
        assert differs.mean() < 1e-3
    else:
        assert not differs.any()


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("nms", [None, (0.5, None), (0.5, 0.01)])
@pytest.mark.parametrize("queries", [40, 1200])
def test_chosen_objects_are_those_of_torch(queries: int, nms: tuple[float, float | None] | None, scores: str) -> None:
    """Both ways of torchvision: classes moved apart, and, beyond 1000 boxes, class by class."""
    generator = np.random.default_rng(queries)
    logits = generator.normal(0, 2, (queries, 4)).astype(np.float32)
    boxes = generator.uniform(0.1, 0.9, (queries, 4)).astype(np.float32)
    threshold, decay = nms or (None, None)
    usable = np.array([True, False, True, True][: 3 if scores == "softmax" else 4])
    wanted = select(
        torch.from_numpy(logits),
        torch.from_numpy(boxes),
        classes=Softmax() if scores == "softmax" else Focal(),
        top_k=30,
        nms=threshold,
        nms_decay=decay,
        class_mask=torch.from_numpy(usable),
    )
    order = wanted.scores.argsort(descending=True, stable=True)
    rules = Rules(scores=scores, top_k=30, nms=threshold, nms_decay=decay)
    found = chosen_objects(logits, boxes, rules, usable=usable)
    assert len(found.scores) == len(wanted.scores) > 5
    for name in ("scores", "boxes"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name)[order].numpy(), atol=1e-5, rtol=0)
    for name in ("labels", "queries"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name)[order].numpy())
