"""Masks in matching and loss: symmetries, stuff, unusual numbers of objects, values that are not finite, precision."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detrkit.errors import DataError
from detrkit.losses import Criterion, Matched, Matches, Problem, build_criterion
from detrkit.losses.mask_terms import DiceTerm, MaskTerm
from detrkit.losses.matcher import HungarianMatcher
from detrkit.losses.points import MaskPoints
from detrkit.models import model_config
from detrkit.nn.masks import EmbeddedMasks
from detrkit.structures import Predictions, QueryGroup, Target
from tests.models.tester import with_masks

CLASSES, QUERIES, DIM, SIDE, LAYERS = 4, 12, 16, 12, 2


def criterion(**options: object) -> Criterion:
    settings = {"num_classes": CLASSES, "num_queries": QUERIES, "task": "pan", "mask_points": 256, **options}
    return build_criterion(model_config("dino_lite0", **settings))


def predictions(images: int = 2, *, queries: int = QUERIES, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    shape = (LAYERS, images, queries)
    logits, embedded = torch.randn(*shape, CLASSES, generator=generator), torch.randn(*shape, DIM, generator=generator)
    boxes = torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2
    pixels = torch.randn(images, DIM, SIDE, SIDE, generator=generator)
    masks = EmbeddedMasks(embedded.requires_grad_(), pixels.requires_grad_())
    return Predictions(logits=logits.requires_grad_(), boxes=boxes.requires_grad_(), masks=masks)


def targets(*counts: int, stuff: tuple[int, ...] = (), seed: int = 0) -> list[Target]:
    """So many objects per image; the objects of class ``stuff`` are no things."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for count in counts:
        labels = torch.arange(count) % CLASSES
        boxes = torch.rand(count, 4, generator=generator) * 0.3 + 0.3
        found.append(Target(labels=labels, boxes=boxes, is_thing=~torch.isin(labels, torch.tensor(stuff))))
    return with_masks(found, (4 * SIDE, 4 * SIDE))


def costs(out: QueryGroup, objects: list[Target], **options: object) -> Tensor:
    """(L, G, Q), always at the same points."""
    torch.manual_seed(0)
    return criterion(**options).matcher.cost(Problem.of(out, objects))


def solve(cost: Tensor, objects: list[Target]) -> Matches:
    matcher = HungarianMatcher(terms=criterion().terms)
    return Matches(*torch.from_numpy(matcher._solve(cost.detach().numpy(), objects)))


def permuted(out: Predictions, order: Tensor) -> Predictions:
    assert isinstance(out.masks, EmbeddedMasks)
    masks = replace(out.masks, queries=out.masks.queries[:, :, order])
    return Predictions(logits=out.logits[:, :, order], boxes=out.boxes[:, :, order], masks=masks)


def test_permuted_queries_and_objects_have_permuted_costs() -> None:
    out, objects = predictions(), targets(4, 3)
    queries, first = torch.randperm(QUERIES), torch.tensor([2, 0, 3, 1])
    wanted = costs(out, objects)
    order = torch.cat((first, torch.arange(4, 7)))
    found = costs(permuted(out, queries), [objects[0][first], objects[1]])
    torch.testing.assert_close(found, wanted[:, order][:, :, queries], atol=1e-4, rtol=1e-5)


def test_a_constant_added_to_an_object_changes_no_assignment() -> None:
    """So a cost of 0 for the boxes of stuff equals the published one, the mean over things."""
    objects = targets(4, 3)
    cost = costs(predictions(), objects)
    shifted = cost.clone()
    shifted[:, 2] += 7.5
    for layer in range(LAYERS):
        for image, start in ((0, 0), (1, 4)):
            pairs = (solve(value, objects).pairs(layer, image, start) for value in (cost, shifted))
            assert torch.equal(*pairs)


def test_ignored_boxes_of_stuff_have_no_cost_and_no_loss() -> None:
    """Class 1 is stuff: one object of each image."""
    out, objects = predictions(), targets(4, 3, stuff=(1,))
    kept = {"cost_class": 0.0, "cost_mask": 0.0, "cost_dice": 0.0, "stuff_box": "ignore"}
    boxes = costs(out, objects, **kept)
    is_stuff = torch.tensor([False, True, False, False, False, True, False])
    assert not boxes[:, is_stuff].any()
    assert boxes[:, ~is_stuff].abs().min() > 0
    torch.testing.assert_close(
        boxes[:, ~is_stuff], costs(out, objects, **{**kept, "stuff_box": "supervise"})[:, ~is_stuff]
    )
    supervised, ignored = criterion(), criterion(stuff_box="ignore")
    normaliser = ignored.count(objects)
    assert (normaliser.objects, normaliser.things) == (7, 5)
    box_term = next(term for term in ignored.terms if term.name == "loss_bbox")
    mask_term = next(term for term in ignored.terms if term.name == "loss_mask")
    assert (box_term.normaliser(normaliser), mask_term.normaliser(normaliser)) == (5, 7)
    things = [replace(target, is_thing=None) for target in objects]
    values = []
    for loss in (supervised, ignored):  # all are things: the same boxes count
        torch.manual_seed(0)
        values.append(loss(out, things).terms["loss_bbox"])
    torch.testing.assert_close(*values)


