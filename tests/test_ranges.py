"""Model options and recipe keys: types and ranges are checked where they are declared, with one clear message."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from detrkit.config import load_recipe
from detrkit.errors import RecipeError
from detrkit.models import entry, list_models, model_config
from detrkit.models.config import Input, Postprocessing
from detrkit.training.task import task_of

WRONG: list[tuple[str, Any, str]] = [
    ("num_heads", 0, "num_heads must be at least 1, got 0"),
    ("hidden_dim", 0, "hidden_dim must be at least 1, got 0"),
    ("hidden_dim", 10**6, "hidden_dim must be at most 16384, got 1000000"),
    ("ffn_dim", -5, "ffn_dim must be at least 1, got -5"),
    ("ffn_dim", 2.5, "ffn_dim should be a valid integer, .*got 2.5"),
    ("encoder_layers", -1, "encoder_layers must be at least 0, got -1"),
    ("decoder_layers", 0, "decoder_layers must be at least 1, got 0"),
    ("num_queries", True, "num_queries should be a number, got True"),
    ("num_queries", 10**9, "num_queries must be at most 100000"),
    ("dropout", 2, r"dropout must be in \[0, 1\), got 2"),
    ("dropout", "x", "dropout should be a valid number, .*got 'x'"),
    ("cost_bbox", float("nan"), "cost_bbox should be a finite number, got nan"),
    ("loss_bbox", -5, "loss_bbox must be at least 0, got -5"),
    ("image_std", [0, 0, 0], "image_std must be above 0"),
    ("image_mean", "abc", "image_mean should be a valid tuple, got 'abc'"),
    ("image_mean", [1], "image_mean"),
    ("backbone", [1], "backbone should be a valid string"),
    ("dilation", "maybe", "dilation should be a valid boolean, .*got 'maybe'"),
    ("nms", 1.5, r"nms must be in \[0, 1\], got 1.5"),
    ("eval_short_side", 0, "eval_short_side must be at least 1, got 0"),
    ("train_short_sides", [], "train_short_sides should have at least 1 item"),
    ("top_k", {"a": 1}, "top_k should be a valid integer"),
    ("repeat_ratio", 0, r"repeat_ratio must be in \(0, 1\], got 0"),
    ("class_loss", "vfl", "class_loss must be 'focal' or 'varifocal', got 'vfl'"),
    ("two_stage", 3, "two_stage should be a valid boolean"),
    ("relation", 1, "relation must be 'none', 'full' or 'low_rank', got 1"),
    ("denoising_queries", -1, "denoising_queries must be at least 0, got -1"),
    ("position_temperature", 0, "position_temperature must be above 0, got 0"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{key}={value}"[:40] for key, value, _ in WRONG])
def test_model_options_out_of_range_or_of_another_type(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config("dape_lite0", **{key: value})


@pytest.mark.parametrize("key", ["num_heads", "top_k", "image_mean", "dilation", "backbone", "loss_bbox"])
def test_null_is_a_value_only_where_it_is_one(key: str) -> None:
    if key == "image_mean":
        assert model_config("detr_lite0", image_mean=None).input.image_mean is not None, "that of the backbone"
    else:
        with pytest.raises(ValueError, match=f"{key} should be a valid"):
            model_config("detr_lite0", **{key: None})


def test_every_number_of_every_model_has_a_range() -> None:
    """A plain ``int`` or ``float`` would take true, and any size."""
    plain = set()
    for name in list_models():
        found = entry(name)
        _, architecture = found.with_relation or (found.build, found.architecture)
        for part in (found.architecture, architecture, Input, found.objective, Postprocessing):
            hints = get_type_hints(part, include_extras=True)
            for field in dataclasses.fields(part):
                options = {hints[field.name], *get_args(hints[field.name])}
                if options & {int, float} and not hasattr(hints[field.name], "__metadata__"):
                    plain.add(f"{part.__name__}.{field.name}")
    assert plain <= {"SalienceArchitecture.level_filter_ratio", "SalienceArchitecture.layer_filter_ratio"} | {
        f"{child}.{field}"
        for child in ("SalienceWithRelationArchitecture",)
        for field in ("level_filter_ratio", "layer_filter_ratio")
    }


@pytest.mark.parametrize("name", list_models())
def test_a_configuration_read_back_is_the_same(name: str) -> None:
    """Checkpoints keep the flat keys."""
    config = model_config(name)
    assert model_config(name, **config.flat()) == config


def test_numbers_written_as_text_and_truth_values_are_read_as_in_recipe_keys() -> None:
    config = model_config("detr_lite0", num_queries="20", dilation="yes", loss_bbox=3)
    assert (config.architecture.num_queries, config.architecture.dilation, config.objective.loss_bbox) == (20, True, 3)
    assert isinstance(config.objective.loss_bbox, float)


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.betas=[2,5]",
        "training.seed=99999999999999999999999",
        "training.workers=100000",
        "training.patience=0",
        "training.batch_size=true",
        "data.root=",
        "data.short_sides=[100000]",
        "schedule.drop=1e308",
        "optimizer.lr=.nan",
        "model.name=",
        "model.nms=.nan",
        "model.image_std=[1, .inf, 1]",
    ],
)
def test_recipe_values_out_of_range_name_the_key(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"override '{key}': {key}"):
        task_of(load_recipe({}, [override]))


def test_a_value_of_a_thousand_characters_is_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({}, ["training.epochs=" + "x" * 5000])
    assert len(str(caught.value)) < 400
