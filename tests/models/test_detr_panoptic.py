"""DETR with its mask head: lazy masks, frozen detector, starts from detectors, padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import detrkit
from detrkit.errors import CheckpointError, DataError
from detrkit.losses import build_criterion
from detrkit.models import Detector
from detrkit.nn.masks import sample_points
from detrkit.structures import MaskView
from detrkit.training.task import start_from
from detrkit.weights import open_official
from tests.models.tester import add_noise_to_weights, images, objects, step, with_masks
from tests.small import small_model, small_options

NAME = "detr_r50_panoptic"


def masks_of(model: Detector, batch: tuple[Tensor, Tensor]) -> MaskView:
    masks = model(*batch).masks
    assert masks is not None
    return masks


def test_chosen_masks_are_those_of_all() -> None:
    """Whichever way they are asked for, and however many at a time."""
    model = small_model(NAME, num_queries=20).eval()
    add_noise_to_weights(model)
    with torch.no_grad():
        masks = masks_of(model, images((70, 96), (64, 81)))
        dense = masks.dense()
        assert dense.shape == (2, 20, 18, 24)
        layer, image, query = torch.tensor([-1, -1, 0]), torch.tensor([1, 0, 1]), torch.tensor([3, 17, 3])
        rows = masks.rows(layer, image, query)
        torch.testing.assert_close(rows[:2], dense[image[:2], query[:2]])
        assert (rows[2] - rows[0]).abs().max() > 1e-3, "layers have masks of their own"
        points = torch.rand(9, 2)
        expected = sample_points(dense[1:], points[None])[0]
        (sampled,) = masks.of_image(1, [-1], points)
        torch.testing.assert_close(sampled, expected)
        part = masks[5:7]
        torch.testing.assert_close(part.dense(), dense[:, 5:7])
        assert masks.rows(*[torch.zeros(0, dtype=torch.long)] * 3).shape == (0, 18, 24)


def test_with_masked_padding_masks_do_not_depend_on_the_batch() -> None:
    sizes = ((75, 99), (96, 130), (64, 64))
    model = small_model(NAME, mask_backbone_padding=True).eval()
    add_noise_to_weights(model)
    padded, mask = images(*sizes)
    with torch.no_grad():
        together = masks_of(model, (padded, mask)).dense()
        for index, (height, width) in enumerate(sizes):
            alone = padded[index : index + 1, :, :height, :width]
            (dense,) = masks_of(model, (alone, torch.zeros(1, height, width, dtype=torch.bool))).dense()
            rows, columns = -(-height // 4), -(-width // 4)
            torch.testing.assert_close(
                together[index, :, :rows, :columns], dense[:, :rows, :columns], atol=1e-4, rtol=0
            )


def test_a_frozen_detector_trains_its_mask_head_alone() -> None:
    model = small_model(NAME, freeze_detector=True)
    head = {f"mask_head.{name}" for name, _ in model.get_submodule("mask_head").named_parameters()}
    groups = model.parameter_groups()
    assert groups["backbone"] == []
    assert len(groups["default"]) == len(head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = step(model.train(), images((64, 96)), objects(3))
    assert found.gradients.keys() == head
    assert all(value is not None and value.any() for value in found.gradients.values())
    for name, value in found.gradients.items():
        assert value is not None
        with torch.no_grad():
            model.get_parameter(name).sub_(value)
    after = model.state_dict()
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == head


def test_it_learns_masks() -> None:
    model = small_model(NAME, freeze_detector=True).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(15):
        losses.append(float(mask_loss(model)))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def mask_loss(model: Detector) -> Tensor:
    """Losses of the masks of one batch; the gradients stay."""
    torch.manual_seed(0)
    batch, targets = images((64, 96)), with_masks(objects(2), (64, 96))
    output = build_criterion(model.config)(model(*batch), targets)
    output.total.backward()
    return output.terms["loss_mask"] + output.terms["loss_dice"]


def test_targets_without_masks_are_an_error() -> None:
    model = small_model(NAME)
    out = model(*images((64, 96)))
    with pytest.raises(DataError, match=r"image 0 has no masks to learn from: give Target\.masks, or train boxes"):
        build_criterion(model.config)(out, objects(2))
    boxes = build_criterion(model.config.replace(loss_mask=0.0, loss_dice=0.0))
    assert not {"loss_mask", "loss_dice"} & boxes(out, objects(2)).terms.keys()


@pytest.mark.parametrize("layout", ["official", "ours"])
def test_it_starts_from_a_detector(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything but the mask head is there; with other classes the class heads are not either. Both are said."""
    detector, model = small_model("detr_r50", seed=1), small_model(NAME)
    if layout == "official":
        path = tmp_path / "detr.pth"
        torch.save({"model": detrkit.to_official(detector)}, path)
    else:
        path = detrkit.save(detector, tmp_path / "detr.safetensors")
    with pytest.raises(CheckpointError, match=r"32 missing \(.*no mask head: pass new_head=True to keep what fits"):
        detrkit.load_official(model, path)
    start_from(model, path)
    assert "the file has no mask head: 32 tensors of the mask head start new" in capsys.readouterr().err
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in detector.state_dict().items())
    report = detrkit.load_official(small_model(NAME, num_classes=5), path, new_head=True)
    assert {key.partition(".")[0] for key in report.fresh} == {"mask_head", "class_embed"}
    assert report.classes is not None


def test_a_part_of_a_mask_head_is_an_error() -> None:
    model = small_model(NAME)
    official = detrkit.to_official(model)
    del official["mask_head.lay1.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing \(mask_head\.lay1\.weight\)"):
        detrkit.load_official(model, official, new_head=True)
    with pytest.raises(CheckpointError, match="unexpected"):
        detrkit.load_official(small_model("detr_r50"), detrkit.to_official(model), new_head=True)


def test_an_official_file_is_recognised(tmp_path: Path) -> None:
    sizes = {key: value for key, value in small_options(NAME).items() if key != "backbone"}
    model = detrkit.create_model(NAME, **sizes, backbone="resnet50.tv_in1k")
    path = tmp_path / "detr-r50-panoptic.pth"
    torch.save({"model": detrkit.to_official(model)}, path)
    opened = open_official(path, options={"num_heads": 4})
    assert opened.recognition.name in ("detr_r50_panoptic", "detr_r50_dc5_panoptic")
    assert all(torch.equal(value, opened.model.state_dict()[key]) for key, value in model.state_dict().items())
    assert isinstance(opened.model.mask_head, nn.Module)
