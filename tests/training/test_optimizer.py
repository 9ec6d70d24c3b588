"""Parameter groups, learning-rate rule, EMA."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from detrkit.config import OptimizerSection
from detrkit.errors import RecipeError
from detrkit.models import create_model
from detrkit.training.ema import EMA
from detrkit.training.optimizer import build_optimizer, lr_factor, parameter_groups, set_learning_rate
from tests.training.fakes import TinyDetector


def section(**values: object) -> OptimizerSection:
    return OptimizerSection.model_validate(values)


def test_groups_have_every_trainable_parameter_once_with_its_rate() -> None:
    model = TinyDetector()
    groups = {group.name: group for group in parameter_groups(model, section(lr=1e-3, lr_backbone=1e-4))}
    assert {name: group.lr for name, group in groups.items()} == {"backbone": 1e-4, "default": 1e-3}
    found = [id(parameter) for group in groups.values() for parameter in group.parameters]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert {id(parameter) for parameter in groups["backbone"].parameters} == {
        id(parameter) for parameter in model.backbone.parameters()
    }


def test_groups_of_a_real_model_leave_frozen_stages_out() -> None:
    with torch.device("meta"):
        model = create_model("detr_r50", num_classes=91)
    groups = {group.name: group.parameters for group in parameter_groups(model, section())}
    count = {name: sum(parameter.numel() for parameter in parameters) for name, parameters in groups.items()}
    assert count["backbone"] + count["default"] == 41_302_368  # official, stem and layer1 frozen
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(parameter)].startswith("backbone.") for parameter in groups["backbone"])


def test_backbone_rate_zero_freezes_the_backbone() -> None:
    model = TinyDetector()
    groups = parameter_groups(model, section(lr_backbone=0))
    assert [group.name for group in groups] == ["default"]
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


def test_nothing_to_train() -> None:
    with pytest.raises(RecipeError, match="nothing to train"):
        parameter_groups(TinyDetector().requires_grad_(False), section())


@pytest.mark.parametrize(
    ("settings", "total_batch", "factor"),
    [
        ({}, 64, 1),
        ({"lr_batch_size": 8}, 8, 1),
        ({"lr_batch_size": 8}, 32, 2),
        ({"lr_batch_size": 8}, 2, 0.5),
        ({"lr_batch_size": 8, "lr_scaling": "linear"}, 32, 4),
        ({"lr_batch_size": 8, "lr_scaling": "none"}, 32, 1),
    ],
)
def test_learning_rate_follows_the_total_batch(settings: dict[str, object], total_batch: int, factor: float) -> None:
    assert lr_factor(section(**settings), total_batch) == pytest.approx(factor)
    rates = [group.lr for group in parameter_groups(TinyDetector(), section(**settings), total_batch=total_batch)]
    assert rates == pytest.approx([1e-5 * factor, 1e-4 * factor])


def test_adamw_decays_everything_and_follows_the_factor() -> None:
    optimizer = build_optimizer(
        parameter_groups(TinyDetector(), section()), section(weight_decay=0.3, betas=[0.8, 0.9])
    )
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    assert set_learning_rate(optimizer, 0.5) == pytest.approx({"backbone": 5e-6, "default": 5e-5})
    assert set_learning_rate(optimizer, 1.0) == pytest.approx({"backbone": 1e-5, "default": 1e-4})


def test_no_decay_by_official_names() -> None:
    """The groups of the Relation-DETR repository: names with norm or bias have no decay, all others have."""
    with torch.device("meta"):
        model = create_model("relation_detr_r50")
    settings = section(lr_sampling=1e-5, no_decay=["norm", "bias"])
    groups = parameter_groups(model, settings)
    count = {(group.name, group.decayed): sum(p.numel() for p in group.parameters) for group in groups}
    assert count == {
        ("default", True): 24_559_104,
        ("default", False): 65_792,
        ("backbone", True): 23_232_512,
        ("sampling", True): 786_432,
        ("sampling", False): 3_072,
    }
    rates = [
        (group["name"], group["lr"], group["weight_decay"]) for group in build_optimizer(groups, settings).param_groups
    ]
    assert ("default", 1e-4, 0.0) in rates
    assert ("sampling", 1e-5, 1e-4) in rates


def test_no_decay_by_official_names_has_the_quirks_of_the_repository() -> None:
    """Norms without "norm" in their official names are decayed, and embeddings too."""
    decayed = decayed_names("relation_detr_r50", ["norm", "bias"])
    quirks = {f"input_proj.{level}.norm.weight" for level in range(4)} | {"encoder.memory_fusion.3.weight"}
    embeddings = {"level_embed", "tgt_embed.weight", "one_to_many_embed.weight"}
    assert quirks | embeddings <= decayed
    assert not any(name.endswith("bias") for name in decayed)
    assert sum(".norm.weight" in name for name in decayed - quirks) == 0
    # norms and scales of ConvNeXt blocks, which torchvision names "0", "2" and "layer_scale"
    convnext = decayed_names("relation_detr_r50", ["norm", "bias"], backbone="convnext_tiny.fb_in1k")
    blocks = {name for name in convnext if re.search(r"blocks\.\d+\.(norm\.weight|gamma)$", name)}
    assert len(blocks) == 2 * (3 + 9 + 3)  # the first stage is frozen


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("dape_r50", None), ("salience_detr_r50", None), ("relation_detr_r50", "swin_tiny_patch4_window7_224.ms_in1k")],
)
def test_typed_decay_is_for_matrices_and_kernels(name: str, backbone: str | None) -> None:
    options = {} if backbone is None else {"backbone": backbone}
    decayed = decayed_names(name, "typed", **options)
    with torch.device("meta"):
        model = create_model(name, **options)
    shapes = {key: parameter.shape for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(len(shapes[key]) >= 2 for key in decayed)
    embeddings = {f"{key}.weight" for key, module in model.named_modules() if isinstance(module, nn.Embedding)}
    assert not decayed & (embeddings | {"level_embed"})
    large = {key for key in shapes.keys() - decayed - embeddings if len(shapes[key]) >= 2}
    assert {key.rpartition(".")[2] for key in large} <= {"level_embed", "relative_position_bias_table"}


def decayed_names(name: str, no_decay: object, **options: Any) -> set[str]:
    """Our names of the trainable parameters with weight decay."""
    with torch.device("meta"):
        model = create_model(name, **options)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = parameter_groups(model, section(no_decay=no_decay))
    return {names[id(parameter)] for group in groups if group.decayed for parameter in group.parameters}


def test_a_wrong_no_decay_names_the_valid_value() -> None:
    with pytest.raises(ValueError, match="typed"):
        section(no_decay="norm")


def test_ema_follows_the_recurrence() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, decay=0.5)
    average = 1.0
    for update in range(30):
        value = float(update)
        nn.init.constant_(model.weight, value)
        ema.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * value
        assert ema.module.weight.tolist()[0] == pytest.approx([average, average], rel=1e-5)
    assert math.isclose(average, 28, abs_tol=0.1)


def test_ema_copies_integers_and_keeps_frozen_tensors() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].weight.requires_grad_(False)
    ema = EMA(model, decay=0.9)
    frozen = model[0].weight.clone()
    for _ in range(5):
        model(torch.randn(4, 3))
        ema.update(model)
    assert torch.equal(ema.module[0].weight, frozen)
    assert int(ema.module[1].num_batches_tracked) == 5
    assert 0 < float(ema.module[1].running_mean.norm()) < float(model[1].running_mean.norm()) * 5
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert not ema.module.training


def test_ema_state_continues() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    ema, other = EMA(model, 0.9), EMA(nn.Linear(3, 3), 0.9)
    for _ in range(4):
        nn.init.normal_(model.weight)
        ema.update(model)
    other.load_state_dict(ema.state_dict())
    for average in (ema, other):
        average.update(model)
    assert torch.equal(ema.module.weight, other.module.weight)
