"""Options, published sizes and errors of DETR and DE-DETR. Tests of every model are in test_every_model.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.inference.answers import postprocess
from detrkit.losses import build_criterion
from detrkit.models import Detector, create_model, model_config
from detrkit.structures import Predictions, Target, pad_images
from tests.small import SMALL


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


def test_excluded_pairs_say_why() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        model_config("detr_r50", repeat_label=2, repeat_ratio=0.5)
    with pytest.raises(ValueError, match="needs repeat_label"):
        model_config("detr_r50", two_stage_match=True)
    with pytest.raises(ValueError, match="needs nms"):
        model_config("detr_r50", nms_decay=0.1)


@pytest.mark.parametrize("levels", [1, 4])
def test_masked_padding_of_more_and_fewer_levels_than_published(levels: int) -> None:
    model = small("de_detr_lite0", num_feature_levels=levels, mask_backbone_padding=True).eval()
    spread_boxes(model)
    sizes = ((75, 99), (96, 130), (64, 64))
    padded, mask = images(*sizes)
    with torch.no_grad():
        together = model(padded, mask)
        for index, (h, w) in enumerate(sizes):
            alone = model(padded[index : index + 1, :, :h, :w])
            torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], atol=1e-4, rtol=0)


def spread_boxes(model: Detector) -> None:
    """Make boxes differ and cross the borders, so that sampling reaches the padding."""
    generator = torch.Generator().manual_seed(3)
    heads = [module for name, module in model.named_modules() if name.startswith("bbox_embed") and "layers.2" in name]
    for head in heads:
        head.weight.data = torch.randn(head.weight.shape, generator=generator) * 0.5


def test_official_padding_leaks_a_little() -> None:
    """The published behaviour, and the default of published models: padding changes the borders slightly."""
    model = small("de_detr_r50", backbone="resnet18").eval()
    spread_boxes(model)
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


def test_de_detr_without_its_changes_is_detr() -> None:
    """Without sampling, refinement, levels and initial points, equal weights give the boxes of DETR (table 1)."""
    reduced = small(
        "de_detr_r50", num_feature_levels=1, sparse_sampling=False, refine_boxes=False, reference_dim=0
    ).eval()
    detr = small("detr_r50").eval()
    renamed = {
        key.replace("input_proj.0.conv.", "input_proj.").replace("embed.0.", "embed."): value
        for key, value in reduced.state_dict().items()
    }
    detr.load_state_dict(renamed)
    canvas, mask = images((70, 96), (64, 81))
    torch.testing.assert_close(reduced(canvas, mask).boxes, detr(canvas, mask).boxes, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="num_feature_levels must be 1, got 3"):
        small("de_detr_r50", sparse_sampling=False)


def test_dc5_samples_at_its_own_stride() -> None:
    """The official code pools C5 at 1/32 although DC5 has it at 1/16 (spec B6.1)."""
    strides = small("de_detr_r50", backbone="resnet18", dilation=True).backbone.strides
    assert strides == [8, 16, 16]


def test_unsupported_options_of_the_conditional_family() -> None:
    with pytest.raises(ValueError, match="post-norm layers only"):
        small("conditional_detr_r50", pre_norm=True)
    with pytest.raises(ValueError, match="reference_dim must be 2"):
        small("de_conditional_detr_r50", reference_dim=4)


def test_errors_name_the_nearest_option() -> None:
    with pytest.raises(ValueError, match="Did you mean 'dela_detr_lite0'"):
        create_model("dela_detr_lit0")
    with pytest.raises(TypeError, match=r"no option 'num_querys'.*Did you mean 'num_queries'"):
        create_model("detr_lite0", num_querys=5)
    with pytest.raises(ValueError, match="no backbone 'resnet5x'"):
        create_model("detr_lite0", backbone="resnet5x")
    with pytest.raises(ValueError, match=r"images must be floats, normalised, got torch\.uint8"):
        small("detr_lite0")(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
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
