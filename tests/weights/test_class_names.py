"""Class names inside official files: the buffer ``_classes_`` of the Relation-DETR repository, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.config import load_recipe
from detrkit.models import Detector
from detrkit.structures import Categories, Category
from detrkit.weights import CATALOGUE, inspect_checkpoint, open_official, pull, save_official
from detrkit.weights.official.class_names import (
    CLASS_NAMES,
    COCO_CATEGORIES,
    COCO_PANOPTIC_CATEGORIES,
    decode_names,
    encode_names,
    guess_categories,
)
from tests.workplace import ROOT

SMALL: dict[str, Any] = {
    "backbone": "test_resnet",
    "hidden_dim": 32,
    "num_heads": 1,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_dim": 32,
    "num_queries": 10,
    "one_to_many_queries": 12,
}
NAMES = Categories([Category(0, None), Category(1, "red cell"), Category(2, "plaquette sanguine, été")])


def small(**changes: Any) -> Detector:
    return detrkit.create_model("relation_detr_r50", **{**SMALL, "num_classes": 3, **changes})


def test_codes_equal_those_of_the_repository() -> None:
    """The example of ``encode_labels`` in the repository: character codes, -1 after each name."""
    codes = encode_names(Categories(Category(label, name) for label, name in enumerate(("l1", "Label2", "n"))))
    assert codes.tolist() == [108, 49, -1, 76, 97, 98, 101, 108, 50, -1, 110, -1]
    assert codes.dtype == torch.int64
    assert decode_names(codes, 3) == Categories([Category(0, "l1"), Category(1, "Label2"), Category(2, "n")])
    assert decode_names(codes, 5) == Categories(
        [Category(0, "l1"), Category(1, "Label2"), Category(2, "n"), Category(3, None), Category(4, None)]
    )
    assert decode_names(encode_names(NAMES), 3) == NAMES
    assert decode_names(encode_names(COCO_CATEGORIES), 91) == COCO_CATEGORIES
    assert bytes(encode_names(NAMES)[:4].tolist()) == b"none"  # the repository writes this for unused ids


def test_slots_of_coco_panoptic_are_its_ids(shared: Path) -> None:
    """250 slots, of which the data set's 133 classes have names, those of things as in detection."""
    gt = json.loads((shared / "golden" / "eval_panoptic" / "coco_sample" / "gt.json").read_text())
    assert {row["id"]: row["name"] for row in gt["categories"]} == {
        category.id: category.name for category in COCO_PANOPTIC_CATEGORIES.named
    }
    assert len(COCO_PANOPTIC_CATEGORIES) == 250
    assert all(category.id == label for label, category in enumerate(COCO_PANOPTIC_CATEGORIES))
    assert COCO_PANOPTIC_CATEGORIES[:91] == COCO_CATEGORIES
    assert guess_categories(250, {"dataset_file": "coco_panoptic"}) is COCO_PANOPTIC_CATEGORIES
    assert guess_categories(91, {"dataset_file": "coco_panoptic"}) is COCO_CATEGORIES


@pytest.mark.parametrize(
    "codes",
    [torch.zeros(1), torch.tensor([108, 49]), torch.tensor([], dtype=torch.int64), torch.tensor([-7, -1])],
    ids=["floats", "no end", "empty", "no character"],
)
def test_a_tensor_that_is_no_list_of_names_is_ignored(codes: torch.Tensor) -> None:
    assert decode_names(codes, 3) is None
    model, other = small(), small()
    detrkit.load_official(other, detrkit.to_official(model) | {CLASS_NAMES: codes})
    assert other.categories is None
    assert decode_names(encode_names(NAMES), 2) is None  # more names than slots


