"""Denoising queries: their number, objects, noise and visibility in self-attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detrkit.losses import build_criterion
from detrkit.models import create_model
from detrkit.nn.denoising import ContrastiveDenoising, Denoising, Noise
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Target
from tests.decoding import bias_of
from tests.small import SMALL


def target(n: int, seed: int = 0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(n, 4, generator=generator) * 0.2 + torch.tensor([0.4, 0.4, 0.1, 0.1])
    return Target(labels=torch.arange(n) % 5, boxes=boxes)


def generator(**options: Any) -> ContrastiveDenoising:
    torch.manual_seed(0)
    return ContrastiveDenoising(num_classes=5, dim=8, label_rows=6, **options)


@pytest.mark.parametrize(
    ("max_objects", "groups", "slots"),
    [(1, 100, 200), (5, 20, 200), (33, 3, 198), (34, 2, 136), (51, 1, 102), (150, 1, 300)],
)
def test_number_of_queries_is_the_published_one(max_objects: int, groups: int, slots: int) -> None:
    queries = generator()([target(max_objects), target(min(max_objects, 2), seed=1)])
    assert queries is not None
    assert (queries.normaliser, queries.number) == (groups, slots)
    assert bias_of(queries, 7).shape[-2:] == (slots + 7, slots + 7)


def test_without_noise_positives_are_the_objects() -> None:
    still = lambda n, classes, p, device: Noise(  # noqa: E731
        torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.long), torch.ones(n, 4), torch.zeros(n, 4)
    )
    targets = [target(3), target(0), target(2, seed=4)]
    make = generator(draw=still)
    queries = make(targets)
    assert queries is not None
    image, query, index = queries.pairs
    boxes = torch.cat([item.boxes for item in targets])[index]
    labels = torch.cat([item.labels for item in targets])[index]
    torch.testing.assert_close(queries.required_reference[image, query], boxes, atol=2e-3, rtol=0)
    torch.testing.assert_close(queries.content[image, query], make.label_encoder(labels))
    assert len(index) == queries.normaliser * 5
    assert sorted(set(image.tolist())) == [0, 2]


def test_negatives_are_farther_than_positives() -> None:
    queries = generator(box_noise=0.4)([target(10)])
    assert queries is not None
    corners = cxcywh_to_xyxy(queries.required_reference[0]).view(-1, 2, 10, 4)
    half = target(10).boxes[:, 2:].repeat(1, 2) / 2
    moved = (corners - cxcywh_to_xyxy(target(10).boxes)).abs() / half / 0.4
    assert moved[:, 0].max() <= 1.0 + 1e-2
    assert moved[:, 1].min() >= 1.0 - 1e-2


def test_visibility_of_groups_and_matching_queries() -> None:
    queries = generator()([target(20), target(1)])
    assert queries is not None
    assert queries.normaliser == 5
    blocked = (bias_of(queries, 3) == -torch.inf)[0, 0]
    assert blocked[-3:, :-3].all()  # matching queries see no denoising query
    assert not blocked[:, -3:].any()  # all queries see the matching ones
    inside = torch.block_diag(*[torch.ones(40, 40)] * 5).bool()
    assert torch.equal(blocked[:-3, :-3], ~inside)


def test_unused_slots_can_be_masked() -> None:
    queries = generator(mask_unused=True)([target(20), target(1)])
    assert queries is not None
    assert queries.ignored is not None
    assert queries.ignored.sum(1).tolist() == [0, 19 * 10]
    blocked = bias_of(queries, 3) == -torch.inf
    columns = blocked[1, 0][-1, :-3]
    assert columns.all()
    row = blocked[1, 0][0]
    seen = (~row[:-3]).nonzero().flatten()
    assert set(seen.tolist()) == {0, 20}  # the one object, positive and negative
    assert (~blocked).any(-1).all()  # no row is entirely blocked: softmax would be NaN


def test_queries_of_crowded_images_can_be_limited() -> None:
    targets = [target(150), target(3, seed=2)]
    queries = generator(max_queries=60)(targets)
    assert queries is not None
    assert queries.content.shape[1] == 60
    image, _, index = queries.pairs
    assert len(set(index[image == 0].tolist())) == 30
    assert set(index[image == 1].tolist()) == {150, 151, 152}


def test_without_objects_there_are_no_queries_but_the_same_graph() -> None:
    model = create_model("dino_lite0", **SMALL).train()
    criterion = build_criterion(model.config)
    empty = [Target(labels=torch.zeros(0, dtype=torch.long), boxes=torch.zeros(0, 4))] * 2
    out = model(torch.randn(2, 3, 64, 64), None, empty)
    assert "denoising" not in out.groups
    criterion(out, empty).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_label_augmentation_repeats_matched_objects_only() -> None:
    model = create_model("dino_lite0", **SMALL, repeat_label=2).train()
    criterion = build_criterion(model.config)
    targets = [target(3)]
    targets[0].labels.clamp_(max=2)
    prepared = criterion.prepare(targets)
    out = model(torch.randn(1, 3, 64, 64), None, targets)
    output = criterion(out, prepared)
    assert len(output.matches.target) == 2 * 6  # two layers, every object twice
    assert int(output.groups["denoising"].target.max()) == 2
    plain = build_criterion(create_model("dino_lite0", **SMALL).config)(out, targets)
    for term in ("loss_bbox_denoising", "loss_giou_denoising", "loss_class_denoising"):
        torch.testing.assert_close(output.terms[term], plain.terms[term])


@pytest.mark.parametrize("options", [{"denoising_mask_unused": True}, {"denoising_max_queries": 4}])
def test_options_train(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_model("dino_lite0", **SMALL, **options).train()
    criterion = build_criterion(model.config)
    targets = [target(5), target(1, seed=1)]
    for item in targets:
        item.labels.clamp_(max=2)
    out = model(torch.randn(2, 3, 64, 64), None, targets)
    output = criterion(out, criterion.prepare(targets))
    output.total.backward()
    assert torch.isfinite(output.total)


def plain(**options: Any) -> Denoising:
    torch.manual_seed(0)
    return Denoising(num_classes=5, dim=8, label_rows=5, **options)


def test_plain_groups_are_a_fixed_number() -> None:
    """DN-DETR: five groups with one slot per object of the largest image, all of them positives."""
    queries = plain()([target(3), target(1, seed=1), target(0)])
    assert queries is not None
    assert (queries.normaliser, queries.number) == (5, 15)
    image, query, index = queries.pairs
    expected = {(0, 3 * group + slot, slot) for group in range(5) for slot in range(3)}
    expected |= {(1, 3 * group, 3) for group in range(5)}
    assert set(zip(image.tolist(), query.tolist(), index.tolist(), strict=True)) == expected
    blocked = (bias_of(queries, 7) == -torch.inf)[0, 0]
    assert blocked[15:, :15].all()
    assert not blocked[:, 15:].any()
    assert torch.equal(blocked[:15, :15], ~torch.block_diag(*[torch.ones(3, 3)] * 5).bool())
    assert plain(number=0)([target(3)]) is None


def test_plain_noise_moves_centre_and_size() -> None:
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(10, 4)

    def known(entries: int, num_classes: int, probability: float, device: torch.device) -> Noise:
        assert (entries, num_classes, probability) == (10, 5, 0.2)
        flip = torch.arange(10) % 2 == 0
        return Noise(flip, torch.full((10,), 4), signs, torch.full((10, 4), 0.5))

    make = plain(draw=known, number=5)
    item = target(2)
    queries = make([item])
    assert queries is not None
    centre, size = item.boxes[:, :2], item.boxes[:, 2:]
    step = signs[0, :2] * 0.5 * 0.4
    moved = torch.cat((centre + step * size / 2, size * (1 + step)), dim=1)
    torch.testing.assert_close(queries.required_reference[0], moved.repeat(5, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(queries.content[0], make.label_encoder(torch.tensor([4, 1] * 5)))


def test_the_indicator_separates_denoising_and_matching_queries() -> None:
    make = plain(indicator=True)
    assert make.label_encoder.weight.shape == (5, 7)
    queries = make([target(3), target(1, seed=1)])
    assert queries is not None
    assert (queries.content[0, :, -1] == 1).all()
    assert queries.content[1, :, -1].tolist() == [1.0, 0.0, 0.0] * 5, "slots without an object stay empty"
    assert make.with_indicator(torch.ones(2, 7), 0.0)[:, -1].tolist() == [0.0, 0.0]


def test_queries_of_plain_denoising_can_be_limited() -> None:
    queries = plain(max_queries=50)([target(30), target(3, seed=2)])
    assert queries is not None
    assert queries.content.shape[1] == 50
    image, _, index = queries.pairs
    assert len(set(index[image == 0].tolist())) == 10
