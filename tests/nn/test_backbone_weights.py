"""ImageNet weights of backbones from files: timm's names, the authors' names, and files of other networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detrkit.errors import CheckpointError
from detrkit.models import create_model
from detrkit.weights import to_official
from tests.nn.tiny_backbones import TINY
from tests.small import SMALL


def network(name: str, **options: object) -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(name, **options)


def loaded(name: str, source: Path, **options: object) -> dict[str, Tensor]:
    """Return the tensors of the network inside a detector, under timm's names."""
    torch.manual_seed(2)
    model = create_model("dino_r50_4scale", **{**SMALL, "backbone": name}, pretrained_backbone=source, **options)
    return {
        key.removeprefix("model."): value for key, value in model.get_submodule("backbone.body").state_dict().items()
    }


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("family", TINY)
def test_files_with_the_names_of_timm(family: str, ending: str, tmp_path: Path) -> None:
    state = network(TINY[family]).state_dict()
    path = tmp_path / f"weights.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    own = loaded(TINY[family], path)
    assert len(own) > 20
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_another_head_is_ignored(tmp_path: Path) -> None:
    state = network(TINY["convnext"], num_classes=7).state_dict()
    torch.save({"model": state}, tmp_path / "weights.pth")
    own = loaded(TINY["convnext"], tmp_path / "weights.pth")
    assert all(torch.equal(value, state[key]) for key, value in own.items())


@pytest.mark.parametrize("family", ["swin", "focalnet"])
def test_files_with_the_names_of_the_authors(family: str, tmp_path: Path) -> None:
    """timm can rename them; official checkpoints of detectors use the same names."""
    model = "dino_r50_4scale" if family == "swin" else "dino_pp_r50"
    torch.manual_seed(1)
    detector = create_model(model, **{**SMALL, "backbone": TINY[family]})
    names = "backbone.0."
    state = {key.removeprefix(names): value for key, value in to_official(detector).items() if key.startswith(names)}
    assert any(key.startswith("patch_embed.") for key in state)
    torch.save({"model": state}, tmp_path / "weights.pth")
    own = loaded(TINY[family], tmp_path / "weights.pth")
    expected = detector.get_submodule("backbone.body.model").state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in own.items())


def test_files_of_other_networks_are_rejected(tmp_path: Path) -> None:
    torch.save(network(TINY["convnext"]).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth: these are not the weights of timm's 'swin_tiny_for_"):
        loaded(TINY["swin"], tmp_path / "weights.pth")


def test_building_reads_and_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    with torch.device("meta"):
        for name in ("swin_tiny_patch4_window7_224.ms_in22k", "convnext_tiny.dinov3_lvd1689m", "focalnet_tiny_lrf"):
            create_model("dino_r50_4scale", **{**SMALL, "backbone": name})
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        create_model("dino_r50_4scale", **{**SMALL, "backbone": "convnext_atto.d2_in1k"}, pretrained_backbone=True)