def test_names_are_saved_and_loaded(tmp_path: Path) -> None:
    source = small()
    assert CLASS_NAMES not in detrkit.to_official(source)
    source.categories = NAMES
    assert detrkit.to_official(source).keys() - {CLASS_NAMES} == source_names()
    path = save_official(source, tmp_path / "x.pth")
    assert torch.load(path, weights_only=True)["model"][CLASS_NAMES].tolist() == encode_names(NAMES).tolist()

    model = small()
    report = detrkit.load_official(model, path)
    assert model.categories == NAMES
    assert report.ignored == [CLASS_NAMES]
    mine = Categories([Category(7, "a"), Category(8, "b"), Category(9, "c")])
    model.categories = mine
    detrkit.load_official(model, path)
    assert model.categories == mine, "the model keeps its own classes"
    fresh = small(num_classes=5, num_queries=7, one_to_many_queries=20)
    untouched = {key: value.clone() for key, value in fresh.state_dict().items()}
    report = detrkit.load_official(fresh, path, new_head=True)
    assert fresh.categories is None, "new heads do not have the old classes"
    assert (report.classes, report.queries) == ((3, 5), (10, 7))
    given, now = source.state_dict(), fresh.state_dict()
    assert torch.equal(now["one_to_many_embed.weight"][:12], given["one_to_many_embed.weight"])
    for key in ("one_to_many_class_embed.weight", "enc_class_embed.bias", "class_embed.1.weight"):
        assert torch.equal(now[key], untouched[key])
    assert torch.equal(now["one_to_many_bbox_embed.layers.0.weight"], given["one_to_many_bbox_embed.layers.0.weight"])

    options = {key: SMALL[key] for key in ("backbone", "num_queries")}
    assert open_official(path, name="relation_detr_r50", options=options).categories == NAMES


def source_names() -> set[str]:
    return set(detrkit.to_official(small()))


def test_files_of_other_repositories_have_no_names() -> None:
    options = {key: value for key, value in SMALL.items() if key != "one_to_many_queries"}
    model = detrkit.create_model("dino_r50_4scale", num_classes=3, **options)
    model.categories = NAMES
    assert CLASS_NAMES not in detrkit.to_official(model)


@pytest.mark.slow
def test_inspection_shows_class_names(tmp_path: Path) -> None:
    source = detrkit.create_model("relation_detr_lite0", num_classes=3)
    source.categories = NAMES
    found = inspect_checkpoint(save_official(source, tmp_path / "x.pth"))
    assert (found.kind, found.categories) == ("official", NAMES.to_json())


def test_a_pulled_file_keeps_its_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with another number of classes than COCO, such as SA-Det-100k may have."""
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    source = detrkit.create_model("relation_detr_lite0", num_classes=3)
    source.categories = NAMES
    path = save_official(source, tmp_path / "x.pth")
    item = CATALOGUE["relation_detr_r50_sa_det_100k_12ep"]
    monkeypatch.setitem(CATALOGUE, "tiny", type(item)(**{**vars(item), "name": "tiny", "model": "relation_detr_lite0"}))  # type: ignore[arg-type]  # a dict
    pulled = pull("tiny", source=path)
    assert detrkit.load(pulled.path).categories == NAMES


@pytest.mark.parametrize("name", [name for name, item in CATALOGUE.items() if "xiuqhou" in item.source])
def test_release_files_agree_with_the_recipes(name: str) -> None:
    """The AP in the catalogue equals the AP in the header of the recipe with the same name."""
    item = CATALOGUE[name]
    assert item.address is not None
    assert item.address.startswith(f"{item.source}/releases/download/v1.0.")
    assert str(item.file).removesuffix(".pth").rpartition("_")[2] == f"{(item.epochs or 0) // 12}x" or item.ap is None
    stem = name if "ep" in name.rpartition("_")[2] else f"{name}_coco_12ep"
    paths = list((ROOT / "recipes").rglob(f"{stem}.yaml"))
    if item.ap is None:
        assert (paths, item.data) == ([], "Objects365")
        return
    assert f": {item.ap} / " in paths[0].read_text(encoding="utf-8").split("extends:")[0]
    recipe = load_recipe(paths[0])
    assert (recipe.model.name, recipe.training.epochs) == (item.model, item.epochs)
    sizes = {"eval_short_side": recipe.data.eval_short_side, "eval_max_side": recipe.data.eval_max_side}
    options = recipe.model.overrides | {key: size for key, size in sizes.items() if size is not None}
    assert options == item.options
