"""Matcher against brute force, label augmentation, normalisers, warnings."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detrkit.losses import (
    ClassLoss,
    ClassTerm,
    Criterion,
    Focal,
    GIoUTerm,
    HungarianMatcher,
    L1Term,
    LabelAugmentation,
    Normalisers,
    Problem,
    Softmax,
)
from detrkit.structures import Predictions, Target


def predictions(layers: int, batch: int, queries: int, classes: int, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(layers, batch, queries, 4, generator=generator) * 0.5 + 0.25
    return Predictions(torch.randn(layers, batch, queries, classes + 1, generator=generator), boxes)


def target(n: int, seed: int = 0) -> Target:
    generator = torch.Generator().manual_seed(100 + seed)
    return Target(
        labels=torch.randint(0, 3, (n,), generator=generator),
        boxes=torch.rand(n, 4, generator=generator) * 0.5 + 0.25,
    )


def matcher(classes: ClassLoss | None = None, *, two_stage: bool = False) -> HungarianMatcher:
    """A matcher with the published weights."""
    terms = [
        ClassTerm(classes=classes or Softmax(), weight=1.0, cost_weight=1.0),
        L1Term(weight=5.0, cost_weight=5.0),
        GIoUTerm(weight=2.0, cost_weight=2.0),
    ]
    return HungarianMatcher(terms=terms, two_stage=two_stage)


def criterion(queries: int = 6) -> Criterion:
    by = matcher()
    return Criterion(terms=by.terms, matcher=by, num_queries=queries, label_augmentation=LabelAugmentation())


@settings(max_examples=30)
@given(
    st.integers(1, 5), st.integers(0, 5), st.integers(0, 5), st.sampled_from([Softmax(), Focal()]), st.integers(0, 999)
)
def test_matching_has_the_lowest_total_cost(queries: int, n1: int, n2: int, classes: ClassLoss, seed: int) -> None:
    out = predictions(2, 2, queries, 3, seed)
    problem = Problem.of(out, [target(n1, seed), target(n2, seed + 1)])
    matches = matcher(classes)(problem)
    if n1 + n2 == 0:
        assert len(matches.layer) == 0
        return
    cost = matcher(classes).cost(problem)
    for layer in range(2):
        for image, (n, offset) in enumerate(((n1, 0), (n2, n1))):
            pairs = matches.pairs(layer, image, offset)
            size = min(queries, n)
            assert pairs.shape[1] == size
            assert len(set(pairs[0].tolist())) == size
            assert len(set(pairs[1].tolist())) == size
            block = cost[layer, offset : offset + n].T
            found = float(block[pairs[0], pairs[1]].sum())
            best = min(
                (
                    sum(float(block[q, t]) for q, t in zip(qs, ts, strict=True))
                    for qs in itertools.permutations(range(queries), size)
                    for ts in itertools.combinations(range(n), size)
                ),
                default=0.0,
            )
            assert found == pytest.approx(best, abs=1e-4)


@given(st.integers(0, 9), st.integers(1, 4))
def test_repeat(n: int, times: int) -> None:
    original = target(n)
    (repeated,) = LabelAugmentation(repeat=times)([original], 5)
    assert len(repeated) == n * times == LabelAugmentation(repeat=times).length(n, 5)
    assert torch.equal(repeated.labels, original.labels.repeat(times))
    assert int(repeated.is_copy.sum()) == n * (times - 1)
    assert len(original) == n  # not changed in place


@given(st.integers(0, 30), st.floats(0.05, 1.0), st.integers(1, 40))
def test_ratio_repeats_up_to_the_exact_number(n: int, ratio: float, queries: int) -> None:
    (repeated,) = LabelAugmentation(ratio=ratio)([target(n)], queries)
    wanted = int(ratio * queries)
    assert len(repeated) == (wanted if 0 < n < wanted else n)
    counts = [(repeated.boxes == box).all(1).sum().item() for box in target(n).boxes]
    assert not counts or max(counts) - min(counts) <= 1


def test_two_stage_matches_originals_first() -> None:
    out = predictions(1, 1, 6, 3)
    augmentation = LabelAugmentation(repeat=2)
    (repeated,) = augmentation([target(3)], 6)
    plain = matcher()(Problem.of(out, [target(3)]))
    staged = matcher(two_stage=True)(Problem.of(out, [repeated]))
    first = {tuple(pair) for pair in plain.pairs(0, 0).T.tolist()}
    assert first <= {tuple(pair) for pair in staged.pairs(0, 0).T.tolist()}
    assert len(set(staged.query.tolist())) == 6


def test_normalisers_add_up_over_micro_batches() -> None:
    """Two accumulated micro-batches give the loss of the whole batch, even if one of them has no objects."""
    out = predictions(3, 2, 6, 3)
    targets = [target(4), target(0)]
    loss = criterion()
    whole = loss(out, targets).total
    counts = loss.count(targets[:1]) + loss.count(targets[1:])
    parts = [
        loss(Predictions(out.logits[:, i : i + 1], out.boxes[:, i : i + 1]), targets[i : i + 1], counts).total
        for i in range(2)
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_the_class_normaliser_is_known_before_matching() -> None:
    loss = criterion()
    counts = loss.count([target(4), target(9), target(0)])
    expected = Normalisers(objects=13, originals=13, matched=4 + 6, unmatched=2 + 0 + 6, images=3)
    assert counts == replace(expected, things=13, original_things=13)
    assert Softmax(no_object_weight=0.1).normaliser(counts) == pytest.approx((4 + 6) + 0.1 * (2 + 0 + 6))
    assert Focal().normaliser(counts) == 13


def poisoned(value: float) -> Predictions:
    out = predictions(2, 1, 6, 3)
    out.logits[0, 0, 2] = value
    out.boxes[1, 0, 3] = value
    return out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_do_not_stop_the_matcher(value: float) -> None:
    with pytest.warns(UserWarning, match="not finite"):
        matches = matcher()(Problem.of(poisoned(value), [target(4)]))
    assert len(matches.query) == 8
    assert 3 not in matches.pairs(1, 0)[0].tolist()


def test_more_objects_than_queries_warns_once() -> None:
    loss = criterion(queries=2)
    with pytest.warns(UserWarning, match="5 objects but the model only 2 queries"):
        loss.prepare([target(5)])
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.prepare([target(5)])


def test_masked_targets_are_repeated_too() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[1] = True
    original = Target(labels=torch.tensor([0, 1]), boxes=torch.rand(2, 4), masks=masks)
    (repeated,) = LabelAugmentation(repeat=2)([original], 5)
    assert isinstance(repeated.masks, Tensor)
    assert repeated.masks[3].all()
    assert not repeated.masks[2].any()
