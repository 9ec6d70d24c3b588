"""Rules of thumb that turn the statistics of a data set into settings; every constant says where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from detrkit.models.config import Input
from detrkit.training.task import MINIMUM_STEPS

__all__ = ["ImageSize", "Rates", "choose_image_size", "crop_reason", "ema_decay", "iterations", "queries"]

QUERY_STEPS = (50, 100, 200, 300, 500, 900, 1500)
HEADROOM = 1.3  # images to come may hold more objects than those at hand
MOST_REPEATED = 300  # queries that label augmentation was published with (DELA-DETR)
CROWDED = 500  # above so many queries a batch is taken in two halves

SMALL_PIXELS = 24  # what a small object should cover: three cells of the finest level, whose stride is 8
RARE = 0.02  # a class with a smaller share of the boxes does not decide the image size
MOST_SIDE = {True: 800, False: 480}  # with a GPU: as published; without: 2.25 times the time of 320 px
MOST_ENLARGED = 2.0  # beyond, more pixels show nothing new
MOST_ASPECT = 4.0  # images longer than 4:1 are made to fit the longest side instead

SCALES_DIFFER = 6.0  # 95th over 5th percentile of box sizes; blood cells, measured without crops, have 4
LARGER_THAN_NEEDED = 2.0

EPOCHS = 50  # of the published recipes
MOST_STEPS = {True: 100_000, False: 6_000}  # with a GPU; without: 6,000 steps of the default at 320 px take 5 h
SHORTEST_EPOCH = 50  # optimizer steps

BATCH = 4  # images per step
# A full-size model at 800 px takes about 2.6 GB an image in training (300 queries, measured on a CPU).
GIBIBYTES_FOR_BATCH = ((16.0, 4), (8.0, 2), (0.0, 1))


@dataclass(frozen=True)
class Rates:
    """Learning rates, the images per step that they belong to, and where they come from."""

    lr: float
    backbone: float
    batch: int
    source: str


LAPTOP_RATES = Rates(4e-4, 8e-5, 4, "measured with 205 images")  # recipes/de_detr/_base/blood_cells.yaml
PUBLISHED_RATES = Rates(1e-4, 1e-5, 8, "published")
SLOWER_SAMPLING = 10  # Deformable DETR: sampling offsets and reference points learn at a tenth of the rate


def queries(*, objects: int, repeat: int | None, least: int) -> int:
    """The model's own number, or the first usual one with room for every object of the fullest image and its copies."""
    wanted = math.ceil(objects * max(HEADROOM, repeat or 1))
    if wanted <= least:
        return least
    return max(least, next((step for step in QUERY_STEPS if step >= wanted), QUERY_STEPS[-1]))


def iterations(*, images: int, batch: int, gpu: bool) -> int:
    """Optimizer steps: 50 epochs, but at least 3,000 and at most what is bearable."""
    return min(max(MINIMUM_STEPS, math.ceil(EPOCHS * images / batch)), MOST_STEPS[gpu])


def ema_decay(steps: int) -> float:
    """An average over about the last fifth of the run (measured: 0.998 for 2,400 steps, 0.99 for 500)."""
    return round(min(max(1 - 5 / steps, 0.9), 0.9998), 4)


def crop_reason(*, shorter: float, short_side: int, spread: float) -> str | None:
    """Why crops are worth their padding, or None. spread: ratio of large to small objects."""
    if spread >= SCALES_DIFFER:
        return f"large objects are {spread:.0f} times the size of small ones"
    if shorter >= LARGER_THAN_NEEDED * short_side:
        return f"the images have {shorter:.0f} px where {short_side} are used"
    return None


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Sides in pixels: of evaluation and of training, and what held the size back ("" = nothing)."""

    short_side: int
    max_side: int
    train_short_sides: tuple[int, ...]
    train_max_side: int
    held_back: str


def choose_image_size(own: Input, *, small: float, shorter: float, aspect: float, most: int) -> ImageSize:
    """The model's own image size, or a larger one where objects are small.

    small: size of a small object over its image's shorter side · shorter: usual shorter side of the images · aspect:
    longer over shorter side that most images stay below · most: shorter side that time and memory allow.

    Longer images than usual get a longer longest side, within the pixels of an image of side ``most``.
    """
    side, ratio = own.eval_short_side, own.eval_max_side / own.eval_short_side
    limit = max(side, most)
    wanted = 32 * math.ceil(SMALL_PIXELS / small / 32)
    bound = max(side, 32 * math.floor(MOST_ENLARGED * shorter / 32))
    short = max(side, min(wanted, limit, bound))
    held_back = ""
    if short < wanted:
        held_back = (
            f"{MOST_ENLARGED:.0f} times their own size" if bound <= limit else f"the {limit} px that time allows"
        )
    longest = max(ratio, min(aspect, MOST_ASPECT))
    short = min(short, 16 * math.floor(math.sqrt(limit * limit * ratio / longest) / 16)) if longest > ratio else short
    scale = short / side
    return ImageSize(
        short_side=short,
        max_side=round(short * longest),
        train_short_sides=tuple(_scaled(each, scale) for each in own.train_short_sides),
        train_max_side=round(own.train_max_side * scale * longest / ratio),
        held_back=held_back,
    )


def _scaled(side: int, scale: float) -> int:
    return side if scale == 1 else 16 * max(1, round(side * scale / 16))
