"""Rules of thumb from the statistics of a data set to settings, with the origin of every constant."""

from __future__ import annotations

import math
from dataclasses import dataclass

from detrkit.models.config import Input
from detrkit.training.task import MINIMUM_STEPS

__all__ = [
    "ImageSize",
    "Rates",
    "choose_image_size",
    "crop_reason",
    "ema_decay",
    "iterations",
    "queries",
    "side_for_minutes",
]

QUERY_STEPS = (50, 100, 200, 300, 500, 900, 1500)
HEADROOM = 1.3  # new images may have more objects than the training images
MAX_REPEATED_QUERIES = 300  # number of queries in the published label augmentation (DELA-DETR)
CROWDED = 500  # with more queries, gradients are accumulated over two halves of a batch

SMALL_PIXELS = 24  # desired size of a small object: three cells of the finest level (stride 8)
RARE = 0.02  # a class with a smaller share of the boxes does not decide the image size
MAX_SIDE = {True: 800, False: 480}  # with a GPU: as published; without: 2.25 times the time of 320 px
# Of a run planned by minutes without a GPU: a laptop model takes about 3 s for a step of 4 images of 320 px (5 h for
# 6,000 steps), in proportion to the pixels. With fewer steps a run has hardly begun at any size: 5 minutes had 43 steps
# at 352 px, and 200 steps at 160 px give blood cells AP 0.3.
SECONDS_AT_320, STEPS_OF_A_SHORT_RUN, LEAST_SIDE = 3.0, 300, 160
MAX_ENLARGEMENT = 2.0  # further upsampling adds no detail
MAX_ASPECT = 4.0  # images longer than 4:1 are resized by their longest side instead

SCALES_DIFFER = 6.0  # 95th over 5th percentile of box sizes; blood cells, measured without crops, have 4
LARGER_THAN_NEEDED = 2.0

EPOCHS = 50  # as in the published recipes
MAX_STEPS = {True: 100_000, False: 6_000}  # with a GPU; without: 6,000 steps of the default at 320 px take 5 h
MIN_EPOCH_STEPS = 50  # optimizer steps

BATCH = 4  # images per step
# A full-size model at 800 px takes about 2.6 GB per image in training (300 queries, measured on a CPU).
GIBIBYTES_FOR_BATCH = ((16.0, 4), (8.0, 2), (0.0, 1))


@dataclass(frozen=True)
class Rates:
    """Learning rates for a batch size, and their origin."""

    lr: float
    backbone: float
    batch: int
    source: str


LAPTOP_RATES = Rates(4e-4, 8e-5, 4, "measured with 205 images")  # recipes/de_detr/_base/blood_cells.yaml
PUBLISHED_RATES = Rates(1e-4, 1e-5, 8, "published")
SLOWER_SAMPLING = 10  # Deformable DETR: sampling offsets and reference points learn at a tenth of the rate


def queries(*, objects: int, repeat: int | None, minimum: int) -> int:
    """Number of queries: the model's own, or the first usual number that is enough for all objects and their copies.

    Args:
        objects: number of objects in the most crowded image.
        repeat: copies of each object with label repeat.
        minimum: the model's own number of queries.
    """
    wanted = math.ceil(objects * max(HEADROOM, repeat or 1))
    if wanted <= minimum:
        return minimum
    return max(minimum, next((step for step in QUERY_STEPS if step >= wanted), QUERY_STEPS[-1]))


def iterations(*, images: int, batch: int, gpu: bool) -> int:
    """Optimizer steps: 50 epochs, but at least 3,000 and at most :data:`MAX_STEPS`."""
    return min(max(MINIMUM_STEPS, math.ceil(EPOCHS * images / batch)), MAX_STEPS[gpu])


def ema_decay(steps: int) -> float:
    """Decay for an average over about the last fifth of the run (measured: 0.998 for 2,400 steps, 0.99 for 500)."""
    return round(min(max(1 - 5 / steps, 0.9), 0.9998), 4)


def crop_reason(*, shorter: float, short_side: int, spread: float) -> str | None:
    """The reason for crops, or None. ``spread``: ratio of large to small object sizes."""
    if spread >= SCALES_DIFFER:
        return f"large objects are {spread:.0f} times the size of small ones"
    if shorter >= LARGER_THAN_NEEDED * short_side:
        return f"the images have {shorter:.0f} px where {short_side} are used"
    return None


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Image sides in pixels for evaluation and training; ``wanted``: the shorter side but for few minutes."""

    short_side: int
    wanted: int
    max_side: int
    train_short_sides: tuple[int, ...]
    train_max_side: int
    limited_by: str
    """What prevented a larger size; empty where nothing did."""


def side_for_minutes(minutes: float) -> int:
    """The shorter side with which a laptop model has :data:`STEPS_OF_A_SHORT_RUN` steps in so many minutes."""
    side = 320 * math.sqrt(60 * minutes / (SECONDS_AT_320 * STEPS_OF_A_SHORT_RUN))
    return max(LEAST_SIDE, 32 * math.floor(side / 32))


def choose_image_size(
    own: Input, *, small: float, shorter: float, aspect: float, max_side: int, in_time: int | None = None
) -> ImageSize:
    """The model's own image size, or a larger one for small objects.

    For long images the longest side is increased, within the number of pixels of an image of shorter side ``max_side``.

    Args:
        own: image sizes of the model.
        small: size of a small object divided by the shorter side of its image.
        shorter: median shorter side of the images.
        aspect: longer side divided by shorter side, not exceeded by most images.
        max_side: largest shorter side that time and memory allow.
        in_time: the same for a run of few minutes, which may be below the model's own; None: no such limit.
    """
    side, ratio = own.eval_short_side, own.eval_max_side / own.eval_short_side
    limit = max(side, max_side)
    wanted = 32 * math.ceil(SMALL_PIXELS / small / 32)
    bound = max(side, 32 * math.floor(MAX_ENLARGEMENT * shorter / 32))
    short = max(side, min(wanted, limit, bound))
    limited_by = ""
    if short < wanted:
        limited_by = (
            f"{MAX_ENLARGEMENT:.0f} times their own size" if bound <= limit else f"the {limit} px that time allows"
        )
    longest = max(ratio, min(aspect, MAX_ASPECT))
    short = min(short, 16 * math.floor(math.sqrt(limit * limit * ratio / longest) / 16)) if longest > ratio else short
    unhurried = short
    if in_time is not None and in_time < short:
        short, limited_by = in_time, "what the minutes allow"
    scale = short / side
    return ImageSize(
        short_side=short,
        wanted=unhurried,
        max_side=round(short * longest),
        train_short_sides=tuple(_scaled(one, scale) for one in own.train_short_sides),
        train_max_side=round(own.train_max_side * scale * longest / ratio),
        limited_by=limited_by,
    )


def _scaled(side: int, scale: float) -> int:
    return side if scale == 1 else 16 * max(1, round(side * scale / 16))
