"""The parts of Salience-DETR, and inputs on which its official code fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import detrkit
from detrkit.losses import build_criterion
from detrkit.models import create_model, model_config
from detrkit.models.salience_detr import SalienceArchitecture
from detrkit.nn.position import LearnedPosition
from detrkit.nn.salience.encoder import SalienceFilter
from detrkit.nn.salience.grid_suppression import suppress_neighbours
from detrkit.nn.salience.plux_pyramid import PluXPyramid
from detrkit.nn.salience.salience import SalienceTarget, upsample_corners
from detrkit.nn.tokens import Tokens
from detrkit.structures import Predictions, Target, pad_images
from detrkit.weights.official.keydiff import compare
from detrkit.weights.official.keymaps import official_names
from tests.decoding import memory_of
from tests.small import SMALL


def small(**overrides: Any) -> Any:
    torch.manual_seed(0)
    return create_model("salience_detr_lite0", **{**SMALL, "encoder_layers": 3, **overrides})


def grid(*shapes: tuple[int, int], padding: Tensor | None = None, batch: int = 1) -> Tokens:
    """Return tokens of these levels with zero content; padding (B, S)."""
    count = sum(height * width for height, width in shapes)
    mask = torch.zeros(batch, count, dtype=torch.bool) if padding is None else padding
    cells = torch.tensor([[width, height] for height, width in shapes]).float().expand(batch, -1, -1)
    empty = torch.zeros(batch, count, 4)
    return Tokens(empty, empty, mask, shapes, cells)


def objects(*boxes: tuple[float, ...]) -> Target:
    return Target(labels=torch.zeros(len(boxes), dtype=torch.long), boxes=torch.tensor(boxes).view(-1, 4))


# ----------------------------------------------------------------------------------------------------- salience


def salience_target(level: int, targets: list[Target], *points: tuple[float, float]) -> Tensor:
    """Return the salience target of cells of a level at points in pixels of a 200 x 100 image."""
    limits = [(-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, torch.inf)][level]
    cells = torch.tensor(points)
    make_target = SalienceTarget(cells, torch.tensor(limits).expand(len(cells), -1), torch.tensor([[200.0, 100.0]]))
    return make_target(targets)[0]


def test_salience_falls_from_the_centre_of_an_object_to_its_border() -> None:
    (target,) = [objects((0.5, 0.5, 0.5, 0.8))]  # x 50 to 150, y 10 to 90
    found = salience_target(1, [target], (100, 50), (75, 50), (100, 30), (51, 11), (40, 50), (100, 5))
    wanted = [1, 1 - 0.5 * 0.5, 1 - 0.5 * 0.5, 1 - 0.5 * (0.98**2 + 0.975**2) ** 0.5, 0, 0]
    # at the centre the farthest side is 50 pixels away, so the object belongs to the finest level
    wanted[0] = wanted[2] = 0
    torch.testing.assert_close(found, torch.tensor(wanted))
    assert salience_target(0, [target], (100, 50)).tolist() == [1]


def test_overlapping_objects_give_the_highest_salience_if_one_fits_the_level() -> None:
    both = [objects((0.5, 0.5, 0.1, 0.2), (0.45, 0.5, 0.9, 1.0))]  # the second reaches 100 pixels to the left
    assert salience_target(0, both, (100, 50)).tolist() == pytest.approx([1])  # from the first, which fits
    # the second object fits, but the first has the higher salience
    assert salience_target(1, both, (100, 50)).tolist() == pytest.approx([1])
    assert salience_target(1, [objects((0.45, 0.5, 0.9, 1.0))], (100, 50)).tolist() == pytest.approx(
        [1 - 0.5 * 20 / 180]
    )
    assert salience_target(2, both, (100, 50)).tolist() == [0]


def test_images_without_objects_and_empty_boxes_have_no_salience() -> None:
    assert salience_target(0, [objects()], (100, 50), (3, 3)).tolist() == [0, 0]
    assert salience_target(0, [objects((0.5, 0.5, 0.0, 0.0))], (100, 50)).tolist() == [0]


def test_guidance_is_bilinear_with_corners_on_corners() -> None:
    maps = torch.randn(2, 3, 4)
    all_cells = [torch.tensor([size] * 2).float() for size in ((4, 3), (9, 7))]
    wanted = F.interpolate(maps[:, None], size=(7, 9), mode="bilinear", align_corners=True)[:, 0]
    torch.testing.assert_close(upsample_corners(maps, (7, 9), *all_cells), wanted)
    # only the valid area counts: the second image is 2 x 3 cells, then 4 x 5
    cells, finer = torch.tensor([[4.0, 3], [3, 2]]), torch.tensor([[9.0, 7], [5, 4]])
    found = upsample_corners(maps, (7, 9), cells, finer)
    alone = F.interpolate(maps[1:, None, :2, :3], size=(4, 5), mode="bilinear", align_corners=True)[:, 0]
    torch.testing.assert_close(found[1:, :4, :5], alone)
    assert upsample_corners(torch.ones(1, 1, 1), (2, 1), torch.ones(1, 2), torch.ones(1, 2)).tolist() == [[[1], [1]]]


# ------------------------------------------------------------------------------------------------------- filter


def test_filter_keeps_a_share_per_level_and_a_share_of_these_per_layer() -> None:
    tokens, scores = grid((4, 5), (2, 3)), torch.randperm(26)[None] / 26
    chosen = SalienceFilter(levels=(0.5, 1.0), layers=(1.0, 0.5), mask_padding=False)(scores, tokens)
    fine = scores[0, :20].topk(10).indices
    expected = set(fine.tolist()) | set(range(20, 26))
    assert [focus.index.shape[1] for focus in chosen] == [16, 8]
    assert set(chosen[0].index[0].tolist()) == expected
    ordered = sorted(expected, key=lambda token: -float(scores[0, token]))
    assert chosen[1].index[0].tolist() == ordered[:8]
    assert all(focus.kept.all() and focus.seen.all() for focus in chosen)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_smaller_images_of_a_batch_keep_fewer(mask_padding: bool) -> None:
    padding = torch.zeros(2, 8, dtype=torch.bool)
    padding[1, 4:] = True  # the second of two rows
    tokens = replace(grid((2, 4), padding=padding, batch=2), valid_cells=torch.tensor([[[4.0, 2]], [[4.0, 1]]]))
    scores = torch.arange(8.0).expand(2, -1)  # highest in padding
    scores = scores if mask_padding else -scores
    first, second = SalienceFilter(levels=(1.0,), layers=(1.0, 0.5), mask_padding=mask_padding)(scores, tokens)
    assert first.kept.sum(1).tolist() == [8, 4]
    assert set(first.index[1, :4].tolist()) == {0, 1, 2, 3}
    assert second.kept.sum(1).tolist() == ([4, 2] if mask_padding else [4, 4])
    assert second.seen.sum(1).tolist() == ([4, 2] if mask_padding else [4, 4])


def test_the_least_salient_token_comes_before_padding() -> None:
    """As published, padding has its score."""
    padding = (torch.arange(40) % 8 > 5)[None]
    tokens = replace(grid((5, 8), padding=padding), valid_cells=torch.tensor([[[6.0, 5]]]))
    for seed in range(5):
        scores = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed)) * 10**seed
        (focus,) = SalienceFilter(levels=(1.0,), layers=(1.0,), mask_padding=False)(scores, tokens)
        assert not padding[0, focus.index[0]].any()


def test_at_least_one_token_is_kept() -> None:
    chosen = SalienceFilter(levels=(0.4,), layers=(1.0, 0.2), mask_padding=False)(torch.rand(1, 1), grid((1, 1)))
    assert [focus.index.tolist() for focus in chosen] == [[[0]], [[0]]]


# ------------------------------------------------------------------------ failures of the official implementation


def test_suppressed_neighbours_come_last_but_none_is_lost() -> None:
    """The official code fails if fewer tokens survive than there are queries."""
    scores = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3, 2, 1]])  # 3 x 3: a chessboard survives
    candidates = scores.argsort(dim=1, descending=True)
    ordered = suppress_neighbours(scores, candidates, grid((3, 3)))
    assert ordered.tolist() == [[0, 2, 4, 6, 8, 1, 3, 5, 7]]
    separate = suppress_neighbours(scores, candidates, grid((3, 1), (3, 1), (3, 1)))  # no neighbours across levels
    assert separate.tolist() == [[0, 2, 3, 5, 6, 8, 1, 4, 7]]


def test_images_of_a_batch_are_suppressed_separately() -> None:
    scores = torch.tensor([[4.0, 3, 2, 1], [1.0, 2, 3, 4]])
    ordered = suppress_neighbours(scores, scores.argsort(dim=1, descending=True), grid((1, 4), batch=2))
    assert ordered.tolist() == [[0, 2, 1, 3], [3, 1, 2, 0]]


def test_the_number_of_queries_is_met_if_there_are_enough_tokens() -> None:
    model = small(num_queries=60, suppression_candidates=1).eval()
    images, mask = pad_images([torch.randn(3, 64, 64)])  # 64 + 16 + 4 + 1 tokens, of 60 candidates some survive
    with torch.no_grad():
        assert model(images, mask).boxes.shape == (2, 1, 60, 4)
        assert small(num_queries=200).eval()(images, mask).boxes.shape == (2, 1, 85, 4)


def test_maps_larger_than_the_background_table_stretch_it() -> None:
    table = LearnedPosition(dim=4, entries=3, stretch=True)
    inside = table(torch.zeros(1, 2, 3, dtype=torch.bool))
    assert torch.equal(inside[0, :, 0, 2:], table.row_embed.weight[:2])
    larger = table(torch.zeros(1, 2, 5, dtype=torch.bool))[0, 0, :, :2]
    torch.testing.assert_close(larger[::2], table.col_embed.weight)
    torch.testing.assert_close(larger[1], table.col_embed.weight[:2].mean(0))
    with pytest.raises(ValueError, match="learned positions know 3 rows and columns, the feature map has 2 x 5"):
        LearnedPosition(dim=4, entries=3)(torch.zeros(1, 2, 5, dtype=torch.bool))
    model = small(background_entries=4).eval()
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, 3, 64, 96)).boxes).all()


def test_one_cell_per_level_trains() -> None:
    """Batch norm has no variance of one value per channel."""
    torch.manual_seed(0)
    pyramid = PluXPyramid(dim=32, num_levels=2).train()
    out = pyramid([torch.randn(1, 32, 1, 1), torch.randn(1, 32, 1, 1)])
    sum(level.square().sum() for level in out).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in pyramid.parameters() if parameter.grad is not None)
    assert int(pyramid.lateral_convs[0][1].num_batches_tracked) == 0


# ------------------------------------------------------------------------------------------------------ the model


def test_the_memory_of_an_image_does_not_depend_on_its_batch() -> None:
    model = small(mask_backbone_padding=True).eval()
    with torch.no_grad():
        model.salience.layer2[4].weight.mul_(100)  # no near ties in the selection
        sizes = ((75, 99), (96, 130), (64, 64))
        images, mask = pad_images([torch.randn(3, *size) for size in sizes])
        together = memory_of(model, images, mask)
        for index, (height, width) in enumerate(sizes):
            alone = memory_of(
                model, images[index : index + 1, :, :height, :width], torch.zeros(1, height, width).bool()
            )
            ours, theirs = together.content[index], alone.content[0]
            difference = ours[~together.padding_mask[index]] - theirs[~alone.padding_mask[0]]
            assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("mask_padding", [False, True])
def test_an_exported_program_refines_the_same_tokens(monkeypatch: pytest.MonkeyPatch, mask_padding: bool) -> None:
    """Of images that fill no side of the canvas: its shapes cannot follow them."""
    model = small(mask_backbone_padding=mask_padding).eval()
    images, mask = pad_images([torch.randn(3, 75, 99), torch.randn(3, 64, 64), torch.zeros(3, 128, 160)])
    with torch.no_grad():
        wanted = memory_of(model, images[:2], mask[:2])
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        found = memory_of(model, images[:2], mask[:2])
    valid = ~wanted.padding_mask
    torch.testing.assert_close(found.content[valid], wanted.content[valid], rtol=0, atol=1e-4)


def test_salience_loss_is_a_mean_over_micro_batches() -> None:
    model = small().train()
    criterion = build_criterion(model.config)
    images = torch.randn(2, 3, 64, 64)
    targets = [objects((0.5, 0.5, 0.4, 0.4)), objects((0.3, 0.3, 0.5, 0.5), (0.6, 0.6, 0.2, 0.2))]
    with torch.no_grad():
        parts = [model(images[i : i + 1]) for i in range(2)]
    only = [Predictions(out.logits, out.boxes, heatmaps=out.heatmaps) for out in parts]
    without = [replace(out, heatmaps={}) for out in only]
    counts = criterion.count(targets)
    for index, (full, bare) in enumerate(zip(only, without, strict=True)):
        output, rest = (criterion(out, targets[index : index + 1], counts) for out in (full, bare))
        share = model.config.loss_salience * output.terms["loss_salience"] / 2
        torch.testing.assert_close(output.total - rest.total, share, atol=1e-4, rtol=0)
        assert "loss_salience" not in rest.terms
        assert output.terms["loss_salience"] > 0


def test_salience_is_learned_without_objects_too() -> None:
    model = small().train()
    output = build_criterion(model.config)(model(torch.randn(1, 3, 64, 64)), [objects()])
    output.total.backward()
    assert torch.isfinite(output.terms["loss_salience"])
    assert model.salience.layer2[4].weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 64, 64)).heatmaps == {}


def test_the_schedule_stretches_over_other_depths() -> None:
    ratios = {
        layers: SalienceArchitecture(encoder_layers=layers, classification="focal").layer_ratios for layers in (1, 3, 6)
    }
    assert ratios == {1: (1.0,), 3: (1.0, 0.6, 0.2), 6: (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)}
    wide = SalienceArchitecture(num_feature_levels=5, classification="focal")
    assert wide.level_ratios == (0.4, 0.8, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level_filter_ratio": (0.4, 1.2)}, r"level_filter_ratio must be shares in \(0, 1\], got \(0.4, 1.2\)"),
        ({"layer_filter_ratio": ()}, r"layer_filter_ratio must be shares in \(0, 1\], got \(\)"),
        ({"attending_tokens": 0}, "attending_tokens must be at least 1, got 0"),
        ({"query_selection": "static", "two_stage": False}, "two_stage must be True"),
        ({"proposal_class_agnostic": True}, "proposal_class_agnostic must be False"),
        ({"num_feature_levels": 1, "backbone_levels": 1}, "num_feature_levels must be at least 2"),
        ({"suppression_threshold": 1.5}, r"suppression_threshold must be in \[0, 1\], got 1.5"),
    ],
    ids=str,
)
def test_values_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config("salience_detr_r50", **options)


def test_counters_of_batch_norm_may_be_missing_from_a_file() -> None:
    model = small()
    official = detrkit.to_official(model)
    stripped = {name: value for name, value in official.items() if not name.endswith("num_batches_tracked")}
    assert len(stripped) < len(official)
    assert not detrkit.load_official(small(), stripped).fresh
    counted = {name: value + 7 if name not in stripped else value for name, value in official.items()}
    detrkit.load_official(model, counted)
    assert int(model.neck.lateral_convs[0][1].num_batches_tracked) == 7
    names = official_names(model)
    without = {name: value for name, value in stripped.items() if name != "transformer.alpha"}
    assert compare(names, model.state_dict(), without).missing == ("transformer.alpha",)
