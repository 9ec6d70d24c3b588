"""A detector of a few hundred parameters, images of coloured squares, and runs with a few milliseconds per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detrkit.config import Recipe, load_recipe
from detrkit.data import DetectionDataset
from detrkit.data.records import ImageRecord
from detrkit.data.transforms import TrainTransform
from detrkit.losses import build_criterion
from detrkit.metrics import Metric, Score
from detrkit.metrics.coco import CocoMetric
from detrkit.metrics.protocol import AnnotatedData, Gather
from detrkit.models import Detector
from detrkit.models.config import Architecture, DetectorConfig, Input
from detrkit.structures import Categories, Category, Detections, Predictions, QueryGroup, Target
from detrkit.training import run
from detrkit.training.task import Task, Validation
from tests.data.trees import segments

CATEGORIES = Categories([Category(7, "red"), Category(9, "blue")])
SIZE = 32


class TinyDetector(Detector):
    """Two layers of queries that attend to 4x4 patches; dropout makes the training draw random numbers."""

    def __init__(self, *, dropout: float = 0.1, num_queries: int = 5) -> None:
        mean = (0.5, 0.5, 0.5)
        super().__init__(
            config=DetectorConfig(
                architecture=Architecture(
                    num_classes=len(CATEGORIES), num_queries=num_queries, mask_backbone_padding=True
                ),
                input=Input(image_mean=mean, image_std=mean, eval_short_side=SIZE, eval_max_side=SIZE),
            )
        )
        self.name = "tiny"
        self.categories = CATEGORIES
        self.backbone = nn.Conv2d(3, 16, 8, stride=8)
        self.query_embed = nn.Embedding(num_queries, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.class_embed = nn.Linear(16, len(CATEGORIES) + 1)
        self.bbox_embed = nn.Linear(16, 4)
        self.dropout = nn.Dropout(dropout)

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        memory = self.backbone(images).flatten(2).transpose(1, 2)
        queries = self.query_embed.weight.expand(len(images), -1, -1)
        states = []
        for layer in self.layers:
            read = (queries @ memory.transpose(1, 2)).softmax(-1) @ memory
            queries = queries + self.dropout(layer(queries + read).relu())
            states.append(queries)
        hidden = torch.stack(states)
        out = Predictions(self.class_embed(hidden), self.bbox_embed(hidden).sigmoid())
        if self.training and targets is not None and any(len(target) for target in targets):
            out.groups["denoising"] = self._fixed_group(out, targets)
        return out

    def _fixed_group(self, out: Predictions, targets: list[Target]) -> QueryGroup:
        """The same predictions with query i matched to object i; like denoising queries, absent without objects.

        Images without objects are ignored, so that the split into micro-batches does not matter.
        """
        pairs, start = [], 0
        for image, target in enumerate(targets):
            pairs += [(image, index, start + index) for index in range(min(len(target), self.config.num_queries))]
            start += len(target)
        image, query, index = torch.tensor(pairs, dtype=torch.long).T
        empty = torch.tensor([len(target) == 0 for target in targets])[:, None].expand(-1, self.config.num_queries)
        return QueryGroup(out.logits, out.boxes, pairs=(image, query, index), normaliser=2.0, ignored=empty)


def make_images(folder: Path, boxes_per_image: Sequence[int]) -> DetectionDataset:
    """One image per number: that many squares, alternately red and blue, on grey noise."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    records = []
    for index, count in enumerate(boxes_per_image):
        pixels = random.integers(100, 150, (SIZE, SIZE, 3), dtype=np.uint8)
        corners = random.integers(0, SIZE - 12, (count, 2))
        boxes = np.concatenate([corners, corners + 10], axis=1).astype(np.float64).reshape(-1, 4)
        for number, (x, y) in enumerate(corners):
            pixels[y : y + 10, x : x + 10] = (255, 0, 0) if number % 2 == 0 else (0, 0, 255)
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        records.append(
            ImageRecord(
                image_id=100 + index,
                path=path,
                file_name=path.name,
                width=SIZE,
                height=SIZE,
                segments=segments(boxes, labels=np.arange(count) % 2, areas=np.full(count, 100.0)),
            )
        )
    return DetectionDataset(records=records, categories=CATEGORIES, name="squares")


