"""``to_official`` writes the names, shapes and types of the published checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

import detrkit
from detrkit.weights.official.recognise import on_meta, recognise

LAYOUTS = {
    "dino_pp_r50": "dino_pp_resnet50_800_1333",
    "dab_deformable_detr_pp_r50": "dab_def_detr_pp_resnet50_800_1333",
    "dn_deformable_detr_pp_r50": "dn_def_detr_pp_resnet50_800_1333",
    "deformable_detr_pp_r50": "def_detr_pp_resnet_800_1333",
    "relation_detr_r50": "relation_detr_r50",
    "salience_detr_r50": "salience_detr_r50",
    "relation_detr_swin_l": "relation_detr_swin_l_800_1333",
    "relation_detr_focalnet_l": "relation_detr_focalnet_large_lrf_fl4_800_1333",
}


def read_layout(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and type, from lines of three columns."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: (tuple(int(n) for n in shape.strip("(),").split(",") if n), kind) for name, shape, kind in rows}


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_layout_equals_the_recorded_one(name: str, shared: Path) -> None:
    official = detrkit.to_official(on_meta(name))
    written = {key: (tuple(value.shape), str(value.dtype)) for key, value in official.items()}
    assert written == read_layout(shared / "spec" / "keys" / f"{LAYOUTS[name]}.tsv")


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_are_inferred(name: str) -> None:
    """Classes, queries and layers are inferred from the names of the Relation-DETR repository too."""
    small = {"num_classes": 5, "decoder_layers": 3, "encoder_layers": 2, "hidden_dim": 128, "num_heads": 4}
    model = on_meta(name, **small, ffn_dim=64, num_feature_levels=5)
    found = recognise(detrkit.to_official(model))
    assert (found.name, found.fits) == (name, True)
    config = on_meta(found.name, **found.options).config
    assert config == model.config
