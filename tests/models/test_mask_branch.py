"""The mask branch in a whole model: padding, detection checkpoints, bfloat16, export."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, export

import detrkit
from detrkit.errors import CheckpointError
from detrkit.losses import LossOutput, build_criterion
from detrkit.models import Detector
from detrkit.nn.masks import EmbeddedMasks
from detrkit.structures import MaskView, Predictions
from detrkit.training.task import start_from
from tests.models.tester import add_noise_to_weights, images, objects, step, train_without_batch_statistics, with_masks
from tests.small import small_model

TASKS = ("inst", "sem", "pan")
MODELS = {"mask_dape_lite0": {}, "dino_lite0": {"task": "inst"}}


def masks_of(out: Predictions) -> MaskView:
    assert out.masks is not None
    return out.masks


@pytest.mark.parametrize("name", MODELS)
def test_with_masked_padding_masks_do_not_depend_on_the_batch(name: str) -> None:
    """Odd sizes; logits of masks differ by less than 1e-4 in float32."""
    sizes = ((75, 99), (97, 131), (64, 65))
    model = small_model(name, mask_backbone_padding=True, **MODELS[name]).eval()
    add_noise_to_weights(model)
    padded, mask = images(*sizes)
    with torch.no_grad():
        together = masks_of(model(padded, mask)).dense()
        for index, (height, width) in enumerate(sizes):
            (alone,) = masks_of(model(padded[index : index + 1, :, :height, :width])).dense()
            own = together[index, :, : alone.shape[-2], : alone.shape[-1]]
            torch.testing.assert_close(own, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("proposals", [True, False])
def test_one_step_trains_every_set_of_queries_that_has_masks(task: str, proposals: bool) -> None:
    """Matching and denoising queries have masks, encoder proposals by choice; one-to-many queries have none."""
    model = small_model("mask_dape_lite0", task=task, proposal_masks=proposals).train()
    batch = images((64, 96), (61, 83))
    found = step(model, batch, objects(3, 1))
    masked = {name for name, group in found.out.groups.items() if group.masks is not None}
    assert masked == ({"denoising", "encoder"} if proposals else {"denoising"})
    for name in ("loss_mask", "loss_dice"):
        assert {name, f"{name}_0", f"{name}_denoising", f"{name}_0_denoising"} <= found.losses.terms.keys()
        assert (f"{name}_encoder" in found.losses.terms) == proposals
        assert not [key for key in found.losses.terms if key.startswith(name) and "one_to_many" in key]
    denoising = found.out.groups["denoising"]
    assert denoising.pairs is not None
    positives = len(denoising.pairs[0])
    assert positives < denoising.logits.shape[1] * denoising.logits.shape[2]  # of the negatives, no mask is learned


@pytest.mark.parametrize("task", TASKS)
def test_classes_that_exclude_each_other_are_a_choice_that_the_checkpoint_keeps(task: str, tmp_path: Path) -> None:
    """Cross entropy with no-object (Mask2Former) instead of focal loss; after loading, answers are read alike."""
    learned = {"two_stage": False, "query_selection": "static"}  # proposals rank by classes alone
    model = small_model("dino_lite0", task=task, classification="softmax", **learned).train()
    found = step(model, images((64, 96), (61, 83)), objects(3, 1))
    assert found.out.logits.shape[-1] == model.config.num_classes + 1
    assert found.losses.total.isfinite()
    add_noise_to_weights(model)
    again = detrkit.load(detrkit.save(model, tmp_path / "model.safetensors"))
    assert again.config.classification == "softmax"
    picture = Image.effect_noise((48, 40), 60).convert("RGB")
    answers = [detrkit.Predictor(one, device="cpu").predict(picture, threshold=0.0) for one in (model, again)]
    for name in ("labels", "ids", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(answers[0], name, 0), getattr(answers[1], name, 0))


# ------------------------------------------------------------------------------------------ from a detection checkpoint


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved detector of three classes."""
    return detrkit.save(small_model("dape_lite0"), tmp_path_factory.mktemp("det") / "det.safetensors")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("classes", [3, 5])