class Scripted(Metric[Detections]):
    """A metric that calls a function and ignores the detections."""

    protocol, headline, class_columns = "coco", ("AP", "AP50"), ("AP",)

    def __init__(self, answer: Callable[[], Score]) -> None:
        self.answer = answer

    @classmethod
    def of(cls, data: AnnotatedData) -> Self:
        raise NotImplementedError

    def update(self, image_id: int, found: Detections) -> None:
        pass

    def merge(self, gather: Gather) -> None:
        pass

    def reset(self) -> None:
        pass

    def compute(self) -> Score:
        return self.answer()


def make_task(
    folder: Path,
    boxes_per_image: Sequence[int],
    *,
    dropout: float = 0.1,
    num_queries: int = 5,
    metric: Metric[Detections] | None = None,
) -> Task:
    """The tiny model and its images; ``metric`` replaces COCO AP."""
    data = make_images(folder / "images", boxes_per_image)
    mean = (0.5, 0.5, 0.5)
    transform = TrainTransform(short_sides=(SIZE,), max_side=SIZE, crop=False, flip=0.5, mean=mean, std=mean)
    model = TinyDetector(dropout=dropout, num_queries=num_queries)
    return Task(
        model=model,
        criterion=build_criterion(model.config),
        train_data=data.with_transform(transform),
        validation=Validation(data=data, metric=CocoMetric.of(data) if metric is None else metric),
    )


def score(ap: float | None) -> Score:
    """An evaluation result with this AP."""
    metrics = {"AP": ap, "AP50": None if ap is None else min(1.0, 2 * ap)}
    return Score("coco", "bbox", metrics, {"red": metrics, "blue": metrics}, headline=Scripted.headline)


def scores(*values: float | None) -> Callable[[], Score]:
    """Results for the evaluations of a run: these APs in order, then always the last."""
    waiting: Iterator[float | None] = iter(values)
    last = values[-1]
    return lambda: score(next(waiting, last))


def make_recipe(folder: Path, **overrides: Any) -> Recipe:
    """A recipe of six epochs with batch size 2 in ``folder/run``."""
    settings = {
        "training": {
            "epochs": 6,
            "batch_size": 2,
            "workers": 0,
            "device": "cpu",
            "output": str(folder / "run"),
            "evaluate_every": 2,
        },
        "optimizer": {"lr": 1e-2, "lr_backbone": 1e-3},
        "schedule": {"kind": "cosine", "warmup": 3},
        "logging": {"every": 1, "plots": False, "estimate": False},
    }
    return load_recipe(settings, overrides)


@contextmanager
def fake_task(
    folder: Path,
    boxes_per_image: Sequence[int] = (1, 2, 0, 3, 1, 2, 2),
    *,
    evaluate: Callable[[], Score] | None = None,
    **settings: Any,
) -> Iterator[None]:
    """Context in which ``train`` uses the tiny task, whatever model and data the recipe has.

    ``evaluate`` gives the result of each evaluation.
    """

    def build(recipe: Recipe) -> Task:
        metric = None if evaluate is None else Scripted(evaluate)
        return make_task(folder, boxes_per_image, metric=metric, **settings)

    with mock.patch.object(run, "build_task", build):
        yield


def same_state(a: Any, b: Any, path: str = "") -> list[str]:
    """Paths at which two states differ, bit for bit, without the output folder."""
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [path]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [f"{path}: keys"]
        keys = [key for key in a if key != "output"]
        return [difference for key in keys for difference in same_state(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{path}: length"]
        return [
            difference
            for index, (x, y) in enumerate(zip(a, b, strict=True))
            for difference in same_state(x, y, f"{path}/{index}")
        ]
    return [] if a == b else [path]


def last_state(folder: Path) -> dict[str, Any]:
    """The state in ``folder/last``."""
    state: dict[str, Any] = torch.load(folder / "last" / "state.pt", weights_only=True)
    return state
