"""Batches of images with similar aspect ratios.

They depend neither on the number of workers nor on resuming.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from detrkit.errors import DataError

__all__ = ["AspectRatioBatchSampler"]

# Width / height between the groups: tall, portrait, nearly square, 4:3 to 16:9, panoramic.
_GROUP_EDGES = (0.5, 0.8, 1.25, 2.0)


class AspectRatioBatchSampler(Sampler[list[int]]):
    """Index lists for a loader: batches of images with similar aspect ratios, which need little padding.

    An epoch contains every index once, in ceil(N / batch_size) batches (with ``drop_last``: N // batch_size), which are
    distributed over the ranks in turn. If their number is not a multiple of the number of ranks, the first batches are
    repeated (with ``drop_last``: the last ones are dropped), so that all ranks make the same number of steps. The order
    depends only on (seed, epoch).

    Args:
        aspect_ratios: width / height of every image, or None to batch in any order (then pass ``length``).
        length: the number of images if ``aspect_ratios`` is None.
        chances: probability that an epoch contains each index; None: every epoch contains all. The indices are drawn
            in every epoch, but their number and the number of batches stay the same (up to rounding: the first batch
            is repeated if one is missing).
        batch_size: images per batch and rank.
        seed: the seed of the order.
        shuffle: whether to shuffle; otherwise images stay in order within their groups.
        drop_last: whether to drop incomplete batches.
        rank: the index of this process.
        world_size: the number of processes.

    Raises:
        ValueError: neither ``aspect_ratios`` nor ``length`` is given, or batch_size, rank or world_size is invalid.
        DataError: there are too few images for one batch per process.
    """

    def __init__(
        self,
        *,
        aspect_ratios: Sequence[float] | None = None,
        length: int | None = None,
        chances: Sequence[float] | NDArray[np.float64] | None = None,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if aspect_ratios is None and length is None:
            raise ValueError("give aspect_ratios or length")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size} or rank {rank} of {world_size} is out of range")
        ratios = np.ones(length or 0) if aspect_ratios is None else np.asarray(aspect_ratios, dtype=np.float64)
        self._groups = np.digitize(ratios, _GROUP_EDGES)
        self._chances = None if chances is None else np.asarray(chances, dtype=np.float64)
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start_batch = 0
        if not len(self):
            raise DataError(
                f"{len(self._groups)} images are too few for a batch of {batch_size} on each of {world_size} "
                "processes; lower batch_size"
            )

    def __len__(self) -> int:
        """The number of batches of a full epoch on this rank, also after resuming within the epoch."""
        count = len(self._groups) if self._chances is None else float(self._chances.sum())
        if self.drop_last:
            return int(count) // self.batch_size // self.world_size
        batches = -(-math.ceil(count) // self.batch_size)
        return -(-batches // self.world_size)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Set the next epoch. start_batch: skip this many batches, which were done before an interruption."""
        self.epoch, self.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._epoch_batches()
        total = len(self) * self.world_size
        batches = [batches[index % len(batches)] for index in range(total)]
        yield from batches[self.rank :: self.world_size][self.start_batch :]

    def _epoch_batches(self) -> list[list[int]]:
        generator = np.random.default_rng([self.seed & 0xFFFFFFFF, self.epoch])
        count = len(self._groups)
        order = generator.permutation(count) if self.shuffle else np.arange(count)
        if self._chances is not None:
            order = order[_systematic_sample(self._chances[order], generator.random())]
        batches: list[list[int]] = []
        open_batches: dict[int, list[int]] = {}
        for index in order.tolist():
            batch = open_batches.setdefault(int(self._groups[index]), [])
            batch.append(index)
            if len(batch) == self.batch_size:
                batches.append(open_batches.pop(int(self._groups[index])))
        rest = [index for group in sorted(open_batches) for index in open_batches[group]]
        leftover = [rest[start : start + self.batch_size] for start in range(0, len(rest), self.batch_size)]
        if self.drop_last and leftover and len(leftover[-1]) < self.batch_size:
            leftover.pop()
        batches += leftover
        if self.shuffle:  # otherwise every epoch would end with the mixed batches
            batches = [batches[position] for position in generator.permutation(len(batches))]
        return batches


def _systematic_sample(chances: NDArray[np.float64], offset: float) -> NDArray[np.bool_]:
    """Systematic sampling: select every entry with its own probability.

    The number of selected entries is the sum of the probabilities, rounded up or down. An entry with a probability
    below 1 is selected if its interval of the cumulative sum contains one of offset, offset + 1, …; offset is uniform
    in [0, 1).
    """
    selected = chances >= 1
    ends = np.cumsum(chances[~selected])
    starts = np.concatenate([np.zeros(1), ends[:-1]])[: len(ends)]
    selected[~selected] = np.floor(ends + offset) > np.floor(starts + offset)
    return selected
