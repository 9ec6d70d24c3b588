"""Recipes chosen from the data: the choices, the priority of the user's values, and the recipe file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit import weights
from detrkit.config import Recipe, load_recipe
from detrkit.errors import CheckpointError, DataError, RecipeError
from detrkit.models import create_model, entry, list_models, model_config
from detrkit.models.presets import ALIASES
from detrkit.structures import Categories, Category
from detrkit.training import auto_recipe
from detrkit.training.auto import rules
from detrkit.training.auto.model_choice import available_checkpoint
from detrkit.training.task import build_model
from detrkit.weights import pulled_path
from tests.data.trees import TREES, dump, write_image
from tests.workplace import TINY_MODEL


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU and an empty cache, on every machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))


def make(
    root: Path,
    *,
    images: int = 4,
    size: tuple[int, int] = (640, 480),
    boxes: list[tuple[float, float]] | None = None,
    names: tuple[str, ...] = ("cell",),
    splits: tuple[str, ...] = ("train", "val"),
) -> Path:
    """COCO data whose images all have the same boxes (width, height), with alternating classes, and one image file."""
    boxes = [(80, 80)] * 5 if boxes is None else boxes
    write_image(root / "images" / "0.png", (8, 8))
    for split in splits:
        rows = [{"id": n + 1, "file_name": "0.png", "width": size[0], "height": size[1]} for n in range(images)]
        annotations = [
            {"id": n * len(boxes) + k + 1, "image_id": n + 1, "category_id": k % len(names), "bbox": [0, 0, *box]}
            for n in range(images)
            for k, box in enumerate(boxes)
        ]
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        table = {"images": rows, "annotations": annotations, "categories": categories}
        dump(root / "annotations" / f"instances_{split}.json", table)
    return root


def line(recipe: Recipe, start: str) -> str:
    """The comment that begins with ``start``."""
    return next(comment.strip() for comment in recipe.comments if comment.strip().startswith(start))


def options(recipe: Recipe) -> dict[str, Any]:
    return recipe.model.overrides


# --------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        (1, (2, 100, None)),
        (30, (2, 100, None)),  # blood cells
        (50, (2, 100, None)),
        (51, (2, 200, None)),
        (128, (2, 300, 300)),
        (150, (2, 300, 300)),
        (151, (None, 200, 200)),  # 302 copies would need more than 300 queries
        (375, (None, 500, 500)),  # nuclei
        (1000, (None, 1500, 1500)),
        (4000, (None, 1500, 1500)),
    ],
)
def test_queries_follow_the_most_crowded_image(
    tmp_path: Path, objects: int, expected: tuple[int | None, int, int]
) -> None:
    root = make(tmp_path / "data", images=2, boxes=[(40, 40)] * objects)
    recipe = auto_recipe(root, {"model.name": "dela_conditional_detr_lite0"}, quiet=True)
    chosen = options(recipe)
    assert (chosen["repeat_label"], chosen["num_queries"], chosen.get("top_k")) == expected
    assert f"up to {objects:,} objects per image" in line(recipe, "queries")
    assert any("find no more objects" in comment for comment in recipe.comments) == (objects > 1500)
    build_model(
        load_recipe(recipe, {"model": {**TINY_MODEL, "pretrained_backbone": False}}), CELL
    )  # options are consistent


CELL = Categories([Category(0, "cell")])
LITE = model_config("dela_detr_lite0")
R50 = model_config("dela_detr_r50")


def sides(size: rules.ImageSize) -> tuple[int, int, tuple[int, ...], int]:
    return size.short_side, size.max_side, size.train_short_sides, size.train_max_side


def test_image_size_follows_small_objects_and_long_images() -> None:
    usual = {"shorter": 480.0, "aspect": 4 / 3, "max_side": 480}
    own = rules.choose_image_size(LITE, small=0.2, **usual)
    assert sides(own) == (320, 533, (288, 320, 352), 640), "large objects: the model's own sizes"
    assert own.limited_by == ""
    small = rules.choose_image_size(LITE, small=0.06, **usual)
    assert sides(small) == (416, 693, (368, 416, 464), 832)
    assert small.short_side * 0.06 >= rules.SMALL_PIXELS
    tiny = rules.choose_image_size(LITE, small=0.01, **usual)
    assert (tiny.short_side, tiny.limited_by) == (480, "the 480 px that time allows")
    enlarged = rules.choose_image_size(LITE, small=0.01, shorter=200, aspect=1, max_side=480)
    assert (enlarged.short_side, enlarged.limited_by) == (384, "2 times their own size")
    long = rules.choose_image_size(LITE, small=0.2, shorter=200, aspect=3.0, max_side=480)
    assert (long.short_side, long.max_side) == (320, 960)
    longer = rules.choose_image_size(LITE, small=0.02, shorter=500, aspect=50, max_side=480)
    assert longer.max_side == 4 * longer.short_side
    assert longer.short_side * longer.max_side <= 480 * 800
    hurried = rules.choose_image_size(LITE, small=0.06, **usual, in_time=160)
    assert sides(hurried) == (160, 266, (144, 160, 176), 320)
    assert hurried.limited_by == "what the minutes allow"
    assert rules.choose_image_size(LITE, small=0.06, **usual, in_time=480) == small
    assert [rules.side_for_minutes(minutes) for minutes in (1, 4, 10, 15, 60)] == [160, 160, 256, 320, 640]
    published = rules.choose_image_size(R50, small=0.01, shorter=480, aspect=4 / 3, max_side=800)
    assert sides(published) == (800, 1333, R50.train_short_sides, 1333)


def test_lengths_and_averages() -> None:
    assert rules.iterations(images=1, batch=4, gpu=False) == 3000
    assert rules.iterations(images=458, batch=4, gpu=False) == 5725
    assert rules.iterations(images=100_000, batch=4, gpu=False) == 6_000
    assert rules.iterations(images=5000, batch=4, gpu=True) == 62_500
    assert rules.ema_decay(500) == 0.99
    assert rules.ema_decay(2400) == pytest.approx(0.998, abs=2e-4)
    assert all(0 < rules.ema_decay(steps) < 1 for steps in (1, 5, 20, 10**7))


# ------------------------------------------------------------------------------------------------- the whole recipe


def test_few_images_are_repeated_and_get_enough_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = auto_recipe(make(tmp_path / "data", images=10))
    assert recipe.model.name == "dape_lite0"
    assert (recipe.model.pretrained_backbone, recipe.model.backbone_weights) == (True, "package")
    assert (recipe.training.iterations, recipe.training.epochs, recipe.training.batch_size) == (3000, None, 4)
    assert recipe.data.repeat == 20, "an epoch of 50 steps"
    assert recipe.training.evaluate_every == 3
    assert recipe.training.ema == 0.9983
    assert (recipe.optimizer.lr, recipe.optimizer.lr_backbone, recipe.optimizer.lr_batch_size) == (4e-4, 8e-5, 4)
    assert (recipe.schedule.kind, recipe.schedule.warmup) == ("cosine", 100)
    assert (recipe.data.crop, recipe.data.flip, recipe.data.vertical_flip) == (False, 0.5, 0.0)
    assert options(recipe)["frozen_batch_norm"] is True
    assert capsys.readouterr().err.splitlines() == list(recipe.comments)
    assert "no GPU" in line(recipe, "model dape_lite0:")


def test_the_recipe_file_gives_the_same_recipe(tmp_path: Path) -> None:
    recipe = auto_recipe(make(tmp_path / "data"), quiet=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith("# settings for ")
    assert load_recipe(path).to_dict() == recipe.to_dict()


def test_a_batch_that_is_to_be_measured(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    for model, total in (("dape_lite0", 4), ("detr_r50", 8)):
        recipe = auto_recipe(root, {"training.batch_size": "auto", "model.name": model}, quiet=True)
        assert recipe.training.auto_batch
        assert recipe.optimizer.lr_batch_size == total, "images per step, whatever fits"
        assert line(recipe, "batch auto").endswith("the others are accumulated")


def test_given_values_win_and_other_choices_follow(tmp_path: Path) -> None:
    root = make(tmp_path / "data", boxes=[(80, 80)] * 40)
    given = ["model.name=dela_conditional_detr_lite0", "model.num_queries=60", "epochs=9", "lr=1e-3"]
    recipe = auto_recipe(root, given, batch_size=2, model={"top_k": 30})
    assert (options(recipe)["num_queries"], options(recipe)["top_k"]) == (60, 30)
    assert options(recipe)["repeat_label"] is None, "80 copies exceed 60 queries"
    assert (recipe.training.epochs, recipe.training.iterations) == (9, None)
    assert (recipe.training.batch_size, recipe.training.accumulate) == (2, 2)
    assert recipe.training.ema == pytest.approx(1 - 5 / (9 * 50), abs=1e-4)
    assert (recipe.optimizer.lr, recipe.optimizer.lr_batch_size) == (1e-3, None)
    for start in ("queries 60:", "epochs 9:", "batch 2:", "learning rate 0.001:"):
        assert line(recipe, start).endswith("yours"), start
    full = auto_recipe(root, {"model.name": "detr_r50"}, quiet=True)
    assert (full.model.name, full.optimizer.lr, full.optimizer.lr_batch_size) == ("detr_r50", 1e-4, 8)
    assert (full.data.eval_short_side, full.data.max_side) == (800, 1333)
    assert full.model.backbone_weights is None


def test_a_given_repeat_is_not_counted_twice(tmp_path: Path) -> None:
    recipe = auto_recipe(make(tmp_path / "data", images=40), ["data.repeat=7"], quiet=True)
    assert recipe.data.repeat == 7
    assert "training images 40 " in recipe.comments[0]
    assert recipe.training.iterations == 3000


def test_image_size_crops_and_flips_follow_the_data(tmp_path: Path) -> None:
    dense = auto_recipe(make(tmp_path / "dense", size=(256, 256), boxes=[(9, 9), (80, 80)]), quiet=True)
    assert (dense.data.eval_short_side, dense.data.crop) == (480, True)
    assert dense.data.short_sides == [432, 480, 528]
    assert "9 times the size" in line(dense, "crops on")
    assert "below" in line(dense, "shorter side of images in evaluation 480")
    large = auto_recipe(make(tmp_path / "large", size=(4000, 3000), boxes=[(900, 900)] * 3), quiet=True)
    assert (large.data.eval_short_side, large.data.crop) == (320, True)
    wide = auto_recipe(make(tmp_path / "wide", size=(1600, 400)), quiet=True)
    assert wide.data.eval_max_side is not None
    assert wide.data.eval_short_side is not None
    assert wide.data.eval_max_side == 4 * wide.data.eval_short_side
    sided = auto_recipe(make(tmp_path / "sided", names=("arrow_left", "bright")), quiet=True)
    assert sided.data.flip == 0.0
    assert "'arrow_left' has a side" in line(sided, "horizontal flip off")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {},
            "shorter side 288, 320, 352, longer at most 640; in evaluation shorter side 320, longer at most 533",
        ),
        ({"data.short_sides": [256]}, "training shorter side 256, longer at most 640; in evaluation shorter side 320"),
        ({"model.train_short_sides": [96, 128]}, "training shorter side 96, 128, longer at most 640;"),
        (
            {"data.max_side": 500, "data.eval_max_side": 400},
            "at most 500; in evaluation shorter side 320, longer at most 400",
        ),
        ({"model.eval_short_side": 448}, "in evaluation shorter side 448,"),
        ({"data.eval_short_side": 448, "model.eval_short_side": 96}, "in evaluation shorter side 448,"),
        (
            {"data.augmentation": "lsj", "data.lsj_size": [256, 320]},
            "training at a random scale, cut to 320x256 (lsj);",
        ),
    ],
)
def test_the_image_sizes_printed_are_those_of_the_run(tmp_path: Path, given: dict[str, Any], expected: str) -> None:
    recipe = auto_recipe(make(tmp_path / "data"), given, quiet=True)
    assert expected in line(recipe, "pixels of images: ")
    run = build_model(recipe.updated(model={"pretrained_backbone": False}), Categories([Category(0, "cell")])).config
    shown = line(recipe, "shorter side of images in evaluation")
    assert shown.startswith(f"shorter side of images in evaluation {run.input.eval_short_side}: ")
    assert ("yours" in shown) is any(key.endswith("eval_short_side") for key in given)


def test_runs_of_few_minutes_see_smaller_images(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    short = auto_recipe(root, {"training.minutes": 4}, quiet=True)
    assert (short.data.eval_short_side, short.data.short_sides) == (160, [144, 160, 176])
    assert not short.data.crop, "the same images as of a longer run, only smaller"
    assert "more would go beyond what the minutes allow" in line(short, "shorter side of images in evaluation 160")
    assert auto_recipe(root, {"training.minutes": 60}, quiet=True).data.eval_short_side == 320
    mine = auto_recipe(root, {"training.minutes": 4, "data.eval_short_side": 320}, quiet=True)
    assert mine.data.eval_short_side == 320
    assert mine.data.short_sides is None


def test_rare_classes_decide_the_image_size_but_single_boxes_do_not(tmp_path: Path) -> None:
    names = ("cell", "dot")
    rare = auto_recipe(make(tmp_path / "rare", boxes=[(80, 80), (26, 26)] * 3, names=names), quiet=True)
    assert "'dot'" in line(rare, "shorter side of images")
    boxes = [(80.0, 80.0)] * 100
    boxes[1::2] = [(80.0, 81.0)] * 50
    stray = auto_recipe(make(tmp_path / "stray", boxes=boxes, names=("a", "b")), quiet=True)
    assert "'a'" in line(stray, "shorter side of images in evaluation 320")


def test_batches_of_crowded_images_are_halved(tmp_path: Path) -> None:
    recipe = auto_recipe(make(tmp_path / "data", images=1, boxes=[(8, 8)] * 700), quiet=True)
    assert (recipe.training.batch_size, recipe.training.accumulate) == (2, 2)
    assert any("COCO's AP counts 100 detections" in comment for comment in recipe.comments)


def test_notes(tmp_path: Path) -> None:
    root = make(tmp_path / "data", boxes=[(80, 80)], names=("cell", "ghost"))
    notes = [comment for comment in auto_recipe(root, quiet=True).comments if "note:" in comment]
    assert "no training image has a box of ghost" in notes[0]
    assert "files listed twice, 0.png first" in notes[1]


def test_no_validation_images(tmp_path: Path) -> None:
    root = make(tmp_path / "data", splits=("train",))
    recipe = auto_recipe(root, quiet=True)
    assert recipe.training.evaluate_every == 0
    assert f"detrkit data split {root} --val 0.2 --out {root}_split" in line(recipe, "no evaluation:")


def test_a_file_of_training_images_in_a_folder_of_no_known_layout(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    (root / "annotations" / "instances_train.json").rename(tmp_path / "result.json")
    shutil.rmtree(root / "annotations")
    images = str(root / "images")
    given = {"data.train.annotations": str(tmp_path / "result.json"), "data.train.images": images}
    recipe = auto_recipe(root, given, quiet=True)
    assert recipe.training.evaluate_every == 0
    with pytest.raises(DataError, match="no known data set layout"):
        auto_recipe(root)


def test_wrong_keys_and_values(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    with pytest.raises(RecipeError, match=r"unknown key\. Did you mean 'epochs'"):
        auto_recipe(root, ["epoch=3"])
    with pytest.raises(RecipeError, match=r"no model 'dela_detr_lite1'.*'dela_detr_lite0'"):
        auto_recipe(root, {"model.name": "dela_detr_lite1"})
    with pytest.raises(RecipeError, match=r"no option 'num_querys'.*'num_queries'"):
        auto_recipe(root, ["model.num_querys=3"])
    with pytest.raises(DataError, match="no such data folder"):
        auto_recipe(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        auto_recipe(root, {"model.init": str(tmp_path / "none.safetensors")})


@pytest.mark.parametrize("layout", sorted(TREES))
def test_every_format(tmp_path: Path, layout: str) -> None:
    recipe = auto_recipe(TREES[layout](tmp_path / "tree"), quiet=True)
    assert "training images 3 (1 without objects), classes 2, boxes 3" in recipe.comments[0]
    assert recipe.training.evaluate_every


# ------------------------------------------------------------------------------------------ starting from a detector


def pull(name: str) -> None:
    """Create an empty file in place of a pulled checkpoint; only training would read it."""
    pulled_path(name).parent.mkdir(parents=True, exist_ok=True)
    pulled_path(name).write_bytes(b"")


def test_a_published_detector_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "data")
    gpu = {"training.device": "auto"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    bare = auto_recipe(root, gpu, quiet=True)
    assert bare.model.name == "dape_lite0"
    assert "detrkit weights pull conditional_detr_r50" in line(bare, "model")
    assert available_checkpoint() is None

    monkeypatch.setattr("detrkit.training.auto.recipe._gpu_memory", lambda: 24.0)
    for name in ("detr_r50", "dela_detr_r50_cityscapes_50ep", "de_detr_r50_coco_50ep"):
        pull(name)
    recipe = auto_recipe(root, gpu, quiet=True)
    assert (recipe.model.name, recipe.model.init) == ("de_detr_r50", "de_detr_r50_coco_50ep"), "COCO before Cityscapes"
    assert (recipe.optimizer.lr, recipe.optimizer.lr_batch_size, recipe.training.batch_size) == (1e-4, 8, 4)
    assert "AP 40.2 on COCO" in line(recipe, "start de_detr_r50_coco_50ep")
    named = auto_recipe(root, {**gpu, "model.name": "detr_r50"}, quiet=True)
    assert named.model.init == "detr_r50"
    pull("relation_detr_r50_coco_12ep")
    other = auto_recipe(root, {**gpu, "model.name": "relation_detr_r50"}, quiet=True)
    assert other.model.init == "relation_detr_r50_coco_12ep"
    assert auto_recipe(root, gpu, quiet=True).model.name == "de_detr_r50", (
        "without a name, only data-efficient families are used"
    )
    assert auto_recipe(root, {**gpu, "model.name": "detr_r50", "model.init": None}, quiet=True).model.init is None

    monkeypatch.setattr("detrkit.training.auto.recipe._gpu_memory", lambda: 11.0)
    small = auto_recipe(root, gpu, quiet=True).training
    assert (small.batch_size, small.accumulate) == (2, 2)

    on_cpu = auto_recipe(root, {"training.device": "cpu"}, quiet=True)
    assert (on_cpu.model.name, on_cpu.model.init) == ("dape_lite0", None)
    assert "de_detr_r50_coco_50ep is at hand for --model de_detr_r50" in line(on_cpu, "model")


def test_an_own_checkpoint_determines_the_model(tmp_path: Path) -> None:
    model = create_model("de_detr_lite0", num_classes=2, num_queries=60, **TINY_MODEL)
    path = weights.save(model, tmp_path / "mine.safetensors")
    data = make(tmp_path / "data")
    recipe = auto_recipe(data, {"model.init": str(path)}, quiet=True)
    named = auto_recipe(data, {"model.init": str(path), "model.name": "de_detr_lite0"}, quiet=True)
    assert options(named) == options(recipe), "its options also where the model is named"
    mine = {"model.init": str(path), "model.name": "de_detr_lite0", "model.ffn_dim": 64}
    assert options(auto_recipe(data, mine, quiet=True))["ffn_dim"] == 64
    assert (recipe.model.name, recipe.model.init) == ("de_detr_lite0", str(path))
    assert {key: options(recipe)[key] for key in TINY_MODEL} == TINY_MODEL
    assert options(recipe)["num_queries"] == 60
    started = build_model(recipe, CELL)
    wanted = model.state_dict()
    same = [name for name, value in started.state_dict().items() if "class_embed" not in name]
    assert all(torch.equal(started.state_dict()[name], wanted[name]) for name in same)


@pytest.mark.parametrize(
    ("option", "taken"),
    [
        ({"num_queries": 150, "dropout": 0.0, "nms": 0.7}, True),
        ({"backbone": "resnet50.tv_in1k"}, True),  # the registered value
        ({"backbone": "resnet18.a1_in1k"}, False),
        ({"encoder_layers": 5}, False),
        ({"pretrained_backbone": True}, False),
        ({"pretrained_backbone": False}, False),
        ({"backbone_weights": "mine.pth"}, False),
    ],
)
def test_a_published_detector_is_not_used_with_options_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any], taken: bool
) -> None:
    pull("detr_r50")
    root = make(tmp_path / "data")
    recipe = auto_recipe(root, {"model.name": "detr_r50"}, model=option, quiet=True)
    assert recipe.model.init == ("detr_r50" if taken else None), "a named model starts from it without a GPU too"
    note = [comment for comment in recipe.comments if "detr_r50 is at hand, but model." in comment]
    assert bool(note) != taken
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("detrkit.training.auto.recipe._gpu_memory", lambda: 24.0)
    chosen = auto_recipe(root, {"training.device": "auto"}, model=option, quiet=True)
    assert chosen.model.name == ("detr_r50" if taken else "dape_lite0")


def test_sampling_of_deformable_detr_learns_more_slowly(tmp_path: Path) -> None:
    root = make(tmp_path / "data")

    def rate(name: str, *overrides: str) -> float | None:
        return auto_recipe(root, [f"model.name={name}", *overrides], quiet=True).optimizer.lr_sampling

    assert rate("deformable_detr_r50") == 1e-5
    assert rate("deformable_detr_r50", "lr=5e-4") == pytest.approx(5e-5)
    assert rate("deformable_detr_r50", "lr_sampling=3e-4") == 3e-4
    assert rate("detr_r50") is None


def test_registry_facts_agree_with_the_names() -> None:
    """Laptop sizes have ``_lite`` in their names; models named after Deformable DETR train their sampling slowly."""
    names = [*list_models(), *ALIASES]
    for name in [*names, *(f"{name}_q50" for name in list_models())]:
        assert entry(name).laptop == ("_lite" in name), name
        assert entry(name).slow_sampling == name.startswith("deformable_detr"), name
