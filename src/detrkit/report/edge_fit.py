"""Whether labelled boxes lie on the edges of what they show, all beside it by the same few pixels, or anywhere.

A model cannot tell: it learns boxes that are moved like any others, and is scored on boxes that are moved alike. Boxes
of another image, or drawn on a picture of another size, shape or orientation, have edges near them as anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["EdgeFit", "edge_fit"]

REACH = 32
"""Pixels by which boxes are moved at most, in each direction."""

_LEAST_BOXES = 30
_LEAST_MOVE = 4.0  # pixels
_LEAST_GAIN = 0.25  # standard deviations over the moves of a box, in the mean over the boxes, and …
_CHANCE_GAIN = 6.0  # … over the root of the number of boxes: chance makes up to 4 of it (measured)
_ANYWHERE_BOXES = 60
_ANYWHERE = 2.1  # times the root of the number of boxes: wrong frames have up to 1.9, 85 sound boxes 2.5 (measured)
_CLEAR = 0.2


class EdgeFit(NamedTuple):
    """How boxes fit edges: the move that fits them best, and how much better it does."""

    dx: float
    dy: float
    gain: float
    """Edge strength under the sides of moved boxes, less that under boxes with the same middle (as large as fits best),
    in standard deviations over all places of a side, in the mean over the boxes and summed over the sides."""

    boxes: int

    contrast: float
    """How much the mean strength of edges differs from move to move (standard deviation, mean over the sides): near 0
    where edges do not follow the boxes."""

    @property
    def is_off(self) -> bool:
        """Whether the boxes lie beside what they show."""
        moved = max(abs(self.dx), abs(self.dy)) >= _LEAST_MOVE
        least = max(_LEAST_GAIN, _CHANCE_GAIN / math.sqrt(max(1, self.boxes)))
        return moved and self.boxes >= _LEAST_BOXES and self.gain >= least and not self.is_anywhere

    @property
    def is_anywhere(self) -> bool:
        """Whether edges follow the boxes no more than chance would make them."""
        chance = _ANYWHERE / math.sqrt(max(1, self.boxes))
        return self.boxes >= _ANYWHERE_BOXES and self.contrast < min(_CLEAR, chance)


def edge_fit(pictures: Iterable[tuple[Image.Image, NDArray[np.float64]]]) -> EdgeFit:
    """The move of all boxes that puts their sides on the strongest edges; boxes may be too large or too small.

    Args:
        pictures: images with their boxes (N, 4) xyxy in pixels.
    """
    moves = np.arange(-REACH, REACH + 1)
    left, top, right, bottom = profiles = np.zeros((4, len(moves)))
    count = 0
    for picture, boxes in pictures:
        gray = np.asarray(picture.convert("L"), dtype=np.float32)
        beside = _along(np.abs(np.diff(gray, axis=1, prepend=gray[:, :1])))
        above = _along(np.abs(np.diff(gray, axis=0, prepend=gray[:1])).T)
        for x1, y1, x2, y2 in np.rint(boxes).astype(np.int64).tolist():
            if min(x2 - x1, y2 - y1) < 4 or not _inside((x1, y1, x2, y2), gray.shape):
                continue
            sides = (
                _profile(beside, x1 + moves, y1, y2),
                _profile(above, y1 + moves, x1, x2),
                _profile(beside, x2 + moves, y1, y2),
                _profile(above, y2 + moves, x1, x2),
            )
            profiles += sides
            count += any(side.any() for side in sides)  # a plain picture says nothing
    dx, gain_x = _move(left, right)
    dy, gain_y = _move(top, bottom)
    contrast = float(profiles.std(axis=1).mean()) / max(1, count)
    return EdgeFit(dx=dx, dy=dy, gain=(gain_x + gain_y) / max(1, count), boxes=count, contrast=contrast)


def _along(strength: NDArray[np.float32]) -> NDArray[np.float64]:
    """(H + 1, W) sums from the top, of strengths that reach one pixel to both sides."""
    wide = np.maximum(strength, np.maximum(np.roll(strength, 1, axis=1), np.roll(strength, -1, axis=1)))
    return np.concatenate([np.zeros((1, wide.shape[1])), np.cumsum(wide, axis=0, dtype=np.float64)])


def _profile(sums: NDArray[np.float64], places: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float64]:
    """Strength of edges under a side at each of these places, with mean 0 and standard deviation 1."""
    strength = sums[stop, places] - sums[start, places]
    spread = float(strength.std())
    return (strength - strength.mean()) / spread if spread > 0 else np.zeros(len(places))


def _move(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """The move of the middle between two sides with these profiles, and what is gained over keeping the middle."""
    best_first, best_second = int(first.argmax()), int(second.argmax())
    kept = float((first + second[::-1]).max())  # one side out by as much as the other
    return (best_first + best_second) / 2 - REACH, float(first[best_first] + second[best_second]) - kept


def _inside(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> bool:
    """Whether the box stays in the image for every move."""
    height, width = shape
    x1, y1, x2, y2 = box
    return x1 >= REACH and y1 >= REACH and x2 < width - REACH and y2 < height - REACH
