"""Every family of backbones: shapes, masks, freezing, training, and exclusion of padding."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from detrkit.losses import build_criterion
from detrkit.models import create_model
from detrkit.nn.backbone import Backbone
from detrkit.nn.backbone.padding import CheckpointedBlocks
from detrkit.structures import Target, pad_images
from tests.nn.tiny_backbones import TINY
from tests.small import SMALL

FAMILIES = list(TINY)
PATCHED = ["swin", "convnext", "focalnet"]


def backbone(family: str, seed: int = 0, **options: object) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(name=TINY[family], **{"num_levels": 3, "frozen_stride": 0, **options}).eval()


def no_padding(images: Tensor) -> Tensor:
    return torch.zeros_like(images[:, 0], dtype=torch.bool)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (67, 131), (33, 200)])
def test_maps_have_one_cell_per_stride_pixels(family: str, height: int, width: int) -> None:
    network = backbone(family, num_levels=4)
    images = torch.randn(2, 3, height, width)
    mask = no_padding(images)
    mask[1, :, 45:] = True
    with torch.no_grad():
        maps = network(images, mask)
        again = network(images, mask)
    assert [level.stride for level in maps] == network.strides == [4, 8, 16, 32]
    for level, channels, same in zip(maps, network.channels, again, strict=True):
        cells = (-(-height // level.stride), -(-width // level.stride))
        assert level.tensor.shape == (2, channels, *cells)
        assert level.tensor.isfinite().all()
        assert torch.equal(level.tensor, same.tensor)
        assert level.padding_mask.shape == (2, *cells)
        assert not level.padding_mask[0].any()
        valid = (~level.padding_mask[1]).any(0).sum()
        assert abs(float(valid) - 45 / level.stride) < 1.5  # nearest neighbour, stretched to whole cells


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_are_the_deepest(family: str) -> None:
    images = torch.randn(1, 3, 64, 64)
    strides = {levels: backbone(family, num_levels=levels).strides for levels in (1, 3)}
    assert strides == {1: [32], 3: [8, 16, 32]}
    if family != "vit":  # its pyramid depends on the levels
        all_levels = backbone(family, num_levels=4)
        few = backbone(family, num_levels=2)
        few.load_state_dict(all_levels.state_dict())
        with torch.no_grad():
            deepest, both = all_levels(images, no_padding(images))[2:], few(images, no_padding(images))
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(deepest, both, strict=True))


@pytest.mark.parametrize("family", PATCHED)
def test_frozen_stages_are_stem_first_stage_and_patch_merging(family: str) -> None:
    network = backbone(family, frozen_stride=4)
    stage = "stages" if family == "convnext" else "layers"
    frozen = {name.removeprefix("body.model.") for name, p in network.named_parameters() if not p.requires_grad}
    expected = {
        name.removeprefix("body.model.")
        for name, _ in network.named_parameters()
        if name.startswith(
            ("body.model.stem", "body.model.patch", f"body.model.{stage}.0", f"body.model.{stage}.1.downsample")
        )
    }
    assert frozen == expected
    assert any("downsample" in name for name in frozen)
    assert not any(name.startswith(f"{stage}.1.blocks") for name in frozen)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_or_all_can_be_frozen(family: str) -> None:
    trained = backbone(family, frozen_stride=0)
    assert all(parameter.requires_grad for parameter in trained.parameters())
    frozen = backbone(family, frozen_stride=32, level_norm=True)
    kept = {name.split(".")[0] for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert kept == ({"norms", "pyramid"} if family == "vit" else {"norms"})


def test_frozen_stride_4_freezes_nothing_of_a_plain_transformer() -> None:
    """All its blocks have stride 16."""
    assert all(parameter.requires_grad for parameter in backbone("vit", frozen_stride=4).parameters())


def test_batch_norm_is_frozen_and_does_not_change() -> None:
    network = backbone("resnet").train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool))
    assert any(name.endswith("running_var") for name in before)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_level_norm_normalises_the_channels_of_every_cell(family: str) -> None:
    network = backbone(family, level_norm=True)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = network(images, no_padding(images))
    assert network.norms is not None
    assert list(network.norms) == ["1", "2", "3"]
    for level in maps:
        torch.testing.assert_close(level.tensor.mean(1), torch.zeros_like(level.tensor[:, 0]), atol=1e-4, rtol=0)
        assert level.tensor.std(1).mean() > 0.5
    with torch.no_grad():
        network.norms["3"].bias.add_(2.0)
        moved = network(images, no_padding(images))
    torch.testing.assert_close(moved[2].tensor, maps[2].tensor + 2.0)
    assert torch.equal(moved[1].tensor, maps[1].tensor)


@pytest.mark.parametrize("name", [TINY["resnet"], "test_resnet", TINY["swin"], TINY["convnext"]])
def test_padding_can_be_excluded(name: str) -> None:
    """An image has the same features alone and in a padded batch; timm's "test_resnet" also has average pooling."""
    torch.manual_seed(0)
    network, leaking = (Backbone(name=name, num_levels=3, mask_padding=masked).eval() for masked in (True, False))
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):  # layer scale starts too small to show an effect
            parameter.data.fill_(0.5)
    leaking.load_state_dict(network.state_dict())
    image = torch.randn(1, 3, 75, 90)
    batch = torch.zeros(2, 3, 140, 170)
    batch[0, :, :75, :90], batch[1] = image[0], torch.randn(3, 140, 170)
    mask = no_padding(batch)
    mask[0, 75:], mask[0, :, 90:] = True, True
    with torch.no_grad():
        alone, together = network(image, no_padding(image)), network(batch, mask)
        leaked = leaking(batch, mask)
    for level, first in zip(together, alone, strict=True):
        height, width = -(-75 // level.stride), -(-90 // level.stride)
        torch.testing.assert_close(
            level.tensor[:1, :, :height, :width], first.tensor[..., :height, :width], atol=1e-5, rtol=1e-4
        )
        assert not level.padding_mask[0, :height, :width].any()
        assert level.padding_mask[0, height:].all()
    assert not torch.allclose(leaked[0].tensor[0, :, :10, :12], alone[0].tensor[0, :, :10, :12], atol=1e-4)


@pytest.mark.parametrize("family", ["focalnet", "vit"])
def test_some_families_cannot_exclude_padding(family: str) -> None:
    with pytest.raises(ValueError, match=r"mask_backbone_padding: .*set it to False"):
        backbone(family, mask_padding=True)


def test_stochastic_depth_acts_in_training_only_and_grows_with_depth() -> None:
    network = backbone("swin", drop_path=0.5)
    rates = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert rates[-1] == pytest.approx(0.5)
    assert rates == sorted(rates)
    images = torch.randn(1, 3, 64, 64)

    def first() -> Tensor:
        with torch.no_grad():
            return network(images, no_padding(images))[2].tensor

    assert torch.equal(first(), first())
    network.train()
    torch.manual_seed(1)
    assert any(not torch.equal(first(), first()) for _ in range(5))
    assert not any("DropPath" in type(module).__name__ for module in backbone("swin").modules())


@pytest.mark.parametrize(
    ("family", "masked"),
    [
        *((family, False) for family in ("swin", "convnext", "focalnet", "vit", "resnet")),
        ("swin", True),
        ("resnet", True),
    ],
)
def test_checkpointing_changes_no_gradient(family: str, masked: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = backbone(family, checkpointing=checkpointing, mask_padding=masked).train()
        images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
        padding = no_padding(images)
        if masked:
            padding[1, 40:], padding[1, :, 50:] = True, True
        sum(level.tensor.square().mean() for level in network(images, padding)).backward()
        gradients.append([parameter.grad for parameter in network.body.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_channels_last_networks_of_timm_work() -> None:
    network = Backbone(name="mambaout_femto", num_levels=2, frozen_stride=0).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = network(images, no_padding(images))
    assert [tuple(level.tensor.shape[1:]) for level in maps] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(network.channels, network.strides, strict=True)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "swin_tiny_patch4"}, "timm has no backbone"),
        ({"name": TINY["swin"], "dilation": True}, "cannot be built with .*output_stride=16"),
        ({"name": "vit_base_patch14_dinov2"}, "patches of 14 pixels; a feature pyramid needs a power of two"),
    ],
)
def test_errors_name_what_cannot_be_built(options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Backbone(**options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_learns_with_every_family(family: str) -> None:
    torch.manual_seed(0)
    drop_path = 0.0 if family == "resnet" else 0.1
    model = create_model("dino_r50_4scale", **{**SMALL, "backbone": TINY[family]}, drop_path=drop_path).train()
    images = torch.randn(2, 3, 70, 100)
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.4], [0.6, 0.5, 0.3, 0.3]])
    targets = [Target(labels=torch.tensor([0, 2]), boxes=boxes), Target(labels=torch.tensor([1]), boxes=boxes[:1])]
    criterion = build_criterion(model.config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = criterion(model(images, None, targets), targets).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    groups = model.parameter_groups()
    assert all(parameter.grad is not None for parameter in groups["backbone"][-4:])
    model.eval()
    with torch.no_grad():
        first, second = model(images), model(images)
    assert first.logits.shape[1:] == (2, 12, 3)
    assert torch.equal(first.logits, second.logits)
    pyramid = {id(p) for name, p in model.named_parameters() if name.startswith("backbone.pyramid.")}
    assert bool(pyramid) == (family == "vit")
    assert not pyramid & {id(parameter) for parameter in groups["backbone"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_are_independent(family: str) -> None:
    """Averaging of weights (EMA) and worker processes need this."""
    network = backbone(family, mask_padding=family not in ("focalnet", "vit"))
    images = torch.randn(1, 3, 64, 64)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        for parameter in copied.parameters():
            parameter.data.mul_(1.5)
        with torch.no_grad():
            own, other = network(images, no_padding(images)), copied(images, no_padding(images))
        assert not torch.equal(own[0].tensor, other[0].tensor)
        copied.load_state_dict(network.state_dict())
        with torch.no_grad():
            assert torch.equal(own[0].tensor, copied(images, no_padding(images))[0].tensor)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_resnet"])
def test_checkpointed_stages_exclude_padding_and_have_the_same_gradients(name: str) -> None:
    """The backward pass runs every stage again, with the padding of the forward pass."""
    images, mask = pad_images([torch.randn(3, 96, 128), torch.randn(3, 96, 90)])
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = Backbone(name=name, num_levels=3, mask_padding=True, checkpointing=checkpointing).train()
        torch.stack([level.tensor.square().sum() for level in backbone(images, mask)]).sum().backward()
        gradients.append([value.grad for value in backbone.parameters() if value.requires_grad])
    assert len(gradients[0]) >= 10
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, recomputed)
    stages = [module for module in backbone.modules() if isinstance(module, CheckpointedBlocks)]
    assert sum(len(stage) for stage in stages) >= 4


def test_a_padded_backbone_is_one_graph_and_thread_safe() -> None:
    backbone = Backbone(name="test_resnet", num_levels=3, mask_padding=True).eval()
    images, mask = pad_images([torch.randn(3, 96, 128), torch.randn(3, 64, 90)])

    def run(x: Tensor, padding: Tensor) -> list[Tensor]:
        return [level.tensor for level in backbone(x, padding)]

    with torch.no_grad():
        expected = run(images, mask)
        compiled = torch.compile(run, backend="eager", fullgraph=True)(images, mask)
        with ThreadPoolExecutor(4) as pool:  # images with different padding at the same time
            jobs = [pool.submit(run, images[: 1 + i % 2], mask[: 1 + i % 2]) for i in range(16)]
        single = run(images[:1], mask[:1])
    for found, wanted in zip(compiled, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    for index, job in enumerate(jobs):
        for found, wanted in zip(job.result(), expected if index % 2 else single, strict=True):
            torch.testing.assert_close(found, wanted)