def test_stuff_alone_divides_by_no_less_than_one() -> None:
    found = criterion(stuff_box="ignore")(predictions(), targets(2, 1, stuff=(0, 1)))
    assert found.terms["loss_bbox"] == found.terms["loss_giou"] == 0
    assert found.total.isfinite()


def test_a_planted_assignment_is_found_by_masks_alone() -> None:
    """Query i of every image has the mask of one object; classes and boxes are the same for all."""
    masks = torch.zeros(6, SIDE, SIDE, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[2 * index : 2 * index + 2] = True
    planted = torch.tensor([4, 9, 0, 11, 2, 7])
    queries = torch.full((LAYERS, 1, QUERIES, SIDE * SIDE), -8.0)
    queries[:, 0, planted] = masks.flatten(1) * 16.0 - 8
    view = EmbeddedMasks(queries, torch.eye(SIDE * SIDE).view(1, -1, SIDE, SIDE))
    out = Predictions(torch.zeros(LAYERS, 1, QUERIES, CLASSES), torch.full((LAYERS, 1, QUERIES, 4), 0.5), view)
    enlarged = masks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    target = Target(labels=torch.arange(6) % CLASSES, boxes=torch.full((6, 4), 0.5), masks=enlarged)
    found = criterion()(out, [target])
    for layer in range(LAYERS):
        query, index = found.matches.pairs(layer, 0)
        assert torch.equal(planted[index], query)
    assert found.terms["loss_mask"] < 0.2


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (QUERIES + 5, 1)], ids=str)
def test_any_number_of_objects(counts: tuple[int, int]) -> None:
    out = predictions()
    found = criterion()(out, targets(*counts))
    matched = sum(min(count, QUERIES) for count in counts)
    assert len(found.matches.query) == LAYERS * matched
    found.total.backward()
    assert isinstance(out.masks, EmbeddedMasks)
    for factor in out.masks.factors:
        assert factor.grad is not None  # also without objects, as distributed training requires
        assert factor.grad.isfinite().all()
        assert bool(factor.grad.any()) == (matched > 0)


def test_more_objects_than_queries_are_said_once() -> None:
    one = criterion()
    with pytest.warns(UserWarning, match=f"an image has {QUERIES + 5} objects but the model only {QUERIES} queries"):
        assert [len(target) for target in one.prepare(targets(QUERIES + 5, 1))] == [QUERIES + 5, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.prepare(targets(QUERIES + 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_masks_that_are_not_finite_do_not_stop_the_matcher(value: float) -> None:
    out = predictions()
    assert isinstance(out.masks, EmbeddedMasks)
    with torch.no_grad():
        out.masks.queries[:, 0, 3] = value
    with pytest.warns(UserWarning, match="predictions are not finite"):
        matches = criterion().matcher(Problem.of(out, targets(4, 3)))
    assert len(matches.query) == LAYERS * 7
    assert not ((matches.image == 0) & (matches.query == 3)).any()


def test_two_thousand_objects() -> None:
    """Many more than queries: masks are compared a few at a time, and each query has one."""
    out, objects = predictions(1, queries=300), targets(2000)
    found = criterion(num_queries=300)(out, objects)
    found.total.backward()
    assert len(found.matches.query) == LAYERS * 300
    assert all(torch.equal(query.sort().values, torch.arange(300)) for query in found.matches.query.view(LAYERS, -1))
    assert found.total.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_masks_give_the_same_losses_to_two_percent(dtype: torch.dtype) -> None:
    out, objects = predictions(), targets(4, 3)
    assert isinstance(out.masks, EmbeddedMasks)
    half = replace(out.masks, queries=out.masks.queries.to(dtype), pixels=out.masks.pixels.to(dtype))
    found = []
    for masks in (out.masks, half):
        torch.manual_seed(0)
        output = criterion()(replace(out, masks=masks), objects)
        assert output.total.dtype == torch.float32
        found.append(output)
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(found[1].terms[name], found[0].terms[name], rtol=0.02, atol=0)
    torch.testing.assert_close(found[1].total, found[0].total, rtol=0.02, atol=0)


def test_splitting_the_matched_masks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are multiplied out at a time, at the same points."""
    drawn = torch.rand(512, 2, generator=torch.Generator().manual_seed(0))
    points = MaskPoints(number=256, uniform=lambda *shape, device: drawn[: shape[1]].expand(*shape), oversample=2.0)
    terms = [kind(points=points, weight=5.0) for kind in (MaskTerm, DiceTerm)]
    results = []
    for at_once in (32, 1):
        monkeypatch.setattr("detrkit.losses.mask_terms._ROWS_AT_ONCE", at_once)
        out = predictions()
        assert out.masks is not None
        problem = Problem.of(out, targets(4, 3))
        matched = Matched(problem, solve(torch.zeros(LAYERS, 7, QUERIES), problem.targets))
        losses = torch.stack([term.loss(matched, 7.0) for term in terms])
        losses.sum().backward()
        results.append([losses.detach(), *(factor.grad for factor in out.masks.factors)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_targets_without_masks_are_an_error_that_says_what_to_do() -> None:
    without = [replace(target, masks=None) for target in targets(2, 1)]
    with pytest.raises(DataError, match=r"image 0 has no masks to learn from: give Target\.masks, or train boxes"):
        criterion()(predictions(), without)
    empty = [targets(2)[0], replace(targets(0)[0], masks=None)]
    assert criterion()(predictions(), empty).total.isfinite(), "an image without objects needs no masks"
