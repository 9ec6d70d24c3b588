"""Every shipped recipe says where its figure comes from, holds the published settings, builds, trains and evaluates."""

from __future__ import annotations

import json
import math
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.cli.demo import RECIPE
from detrkit.config import Recipe, list_recipes, load_recipe
from tests.data.trees import lvis_tree, masks_tree, outlines_tree, panoptic_tree
from tests.workplace import (
    MY_CLASSES,
    ROOT,
    SMALL_RUN,
    TINY_MODEL,
    Split,
    coco_split,
    detrkit_cli,
    make_data,
)

FOLDER = ROOT / "recipes"
RECIPES = sorted(
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*.yaml")
    if not any(part.startswith("_") for part in path.relative_to(FOLDER).parts)
)
# On a data set of ours; all others are experiments that somebody published.
LAPTOP = re.compile(r"\w+/blood_cells/\w+_lite0")
OURS = re.compile(r"\w+/(blood_cells|nuclei|aerial|nuts|coco_open)/\w+_lite0\w*")


@dataclass(frozen=True)
class Published:
    """Settings of one row of the published tables: total batch = processes x batch_size."""

    model: str
    root: str
    epochs: int
    drop: int
    batch_size: int
    lr_batch_size: int | None = 8
    num_queries: int = 300
    sample_rate: float | None = None
    levels: int | None = None
    groups: int = 1


CITY, COCO = "data/cityscapes", "data/coco"
PUBLISHED = {
    "de_detr/cityscapes/detr_r50_cityscapes_300ep": Published("detr_r50", CITY, 300, 200, 4, num_queries=100),
    "de_detr/cityscapes/la_detr_r50_cityscapes_300ep": Published("la_detr_r50", CITY, 300, 200, 4, num_queries=100),
    "de_detr/cityscapes/de_detr_r50_cityscapes_50ep": Published("de_detr_r50", CITY, 50, 40, 4, num_queries=100),
    "de_detr/cityscapes/dela_detr_r50_cityscapes_50ep": Published("dela_detr_r50", CITY, 50, 40, 4),
    "de_detr/cityscapes/de_conditional_detr_r50_single_scale_cityscapes_50ep": Published(
        "de_conditional_detr_r50", CITY, 50, 40, 4, levels=1
    ),
    "de_detr/coco/detr_r50_coco_50ep": Published("detr_r50", COCO, 50, 40, 4, 32, 100),
    "de_detr/coco/de_detr_r50_coco_50ep": Published("de_detr_r50", COCO, 50, 40, 4, 32, 100),
    "de_detr/coco/dela_detr_r50_coco_50ep": Published("dela_detr_r50", COCO, 50, 40, 4, 32),
    "de_detr/coco/conditional_detr_r50_coco_50ep_8x4": Published("conditional_detr_r50", COCO, 50, 40, 4, 32),
    "de_detr/coco/de_conditional_detr_r50_coco_50ep": Published("de_conditional_detr_r50", COCO, 50, 40, 4, 32),
    "de_detr/coco/dela_conditional_detr_r50_coco_50ep": Published("dela_conditional_detr_r50", COCO, 50, 40, 4, 32),
    "detr/coco/detr_r50_coco_300ep": Published("detr_r50", COCO, 300, 200, 2, None, 100),
    "detr/coco/detr_r50_coco_500ep": Published("detr_r50", COCO, 500, 400, 2, None, 100),
    "detr/coco/detr_r50_dc5_coco_500ep": Published("detr_r50_dc5", COCO, 500, 400, 1, None, 100),
    "detr/coco/detr_r101_coco_500ep": Published("detr_r101", COCO, 500, 400, 2, None, 100),
    "detr/coco/detr_r101_dc5_coco_500ep": Published("detr_r101_dc5", COCO, 500, 400, 1, None, 100),
    "conditional_detr/coco/conditional_detr_r50_coco_50ep": Published("conditional_detr_r50", COCO, 50, 40, 2, 16),
    "conditional_detr/coco/conditional_detr_r50_dc5_coco_50ep": Published(
        "conditional_detr_r50_dc5", COCO, 50, 40, 1, 8
    ),
    "conditional_detr/coco/conditional_detr_r101_coco_50ep": Published("conditional_detr_r101", COCO, 50, 40, 2, 16),
    "conditional_detr/coco/conditional_detr_r101_dc5_coco_50ep": Published(
        "conditional_detr_r101_dc5", COCO, 50, 40, 1, 8
    ),
    "conditional_detr/coco/group_conditional_detr_r50_coco_12ep": Published(
        "group_conditional_detr_r50", COCO, 12, 11, 2, 16, groups=11
    ),
}
PUBLISHED |= {
    f"de_detr/cityscapes/{prefix}conditional_detr_r50_cityscapes_50ep": Published(
        f"{prefix}conditional_detr_r50", CITY, 50, 40, 4
    )
    for prefix in ("", "la_", "de_", "dela_")
}
FIGURE_4 = ("detr", "de_detr", "dela_detr", "conditional_detr", "de_conditional_detr", "dela_conditional_detr")
PUBLISHED |= {
    f"de_detr/coco_sampled/{model}_r50_coco_{percent}pct_50ep": Published(
        f"{model}_r50",
        COCO,
        50,
        40,
        4,
        num_queries=100 if model in ("detr", "de_detr") else 300,
        sample_rate=percent / 100,
    )
    for model in FIGURE_4
    for percent in (1, 2, 5, 10)
}


