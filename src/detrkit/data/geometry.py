"""Where the pixels of a transformed image lie in the original.

Crops, flips and resizes move each axis on its own, so any number of them is one offset and one step per axis. Masks are
therefore drawn once, at the end, from polygons or from the original pixels: nothing is resampled twice, and no mask
exists at another size than the final one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "Geometry"]


@dataclass(frozen=True)
class Axis:
    """One axis of a transformed image: its position p lies at ``offset + step * p`` in the original.

    Attributes:
        length: in pixels.
        offset: where the axis begins in the original.
        step: original pixels per pixel, negative after a flip.
        low: where the part of the original begins that no crop has removed.
        high: where it ends.
    """

    length: int
    offset: float
    step: float
    low: float
    high: float

    @classmethod
    def whole(cls, length: int) -> Axis:
        """An axis of the original."""
        return cls(length, 0.0, 1.0, 0.0, length)

    def cropped(self, start: int, length: int) -> Axis:
        """``length`` pixels from ``start`` on; what earlier crops cut off does not come back."""
        ends = self.offset + self.step * start, self.offset + self.step * (start + length)
        return Axis(length, ends[0], self.step, max(self.low, min(ends)), min(self.high, max(ends)))

    def flipped(self) -> Axis:
        """The same pixels in reverse order."""
        return replace(self, offset=self.offset + self.step * self.length, step=-self.step)

    def resized(self, length: int) -> Axis:
        """The same part of the original in another number of pixels."""
        return replace(self, length=length, step=self.step * self.length / length)

    def sources(self) -> NDArray[np.int64]:
        """(length,) the original pixel at the centre of each pixel; -1 where there is none."""
        places = self.offset + self.step * (np.arange(self.length) + 0.5)
        return np.where((places >= self.low) & (places < self.high), np.floor(places).astype(np.int64), -1)

    def positions(self, original: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions in the original as positions on this axis."""
        return (original - self.offset) / self.step


@dataclass(frozen=True)
class Geometry:
    """Both axes of a transformed image."""

    y: Axis
    x: Axis

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Geometry:
        """An original of this size (width, height), untransformed."""
        return cls(y=Axis.whole(size[1]), x=Axis.whole(size[0]))

    def cropped(self, region: tuple[int, int, int, int]) -> Geometry:
        """Cut to (top, left, height, width)."""
        top, left, height, width = region
        return Geometry(self.y.cropped(top, height), self.x.cropped(left, width))

    def resized(self, height: int, width: int) -> Geometry:
        """Resized to another number of pixels."""
        return Geometry(self.y.resized(height), self.x.resized(width))

    def flipped(self, *, vertically: bool = False) -> Geometry:
        """Mirrored, left to right or top to bottom."""
        return replace(self, y=self.y.flipped()) if vertically else replace(self, x=self.x.flipped())
