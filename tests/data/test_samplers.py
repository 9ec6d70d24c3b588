"""All ranks together see every index once per epoch, in batches of similar shapes, also after resuming."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detrkit.data.repeats import images_of_classes, repeat_factors, with_copies
from detrkit.data.samplers import AspectRatioBatchSampler
from detrkit.errors import DataError

ratios = st.lists(st.floats(0.2, 5), min_size=1, max_size=60)


@given(ratios, st.integers(1, 8), st.integers(1, 4), st.integers(0, 5), st.booleans())
def test_an_epoch_covers_everything_once(
    aspects: list[float], batch_size: int, world_size: int, epoch: int, shuffle: bool
) -> None:
    samplers = [
        AspectRatioBatchSampler(
            aspect_ratios=aspects, batch_size=batch_size, seed=3, shuffle=shuffle, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    ranks = [list(sampler) for sampler in samplers]
    count = -(-len(aspects) // batch_size)  # number of batches
    assert {len(batches) for batches in ranks} == {len(samplers[0])} == {-(-count // world_size)}
    turns = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert Counter(index for batch in turns[:count] for index in batch) == dict.fromkeys(range(len(aspects)), 1)
    for extra, batch in enumerate(turns[count:]):  # to fill up, the first batches are repeated
        assert batch == turns[extra % count]
    assert all(0 < len(batch) <= batch_size for batch in turns)


@given(ratios, st.integers(1, 4), st.integers(1, 3))
def test_drop_last_gives_whole_batches_without_repeats(aspects: list[float], batch_size: int, world_size: int) -> None:
    options: Any = {"aspect_ratios": aspects, "batch_size": batch_size, "drop_last": True, "world_size": world_size}
    if len(aspects) < batch_size * world_size:
        with pytest.raises(DataError, match="lower batch_size"):
            AspectRatioBatchSampler(**options)  # options vary
        return
    batches = [
        batch
        for rank in range(world_size)
        for batch in AspectRatioBatchSampler(**options, rank=rank)  # options vary
    ]
    seen = [index for batch in batches for index in batch]
    assert len(seen) == len(set(seen)) == batch_size * world_size * (len(aspects) // batch_size // world_size)


@given(ratios, st.integers(0, 10))
def test_resuming_gives_the_remaining_batches(aspects: list[float], done: int) -> None:
    sampler = AspectRatioBatchSampler(aspect_ratios=aspects, batch_size=3, seed=1)
    sampler.set_epoch(4)
    whole = list(sampler)
    assert list(sampler) == whole
    sampler.set_epoch(4, start_batch=done)
    assert list(sampler) == whole[done:]
    assert len(sampler) == len(whole)


def test_seeds_and_epochs_change_the_order() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = AspectRatioBatchSampler(length=40, batch_size=4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    plain = AspectRatioBatchSampler(length=5, batch_size=2, shuffle=False)
    assert list(plain) == [[0, 1], [2, 3], [4]]


def test_similar_shapes_share_batches() -> None:
    aspects = [0.4, 0.7, 1.0, 1.5, 3.0] * 20
    sampler = AspectRatioBatchSampler(aspect_ratios=aspects, batch_size=4)
    assert all(len({aspects[index] for index in batch}) == 1 for batch in sampler)
    mixed = AspectRatioBatchSampler(aspect_ratios=aspects[:-1], batch_size=4)
    assert sum(len({aspects[index] for index in batch}) > 1 for batch in mixed) <= 1


def test_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="aspect_ratios or length"):
        AspectRatioBatchSampler(batch_size=1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        AspectRatioBatchSampler(length=4, batch_size=1, rank=2, world_size=2)
    with pytest.raises(DataError, match="0 images"):
        AspectRatioBatchSampler(length=0, batch_size=1)


# --- repeat factor sampling -------------------------------------------------------------------------------------------


def test_repeat_factors_follow_the_formula() -> None:
    """Of 100 images 99 have class 0, four have class 1, one has two objects of class 2, and one has no objects."""
    labels = [np.array([0])] * 94 + [np.array([0, 1])] * 4 + [np.array([2, 0, 2])] + [np.array([], np.int64)]
    factors = repeat_factors(labels, threshold=0.16)
    assert factors.tolist() == [1.0] * 94 + [pytest.approx(2.0)] * 4 + [pytest.approx(4.0)] + [1.0]
    assert set(repeat_factors(labels, threshold=0.001)) == {1.0}
    assert images_of_classes(labels, num_classes=5).tolist() == [99, 4, 1, 0, 0]
    assert repeat_factors([np.array([], np.int64)]).tolist() == [1.0]


def test_chances_of_the_copies_add_up_to_the_factor() -> None:
    positions, chances = with_copies(np.array([1.0, 2.3, 1.5, 3.0]))
    assert positions == [0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert chances.tolist() == [1, 1, 1, pytest.approx(0.3), 1, 0.5, 1, 1, 1]


@given(
    st.lists(st.floats(1, 4), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 5),
    st.booleans(),
)
def test_every_image_occurs_as_often_as_its_factor_rounded_up_or_down(
    factors: list[float], batch_size: int, world_size: int, epoch: int, shuffle: bool
) -> None:
    positions, chances = with_copies(np.array(factors))
    options: Any = {"batch_size": batch_size, "shuffle": shuffle, "world_size": world_size, "seed": 1}
    samplers = [
        AspectRatioBatchSampler(length=len(positions), chances=chances, **options, rank=rank)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    ranks = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in ranks} == {len(samplers[0])}
    batches = [batch for step in zip(*ranks, strict=True) for batch in step]
    once = {tuple(batch) for batch in batches}  # to fill up, whole batches are repeated
    indices = [index for batch in once for index in batch]
    assert len(indices) == len(set(indices))
    counts = np.bincount([positions[index] for index in indices], minlength=len(factors))
    assert (np.floor(factors) <= counts).all()
    assert (counts <= np.ceil(factors)).all()
    assert sum(factors) - 1 - 1e-6 <= len(indices) <= sum(factors) + 1 + 1e-6


def test_the_mean_over_many_epochs_is_the_repeat_factor() -> None:
    factors = np.array([1.0, 1.25, 1.5, 2.1, 3.9, 1.0, 1.75])
    positions, chances = with_copies(factors)
    sampler = AspectRatioBatchSampler(length=len(positions), chances=chances, batch_size=1)
    counts, epochs = np.zeros(len(factors)), 3000
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        seen = {index for batch in sampler for index in batch}
        counts += np.bincount([positions[index] for index in seen], minlength=len(factors))
    # the standard deviation of each mean is at most 0.5 / sqrt(3000) = 0.009
    np.testing.assert_allclose(counts / epochs, factors, atol=0.04)


def test_epochs_with_chances_differ_and_can_resume() -> None:
    _, chances = with_copies(np.full(30, 1.5))
    sampler = AspectRatioBatchSampler(length=len(chances), chances=chances, batch_size=4)

    def batches(epoch: int, start: int = 0) -> list[list[int]]:
        sampler.set_epoch(epoch, start_batch=start)
        return list(sampler)

    assert batches(0) == batches(0)
    chosen = [sorted(index for batch in batches(epoch) for index in batch) for epoch in range(3)]
    assert chosen[0] != chosen[1] != chosen[2]
    assert [len(indices) for indices in chosen] == [45, 45, 45]
    assert batches(1, start=5) == batches(1)[5:]


def test_drop_last_with_chances() -> None:
    sampler = AspectRatioBatchSampler(length=5, chances=[1, 1, 1, 0.5, 0.25], batch_size=2, drop_last=True)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        assert [len(batch) for batch in sampler] == [2]
