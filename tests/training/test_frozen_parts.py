"""``model.freeze`` and ``model.lora``: what learns, what stays, and what a run writes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import detrkit
from detrkit.config import load_recipe
from detrkit.errors import RecipeError
from detrkit.models import list_models
from detrkit.models.detector import in_backbone
from detrkit.nn.lora import is_low_rank
from detrkit.training.frozen_parts import choose_parts
from detrkit.training.optimizer import frozen_norms, parameter_groups
from tests.inference.color_detector import CATEGORIES, coco_folder, picture
from tests.small import small_model
from tests.workplace import SMALL_RUN, TINY_MODEL


def chosen(model: Any, **section: object) -> set[str]:
    """Names of the parameters that learn."""
    choose_parts(model, load_recipe({"model": section}))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", [name for name in list_models("*_lite0") if "cascade" not in name])
def test_parts_of_every_model(name: str) -> None:
    model = small_model(name)
    every = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = chosen(copy.deepcopy(model), freeze="all_but_heads")
    assert any("class_embed" in key for key in heads)
    assert any("bbox_embed" in key for key in heads)
    assert len(heads) < len(every)
    assert not any(key.startswith(("encoder.", "input_proj.")) or in_backbone(key) for key in heads)
    left = chosen(copy.deepcopy(model), freeze="backbone, encoder")
    assert left == {key for key in every if not in_backbone(key) and not key.startswith("encoder.")}
    low = chosen(model, lora=2)
    assert {key for key in low if not is_low_rank(key)} == heads
    assert {key.split(".")[0] for key in low - heads} == {"encoder", "decoder"}


def test_patterns() -> None:
    left = chosen(small_model("de_detr_lite0"), freeze=["encoder.layers.0.*", "query_embed.weight"])
    assert "query_embed.weight" not in left
    assert not any(key.startswith("encoder.layers.0.") for key in left)
    assert any(key.startswith("decoder.layers.0.") for key in left)
    with pytest.raises(RecipeError, match=r"model\.freeze = 'encodr': no parameter .* Did you mean 'encoder'"):
        chosen(small_model("de_detr_lite0"), freeze="encodr")
    with pytest.raises(RecipeError, match="nothing is left to train"):
        chosen(small_model("de_detr_lite0"), freeze="*")
    with pytest.raises(RecipeError, match=r"model\.lora = 0"):
        load_recipe({"model": {"lora": 0}})


def test_batch_norms_of_frozen_parts_keep_their_statistics() -> None:
    model = small_model("salience_detr_lite0")
    chosen(model, freeze="neck.*")
    groups = parameter_groups(model, load_recipe({"optimizer": {"no_decay": ["norm"]}}).optimizer)
    assert groups
    frozen = frozen_norms(model)
    inside = [m for m in model.get_submodule("neck").modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert inside
    assert {id(module) for module in inside} <= {id(module) for module in frozen}


def test_a_run_with_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frozen weights stay to the bit, changes have the rank, checkpoints are plain ones, and resuming is exact."""
    scene = picture((96, 64), (0, (10, 20, 40, 50)))
    data = coco_folder(tmp_path / "data", {"a.png": scene}, [("a.png", 3, [10, 20, 30, 30])])
    small = SMALL_RUN | {f"model.{key}": value for key, value in TINY_MODEL.items()} | {"model.num_queries": 5}
    small |= {"data.root": str(data), "model.name": "de_detr_lite0", "training.ema": 0.5}
    first = detrkit.train({}, **small, **{"training.output": str(tmp_path / "start")})
    tuned = {"model.init": str(first.folder), "model.lora": 2, "optimizer.lr": 0.01, "optimizer.no_decay": ["norm"]}
    settings = small | tuned | {"schedule.kind": "constant"}
    capsys.readouterr()

    def run(name: str, steps: int, **more: Any) -> Any:
        own = {"training.output": str(tmp_path / name), "training.iterations": steps}
        return detrkit.train({}, **(settings | own), **more)

    result = run("whole", 3)
    said = " ".join(capsys.readouterr().err.split())
    assert "parameters to train (LoRA of rank 2, frozen: all_but_heads)" in said
    before, after = (
        detrkit.load(one).state_dict() for one in (first.folder / "last" / "model.safetensors", result.best)
    )
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any("class_embed" in key for key in changed)
    projections = {key for key in changed if key.startswith(("encoder.", "decoder."))}
    assert "encoder.layers.0.linear1.weight" in projections
    assert all(
        key.endswith(("linear1.weight", "linear2.weight", "proj.weight", "in_proj_weight")) for key in projections
    )
    assert (
        int(
            torch.linalg.matrix_rank(
                after["encoder.layers.0.linear1.weight"] - before["encoder.layers.0.linear1.weight"], rtol=1e-3
            )
        )
        <= 2
    )
    assert not any(key.startswith(("backbone.", "input_proj.")) for key in changed)
    assert detrkit.Predictor(result.best, device="cpu").predict(scene, 0.0).categories == CATEGORIES

    run("parts", 2)
    resumed = run("parts", 3, resume=True)
    assert torch.load(resumed.folder / "last" / "state.pt", weights_only=True)["position"]["step"] == 3
    parts = detrkit.load(resumed.folder / "last" / "model.safetensors").state_dict()
    whole = detrkit.load(result.folder / "last" / "model.safetensors").state_dict()
    assert all(torch.equal(parts[key], value) for key, value in whole.items())
