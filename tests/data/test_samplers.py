"""Every index once an epoch over all ranks, like shapes together, and the same order again after a resume."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    count = -(-len(aspects) // batch_size)  # batches there are
    assert {len(batches) for batches in ranks} == {len(samplers[0])} == {-(-count // world_size)}
    turns = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert Counter(index for batch in turns[:count] for index in batch) == dict.fromkeys(range(len(aspects)), 1)
    for extra, batch in enumerate(turns[count:]):  # the padding rule: the first batches again
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
def test_resuming_gives_the_tail(aspects: list[float], done: int) -> None:
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


def test_like_shapes_share_batches() -> None:
    aspects = [0.4, 0.7, 1.0, 1.5, 3.0] * 20
    sampler = AspectRatioBatchSampler(aspect_ratios=aspects, batch_size=4)
    assert all(len({aspects[index] for index in batch}) == 1 for batch in sampler)
    mixed = AspectRatioBatchSampler(aspect_ratios=aspects[:-1], batch_size=4)
    assert sum(len({aspects[index] for index in batch}) > 1 for batch in mixed) <= 1


def test_impossible_layouts() -> None:
    with pytest.raises(ValueError, match="aspect_ratios or length"):
        AspectRatioBatchSampler(batch_size=1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        AspectRatioBatchSampler(length=4, batch_size=1, rank=2, world_size=2)
    with pytest.raises(DataError, match="0 images"):
        AspectRatioBatchSampler(length=0, batch_size=1)
