"""Official layouts of backbones: names, shapes and types of the published files, and the outputs of the networks.

torchvision has the Swin and ConvNeXt of the Relation-DETR repository. FocalNet is implemented here a second time, from
its paper and the tensors of the files.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer

from detrkit.errors import CheckpointError
from detrkit.models import Detector, create_model
from detrkit.weights import load_official, to_official
from tests.nn.tiny_backbones import TINY
from tests.small import SMALL

LARGE = {
    "relation_detr_swin_l_800_1333": {"backbone": "swin_large_patch4_window7_224.ms_in22k"},
    "relation_detr_focalnet_large_lrf_fl4_800_1333": {
        "backbone": "focalnet_large_fl4.ms_in22k",
        "backbone_norm": True,
        "backbone_levels": 4,
        "num_feature_levels": 5,
    },
}
SIZES = [(224, 224), (64, 96), (128, 288), (256, 320)]  # whole windows of 7, less than one window, and neither


def table(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Names, shapes and types of the tensors of an official backbone."""
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return {
        name: (tuple(int(size) for size in re.findall(r"\d+", shape)), dtype)
        for name, shape, dtype, *_ in rows
        if name.startswith("backbone.")
    }


def relation(family: str, **options: object) -> Detector:
    """A small model in the layout of the Relation-DETR repository."""
    torch.manual_seed(0)
    backbone = {"backbone": TINY[family], "backbone_levels": 4, "frozen_stride": 0}
    return create_model("dino_pp_r50", **{**SMALL, **backbone, **options}).eval()


def backbone_part(state: dict[str, Tensor], prefix: str = "backbone.") -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_backbone(model: Detector, tensors: dict[str, Tensor]) -> None:
    """Load official tensors of the backbone; all other tensors stay."""
    load_official(model, to_official(model) | tensors)


