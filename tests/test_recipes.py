"""Every shipped recipe loads, says where its figure comes from, holds the published settings and names a real model."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from detrkit.config import list_recipes, load_recipe

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes"
RECIPES = sorted(
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*.yaml")
    if not any(part.startswith("_") for part in path.relative_to(FOLDER).parts)
)


@dataclass(frozen=True)
class Published:
    """Settings of one row of the published tables: total batch = processes x batch_size."""

    model: str
    root: str
    epochs: int
    drop: int
    batch_size: int
    lr_batch_size: int | None = 8
    num_queries: int | None = None
    label_augmentation: bool = False
    sample_rate: float | None = None


CITY, COCO = "data/cityscapes", "data/coco"
PUBLISHED = {
    "de_detr/cityscapes/detr_r50_cityscapes_300ep": Published("detr_r50", CITY, 300, 200, 4),
    "de_detr/cityscapes/la_detr_r50_cityscapes_300ep": Published(
        "la_detr_r50", CITY, 300, 200, 4, label_augmentation=True
    ),
    "de_detr/cityscapes/de_detr_r50_cityscapes_50ep": Published("de_detr_r50", CITY, 50, 40, 4),
    "de_detr/cityscapes/dela_detr_r50_cityscapes_50ep": Published(
        "dela_detr_r50", CITY, 50, 40, 4, num_queries=300, label_augmentation=True
    ),
    "de_detr/coco/detr_r50_coco_50ep": Published("detr_r50", COCO, 50, 40, 4, 32),
    "de_detr/coco/de_detr_r50_coco_50ep": Published("de_detr_r50", COCO, 50, 40, 4, 32),
    "de_detr/coco/dela_detr_r50_coco_50ep": Published("dela_detr_r50", COCO, 50, 40, 4, 32, 300, True),
    "detr/coco/detr_r50_coco_300ep": Published("detr_r50", COCO, 300, 200, 2, None),
    "detr/coco/detr_r50_coco_500ep": Published("detr_r50", COCO, 500, 400, 2, None),
    "detr/coco/detr_r50_dc5_coco_500ep": Published("detr_r50_dc5", COCO, 500, 400, 1, None),
    "detr/coco/detr_r101_coco_500ep": Published("detr_r101", COCO, 500, 400, 2, None),
    "detr/coco/detr_r101_dc5_coco_500ep": Published("detr_r101_dc5", COCO, 500, 400, 1, None),
} | {
    f"de_detr/coco_sampled/{model}_r50_coco_{percent}pct_50ep": Published(
        f"{model}_r50",
        COCO,
        50,
        40,
        4,
        num_queries=300 if model == "dela_detr" else None,
        label_augmentation=model == "dela_detr",
        sample_rate=percent / 100,
    )
    for model in ("detr", "de_detr", "dela_detr")
    for percent in (1, 2, 5, 10)
}


def test_the_list_is_complete() -> None:
    """The files, the packaged list and the table above name the same experiments."""
    names = [name.removesuffix(".yaml") for name in RECIPES]
    assert set(PUBLISHED) | {f"de_detr/blood_cells/{m}_lite0" for m in ("detr", "de_detr", "dela_detr")} == set(names)
    assert set(names) <= set(list_recipes())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    want = PUBLISHED[name]
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    assert recipe.model.name == want.model
    assert recipe.model.pretrained_backbone
    assert recipe.data.root == want.root
    assert recipe.data.sample_rate == want.sample_rate
    assert recipe.training.epochs == want.epochs
    assert recipe.training.batch_size == want.batch_size
    assert recipe.training.clip_norm == 0.1
    assert recipe.training.precision == "fp32"
    assert recipe.training.ema is None
    assert recipe.schedule.kind == "step"
    assert recipe.schedule.drop == [want.drop]
    assert recipe.schedule.gamma == 0.1
    assert recipe.schedule.warmup == 0
    optimizer = recipe.optimizer
    assert (optimizer.lr, optimizer.lr_backbone, optimizer.weight_decay) == (1e-4, 1e-5, 1e-4)
    assert optimizer.lr_batch_size == want.lr_batch_size
    augmentation = {"repeat_label": 2, "nms": 0.7, "nms_decay": 0.01} if want.label_augmentation else {}
    queries = {"num_queries": want.num_queries} if want.num_queries else {}
    assert recipe.model.overrides == augmentation | queries


@pytest.mark.parametrize("name", RECIPES)
def test_header_tells_figure_and_commands(name: str) -> None:
    """The comment on top: a figure with its source (or that none exists), the train line, the eval line."""
    header = [line[1:].strip() for line in (FOLDER / name).read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    text = "\n".join(header)
    assert re.search(r"^Published AP.*\(.*(repository|paper)|^Measured figures|^No figure is published", text, re.M)
    assert any(re.search(rf"detrkit train recipes/{re.escape(name)}$", line) for line in header)
    assert f"detrkit eval recipes/{name} --checkpoint CHECKPOINT" in header


def test_the_laptop_recipes_differ_in_the_model_only() -> None:
    """DETR, DE-DETR and DELA-DETR are compared on equal terms: the same data, schedule and optimizer."""
    recipes = [load_recipe(FOLDER / f"de_detr/blood_cells/{m}_lite0.yaml") for m in ("detr", "de_detr", "dela_detr")]
    rest = [recipe.to_dict() for recipe in recipes]
    assert [tree.pop("model")["name"] for tree in rest] == ["detr_lite0", "de_detr_lite0", "dela_detr_lite0"]
    assert rest[0] == rest[1] == rest[2]


@pytest.mark.parametrize("name", RECIPES)
def test_model_builds(name: str) -> None:
    """The recipe's model and its overrides exist; built without storage, so that full size costs nothing."""
    from detrkit.losses import build_criterion
    from detrkit.models import create_model

    section = load_recipe(FOLDER / name).model
    with torch.device("meta"):
        model = create_model(section.name, num_classes=8, **section.overrides)
    for key, value in section.overrides.items():
        assert getattr(model.config, key) == value
    assert model.config.num_classes == 8
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6
    groups = model.parameter_groups()
    assert set(groups) == {"backbone", "default"}
    assert all(groups.values())
    build_criterion(model.config)


def test_recipes_travel_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert wheel["force-include"] == {"recipes": "detrkit/recipes"}
