"""Partial loading of models with denoising and proposals: class heads of decoder and encoder, label table, queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.errors import CheckpointError
from detrkit.losses import build_criterion
from detrkit.models import create_model
from detrkit.structures import Target
from detrkit.weights import open_official, save_official
from tests.small import SMALL

TINY: dict[str, Any] = {**SMALL, "backbone": "test_resnet", "hidden_dim": 32, "num_heads": 1}
# Tensors with one row per query.
QUERIES: dict[str, set[str]] = {
    "dino_r50_4scale": {"tgt_embed.weight"},
    "dino_pp_r50": {"tgt_embed.weight"},
    "dn_deformable_detr_pp_r50": {"tgt_embed.weight", "refpoint_embed.weight"},
    "dab_deformable_detr_pp_r50": set(),
    "deformable_detr_r50_two_stage": set(),
    "deformable_detr_pp_r50": set(),
}


def tiny(name: str, seed: int = 0, **overrides: Any) -> Any:
    torch.manual_seed(seed)
    return create_model(name, **{**TINY, **overrides})


@pytest.mark.parametrize(("classes", "queries", "ours"), [(5, 20, False), (2, 5, True), (3, 20, True), (5, 12, False)])
@pytest.mark.parametrize("name", QUERIES)
def test_everything_that_fits_is_loaded(name: str, classes: int, queries: int, ours: bool, tmp_path: Path) -> None:
    """From more or fewer classes and queries to 3 and 12, followed by a training step."""
    source = tiny(name, num_classes=classes, num_queries=queries)
    given: Any = detrkit.save(source, tmp_path / "m.safetensors") if ours else detrkit.to_official(source)
    model = tiny(name, seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rows = QUERIES[name] if queries != 12 else set()
    heads = {key for key in before if key.startswith(("class_embed.", "enc_class_embed.", "denoising."))}
    heads = heads if classes != 3 else set()
    if heads | rows:
        with pytest.raises(CheckpointError, match="pass new_head=True"):
            detrkit.load_official(model, given)
    report = detrkit.load_official(model, given, new_head=True)
    assert set(report.fresh) == heads | rows
    theirs, both = source.state_dict(), min(queries, 12)
    for key, value in model.state_dict().items():
        if key in heads:
            assert torch.equal(value, before[key]), key
        elif key in rows:
            assert torch.equal(value[:both], theirs[key][:both]), key
            assert torch.equal(value[both:], before[key][both:]), key
        else:
            assert torch.equal(value, theirs[key]), key
    assert report.classes == ((classes, 3) if heads else None)
    assert report.queries == ((queries, 12) if rows else None)

    target = Target(labels=torch.tensor([0, 2]), boxes=torch.rand(2, 4) * 0.2 + 0.3)
    out = model.train()(torch.randn(1, 3, 128, 128), None, [target])
    assert ("denoising" in out.groups) == ("denoising.label_encoder.weight" in before)
    loss = build_criterion(model.config)(out, [target]).total
    loss.backward()
    assert torch.isfinite(loss)


def test_remarks_of_partial_loading() -> None:
    given = detrkit.to_official(tiny("dino_r50_4scale", num_classes=91, num_queries=20))
    report = detrkit.load_official(tiny("dino_r50_4scale"), given, new_head=True)
    # class heads of decoder and encoder (weight and bias of each), label table
    assert report.remarks() == [
        "91 class outputs in the file, 3 here: 5 tensors of the class heads start new",
        "20 queries in the file, 12 here: 12 are taken over",
    ]


@pytest.mark.parametrize("name", ["dino_r50_4scale", "dino_pp_r50", "dn_deformable_detr_pp_r50"])
def test_files_with_other_classes_convert_back_and_forth(name: str, tmp_path: Path) -> None:
    """The number of classes and the size of the label table are inferred; saving gives the same tensors again."""
    source = tiny(name, num_classes=9, num_queries=20)
    torch.save({"model": detrkit.to_official(source)}, tmp_path / "x.pth")
    opened = open_official(tmp_path / "x.pth", name=name, options={"backbone": "test_resnet"})
    assert (opened.model.config.num_classes, opened.model.config.num_queries) == (9, 20)
    state = source.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in opened.model.state_dict().items())
    save_official(opened.model, tmp_path / "y.pth")
    first, second = (torch.load(tmp_path / file, weights_only=True)["model"] for file in ("x.pth", "y.pth"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_run_starts_from_another_number_of_classes(tmp_path: Path) -> None:
    """``model.init`` of a recipe: weights are loaded, class heads and label table keep their initial values."""
    from detrkit.training.task import start_from

    source = tiny("dino_r50_4scale", num_classes=9)
    path = detrkit.save(source, tmp_path / "m.safetensors")
    model = tiny("dino_r50_4scale", seed=1)
    table = model.denoising.label_encoder.weight.clone()
    start_from(model, path)
    assert torch.equal(model.denoising.label_encoder.weight, table)
    assert torch.equal(model.enc_output.weight, source.enc_output.weight)