def feature_maps(model: Detector, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        levels = model.get_submodule("backbone")(images, torch.zeros_like(images[:, 0], dtype=torch.bool))
    return [level.tensor for level in levels]


def randomise(network: nn.Module) -> None:
    """Random weights large enough to influence the output, including layer scale and biases."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.mark.parametrize("name", LARGE)
def test_names_shapes_and_types_equal_the_published_files(shared: Path, name: str) -> None:
    with torch.device("meta"):
        model = create_model("dino_pp_r50", **LARGE[name])
    ours = {key: value for key, value in to_official(model).items() if key.startswith("backbone.")}
    expected = table(shared / "spec" / "keys" / f"{name}.tsv")
    assert {key: (tuple(value.shape), str(value.dtype)) for key, value in ours.items()} == expected
    assert len(expected) > 250


@pytest.mark.parametrize("family", ["swin", "convnext", "focalnet"])
def test_round_trip(family: str) -> None:
    model = relation(family, backbone_norm=family == "focalnet")
    other = relation(family, backbone_norm=family == "focalnet")
    randomise(other)
    official = to_official(model)
    report = load_official(other, official)
    assert report.loaded == len(model.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    back = to_official(other)
    assert back.keys() == official.keys()
    assert all(torch.equal(value, back[key]) for key, value in official.items())
    assert all(value.shape == back[key].shape for key, value in official.items())


def test_swin_equals_torchvision() -> None:
    published = SwinTransformer([4, 4], 16, [2, 2, 2, 2], [1, 2, 2, 4], [7, 7], stochastic_depth_prob=0.0).eval()
    randomise(published)
    model = relation("swin")
    tensors = {f"backbone.0.{key}": value for key, value in backbone_part(published.state_dict(), "").items()}
    tensors = {key: value for key, value in tensors.items() if ".features." in key}
    assert tensors.keys() == {key for key in to_official(model) if key.startswith("backbone.")}
    load_backbone(model, tensors)
    for size in SIZES:
        x = images = torch.randn(2, 3, *size)
        expected = []
        for index, part in enumerate(published.features):
            with torch.no_grad():
                x = part(x)
            expected += [x.permute(0, 3, 1, 2)] if index % 2 else []
        for ours, theirs in zip(feature_maps(model, images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    index = to_official(model)["backbone.0.features.1.0.attn.relative_position_index"]
    assert torch.equal(index, published.state_dict()["features.1.0.attn.relative_position_index"])


def test_convnext_equals_torchvision() -> None:
    settings = [
        CNBlockConfig(16, 24, 2),
        CNBlockConfig(24, 32, 1),
        CNBlockConfig(32, 48, 1),
        CNBlockConfig(48, None, 1),
    ]
    published = ConvNeXt(settings, stochastic_depth_prob=0.0).eval()
    randomise(published)
    model = relation("convnext")
    tensors = {f"backbone.{key}": value for key, value in published.state_dict().items() if key.startswith("features.")}
    assert tensors.keys() == {key for key in to_official(model) if key.startswith("backbone.")}
    assert all(to_official(model)[key].shape == value.shape for key, value in tensors.items())
    load_backbone(model, tensors)
    for size in SIZES:
        x = images = torch.randn(2, 3, *size)
        expected = []
        for index, part in enumerate(published.features):
            with torch.no_grad():
                x = part(x)
            expected += [x] if index % 2 else []
        for ours, theirs in zip(feature_maps(model, images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def focalnet(state: dict[str, Tensor], images: Tensor, depths: tuple[int, ...]) -> list[Tensor]:
    """FocalNet ("Focal Modulation Networks", eq. 3 to 6) with convolutional embedding, post-norm and layer scale."""

    def norm(x: Tensor, name: str) -> Tensor:  # (B, H, W, C)
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def embed(x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        x = F.conv2d(x.permute(0, 3, 1, 2), state[f"{name}.proj.weight"], state[f"{name}.proj.bias"], stride, padding)
        return norm(x.permute(0, 2, 3, 1), f"{name}.norm")

    def modulation(x: Tensor, name: str, levels: int = 4) -> Tensor:
        dim = x.shape[-1]
        query, context, gates = linear(x, f"{name}.f").split((dim, dim, levels + 1), dim=-1)
        context, total = context.permute(0, 3, 1, 2), torch.zeros(())
        for level in range(levels):
            kernel = state[f"{name}.focal_layers.{level}.0.weight"]
            context = F.gelu(F.conv2d(context, kernel, padding=kernel.shape[-1] // 2, groups=dim))
            total = total + context * gates[..., level][:, None]
        average = F.gelu(context.mean((2, 3), keepdim=True))
        total = (total + average * gates[..., levels][:, None]) / (levels + 1)  # normalised modulator
        modulator = F.conv2d(total, state[f"{name}.h.weight"], state[f"{name}.h.bias"]).permute(0, 2, 3, 1)
        return linear(query * modulator, f"{name}.proj")

    outputs = []
    x = embed(images.permute(0, 2, 3, 1), "0.patch_embed", stride=4, padding=2)
    for stage, depth in enumerate(depths):
        for block in (f"0.layers.{stage}.blocks.{index}" for index in range(depth)):
            x = x + state[f"{block}.gamma_1"] * norm(modulation(x, f"{block}.modulation"), f"{block}.norm1")
            hidden = linear(F.gelu(linear(x, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
            x = x + state[f"{block}.gamma_2"] * norm(hidden, f"{block}.norm2")
        outputs.append(norm(x, f"1.norm{stage}").permute(0, 3, 1, 2))
        if stage + 1 < len(depths):
            x = embed(x, f"0.layers.{stage}.downsample", stride=2, padding=1)
    return outputs


def test_focalnet_equals_the_published_network() -> None:
    model = relation("focalnet", backbone_norm=True)
    randomise(model)
    state = backbone_part(to_official(model))
    assert state["0.layers.0.blocks.0.modulation.f.weight"].dim() == 2
    for size in [(64, 96), (96, 160)]:
        images = torch.randn(2, 3, *size)
        expected = focalnet(state, images, depths=(2, 1, 1, 1))
        for ours, theirs in zip(feature_maps(model, images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_swin_of_dino_has_the_names_of_its_authors() -> None:
    """Patch merging is at the end of a stage, norms are numbered by stage, the position index is square."""
    model = create_model("dino_r50_4scale", **{**SMALL, "backbone": TINY["swin"]}, backbone_norm=True, frozen_stride=0)
    state = backbone_part(to_official(model), "backbone.0.")
    assert {"norm1.weight", "norm3.bias", "patch_embed.proj.weight", "layers.2.downsample.reduction.weight"} <= set(
        state
    )
    assert not any(key.startswith(("norm0", "layers.3.downsample", "body")) for key in state)
    assert state["layers.0.blocks.1.attn.relative_position_index"].shape == (49, 49)
    assert state["layers.1.downsample.norm.weight"].shape == (4 * 32,)
    body = model.get_submodule("backbone.body.model")
    assert torch.equal(state["layers.1.downsample.norm.weight"], body.get_parameter("layers.2.downsample.norm.weight"))
    assert load_official(model, to_official(model)).loaded == len(model.state_dict())


def test_another_window_size_is_refused() -> None:
    model = relation("swin")
    state = to_official(model)
    key = "backbone.0.features.1.0.attn.relative_position_bias_table"
    state[key] = torch.zeros(23 * 23, 1)
    with pytest.raises(CheckpointError, match=re.escape(f"{key} (529, 1) instead of (169, 1)")):
        load_official(model, state)
