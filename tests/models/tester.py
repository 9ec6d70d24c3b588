"""A registered model with images, objects and outputs, created once and shared by the tests of every model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.inference.answers import postprocess
from detrkit.losses import LossOutput, build_criterion
from detrkit.models import Architecture, Detector, DetectorConfig, create_model, entry, list_models, model_config
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Detections, Predictions, Target, pad_images
from tests.small import SMALL, small_model, small_options

CLASSES = 3
QUERIES = SMALL["num_queries"]
LAYERS = SMALL["decoder_layers"]


def representatives() -> set[str]:
    """Return one published name per family: the shortest, which is the plainest model."""
    found: dict[str, str] = {}
    for name in sorted(list_models(), key=lambda name: (name.endswith("_lite0"), len(name), name)):
        found.setdefault(entry(name).family, name)
    return set(found.values())


def images(*sizes: tuple[int, int], seed: int = 2) -> tuple[Tensor, Tensor]:
    """Return random images of sizes (height, width), padded to one canvas, and their padding mask."""
    generator = torch.Generator().manual_seed(seed)
    return pad_images([torch.randn(3, height, width, generator=generator) for height, width in sizes])


def objects(*counts: int) -> list[Target]:
    """Return one target per count, with that number of objects; the classes alternate."""
    generator = torch.Generator().manual_seed(1)
    return [
        Target(labels=torch.arange(count) % CLASSES, boxes=torch.rand(count, 4, generator=generator) * 0.3 + 0.2)
        for count in counts
    ]


def with_masks(targets: Sequence[Target], canvas: tuple[int, int]) -> list[Target]:
    """The same with a mask for each object, its box on the canvas (height, width)."""
    height, width = canvas
    masked = []
    for target in targets:
        left, top, right, bottom = cxcywh_to_xyxy(target.boxes).T[..., None]
        x, y = ((torch.arange(side) + 0.5) / side for side in (width, height))
        columns, rows = (left < x) & (x < right), (top < y) & (y < bottom)
        masked.append(replace(target, masks=rows[:, :, None] & columns[:, None, :]))
    return masked


class Tools:
    """Losses and post-processing of one configuration."""

    def __init__(self, config: DetectorConfig[Architecture]) -> None:
        self.config = config
        self.criterion = build_criterion(config)

    def losses(self, out: Predictions, targets: list[Target]) -> LossOutput:
        """Return the training losses, with label augmentation."""
        return self.criterion(out, self.criterion.prepare(targets))

    def detections(self, out: Predictions, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Return the detections in images of these sizes."""
        return postprocess(out, sizes, config=self.config)


def add_noise_to_weights(model: nn.Module) -> None:
    """Add noise to all tensors, so that no initial value hides a mistake: zeros, equal heads, ties of scores."""
    generator = torch.Generator().manual_seed(3)
    scales = [buffer for name, buffer in model.named_buffers() if name.endswith((".weight", ".bias"))]  # frozen norms
    with torch.no_grad():
        for tensor in (*model.parameters(), *scales):
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)


def train_without_batch_statistics(model: nn.Module) -> None:
    """Set training mode, but keep batch norm in evaluation mode, since its training output depends on the batch."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@dataclass(frozen=True)
class Step:
    """Result of a training step: predictions, losses, and the gradient per trainable parameter."""

    out: Predictions
    losses: LossOutput
    gradients: dict[str, Tensor | None]


def step(model: Detector, batch: tuple[Tensor, Tensor], targets: list[Target], *, seed: int = 0) -> Step:
    """Run forward with targets, losses and backward; then clear the gradients of the model.

    Objects get masks if the model has a mask head.
    """
    if model.mask_head is not None:
        targets = with_masks(targets, (batch[1].shape[1], batch[1].shape[2]))
    torch.manual_seed(seed)  # for denoising
    out = model(*batch, targets)
    found = Tools(model.config).losses(out, targets)
    found.total.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    model.zero_grad()
    return Step(out, found, gradients)


class Case:
    """A registered model, small or in its published size, with a batch of two images and their objects."""

    sizes = ((70, 96), (64, 81))

    def __init__(self, name: str, *, full: bool = False) -> None:
        self.name, self.full = name, full
        self.images = images(*self.sizes)

    def objects(self, *counts: int) -> list[Target]:
        """So many objects per image, with masks where the model learns any."""
        height, width = self.images[1].shape[1:]
        return objects(*counts) if self.model.mask_head is None else with_masks(objects(*counts), (height, width))

    @cached_property
    def targets(self) -> list[Target]:
        """A few objects on the images."""
        return self.objects(3, 1)

    @cached_property
    def model(self) -> Detector:
        """The model in evaluation mode; tests that change it use a :meth:`copy`."""
        torch.manual_seed(0)
        # stochastic depth would skip whole blocks in a step
        full_size = {"num_classes": CLASSES, "drop_path": 0.0}
        model = create_model(self.name, **full_size) if self.full else small_model(self.name)
        add_noise_to_weights(model)
        return model.eval()

    def copy(self) -> Detector:
        """Return another model with the same weights."""
        return copy.deepcopy(self.model)

    def detect(self, model: Detector) -> Predictions:
        """Return the predictions of a model in evaluation mode."""
        with torch.no_grad():
            return model.eval()(*self.images)

    @cached_property
    def evaluated(self) -> Predictions:
        """Predictions of :attr:`model` in evaluation mode."""
        return self.detect(self.model)

    @cached_property
    def trained(self) -> Step:
        """A training step of :attr:`model`, with batch norm in evaluation mode."""
        train_without_batch_statistics(self.model)
        try:
            with torch.enable_grad():  # whichever test asks first
                return step(self.model, self.images, self.targets)
        finally:
            self.model.eval()

    @property
    def focal(self) -> bool:
        """Whether the logits have no no-object class."""
        return self.evaluated.logits.shape[-1] == CLASSES

    def with_options(self, **options: Any) -> Tools:
        """Return losses and post-processing of the small model with other options, which do not affect its weights."""
        return Tools(model_config(self.name, **small_options(self.name, **options)))
