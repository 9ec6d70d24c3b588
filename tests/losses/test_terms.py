"""Terms: a new kind of prediction is one class that defines its inputs, cost and loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.losses import (
    Candidates,
    Criterion,
    HungarianMatcher,
    L1Term,
    Matched,
    Normalisers,
    Problem,
    Term,
    build_criterion,
)
from detrkit.models import model_config
from detrkit.structures import Heatmap, Predictions, QueryGroup, Target

CLASSES, QUERIES, LAYERS, SIZE = 3, 4, 2, 4


class Masks:
    """A view of dense masks (B, N, h, w) of the last layer."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __getitem__(self, queries: slice) -> Masks:
        return Masks(self.logits[:, queries])

    def dense(self) -> Tensor:
        return self.logits


class MaskTerm(Term):
    """Binary cross entropy of the masks of the last layer, defined only in this test."""

    name = "loss_mask"

    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        return () if group.masks is None else (group.masks.dense(),)

    def cost(self, candidates: Candidates) -> Tensor:
        (logits,), image = self.reads(candidates.problem.group), candidates.problem.image
        wanted = self.wanted(candidates.problem)[:, None].expand(-1, logits.shape[1], -1, -1)
        cost = F.binary_cross_entropy_with_logits(logits[image], wanted, reduction="none").mean((2, 3))
        return cost.expand(len(candidates.boxes), -1, -1)

    def loss(self, matched: Matched, divisor: float) -> Tensor:
        (logits,), matches = self.reads(matched.problem.group), matched.matches
        last = matches.layer == matched.problem.layers - 1
        wanted = self.wanted(matched.problem)[matches.target[last]]
        loss = F.binary_cross_entropy_with_logits(
            logits[matches.image[last], matches.query[last]], wanted, reduction="none"
        )
        return F.pad(loss.mean((1, 2)).sum()[None] / divisor, (matched.problem.layers - 1, 0))

    def wanted(self, problem: Problem) -> Tensor:
        return torch.cat([target.masks for target in problem.targets if target.masks is not None]).float()


def criterion() -> Criterion:
    config = model_config("deformable_detr_r50", num_classes=CLASSES, num_queries=QUERIES)
    return build_criterion(config, extra_terms=[MaskTerm(weight=5.0, cost_weight=5.0)])


def predictions(dtype: torch.dtype = torch.float32) -> Predictions:
    """Queries that differ only in their masks (query i covers row i), and a group without masks."""
    logits = torch.zeros(LAYERS, 2, QUERIES, CLASSES, dtype=dtype).requires_grad_()
    boxes = torch.full((LAYERS, 2, QUERIES, 4), 0.5, dtype=dtype).requires_grad_()
    masks = torch.full((2, QUERIES, SIZE, SIZE), -3.0, dtype=dtype)
    for query in range(QUERIES):
        masks[:, query, query] = 3.0
    plain = QueryGroup(logits.detach().clone().requires_grad_(), boxes.detach().clone().requires_grad_())
    return Predictions(logits, boxes, Masks(masks.requires_grad_()), groups={"plain": plain})


def target(*rows: int) -> Target:
    """One object per row of pixels, all with the same box."""
    masks = torch.zeros(len(rows), SIZE, SIZE, dtype=torch.bool)
    for index, row in enumerate(rows):
        masks[index, row] = True
    labels = torch.zeros(len(rows), dtype=torch.long)
    return Target(labels=labels, boxes=torch.full((len(rows), 4), 0.4), masks=masks)


