"""What holds for every registered model, at laptop size: shapes, gradients, padding, label augmentation, NMS."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.inference.postprocess import postprocess
from detrkit.losses import build_criterion
from detrkit.models import Detector, create_model, list_models, model_config
from detrkit.structures import Predictions, Target, pad_images
from tests.small import SMALL

MODELS = list_models()
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"repeat_label": None, "nms": None},
    "repeat": {"repeat_label": 2},
    "ratio": {"repeat_ratio": 0.5},
    "two_stage": {"repeat_label": 2, "two_stage_match": True},
    "nms": {"nms": 0.5, "nms_decay": None},
    "soft_nms": {"nms": 0.7, "nms_decay": 0.01},
}


def small(name: str, **overrides: Any) -> Detector:
    torch.manual_seed(0)
    return create_model(name, **{**SMALL, "dropout": 0.0, **overrides})


def focal(model: Detector) -> bool:
    return model.config.classification == "focal"


def targets(*counts: int) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    result = []
    for n in counts:
        boxes = torch.rand(n, 4, generator=generator) * 0.3 + 0.2
        result.append(Target(labels=torch.arange(n) % 3, boxes=boxes))
    return result


def images(*sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return pad_images([torch.randn(3, h, w, generator=generator) for h, w in sizes])


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_a_step(name: str) -> None:
    model = small(name).train()
    criterion = build_criterion(model.config)
    out = model(*images((70, 96), (64, 81)))
    assert out.logits.shape == (2, 2, 12, 3 if focal(model) else 4)
    assert out.boxes.shape == (2, 2, 12, 4)
    assert ((out.boxes >= 0) & (out.boxes <= 1)).all()
    loss = criterion(out, criterion.prepare(targets(3, 1))).total
    loss.backward()
    groups = model.parameter_groups()
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, trainable)) == sorted(id(p) for group in groups.values() for p in group)
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in trainable)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_label_augmentation_and_nms_work_with_every_model(name: str, option: str) -> None:
    model = small(name, **OPTIONS[option]).eval()
    criterion = build_criterion(model.config)
    with torch.no_grad():
        out = model(*images((64, 64)))
    for counts in ((0,), (1,), (30,)):  # nothing, one object, more than there are queries
        prepared = criterion.prepare(targets(*counts))
        output = criterion(out, prepared)
        assert torch.isfinite(output.total)
        wanted = {"repeat": 2 * counts[0], "two_stage": 2 * counts[0], "ratio": max(counts[0], 6 * bool(counts[0]))}
        if option in wanted:
            assert len(prepared[0]) == wanted[option]
    (found,) = postprocess(out, [(48, 64)], config=model.config)
    most = 36 if focal(model) else 12  # a focal query may stand for several classes
    assert len(found) <= most
    assert (found.scores[:-1] >= found.scores[1:]).all()
    if option in ("plain", "soft_nms"):  # nothing is removed
        assert len(found) == most


def test_excluded_pairs_say_why() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        model_config("detr_r50", repeat_label=2, repeat_ratio=0.5)
    with pytest.raises(ValueError, match="needs repeat_label"):
        model_config("detr_r50", two_stage_match=True)
    with pytest.raises(ValueError, match="needs nms"):
        model_config("detr_r50", nms_decay=0.1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("detr_lite0", {}),
        ("de_detr_lite0", {}),
        ("de_detr_lite0", {"num_feature_levels": 4}),
        ("de_detr_lite0", {"num_feature_levels": 1}),
        ("de_detr_r50", {"backbone": "resnet18"}),
        ("detr_r50", {"backbone": "resnet18", "dilation": True}),
        ("dela_conditional_detr_lite0", {}),
        ("deformable_detr_lite0", {}),
        ("dino_lite0", {}),
        ("relation_detr_lite0", {}),
        ("dape_lite0", {}),
        ("salience_detr_lite0", {}),
    ],
    ids=str,
)
def test_masked_padding_makes_an_image_independent_of_its_batch(name: str, options: dict[str, Any]) -> None:
    model = small(name, **{"mask_backbone_padding": True, **options}).eval()
    sharpen(model)
    sizes = ((75, 99), (96, 130), (64, 64))
    padded, mask = images(*sizes)
    with torch.no_grad():
        together = model(padded, mask)
        for index, (h, w) in enumerate(sizes):
            alone = model(padded[index : index + 1, :, :h, :w])
            torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], atol=1e-4, rtol=0)


def sharpen(model: Detector) -> None:
    """Boxes that differ and reach across the borders, so that sampling meets the padding."""
    generator = torch.Generator().manual_seed(3)
    heads = [module for name, module in model.named_modules() if name.startswith("bbox_embed") and "layers.2" in name]
    for head in heads:
        head.weight.data = torch.randn(head.weight.shape, generator=generator) * 0.5


def test_official_padding_leaks_a_little() -> None:
    """The published behaviour, kept as the default of published models: padding changes the borders slightly."""
    model = small("de_detr_r50", backbone="resnet18").eval()
    sharpen(model)
    padded, mask = images((75, 99), (96, 130))
    with torch.no_grad():
        difference = model(padded, mask).boxes[:, 0] - model(padded[:1, :, :75, :99]).boxes[:, 0]
    assert 1e-5 < difference.abs().max() < 0.2


def test_permuted_ground_truth_gives_the_same_loss() -> None:
    model = small("dela_detr_lite0").eval()
    criterion = build_criterion(model.config)
    with torch.no_grad():
        out = model(*images((64, 64)))
    (target,) = targets(7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    permuted = Target(labels=target.labels[order], boxes=target.boxes[order])
    first, second = (criterion(out, criterion.prepare([t])).total for t in (target, permuted))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    "options",
    [
        {"num_feature_levels": 1},
        {"num_feature_levels": 4},
        {"refine_boxes": False},
        {"reference_dim": 4},
        {"dilation": True, "backbone": "resnet18"},
        {"pre_norm": True},
        {"position_embedding": "learned"},
        {"classification": "focal", "cost_class": 2.0, "loss_class": 2.0},
        {"roi_resolution": 1},
        {"reference_dim": 0},
        {"num_feature_levels": 1, "sparse_sampling": False},
    ],
    ids=str,
)
def test_options_of_de_detr_combine(options: dict[str, Any]) -> None:
    model = small("dela_detr_r50", **options).train()
    criterion = build_criterion(model.config)
    out = model(*images((96, 64)))
    criterion(out, criterion.prepare(targets(2))).total.backward()
    assert torch.isfinite(out.boxes).all()
    (found,) = postprocess(Predictions(out.logits, out.boxes), [(96, 64)], config=model.config)
    assert len(found) == (36 if focal(model) else 12)


def test_the_walk_ends_at_detr() -> None:
    """Without sampling, refinement, levels and initial points DE-DETR is DETR: the same weights, the same boxes."""
    walked = small(
        "de_detr_r50", num_feature_levels=1, sparse_sampling=False, refine_boxes=False, reference_dim=0
    ).eval()
    detr = small("detr_r50").eval()
    renamed = {
        key.replace("input_proj.0.conv.", "input_proj.").replace("embed.0.", "embed."): value
        for key, value in walked.state_dict().items()
    }
    detr.load_state_dict(renamed)
    canvas, mask = images((70, 96), (64, 81))
    torch.testing.assert_close(walked(canvas, mask).boxes, detr(canvas, mask).boxes, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="num_feature_levels must be 1, got 3"):
        small("de_detr_r50", sparse_sampling=False)


def test_dc5_samples_at_its_own_stride() -> None:
    """The official code pools C5 at 1/32 although DC5 has it at 1/16 (spec B6.1)."""
    strides = small("de_detr_r50", backbone="resnet18", dilation=True).backbone.strides
    assert strides == [8, 16, 16]


def test_what_the_conditional_family_does_not_have() -> None:
    with pytest.raises(ValueError, match="post-norm layers only"):
        small("conditional_detr_r50", pre_norm=True)
    with pytest.raises(ValueError, match="reference_dim must be 2"):
        small("de_conditional_detr_r50", reference_dim=4)


def test_errors_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'dela_detr_lite0'"):
        create_model("dela_detr_lit0")
    with pytest.raises(TypeError, match=r"no option 'num_querys'.*Did you mean 'num_queries'"):
        create_model("detr_lite0", num_querys=5)
    with pytest.raises(ValueError, match="no backbone 'resnet5x'"):
        create_model("detr_lite0", backbone="resnet5x")
    with pytest.raises(ValueError, match="padding_mask must be bool"):
        small("detr_lite0")(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64))


@pytest.mark.parametrize(
    ("name", "trainable", "total"),
    [
        ("detr_r50", 41_302_368, 41_524_768),
        ("de_detr_r50", 42_545_218, 42_767_618),
        ("detr_r101", None, 60_464_672),
        ("conditional_detr_r50", None, 43_418_401),
        ("de_conditional_detr_r50", None, 44_593_660),
    ],
)
def test_published_parameter_counts(name: str, trainable: int | None, total: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == total
    if trainable is not None:
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


def test_half_precision_keeps_boxes_precise() -> None:
    model = small("dela_detr_lite0").eval()
    batch = images((64, 96))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = model(*batch)
    assert out.boxes.dtype == torch.float32
    assert torch.isfinite(out.boxes).all()
