"""``training.batch_size: auto``: as many images at once as the memory has room for, by the peak of measured steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from detrkit.config import Recipe
from detrkit.data import collate
from detrkit.data.transforms import TrainTransform
from detrkit.errors import RunError
from detrkit.structures import Sample
from detrkit.terminal import say
from detrkit.training.memory import PeakMemory, memory_left
from detrkit.training.rehearsal import optimizer_bytes, without_trace
from detrkit.training.task import Task

__all__ = ["fit_batch", "largest_batch"]

SHARE = 0.85  # of the free memory: fragments and other batches need some too
MOST = 64  # images; larger batches save no time any more


def fit_batch(recipe: Recipe, task: Task, accelerator: Accelerator) -> Recipe:
    """The recipe with a batch size in place of ``auto``, and with ``accumulate`` where the total batch is given.

    ``optimizer.lr_batch_size`` is the total of images of a step: the batch is its largest divisor that fits, and the
    rest is accumulated, so that no result depends on the memory. Without it the batch is the largest power of two.

    Raises:
        RunError: not even one image fits.
    """
    world, total = accelerator.num_processes, recipe.optimizer.lr_batch_size
    wanted = max(1, total // world) if total is not None else min(MOST, max(1, len(task.train_data) // world))
    fitting, words = _measured(recipe, task, accelerator, most=wanted)
    fitting = min(gather_object([fitting]))  # the smallest memory decides
    if fitting < 1:
        raise RunError(f"training.batch_size = auto: {words}: not even one image fits; lower data.short_sides")
    if total is None:
        batch, parts = 2 ** int(np.log2(fitting)), recipe.training.accumulate
    else:
        batch = max(size for size in range(1, min(fitting, wanted) + 1) if wanted % size == 0)
        parts = wanted // batch
    say(f"training.batch_size = {batch}, accumulate = {parts}: {words}")
    return recipe.updated(training={"batch_size": batch, "accumulate": parts})


def largest_batch(peaks: dict[int, int], *, room: float, most: int) -> int:
    """The largest batch whose peak fits into the room, by a line through two measured ones; 0: none.

    Args:
        peaks: number of images -> bytes of a step beyond what was in use before, for two numbers, or for one.
        room: bytes.
        most: images at most.
    """
    few, many = min(peaks), max(peaks)
    per_image = (peaks[many] - peaks[few]) / (many - few) if many > few else peaks[few] / few
    per_image = max(per_image, 0.25 * peaks[few] / few)  # noise must not make further images free
    if per_image <= 0:  # a tiny model, or memory that the process had already: nothing to be seen
        return most if room > 0 else 0
    return int(max(0, min(most, few + (room - peaks[few]) // per_image)))


def _measured(recipe: Recipe, task: Task, accelerator: Accelerator, *, most: int) -> tuple[int, str]:
    """(largest batch that fits, how it was found, in words)."""
    device = accelerator.device
    model = task.model.to(device)
    copies = optimizer_bytes(value for value in model.parameters() if value.requires_grad)
    if recipe.training.ema:
        copies += sum(value.nbytes for value in model.parameters())
    free = memory_left(device)
    room = SHARE * free - copies
    peaks: dict[int, int] = {}
    try:
        with without_trace(model):
            samples = _largest_samples(task)
            _peak(task, accelerator, samples[:1])  # warms up: libraries and their workspaces
            for images in (1, 2) if most < 4 else (2, 4):
                peaks[images] = _peak(task, accelerator, [samples[place % 2] for place in range(images)])
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
    words = ", ".join(f"{images} images {peak / 1e9:.2f} GB" for images, peak in peaks.items())
    words = f"a step took at its peak {words}" if peaks else "no step"
    words += f"; {free / 1e9:.1f} GB are free, of which the optimizer needs {copies / 1e9:.2f}"
    return (largest_batch(peaks, room=room, most=most) if peaks else int(room > 0)), words


def _largest_samples(task: Task) -> list[Sample]:
    """The training image with the most objects and the one with the most pixels, as large as training makes them."""
    data, records = task.train_data, task.train_data.records
    transform = data.transform
    if isinstance(transform, TrainTransform):
        transform = replace(transform, short_sides=(max(transform.short_sides),), crop=False)
        data = data.with_transform(transform)
    aspects = [max(one.width, one.height) / min(one.width, one.height) for one in records]
    objects = [len(one.labels) for one in records]
    return [data[int(np.argmax(objects))], data[int(np.argmax(aspects))]]


def _peak(task: Task, accelerator: Accelerator, samples: list[Sample]) -> int:
    """Bytes that a forward and a backward pass need at their peak, gradients included."""
    model, criterion, device = task.model, task.criterion, accelerator.device
    model.train()
    model.zero_grad(set_to_none=True)
    batch = collate(samples, size_divisor=model.config.input.size_divisor).to(device)
    with PeakMemory(device) as memory:
        targets = criterion.prepare(batch.targets)
        with accelerator.autocast():
            predictions = model(batch.images, batch.padding_mask, batch.targets)
        criterion(predictions, targets, counts=criterion.count(targets)).total.backward()
    return memory.peak - memory.before