@dataclass(frozen=True)
class Deformable:
    """The same for Deformable DETR and DINO, whose rates, costs and classification are their own."""

    model: str
    epochs: int
    drop: int
    batch_size: int
    root: str = COCO


DEFORMABLE = {
    f"deformable_detr/coco/deformable_detr_r50{kind}_coco_50ep": Deformable(f"deformable_detr_r50{kind}", 50, 40, 2)
    for kind in ("", "_single_scale", "_single_scale_dc5", "_refine", "_two_stage")
}
DEFORMABLE["deformable_detr/cityscapes/deformable_detr_r50_cityscapes_50ep"] = Deformable(
    "deformable_detr_r50", 50, 40, 4, CITY
)
DEFORMABLE |= {
    f"dino/coco/dino_r50_{levels}scale_coco_{epochs}ep": Deformable(
        f"dino_r50_{levels}scale", epochs, drop, 2 if levels == 4 else 1
    )
    for levels in (4, 5)
    for epochs, drop in ((12, 11), (24, 20), (36, 30))
}
DEFORMABLE |= {
    f"dino/coco/dino_swin_l_{levels}scale_coco_{epochs}ep": Deformable(
        f"dino_swin_l_{levels}scale", epochs, drop, 2 if levels == 4 else 1
    )
    for levels in (4, 5)
    for epochs, drop in ((12, 11), (36, 30))
}


@dataclass(frozen=True)
class Repository:
    """The same for the Relation- and Salience-DETR repositories, and for DAPE, which is trained like them here."""

    model: str
    epochs: int = 12
    root: str = COCO
    overrides: tuple[tuple[str, int], ...] = ()


SA_DET, LVIS = "data/sa_det_100k", "data/lvis"
RELATION_REPOSITORY = {
    "dino/coco/dino_pp_r50_coco_12ep": Repository("dino_pp_r50"),
    "deformable_detr/coco/dab_deformable_detr_pp_r50_coco_12ep": Repository("dab_deformable_detr_pp_r50"),
    "deformable_detr/coco/dn_deformable_detr_pp_r50_coco_12ep": Repository("dn_deformable_detr_pp_r50"),
    "deformable_detr/coco/deformable_detr_pp_r50_coco_12ep": Repository("deformable_detr_pp_r50"),
    "relation_detr/coco/relation_detr_focalnet_l_1200_2000_coco_24ep": Repository(
        "relation_detr_focalnet_l", 24, overrides=(("denoising_queries", 1000),)
    ),
    "relation_detr/sa_det_100k/relation_detr_r50_sa_det_100k_12ep": Repository("relation_detr_r50", root=SA_DET),
    "dape/object_detection/coco/dape_r50_rank16_coco_1x": Repository("dape_r50"),
    "dape/object_detection/coco/dape_r50_rank64_coco_1x": Repository("dape_r50_rank64"),
    "dape/object_detection/coco/dape_r50_rank128_coco_1x": Repository("dape_r50_rank128"),
    "dape/object_detection/lvis/dape_r50_rank16_lvis_1x": Repository(
        "dape_r50", root=LVIS, overrides=(("top_k", 300),)
    ),
    "dape/object_detection/lvis/dape_r50_rank16_lvis_1x_minival": Repository(
        "dape_r50", root=LVIS, overrides=(("top_k", 300),)
    ),
}
RELATION_REPOSITORY |= {
    f"{family}/coco/{family}_{backbone}_coco_{epochs}ep": Repository(f"{family}_{backbone}", epochs)
    for family, rows in (
        ("relation_detr", "r50 12, r50 24, swin_l 12, swin_l 24, convnext_l 12, focalnet_l 12"),
        ("salience_detr", "r50 12, r50 24, r50_5scale 12, convnext_l 12, swin_l 12, focalnet_l 12"),
    )
    for backbone, epochs in ((row.split()[0], int(row.split()[1])) for row in rows.split(","))
}


