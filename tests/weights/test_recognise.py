"""The model of an official state dict is recognised, and differences of an unknown one are shown."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.errors import CheckpointError
from detrkit.models import create_model, list_models
from detrkit.models.presets import PRESETS
from detrkit.models.registry import KINDS
from detrkit.weights import inspect_checkpoint
from detrkit.weights.official.keydiff import IGNORED, compare
from detrkit.weights.official.recognise import SIGNS, on_meta, recognise
from tests.small import SMALL

pytestmark = pytest.mark.xdist_group("recognise")  # one cache of layouts

# Models with the tensors of another one: a checkpoint shows neither label augmentation nor a dilated backbone.
TWINS = {"la_": "", "dela_": "de_", "_dc5": ""}

# One of each kind, and those that differ from it by more than a size.
DRAWN = {next(name for name in list_models() if PRESETS[name].kind == kind) for kind in KINDS} | {"detr_r50_dc5"}
DRAWN |= {"dela_conditional_detr_r50", "de_detr_r50_single_scale", "dino_r50_5scale", "mask_dape_lite0"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in DRAWN)) for name in list_models()]
)
def test_every_registered_model_is_recognised(name: str) -> None:
    model = on_meta(name)
    found = recognise(detrkit.to_official(model))
    assert found.fits
    # where both boxes and contents of queries come from proposals, no tensor shows the number of queries
    selected = getattr(model.config, "two_stage", False) and not hasattr(model, "tgt_embed")
    assert found.assumed == (("num_queries",) if selected else ())
    if found.name != name:
        assert name in found.also
        assert any(mark in name and name.replace(mark, plain) == found.name for mark, plain in TWINS.items())
    counts = (model.config.num_classes, model.config.num_queries)
    config = on_meta(found.name, **found.options).config
    assert (config.num_classes, config.num_queries) == counts


def test_signs_are_in_the_files_of_their_kinds_alone() -> None:
    for kind in KINDS:
        name = next(name for name in list_models() if PRESETS[name].kind == kind)
        parts = {part for key in detrkit.to_official(on_meta(name)) for part in key.split(".")}
        assert {sign for sign, kinds in SIGNS.items() if kind in kinds} == parts & SIGNS.keys(), kind


def small(name: str, **overrides: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return detrkit.to_official(create_model(name, **{**SMALL, **overrides}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("detr_lite0", {"pre_norm": True, "position_embedding": "learned"}),
        ("de_detr_lite0", {"num_feature_levels": 4}),
        ("de_detr_lite0", {"num_feature_levels": 1, "reference_dim": 4, "refine_boxes": False}),
        ("de_conditional_detr_lite0", {"refine_boxes": False}),
        ("conditional_detr_lite0", {"num_classes": 9, "num_queries": 30}),
    ],
)
def test_sizes_and_options_are_inferred(name: str, options: dict[str, Any]) -> None:
    found = recognise(small(name, **options))
    assert (found.name, found.fits) == (name, True)
    config = on_meta(found.name, **found.options).config
    expected = {**SMALL, **options}
    del expected["num_heads"]
    assert {key: getattr(config, key) for key in expected} == expected
    assert found.assumed == ("num_heads",)
    assert found.options["num_heads"] == 2, "32 channels per head, as in every published model"


def test_training_arguments_decide_what_shapes_do_not_show() -> None:
    state = detrkit.to_official(on_meta("detr_r50"))
    plain = {"dilation": False, "nheads": 8, "nms": False, "nms_thresh": 0.7, "nms_remove": 0.01, "repeat_label": None}
    found = recognise(state, arguments=plain)
    assert (found.name, found.also) == ("detr_r50", ())
    assert recognise(state, arguments={**plain, "dilation": True}).name == "detr_r50_dc5"
    found = recognise(state, arguments={**plain, "nms": True, "repeat_label": 2})
    assert (found.name, found.also) == ("la_detr_r50", ())
    found = recognise(state, arguments={**plain, "nms": True, "nms_thresh": 0.6})
    assert found.options["nms"] == 0.6
    state = detrkit.to_official(on_meta("de_conditional_detr_r50"))
    hard = {"nms": True, "nms_thresh": 0.7, "repeat_label": 2, "pre_nms": 2000}
    found = recognise(state, arguments=hard)
    assert (found.name, found.also) == ("dela_conditional_detr_r50", ())
    assert (
        recognise(detrkit.to_official(on_meta("de_detr_r50")), arguments={"pool_res": 7}).options["roi_resolution"] == 7
    )


def test_queries_that_are_proposals() -> None:
    """No tensor of a two-stage Deformable DETR has one row per query; in DINO one has."""
    options = {"num_queries": 50, "num_classes": 3}
    state = detrkit.to_official(on_meta("deformable_detr_lite0", **options))
    found = recognise(state)
    assert (found.name, found.fits, found.assumed) == ("deformable_detr_lite0", True, ("num_queries",))
    assert found.options["num_queries"] == on_meta("deformable_detr_lite0").config.num_queries
    found = recognise(state, arguments={"num_queries": 50})
    assert (found.name, found.options, found.assumed) == ("deformable_detr_lite0", options, ())
    found = recognise(state, options={"num_queries": 20})
    assert (found.options["num_queries"], found.assumed) == (20, ())
    found = recognise(detrkit.to_official(on_meta("dino_lite0", **options)), arguments={"num_queries": 20})
    assert (found.name, found.options, found.assumed) == ("dino_lite0", options, ())
    assert found.fits


def test_the_name_of_a_published_file_decides() -> None:
    state = detrkit.to_official(on_meta("detr_r50"))
    for file, name in (("detr-r50-dc5-f0fb7ef5.pth", "detr_r50_dc5"), ("ab12-detr-r50-e632da11.pth", "detr_r50")):
        found = recognise(state, file=Path("folder") / file)
        assert (found.name, found.also) == (name, ())
    # but the tensors have priority
    assert recognise(state, file="detr-r101-2c7b67e5.pth").name == "detr_r50"


def test_a_given_name_is_kept() -> None:
    state = detrkit.to_official(on_meta("detr_r50", num_classes=5, num_queries=7))
    found = recognise(state, name="la_detr_r50", options={"nms": 0.5})
    assert found.fits
    assert found.name == "la_detr_r50"
    assert found.options == {"num_classes": 5, "num_queries": 7, "nms": 0.5}
    assert not recognise(state, name="de_detr_r50").fits
    for name, options, message in (
        ("detr_r51", {}, "no model 'detr_r51'"),
        ("detr_r50", {"roi_resolution": 7}, "no option 'roi_resolution'"),
        ("detr_r50", {"nms": 7}, r"nms must be in \[0, 1\], got 7"),
    ):
        with pytest.raises(CheckpointError, match=message):
            recognise(state, name=name, options=options)


def test_options_exclude_models_without_them() -> None:
    found = recognise(detrkit.to_official(on_meta("de_detr_r50")), options={"roi_resolution": 7})
    assert (found.name, found.options["roi_resolution"], found.fits) == ("de_detr_r50", 7, True)
    with pytest.raises(CheckpointError, match=r"no registered model can be built .* options no_such"):
        recognise(detrkit.to_official(on_meta("de_detr_r50")), options={"no_such": 7})


def test_differences_are_grouped() -> None:
    own = {"a.0.weight": torch.zeros(2), "a.1.weight": torch.zeros(2), "b.weight": torch.zeros(3), "c": torch.zeros(1)}
    given = {
        "a.0.weight": torch.zeros(2),
        "b.weight": torch.zeros(4, 1),
        "x.0.q.bias": own["c"],
        "x.1.q.bias": own["c"],
    }
    leftovers = {f"a.0.{ending}": torch.zeros(1) for ending in IGNORED}
    diff = compare({key: [key] for key in own}, own, given | leftovers)
    assert diff.missing == ("a.1.weight", "c")
    assert diff.unexpected == ("x.0.q.bias", "x.1.q.bias")
    assert [(item.given, item.wanted) for item in diff.mismatched] == [((4, 1), (3,))]
    assert len(diff) == 5
    groups = [(group.kind, group.prefix, group.count, group.example) for group in diff.groups()]
    assert groups == [
        ("missing", "a.*", 1, "a.1.weight"),
        ("missing", "c", 1, "c"),
        ("unexpected", "x.*.q", 2, "x.0.q.bias"),
        ("mismatched", "b", 1, "b.weight (4, 1) instead of (3,)"),
    ]
    assert diff.summary() == (
        "2 missing (a.1.weight, c); 2 unexpected (x.0.q.bias, x.1.q.bias); "
        "1 mismatched (b.weight (4, 1) instead of (3,))"
    )
    assert not compare({key: [key] for key in own}, own, own | leftovers)


# --- inspection -------------------------------------------------------------------------------------------------------


def test_inspection_of_one_of_ours(tmp_path: Path) -> None:
    model = create_model("dela_detr_lite0", **SMALL)
    model.categories = detrkit.Categories.from_json(
        [{"id": 4, "name": "a"}, {"id": 5, "name": "b"}, {"id": 6, "name": None}]
    )
    path = detrkit.save(model, tmp_path / "m.safetensors", recipe={"model": {"name": "x"}}, extra={"AP": 0.5})
    found = inspect_checkpoint(path)
    assert (found.kind, found.model, found.family) == ("detrkit", "dela_detr_lite0", "de_detr")
    assert found.categories == model.categories.to_json()
    assert found.recipe == {"model": {"name": "x"}}
    assert found.extra == {"AP": 0.5}
    assert found.tensors == len(model.state_dict())
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.config["num_queries"] == 12
    assert json.loads(json.dumps(found.to_json()))["kind"] == "detrkit"


def test_inspection_of_a_training_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    arguments = argparse.Namespace(nheads=4, dataset_file="cityscapes", nms=False, repeat_label=None, nested=["x"])
    state = small("de_detr_lite0", num_classes=9)
    torch.save({"model": state, "args": arguments, "epoch": 3, "optimizer": {}}, path)
    found = inspect_checkpoint(path)
    assert (found.kind, found.model, found.also, found.assumed) == ("official", "de_detr_lite0", (), ())
    assert found.config["num_heads"] == 4
    assert found.parts == ("model", "args", "epoch", "optimizer")
    assert found.arguments["dataset_file"] == "cityscapes"
    assert found.categories is not None
    assert found.categories[1]["name"] == "person"
    assert not found.difference
    assert json.loads(json.dumps(found.to_json()))["arguments"]["nested"] == "['x']"


def test_inspection_of_an_unknown_layout(tmp_path: Path) -> None:
    state = small("conditional_detr_lite0")
    state = {key.replace("sa_qpos_proj", "sa_position_proj"): value for key, value in state.items()}
    state["extra.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "other.pth")
    found = inspect_checkpoint(tmp_path / "other.pth")
    assert (found.kind, found.model, found.parameters) == ("unknown", "conditional_detr_lite0", None)
    groups = {(group.kind, group.prefix): group.count for group in found.difference}
    assert groups == {
        ("missing", "transformer.decoder.layers.*.sa_qpos_proj"): 4,
        ("unexpected", "transformer.decoder.layers.*.sa_position_proj"): 4,
        ("unexpected", "extra"): 1,
    }
    assert found.shared == len(create_model("conditional_detr_lite0", **SMALL).state_dict()) - 4


def test_a_file_of_no_family(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3)}, tmp_path / "fc.pth")
    found = inspect_checkpoint(tmp_path / "fc.pth")
    assert (found.kind, found.shared) == ("unknown", 0)
    assert {group.prefix for group in found.difference if group.kind == "unexpected"} == {"fc"}
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        inspect_checkpoint(tmp_path / "none.pth")
