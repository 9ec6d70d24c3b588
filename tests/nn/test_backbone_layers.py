"""Layer-wise learning rates: every parameter in one group, with the rate of its layer."""

from __future__ import annotations

import pytest
import torch

from detrkit.config import OptimizerSection
from detrkit.errors import RecipeError
from detrkit.models import Detector, create_model
from detrkit.training.optimizer import build_optimizer, parameter_groups, set_learning_rate
from tests.nn.tiny_backbones import TINY
from tests.small import SMALL


def model(family: str, **options: object) -> Detector:
    return create_model("dino_r50_4scale", **{**SMALL, "backbone": TINY[family], "frozen_stride": 0, **options})


def rates(detector: Detector, **values: object) -> dict[str, float]:
    """Return learning rates by parameter name; fails if a parameter is in two groups or none."""
    section = OptimizerSection.model_validate({"lr": 1.0, "lr_backbone": 0.1, **values})
    groups = parameter_groups(detector, section)
    grouped = [(id(parameter), group.lr) for group in groups for parameter in group.parameters]
    by_id = dict(grouped)
    assert len(by_id) == len(grouped)
    found = {name: by_id.pop(id(p)) for name, p in detector.named_parameters() if p.requires_grad}
    assert not by_id
    return found


# parameter of the backbone -> number of layers from its layer to the last
STEPS = {
    "swin": {
        "patch_embed.proj.weight": 8,
        "layers.0.blocks.0.attn.qkv.weight": 7,
        "layers.1.downsample.reduction.weight": 5,
        "layers.1.blocks.0.norm1.bias": 5,
        "layers.3.blocks.0.mlp.fc1.weight": 1,
        "layers.3.blocks.1.attn.relative_position_bias_table": 0,
    },
    "convnext": {"stem.0.weight": 5, "stages.0.blocks.1.gamma": 3, "stages.3.downsample.1.weight": 0},
    "focalnet": {"stem.proj.bias": 5, "layers.0.blocks.0.ls1.gamma": 4, "layers.3.blocks.0.modulation.f.weight": 0},
    "vit": {"cls_token": 2, "patch_embed.proj.weight": 2, "blocks.0.attn.qkv.weight": 1, "norm.weight": 0},
    "resnet": {"conv1.weight": 5, "layer1.0.conv1.weight": 4, "layer2.0.downsample.0.weight": 2}
    | {"layer4.0.conv2.weight": 0},
}


@pytest.mark.parametrize("family", TINY)
def test_rates_fall_from_the_last_layer_to_the_first(family: str) -> None:
    detector = model(family, backbone_norm=True)
    found = rates(detector, layer_decay=0.5)
    prefix = "backbone.body." + ("" if family == "resnet" else "model.")
    for name, steps in STEPS[family].items():
        assert found[prefix + name] == pytest.approx(0.1 * 0.5**steps), name
    assert found["backbone.norms.3.weight"] == pytest.approx(0.1)
    others = {name: rate for name, rate in found.items() if not name.startswith(("backbone.body.", "backbone.norms."))}
    assert set(others.values()) == {1.0}
    assert any(name.startswith("backbone.pyramid.") for name in others) == (family == "vit")
    assert len({rate for name, rate in found.items() if name.startswith(prefix)}) == max(STEPS[family].values()) + 1


def test_large_networks_have_one_layer_per_block() -> None:
    with torch.device("meta"):
        swin = create_model("dino_swin_l_4scale")
    found = rates(swin, layer_decay=0.9)
    body = {name: rate for name, rate in found.items() if name.startswith("backbone.body.")}
    assert sorted(set(body.values())) == pytest.approx([0.1 * 0.9**step for step in range(24, -1, -1)])


def test_frozen_layers_have_no_group_and_the_rest_keep_their_rates() -> None:
    all_rates, some = (rates(model("swin", frozen_stride=stride), layer_decay=0.5) for stride in (0, 4))
    assert len(some) < len(all_rates)
    assert some == {name: all_rates[name] for name in some}


def test_without_decay_there_is_one_group() -> None:
    assert {rate for name, rate in rates(model("swin")).items() if name.startswith("backbone.")} == {0.1}
    assert rates(model("swin"), layer_decay=1.0) == rates(model("swin"))


def test_the_rate_shown_is_that_of_the_last_layer() -> None:
    section = OptimizerSection.model_validate({"lr": 1.0, "lr_backbone": 0.1, "layer_decay": 0.5})
    optimizer = build_optimizer(parameter_groups(model("swin"), section), section)
    assert set_learning_rate(optimizer, 0.5) == {"backbone": 0.05, "default": 0.5, "sampling": 0.5}
    assert {group["lr"] for group in optimizer.param_groups} >= {0.5, 0.05, 0.025, 0.05 * 0.5**8}


def test_networks_without_known_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.convnext import ConvNeXt

    monkeypatch.delattr(ConvNeXt, "group_matcher")
    with pytest.raises(RecipeError, match=r"optimizer\.layer_decay: timm does not know the layers of 'convnext_tiny_f"):
        rates(model("convnext"), layer_decay=0.5)


@pytest.mark.parametrize("value", [0, 1.5, True, "x"])
def test_values_out_of_range(value: object) -> None:
    with pytest.raises(ValueError, match="layer_decay"):
        OptimizerSection.model_validate({"layer_decay": value})