@pytest.mark.parametrize("name", DEFORMABLE)
def test_published_settings_of_the_deformable_line(name: str) -> None:
    want = DEFORMABLE[name]
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    assert (recipe.model.name, recipe.model.overrides) == (want.model, {})
    assert (recipe.data.root, recipe.data.sample_rate) == (want.root, None)
    training = recipe.training
    assert (training.epochs, training.batch_size, training.clip_norm) == (want.epochs, want.batch_size, 0.1)
    assert (training.precision, training.ema) == ("fp32", None)
    assert (recipe.schedule.kind, recipe.schedule.drop, recipe.schedule.warmup) == ("step", [want.drop], 0)
    optimizer = recipe.optimizer
    rates = (optimizer.lr, optimizer.lr_backbone, optimizer.lr_sampling, optimizer.lr_batch_size)
    assert rates == ((1e-4, 1e-5, None, 16) if "dino" in name else (2e-4, 2e-5, 2e-5, 32))


@pytest.mark.parametrize("name", RELATION_REPOSITORY)
def test_published_settings_of_the_relation_repository(name: str) -> None:
    want = RELATION_REPOSITORY[name]
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    assert (recipe.model.name, recipe.model.overrides) == (want.model, dict(want.overrides))
    assert (recipe.data.root, recipe.data.crop, recipe.data.flip) == (want.root, True, 0.5)
    training, optimizer, schedule = recipe.training, recipe.optimizer, recipe.schedule
    assert (training.epochs, training.batch_size, training.clip_norm, training.ema) == (want.epochs, 5, 0.1, None)
    drop = {12: 10, 24: 20}[want.epochs]
    assert (schedule.kind, schedule.drop, schedule.gamma, schedule.warmup) == ("step", [drop], 0.1, 1000)
    assert (optimizer.lr, optimizer.lr_backbone, optimizer.lr_sampling) == (1e-4, 1e-5, 1e-5)
    assert (optimizer.weight_decay, optimizer.no_decay) == (1e-4, ["norm", "bias"])
    assert (optimizer.lr_batch_size, optimizer.lr_scaling) == (10, "linear")


def test_the_larger_images_of_the_relation_repository() -> None:
    """All of DETR's sizes times 1.5 (spec relation_family.md A.0, D)."""
    from detrkit.data import TrainTransform

    path = "relation_detr/coco/relation_detr_focalnet_l_1200_2000_coco_24ep.yaml"
    data, detr = load_recipe(FOLDER / path).data, TrainTransform()
    assert data.short_sides == [int(1.5 * side) for side in detr.short_sides]
    assert data.crop_short_sides == [int(1.5 * side) for side in detr.crop_short_sides]
    assert data.crop_size == tuple(int(1.5 * side) for side in detr.crop_size)
    assert (data.max_side, data.eval_short_side, data.eval_max_side) == (2000, 1200, 2000)
    assert (data.augmentation, data.vertical_flip) == ("strong", 0.5)
    others = [load_recipe(FOLDER / f"{name}.yaml").data for name in RELATION_REPOSITORY if "1200" not in name]
    assert {(data.augmentation, data.vertical_flip, data.short_sides) for data in others} == {("detr", 0.0, None)}


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("dape/")])
def test_dape_says_that_it_is_a_reconstruction(name: str) -> None:
    header = (FOLDER / name).read_text(encoding="utf-8").split("extends:")[0]
    assert "econstruction from the published description" in header
    assert ("the figure is the authors', not reproduced" in header) == ("Published AP" in header)


