"""Published models in miniature on four images, and what each of their steps is made of, for one process or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.utils import gather_object
from torch import Tensor

from detrkit.config import Recipe
from detrkit.data import load_dataset
from detrkit.data.transforms import TrainTransform
from detrkit.losses import build, build_criterion
from detrkit.losses.criterion import Criterion
from detrkit.losses.normalisers import Normalisers
from detrkit.losses.points import MaskPoints
from detrkit.structures import Batch
from detrkit.training import run, train
from detrkit.training.task import Task
from detrkit.training.trainer import Trainer
from tests.data.trees import dump, write_image
from tests.small import small_model
from tests.training.fakes import make_recipe

MODELS = ("detr_r50", "dape_r50", "mask_dape_r50")
OBJECTS = (3, 0, 1, 5)  # of the images; any two pairs of them differ in their sum
SIZE = (96, 64)


def tree(root: Path) -> Path:
    """A COCO tree with a rectangle as polygon for every object."""
    images, rows = [], []
    for number, count in enumerate(OBJECTS, start=1):
        images.append({"id": number, "file_name": f"{number}.png", "width": SIZE[0], "height": SIZE[1]})
        write_image(root / "images" / "train" / f"{number}.png", SIZE, seed=number)
        for place in range(count):
            x, y, w, h = 4 + 18 * place, 5 + 6 * place, 16 + place, 20 + 3 * number
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            row = {"image_id": number, "category_id": 1 + place % 3, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            rows.append({"id": len(rows) + 1, **row, "segmentation": [outline]})
    categories = [{"id": number, "name": name} for number, name in enumerate(("bolt", "nut", "screw"), start=1)]
    dump(
        root / "annotations" / "instances_train.json", {"images": images, "annotations": rows, "categories": categories}
    )
    return root


def _same_points(*shape: int, device: torch.device) -> Tensor:
    """Numbers that do not depend on how many masks there are."""
    drawn = torch.rand(1, *shape[1:], generator=torch.Generator().manual_seed(0))
    return drawn.expand(shape).clone().to(device)


def task_of(name: str, root: Path, *, fixed: bool) -> Task:
    """A model and its images. fixed: nothing is drawn: no denoising, and the same points for every mask."""
    options: dict[str, Any] = {"mask_points": 128} if name.startswith("mask_") else {}
    if fixed and "dape" in name:
        options["denoising_queries"] = 0
    model = small_model(name, **options)
    points = partial(MaskPoints, uniform=_same_points) if fixed else MaskPoints
    with mock.patch.object(build, "MaskPoints", points):
        criterion = build_criterion(model.config)
    mean = model.config.input.image_mean
    transform = TrainTransform(short_sides=(64,), max_side=96, crop=False, flip=0.5, mean=mean, std=(0.5, 0.5, 0.5))
    data = load_dataset(root, split="train", task=model.config.architecture.task).with_transform(transform)
    model.categories = data.categories
    return Task(model=model, criterion=criterion, train_data=data, validation=None)


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """The gradient of every parameter, 0 where there is none."""
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in trainer.model.named_parameters()
    }


Step = dict[str, Any]


def plain_step(trainer: Trainer, group: list[Batch], step: Callable[..., Any], steps: list[Step]) -> Any:
    """A step, of which loss and gradients are kept."""
    result = step(trainer, group)
    steps.append({"loss": result[0], "gradients": gradients(trainer)})
    return result


def doubled_step(trainer: Trainer, group: list[Batch], step: Callable[..., Any], steps: list[Step]) -> Any:
    """A step, and then the gradients of the same draws on this process alone, with the normalisers of that step."""
    used: list[Normalisers] = []
    original = Criterion.__call__

    def call(criterion: Criterion, predictions: Any, targets: Any, counts: Any = None) -> Any:
        used.append(counts)
        return original(criterion, predictions, targets, counts)

    random = torch.get_rng_state()
    with mock.patch.object(Criterion, "__call__", call):
        result = step(trainer, group)
    averaged = gradients(trainer)
    trainer.optimizer.zero_grad(set_to_none=True)
    torch.set_rng_state(random)
    (batch,), criterion = group, trainer.task.criterion
    targets = criterion.prepare(batch.targets)
    images = batch.images.contiguous(memory_format=trainer.layout)
    predictions = trainer.model(images, batch.padding_mask, batch.targets)
    (criterion(predictions, targets, counts=used[0]).total + criterion.anchor(predictions)).backward()
    alone = gather_object([gradients(trainer)])
    for name, value in trainer.model.named_parameters():
        value.grad = averaged[name].clone()
    steps.append(
        {
            "counts": gather_object([used[0]]),
            "objects": gather_object([[len(target) for target in batch.targets]]),
            "averaged": averaged,
            "alone": alone,
        }
    )
    return result


@contextmanager
def watched(root: Path, name: str, *, fixed: bool) -> Iterator[list[Step]]:
    """``train`` trains a miniature; the list is filled with what its steps are made of."""
    steps: list[Step] = []
    original, kind = Trainer.forward_backward, plain_step if fixed else doubled_step

    def forward_backward(trainer: Trainer, group: list[Batch]) -> Any:
        return kind(trainer, group, original, steps)

    def build_task(recipe: Recipe) -> Task:
        return task_of(name, root, fixed=fixed)

    with (
        mock.patch.object(run, "build_task", build_task),
        mock.patch.object(Trainer, "forward_backward", forward_backward),
    ):
        yield steps


def train_miniature(folder: Path, name: str, *, fixed: bool, batch_size: int, device: str) -> list[Step]:
    """Two steps with all four images each."""
    root = folder / "data"
    if not root.exists():
        tree(root)
    overrides = {"epochs": 2, "batch_size": batch_size, "device": device, "clip_norm": None, "lr": 1e-4}
    overrides |= {"output": str(folder / f"{name}-{'fixed' if fixed else 'drawn'}")}
    with watched(root, name, fixed=fixed) as steps:
        train(make_recipe(folder, **overrides))
    return steps
