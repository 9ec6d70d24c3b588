"""Batches of images of like shape, the same for every number of workers and after every resume; and how often an epoch
shows an image of rare classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from detrkit.errors import DataError

__all__ = ["AspectRatioBatchSampler", "images_of_classes", "repeat_factors", "with_copies"]

# Width / height at which one group ends and the next begins: tall, upright, squarish, 4:3 to 16:9, panoramic.
_GROUP_EDGES = (0.5, 0.8, 1.25, 2.0)


def images_of_classes(labels: Sequence[NDArray[np.int64]], *, num_classes: int = 0) -> NDArray[np.int64]:
    """How many images have each class (num_classes or more of them), from the labels of the objects of every image."""
    present = [np.unique(of_image) for of_image in labels]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *present]), minlength=num_classes)


def repeat_factors(labels: Sequence[NDArray[np.int64]], *, threshold: float = 0.001) -> NDArray[np.float64]:
    """How often an epoch shows each image, on average (repeat factor sampling; Gupta et al., LVIS).

    r_i = max over the classes c of image i of max(1, sqrt(threshold / f_c)), f_c the part of the images that have
    class c; 1 for images without objects.

    labels: of the objects of every image.
    """
    of_class = np.sqrt(threshold * len(labels) / np.maximum(images_of_classes(labels), 1))
    return np.asarray([of_class[of_image].max(initial=1.0) for of_image in labels])


def with_copies(factors: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]]:
    """Each position as many times as its factor, rounded up, and how likely an epoch has each copy.

    Copies have indices of their own, and so augmentation of their own. 2.3 gives three, with chances 1, 1 and 0.3.
    """
    times = np.ceil(factors).astype(np.int64)
    positions = np.repeat(np.arange(len(factors)), times)
    copy = np.arange(len(positions)) - np.repeat(np.cumsum(times) - times, times)
    return positions.tolist(), np.minimum(1.0, factors[positions] - copy)


class AspectRatioBatchSampler(Sampler[list[int]]):
    """Index lists for a loader: images of like aspect ratio together, so that little is padded.

    An epoch has every index once, in ceil(N / batch_size) batches (with ``drop_last``: N // batch_size), which the
    ranks take in turn. Where they cannot be shared evenly, the first batches are given out again (with ``drop_last``:
    the last ones are dropped), so that all ranks make the same number of steps. The order depends on (seed, epoch)
    alone; without ``shuffle`` images stay in order within their groups.

    aspect_ratios: width / height of every image, or None to batch in any order (then pass ``length``) · chances: how
    likely an epoch has each index, None for always. Which it has is drawn anew every epoch; how many, and so the number
    of batches, is always the same (up to rounding: where one is missing, the first batch is given out again).
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
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}: not a batch layout")
        ratios = np.ones(length or 0) if aspect_ratios is None else np.asarray(aspect_ratios, dtype=np.float64)
        self._groups = np.digitize(ratios, _GROUP_EDGES)
        self._chances = None if chances is None else np.asarray(chances, dtype=np.float64)
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start_batch = 0
        if not len(self):
            raise DataError(
                f"{len(self._groups)} images make no batch of {batch_size} for each of {world_size} processes; "
                "lower batch_size"
            )

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, wherever it was resumed."""
        count = len(self._groups) if self._chances is None else float(self._chances.sum())
        if self.drop_last:
            return int(count) // self.batch_size // self.world_size
        batches = -(-math.ceil(count) // self.batch_size)
        return -(-batches // self.world_size)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the coming epoch; ``start_batch`` leaves out as many batches as were done before an interruption."""
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
            order = order[_drawn(self._chances[order], generator.random())]
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
        if self.shuffle:  # otherwise mixed batches would always end the epoch
            batches = [batches[position] for position in generator.permutation(len(batches))]
        return batches


def _drawn(chances: NDArray[np.float64], offset: float) -> NDArray[np.bool_]:
    """Which entries are in: each with its own chance, while their number is the sum of the chances, rounded up or down.

    Laid end to end on a line, the chances below 1 are hit where the line crosses offset, offset + 1, … (systematic
    sampling; offset is uniform in [0, 1)).
    """
    drawn = chances >= 1
    line = np.cumsum(chances[~drawn])
    before = np.concatenate([np.zeros(1), line[:-1]])
    drawn[~drawn] = np.floor(line + offset) > np.floor(before[: len(line)] + offset)
    return drawn