@pytest.mark.parametrize(("suffix", "file"), [("", None), ("_minival", "annotations/lvis_v1_minival.json")])
def test_lvis_recipes(suffix: str, file: str | None) -> None:
    recipe = load_recipe(FOLDER / f"dape/object_detection/lvis/dape_r50_rank16_lvis_1x{suffix}.yaml")
    data, training = recipe.data, recipe.training
    assert (data.format, data.sampling, data.sampling_threshold) == ("lvis", "repeat_factor", 0.001)
    assert (training.federated_classes, data.val.annotations, data.train.annotations) == (50, file, None)


def test_the_list_is_complete() -> None:
    """The files, the packaged list and the table above name the same experiments, each by a name of its own."""
    names = [name.removesuffix(".yaml") for name in RECIPES]
    published = PUBLISHED.keys() | DEFORMABLE.keys() | RELATION_REPOSITORY.keys() | PANOPTIC | MASK_DAPE.keys()
    assert published == {name for name in names if not OURS.fullmatch(name)}
    assert set(names) <= set(list_recipes())
    twice = [name for name, count in Counter(Path(name).name for name in names).items() if count > 1]
    assert not twice, "a recipe is found, and its run folder called, by its file name alone"


MASK_DAPE = {
    "dape/instance_segmentation/coco/mask_dape_r50_coco_1x": ("inst", COCO, "coco"),
    "dape/instance_segmentation/cityscapes/mask_dape_r50_cityscapes_90k": ("inst", CITY, "cityscapes"),
    "dape/instance_segmentation/lvis/mask_dape_r50_lvis_1x": ("inst", LVIS, "lvis"),
    "dape/panoptic_segmentation/coco/mask_dape_r50_coco_panoptic_1x": ("pan", COCO, "coco_panoptic"),
    "dape/panoptic_segmentation/cityscapes/mask_dape_r50_cityscapes_panoptic_90k": ("pan", CITY, "cityscapes"),
    "dape/semantic_segmentation/cityscapes/mask_dape_r50_cityscapes_semantic_90k": ("sem", CITY, "cityscapes"),
}


@pytest.mark.parametrize("name", MASK_DAPE)
def test_settings_of_mask_dape(name: str) -> None:
    """COCO keeps DAPE's 12 epochs of 10 images (spec dape.md); on Cityscapes 90,000 steps of 16 are published."""
    from detrkit.training.task import task_of

    recipe = load_recipe(FOLDER / f"{name}.yaml")
    assert recipe.model.name == "mask_dape_r50"
    assert (task_of(recipe), recipe.data.root, recipe.data.format) == MASK_DAPE[name]
    training, optimizer, data = recipe.training, recipe.optimizer, recipe.data
    rates = (optimizer.lr, optimizer.lr_backbone, optimizer.lr_sampling, optimizer.weight_decay, training.clip_norm)
    assert rates == (1e-4, 1e-5, 1e-5, 1e-4, 0.1)
    if data.root == CITY:
        assert (training.epochs, training.iterations, training.batch_size, optimizer.lr_batch_size) == (
            None,
            90000,
            8,
            16,
        )
        assert (data.augmentation, data.lsj_size, data.colors, data.eval_max_side) == ("lsj", (512, 1024), "ssd", 2048)
    else:
        assert (training.epochs, training.batch_size, optimizer.lr_batch_size) == (12, 5, 10)
        assert (data.augmentation, data.short_sides, data.crop, recipe.schedule.drop) == ("detr", None, True, [10])


PANOPTIC = {f"detr/coco_panoptic/detr_r50_coco_panoptic_{step}" for step in ("300ep", "masks_25ep")}