def test_a_new_term_matches_and_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is part of the common cost matrix, and only groups with its inputs use it."""
    copies = []
    original = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: copies.append(tensor.shape) or original(tensor))
    out, targets = predictions(), [target(3, 1), target(2)]
    output = criterion()(out, targets)
    assert len(copies) == 1
    for layer in range(LAYERS):
        assert output.matches.pairs(layer, 0).T.tolist() == [[1, 1], [3, 0]]
        assert output.matches.pairs(layer, 1, offset=2).T.tolist() == [[2, 0]]
    # softplus(-3) for every pixel, a mean over pixels and a sum over objects divided by their number
    torch.testing.assert_close(output.terms["loss_mask"], F.softplus(torch.tensor(-3.0)))
    assert output.terms["loss_mask_0"] == 0
    assert not [name for name in output.terms if name.startswith("loss_mask") and name.endswith("plain")]
    output.total.backward()
    gradient = out.masks.dense().grad
    assert gradient is not None
    assert gradient.flatten(2).abs().sum(2).bool().tolist() == [[False, True, False, True], [False, False, True, False]]


def test_the_anchor_is_a_zero_that_depends_on_the_inputs_of_all_terms() -> None:
    out = predictions()
    cells = torch.randn(2, 9).requires_grad_()
    out.heatmaps["salience"] = Heatmap(cells, lambda targets: torch.zeros(len(targets), 9))
    anchor = criterion().anchor(out)
    anchor.backward()
    assert anchor == 0
    for tensor in (
        out.logits,
        out.boxes,
        out.masks.dense(),
        out.groups["plain"].logits,
        out.groups["plain"].boxes,
        cells,
    ):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_a_batch_without_objects() -> None:
    out = predictions()
    output = criterion()(out, [target(), target()])
    output.total.backward()
    assert output.terms["loss_mask"] == output.terms["loss_bbox"] == 0
    assert out.masks.dense().grad is not None


def test_half_precision_inputs_give_the_same_losses_as_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    half, single = predictions(torch.bfloat16), predictions()
    with torch.no_grad():
        for group, same in ((half, single), (half.groups["plain"], single.groups["plain"])):
            group.logits.normal_(generator=generator)
            group.boxes.uniform_(0.3, 0.6, generator=generator)
            same.logits.copy_(group.logits)
            same.boxes.copy_(group.boxes)
    config = model_config("deformable_detr_r50", num_classes=CLASSES, num_queries=QUERIES, class_loss="varifocal")
    first, second = (build_criterion(config)(out, [target(3, 1), target(2)]) for out in (half, single))
    assert first.total.dtype == torch.float32
    assert torch.equal(first.total, second.total)
    assert all(torch.equal(value, second.terms[name]) for name, value in first.terms.items())


def test_terms_need_unique_names_and_at_least_one_cost() -> None:
    loss = criterion()
    with pytest.raises(ValueError, match="a name of its own, got loss_bbox, loss_bbox"):
        Criterion(
            terms=[L1Term(weight=1.0), L1Term(weight=2.0)],
            matcher=loss.matcher,
            num_queries=QUERIES,
            label_augmentation=loss.label_augmentation,
        )
    with pytest.raises(ValueError, match="set the cost_weight of at least one term"):
        HungarianMatcher(terms=[L1Term(weight=1.0)])

    class OnlyLoss(MaskTerm):
        cost = Term.cost

    problem = Problem.of(predictions(), [target(1), target()])
    with pytest.raises(NotImplementedError, match="OnlyLoss has no cost: leave its cost_weight at 0"):
        HungarianMatcher(terms=[OnlyLoss(weight=1.0, cost_weight=1.0)])(problem)


def test_normalisers_add_divide_and_convert_to_a_tensor() -> None:
    loss = criterion()
    targets = [target(1, 2), target(), target(0, 1, 2, 3, 0)]
    whole = loss.count(targets)
    assert whole == loss.count(targets[:1]) + loss.count(targets[1:])
    assert whole + Normalisers() == whole
    assert Normalisers.from_tensor(whole.tensor() * 2) / 2 == whole
    assert whole.tensor().dtype == torch.float64


def test_the_losses_of_a_group_are_divided_by_its_own_objects() -> None:
    counts = Normalisers(objects=8, originals=4, matched=8, unmatched=2, images=2)
    out = predictions()
    assert counts.of_group(out).objects == 8
    assert counts.of_group(QueryGroup(out.logits, out.boxes, repeat=6)).objects == 24
    fixed = QueryGroup(out.logits, out.boxes, pairs=(torch.zeros(0), torch.zeros(0), torch.zeros(0)))
    assert counts.of_group(fixed).objects == 4
    assert Normalisers(objects=0.5).of_group(out).objects == 1
