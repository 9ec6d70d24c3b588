"""Scenes that break detectors elsewhere: every proposal-based model trains a step on them and finds something."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from detrkit.inference.postprocess import postprocess
from detrkit.losses import build_criterion
from detrkit.models import create_model, list_models
from detrkit.structures import Target, pad_images
from tests.small import SMALL

MODELS = [
    "deformable_detr_lite0",
    "deformable_detr_r50",
    "deformable_detr_r50_single_scale",
    "dino_lite0",
    "dino_pp_r50",
    "relation_detr_lite0",
    "salience_detr_lite0",
    "salience_detr_r50",
    "dape_lite0",
]


@dataclass(frozen=True)
class Scene:
    """Sizes (height, width) and number of objects of the images of a batch."""

    sizes: tuple[tuple[int, int], ...]
    objects: tuple[int, ...]
    classes: int = 3
    queries: int = 12


SCENES = {
    "fewer tokens than queries": Scene(((32, 32),), (2,), queries=200),
    "one class": Scene(((64, 80),), (3,), classes=1),
    "no boxes": Scene(((64, 64), (64, 64)), (0, 0)),
    "more than 100 boxes": Scene(((96, 96),), (130,), queries=150),
    "aspect ratio 1 to 10": Scene(((32, 320),), (4,)),
    "very different sizes": Scene(((32, 320), (320, 32), (40, 40)), (1, 5, 0)),
}


def targets(scene: Scene) -> list[Target]:
    generator = torch.Generator().manual_seed(0)
    return [
        Target(labels=torch.arange(n) % scene.classes, boxes=torch.rand(n, 4, generator=generator) * 0.3 + 0.2)
        for n in scene.objects
    ]


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
@pytest.mark.parametrize("name", MODELS)
def test_trains_and_predicts(name: str, scene: Scene) -> None:
    torch.manual_seed(0)
    options = {**SMALL, "num_queries": scene.queries, "num_classes": scene.classes}
    model = create_model(name, **options).train()
    criterion = build_criterion(model.config)
    images, mask = pad_images([torch.randn(3, *size) for size in scene.sizes])
    out = model(images, mask, targets(scene))
    loss = criterion(out, criterion.prepare(targets(scene))).total
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        out = model.eval()(images, mask)
    found = postprocess(out, list(scene.sizes), config=model.config)
    assert len(found) == len(scene.sizes)
    assert all(len(item) > 0 for item in found)


FAMILIES = [name for name in list_models() if name.endswith("_lite0")] + ["dino_pp_r50", "detr_r50_dc5"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.slow) for name in list_models()]
)
def test_twenty_steps_in_bfloat16_stay_finite(name: str) -> None:
    torch.manual_seed(0)
    scene = Scene(((64, 64), (48, 64)), (3, 1))
    model = create_model(name, **SMALL).train()
    criterion = build_criterion(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, mask = pad_images([torch.randn(3, *size) for size in scene.sizes])
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(images, mask, targets(scene))
        loss = criterion(out, criterion.prepare(targets(scene))).total
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