def test_a_detector_loads_and_just_the_mask_branch_is_new(detector: Path, task: str, classes: int) -> None:
    """With other classes their heads start new too; all are named."""
    model = small_model("mask_dape_lite0", task=task, num_classes=classes, seed=1)
    report = detrkit.load_official(model, detector, new_head=True)
    branch = {name for name in model.state_dict() if name.startswith("mask_head.")}
    heads = {
        name
        for name in model.state_dict()
        if re.match(r"((enc_|one_to_many_)?(enc_)?class_embed|denoising\.label_encoder)\.", name)
    }
    assert branch
    assert heads
    assert set(report.fresh) == (branch if classes == 3 else branch | heads)
    assert f"the file has no mask head: {len(branch)} tensors of the mask head start new" in report.remarks()
    own, given = model.state_dict(), detrkit.load(detector).state_dict()
    assert all(torch.equal(own[name], value) for name, value in given.items() if name not in report.fresh)


def test_training_starts_from_a_detector(detector: Path) -> None:
    """Its boxes and classes are those of the detector before the first step."""
    model = small_model("dape_lite0", task="pan", seed=1)
    start_from(model, detector)
    batch = images((64, 96))
    with torch.no_grad():
        found, wanted = model.eval()(*batch), detrkit.load(detector).eval()(*batch)
    assert found.masks is not None
    assert wanted.masks is None
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.boxes, wanted.boxes)


def test_without_permission_the_missing_tensors_are_named(detector: Path) -> None:
    model = small_model("mask_dape_lite0")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"mask_head\.[\s\S]*no mask head: pass new_head=True"):
        detrkit.load_official(model, detector)
    with pytest.raises(CheckpointError, match=r"another class or query count, no mask head: pass new_head=True"):
        detrkit.load_official(small_model("mask_dape_lite0", num_classes=5), detector)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ----------------------------------------------------------------------------------------------------------- precision


def test_bfloat16_changes_the_losses_by_less_than_two_percent() -> None:
    """With learned boxes, so that rounding does not choose other queries; nor other matches, in a trained state."""
    model, batch = (
        small_model("dino_lite0", task="pan", two_stage=False, query_selection="static"),
        images((96, 128), (80, 96)),
    )
    train_without_batch_statistics(model)
    targets = with_masks(objects(3, 2), (96, 128))
    criterion = build_criterion(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def losses() -> LossOutput:
        torch.manual_seed(0)
        out = model(*batch, targets)
        assert isinstance(out.masks, EmbeddedMasks)
        dtypes.append(out.masks.pixels.dtype)
        torch.manual_seed(1)
        with torch.autocast("cpu", enabled=False):  # as in training
            return criterion(out, targets)

    dtypes: list[torch.dtype] = []
    for _ in range(15):
        optimizer.zero_grad()
        losses().total.backward()
        optimizer.step()
    single = losses()
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        half = losses()
    half.total.backward()
    assert dtypes[-2:] == [torch.float32, torch.bfloat16]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(half.total, single.total, rtol=0.02, atol=0)
    for term in ("loss_mask", "loss_dice", "loss_mask_denoising", "loss_dice_denoising"):
        torch.testing.assert_close(half.terms[term], single.terms[term], rtol=0.02, atol=0)


# -------------------------------------------------------------------------------------------------------------- export


class WithDenseMasks(nn.Module):
    """A model with masks for export: tensors in, a tuple of tensors out."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W), (B, H, W) bool -> logits (B, Q, C), boxes (B, Q, 4), masks (B, Q, h, w) of the last layer."""
        out = self.model(images, padding_mask)
        return out.logits[-1], out.boxes[-1], masks_of(out).dense()


@pytest.mark.slow  # tracing takes half a minute per model; the branch alone is traced in tests/nn/test_masks.py
@pytest.mark.parametrize("name", MODELS)
def test_exported_masks_are_those_of_the_model(name: str) -> None:
    """For batches of any number of images and any size."""
    model = small_model(name, **MODELS[name]).eval()
    add_noise_to_weights(model)
    shapes = {
        "images": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
        "padding_mask": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC},
    }
    wrapped = WithDenseMasks(model)
    with torch.no_grad():
        program = export(wrapped, images((70, 96), (64, 81), (50, 60)), dynamic_shapes=shapes).module()
        for sizes in (((96, 128), (80, 64)), ((65, 97), (33, 40), (60, 60), (64, 64)), ((70, 130),)):
            batch = images(*sizes)
            for found, wanted in zip(program(*batch), wrapped(*batch), strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