def test_detr_with_masks_is_trained_in_two_steps() -> None:
    """Boxes of things and stuff, then the mask head on the frozen detector (spec detr_family.md A8)."""
    boxes, masks = (load_recipe(FOLDER / f"{name}.yaml") for name in sorted(PANOPTIC))
    assert boxes.model.overrides == {"loss_mask": 0, "loss_dice": 0}
    assert (masks.model.overrides, masks.model.init) == (
        {"freeze_detector": True},
        f"runs/{Path(min(PANOPTIC)).name}-coco",
    )
    assert [(recipe.training.epochs, recipe.schedule.drop) for recipe in (boxes, masks)] == [(300, [200]), (25, [15])]
    for recipe in (boxes, masks):
        assert (recipe.model.name, recipe.data.root, recipe.data.format) == ("detr_r50_panoptic", COCO, "coco_panoptic")
        assert (recipe.training.batch_size, recipe.optimizer.lr, recipe.optimizer.lr_batch_size) == (2, 1e-4, None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    from detrkit.models import model_config

    want = PUBLISHED[name]
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    assert recipe.model.name == want.model
    assert recipe.model.pretrained_backbone
    assert recipe.data.root == want.root
    assert recipe.data.sample_rate == want.sample_rate
    assert not recipe.data.sample_repeat
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

    config = model_config(want.model, **recipe.model.overrides)
    assert config.num_queries == want.num_queries
    augmented = want.model.startswith(("la_", "dela_"))
    conditional = "conditional" in want.model
    assert config.repeat_label == (2 if augmented else None)
    assert config.nms == (0.7 if augmented else None)
    assert config.nms_decay == (0.01 if augmented and not conditional else None)
    assert (config.repeat_ratio, config.two_stage_match) == (None, False)
    costs = (config.cost_class, config.cost_bbox, config.cost_giou)
    assert costs == (config.loss_class, config.loss_bbox, config.loss_giou) == (2 if conditional else 1, 5, 2)
    assert config.classification == ("focal" if conditional else "softmax")
    sparse = want.model.startswith(("de_", "dela_"))
    assert getattr(config, "num_feature_levels", None) == ((want.levels or 3) if sparse else None)
    assert getattr(config, "groups", 1) == want.groups
    assert getattr(config, "dilation", None) == want.model.endswith("dc5")


@pytest.mark.parametrize("name", RECIPES)
def test_header_tells_figure_and_commands(name: str) -> None:
    """The comment on top: a figure with its source (or that none exists), the train line, the eval line."""
    header = [line[1:].strip() for line in (FOLDER / name).read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    text = "\n".join(header)
    assert re.search(
        r"^Published (AP|PQ).*\(.*(repository|paper)|^Measured figures|^No figure is published", text, re.M
    )
    assert any(re.search(rf"detrkit train recipes/{re.escape(name)}$", line) for line in header)
    assert f"detrkit eval recipes/{name} --checkpoint CHECKPOINT" in header


def test_the_laptop_recipes_differ_in_the_model_only() -> None:
    """The families are compared on equal terms: the same data, schedule and optimizer. The two that were trained for
    the package are none of them: they have a schedule of their own, one has larger images."""
    trained = (f"{RECIPE}.yaml", "recipes/de_detr/blood_cells/dela_conditional_detr_lite0.yaml")
    ours = [name for name in RECIPES if LAPTOP.fullmatch(name.removesuffix(".yaml"))]
    paths = [name for name in ours if not any(path.endswith(name) for path in trained)]
    rest = [load_recipe(FOLDER / path).to_dict() for path in paths]
    assert [tree.pop("model")["name"] for tree in rest] == [Path(path).stem for path in paths]
    assert len(rest) == 6
    assert all(tree == rest[0] for tree in rest)


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
    assert set(groups) - {"sampling"} == {"backbone", "default"}
    assert all(groups.values()) or section.overrides.get("freeze_detector")
    build_criterion(model.config)


def test_recipes_travel_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert wheel["force-include"] == {"recipes": "detrkit/recipes"}


# ------------------------------------------------------------------------------------------------- training, in full


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two working folders with every recipe's ``data/`` in miniature.

    "published" has the authors' CocoFormatAnnos; in "rebuilt" these are made from gtFine by ``detrkit data convert``,
    and subsets of COCO are drawn from the recipe's seed.
    """
    folders = {layout: tmp_path_factory.mktemp(layout) for layout in ("published", "rebuilt")}
    data = folders["published"] / "data"
    make_data(data)
    cells = data / "blood_cells_det"
    for split, first_id in (("train", 1), ("val", 11)):
        names = tuple(f"{split}_{number}.jpg" for number in range(4 if split == "train" else 2))
        file = cells / f"annotations/instances_{split}.json"
        coco_split(Split(names, cells / split, file, first_id), MY_CLASSES)
        one_class = data / "sa_det_100k"
        file = one_class / f"annotations/instances_{split}2017.json"
        coco_split(Split(names, one_class / f"{split}2017", file, first_id), {1: "object"})
    lvis_tree(data / "lvis")
    panoptic_tree(data / "nuclei_inst")
    panoptic_tree(data / "coco", official=True)
    masks_tree(data / "aerial_sem")
    outlines_tree(data / "nuts_inst")
    panoptic_tree(data / "coco_open_panoptic")
    rebuilt = folders["rebuilt"] / "data"
    shutil.copytree(data, rebuilt, ignore=shutil.ignore_patterns("CocoFormatAnnos"))
    words = ["data", "convert", str(rebuilt / "cityscapes"), "--from", "cityscapes-gtfine"]
    assert detrkit_cli([*words, "--out", str(rebuilt / "CocoFormatAnnos")])[0] == 0
    return folders


# Two of the families run in full wherever tests run. The depth of the others, backbone included, is left to the slow
# tier: they go the same way with a model that is as wide and has fewer layers.
FULL = ("dela_detr_r50_cityscapes_50ep.yaml", "dino_r50_4scale_coco_12ep.yaml")
SHALLOW = {"backbone": "test_resnet", "encoder_layers": 1, "decoder_layers": 2}

# Left to the slow tier altogether: R101 and Swin-L differ from R50 in the backbone alone, DINO's fifth level only adds
# tokens, 11 query groups cost as much as five other recipes, the "++" are DINO with its parts switched, nuts and free
# photos of COCO go the way of nuclei.
# Relation-, Salience-DETR and DAPE run at laptop size, DINO at full size.
COSTLY = re.compile(
    "r101|swin_l|group_|5scale|_pp_|dino_lite0|nuts|coco_open|(relation_detr|salience_detr|dape)_(?!lite0)"
)


def _cases() -> Iterator[object]:
    """(recipe, layout, overrides of the model) of every run; slow are deep models and what brings nothing new."""
    seen: set[str] = set()
    for name in RECIPES:
        recipe = load_recipe(FOLDER / name)
        model = json.dumps([recipe.model.name, recipe.model.overrides])
        subset = " sampled" if recipe.data.sample_rate else ""
        rebuilds = subset or recipe.data.format == "cityscapes"
        for layout in ("published", "rebuilt") if rebuilds else ("published",):
            new = set() if COSTLY.search(name) else {model, f"{recipe.data.root}{subset} {layout}"} - seen
            seen |= new
            case = f"{Path(name).stem}-{layout}"
            full = new and layout == "published" and name.endswith(FULL)
            yield pytest.param(name, layout, {}, id=case, marks=() if full else pytest.mark.slow)
            if new and not full:
                yield pytest.param(name, layout, SHALLOW, id=f"{case}-shallow")


_AP = {"AP", "AP50", "AP75", "APs", "APm", "APl"}
NUMBERS = {
    "coco": _AP | {"AR100"},
    "lvis": _AP | {"AR@300", "APr"},
    "masks": _AP | {"AR100", "box_AP"},
    "cityscapes": {"AP", "AP50"},
    "semantic": {"mIoU"},
    "panoptic": {"PQ", "SQ", "RQ"},
}


def metric_of(recipe: Recipe) -> str:
    """The key in ``NUMBERS`` of what a recipe is evaluated by."""
    from detrkit.training.task import task_of

    if recipe.data.format == "lvis":
        return "lvis"
    if recipe.data.format == "cityscapes" and task_of(recipe) == "inst":
        return "cityscapes"
    return {"det": "coco", "inst": "masks", "sem": "semantic", "pan": "panoptic"}[task_of(recipe)]


@pytest.mark.parametrize(("name", "layout", "depth"), list(_cases()))
def test_recipe_runs(
    name: str,
    layout: str,
    depth: dict[str, Any],
    trees: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model of the recipe takes two optimizer steps on small images, evaluates, and evaluates again alike."""
    import detrkit
    from detrkit.models import model_config
    from detrkit.training.loggers import read_log
    from detrkit.training.task import task_of
    from detrkit.weights import read_info

    monkeypatch.chdir(trees[layout])
    recipe = load_recipe(FOLDER / name)
    output = tmp_path / "run"
    small = SMALL_RUN | {"training.iterations": 2, "training.batch_size": 1}
    small |= {"training.output": str(output), "logging.every": 1}
    small |= {f"model.{key}": value for key, value in depth.items()}
    if depth or (recipe.model.init or "").startswith("runs/"):
        small["model.init"] = None  # of another depth, or the run of an earlier step
    try:
        run = detrkit.train(FOLDER / name, **small)
        log = read_log(output / "log.jsonl")
        steps = [row for row in log if row["event"] == "train"]
        assert [row["step"] for row in steps] == [1, 2]
        losses = [value for row in steps for key, value in row.items() if key.startswith("loss")]
        assert all(math.isfinite(value) for value in losses)
        assert NUMBERS[metric_of(recipe)] <= set(run.metrics)
        assert run.best == output / "best" / "model.safetensors"

        info = read_info(run.best)
        of_masks = {"data/nuclei_inst inst": 2, "data/nuclei_inst pan": 4, "data/aerial_sem sem": 3, f"{COCO} pan": 4}
        of_masks |= {f"{CITY} pan": 19, f"{CITY} sem": 19, "data/coco_open_panoptic pan": 4}
        classes = {CITY: 8, COCO: 80, SA_DET: 1}.get(recipe.data.root, len(MY_CLASSES))
        classes = of_masks.get(f"{recipe.data.root} {task_of(recipe)}", classes)
        assert info.categories is not None
        assert len(info.categories) == classes
        sizes = {"train_short_sides": (64,), "train_max_side": 96, "eval_short_side": 64, "eval_max_side": 96}
        config = model_config(recipe.model.name, num_classes=classes, **{**recipe.model.overrides, **sizes, **depth})
        assert info.config == json.loads(json.dumps(config.flat()))
        assert len(losses) > len(steps) * 3 * config.decoder_layers, "class, box and GIoU of every layer, and the total"

        small_sizes = {key: value for key, value in SMALL_RUN.items() if key.startswith("data.eval_")}
        score = detrkit.evaluate(run.best, FOLDER / name, overrides=small_sizes, device="cpu")
        numbers = score["metrics"].get("All", score["metrics"])
        for key in NUMBERS[metric_of(recipe)]:
            assert numbers[key] == (None if run.metrics[key] is None else pytest.approx(run.metrics[key])), key
    finally:
        shutil.rmtree(output, ignore_errors=True)  # up to 1.2 GB


@pytest.mark.parametrize("layout", ["published", "rebuilt"])
@pytest.mark.parametrize(("percent", "times"), [(1, 100), (2, 50), (5, 20), (10, 10)])
def test_sample_repeat_lengthens_the_epoch(
    percent: int, times: int, layout: str, trees: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With data.sample_repeat=true every image of the subset comes int(1 / rate) times, as the header says."""
    from detrkit.training.task import build_task

    monkeypatch.chdir(trees[layout])
    for model in FIGURE_4:
        path = FOLDER / f"de_detr/coco_sampled/{model}_r50_coco_{percent}pct_50ep.yaml"
        assert f"data.sample_repeat=true gives every image {times} times per epoch" in path.read_text(encoding="utf-8")
    tiny = SMALL_RUN | {f"model.{key}": value for key, value in TINY_MODEL.items()}
    once = build_task(load_recipe(path, tiny)).train_data
    repeated = build_task(load_recipe(path, tiny | {"data.sample_repeat": True})).train_data
    assert len(once) == (4 if layout == "published" else 1)
    assert len(repeated) == times * len(once)
    assert Counter(record.image_id for record in repeated.records) == {
        record.image_id: times for record in once.records
    }
