"""Means of losses between two log lines, over micro-batches and processes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from detrkit.structures import Batch

__all__ = ["Meter", "contents"]


def contents(group: Sequence[Batch]) -> dict[str, float]:
    """Objects of a step on this process, and width and height of its largest padded batch."""
    height, width = max((tuple(batch.images.shape[-2:]) for batch in group), key=lambda size: size[0] * size[1])
    objects = sum(len(target) for batch in group for target in batch.targets)
    return {"objects": objects, "width": width, "height": height}


class Meter:
    """Sums of losses on the device; they are copied to the host only for a row."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.clear()

    def clear(self) -> None:
        """Forget what was added since the last row."""
        self._sums: dict[str, Tensor] = {}
        self._steps = self._images = 0
        self._start = time.monotonic()

    def add(self, terms: Mapping[str, Tensor], share: float) -> None:
        """Add one micro-batch. Losses are normalised by the whole batch and summed; other terms are averaged."""
        for name, value in terms.items():
            part = value.detach().float() * (1.0 if name.startswith("loss") else share)
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def step(self, loss: Tensor, images: int) -> None:
        """End an optimizer step, with its total loss and the number of images of this process."""
        self.add({"loss": loss}, 1.0)
        self._steps += 1
        self._images += images

    def pause(self, seconds: float) -> None:
        """Exclude time that was not spent on training."""
        self._start += seconds

    def row(self) -> dict[str, float]:
        """Means per step since the last row, the same on every process; resets the sums."""
        # a process without objects has no denoising losses, but all processes must exchange the same terms
        names = sorted(set(gather_object(sorted(self._sums))))
        zero = torch.zeros_like(self._sums["loss"])
        values = torch.stack([self._sums.get(name, zero) for name in names]) / max(1, self._steps)
        means = (self._accelerator.reduce(values, reduction="sum") / self._accelerator.num_processes).tolist()
        seconds = max(1e-9, time.monotonic() - self._start)
        speed = self._images * self._accelerator.num_processes / seconds
        row = dict(zip(names, means, strict=True))
        self.clear()
        return {"loss": row.pop("loss"), **row, "images_per_second": round(speed, 2)}
