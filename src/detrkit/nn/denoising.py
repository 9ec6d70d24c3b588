"""Denoising queries, in training only: ground truth with noisy labels and boxes, which the decoder must denoise.

The object of each query is known, so there is no matching. DN-DETR (Li et al., CVPR 2022, section 4) adds several
copies of every object near its true box. DINO (Zhang et al., ICLR 2023, section 3.3) adds pairs: a positive near the
true box and a negative farther away, which must be classified as background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from detrkit.nn.queries import MATCHING, Queries
from detrkit.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from detrkit.structures import Target

__all__ = ["ContrastiveDenoising", "Denoising", "DenoisingOptions", "Noise", "draw_noise"]


@dataclass(frozen=True)
class Noise:
    """Random draws for N copies of objects."""

    flip: Tensor
    """(N,) bool, whether the label is replaced."""

    labels: Tensor
    """(N,) int64, the replacement."""

    signs: Tensor
    """(N, 4), -1 or 1."""

    magnitudes: Tensor
    """(N, 4) in [0, 1)."""


def draw_noise(entries: int, num_classes: int, flip_probability: float, device: torch.device) -> Noise:
    """Draw noise from torch's generator."""
    return Noise(
        flip=torch.rand(entries, device=device) < flip_probability,
        labels=torch.randint(0, num_classes, (entries,), device=device),
        signs=torch.randint(0, 2, (entries, 4), device=device).float() * 2 - 1,
        magnitudes=torch.rand(entries, 4, device=device),
    )


class DenoisingOptions(TypedDict):
    """Arguments shared by both kinds of denoising, see :class:`Denoising`."""

    num_classes: int
    dim: int
    label_rows: int
    label_noise: float
    box_noise: float
    mask_unused: bool
    max_queries: int | None


class Denoising(nn.Module):
    """Denoising queries of DN-DETR.

    Args:
        num_classes, dim: classes and width of the model.
        label_rows: rows of the label table (DINO: one more than classes).
        number: copies of every object, one per group; groups do not see each other. 0 makes no queries.
        label_noise: probability that the label of a copy is replaced by a random one.
        box_noise: maximum shift of a centre, in units of half a side, and maximum relative change of a side.
        indicator: the last channel is 1 for denoising and 0 for matching queries; the label table has one channel less.
        mask_unused: exclude the empty slots of images with fewer objects from attention and loss. Published: included.
        max_queries: maximum number of queries per image. An image with too many objects uses a random choice of them;
            the losses are still divided by the number of all objects. None (published): no maximum.
        draw: makes the noise; can be replaced to repeat recorded runs.
    """

    copies_per_group = 1

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        label_rows: int,
        number: int = 5,
        label_noise: float = 0.2,
        box_noise: float = 0.4,
        indicator: bool = False,
        mask_unused: bool = False,
        max_queries: int | None = None,
        draw: Callable[[int, int, float, torch.device], Noise] = draw_noise,
    ) -> None:
        super().__init__()
        self.label_encoder = nn.Embedding(label_rows, dim - indicator)
        self.num_classes, self.number, self.indicator = num_classes, number, indicator
        self.label_noise, self.box_noise = label_noise, box_noise
        self.mask_unused, self.max_queries = mask_unused, max_queries
        self.draw = draw

    def forward(self, targets: list[Target]) -> Queries | None:
        """Make queries for the objects of a batch; None if it has no objects.

        All images have the same number of slots; slots beyond the objects of an image are empty. The queries see the
        matching queries, as in the training of the published DINO.
        """
        image, slot, objects, labels, boxes = self._objects(targets)
        if len(objects) == 0 or self.number == 0:
            return None
        device, batch = boxes.device, len(targets)
        max_objects = int(slot.max()) + 1  # slots are on the CPU: no device synchronisation
        groups = self._groups(max_objects)
        copies = groups * self.copies_per_group
        copy = torch.arange(copies).repeat_interleave(len(objects))
        image, slot, objects = (index.repeat(copies) for index in (image, slot, objects))
        labels, boxes = labels.repeat(copies), boxes.repeat(copies, 1)
        positive = copy % self.copies_per_group == 0

        noise = self.draw(len(labels), self.num_classes, self.label_noise, device)
        labels = torch.where(noise.flip, noise.labels, labels)
        noisy = self._add_noise(boxes, noise, positive.to(device))

        query = copy * max_objects + slot
        place = (image.to(device), query.to(device))
        slots = copies * max_objects
        embedded = self.with_indicator(self.label_encoder(labels), 1.0)
        content = embedded.new_zeros(batch, slots, embedded.shape[-1]).index_put(place, embedded)
        logits = boxes.new_zeros(batch, slots, 4).index_put(place, inverse_sigmoid(noisy, eps=1e-3))
        unused = torch.ones(batch, slots, dtype=torch.bool, device=device).index_put(
            place, torch.zeros((), dtype=torch.bool, device=device)
        )
        return Queries(
            name="denoising",
            content=content,
            reference=logits.sigmoid(),
            sees=(MATCHING,),
            blocked=self._blocked(groups, self.copies_per_group * max_objects, unused),
            pairs=(image[positive].to(device), query[positive].to(device), objects[positive].to(device)),
            normaliser=float(groups),
            ignored=unused if self.mask_unused else None,
        )

    def with_indicator(self, content: Tensor, value: float) -> Tensor:
        """Append the indicator to content (…, C) as its last channel, if the model has one."""
        return torch.cat((content, torch.full_like(content[..., :1], value)), dim=-1) if self.indicator else content

    def _groups(self, max_objects: int) -> int:
        """Return the number of groups for images with up to ``max_objects`` objects."""
        return self.number

    def _min_copies(self) -> int:
        """Return the minimum number of queries per object."""
        return self.number

    def _add_noise(self, boxes: Tensor, noise: Noise, positive: Tensor) -> Tensor:
        """Change centre and size of boxes (N, 4)."""
        reach = boxes[:, 2:].repeat(1, 2) * boxes.new_tensor([0.5, 0.5, 1.0, 1.0])
        return (boxes + noise.signs * noise.magnitudes * reach * self.box_noise).clamp(0, 1)

    def _objects(self, targets: list[Target]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return image, slot and index in the batch (on the CPU), label and box of every object used."""
        counts = [len(target) for target in targets]
        maximum = None if self.max_queries is None else max(1, self.max_queries // max(1, self._min_copies()))
        chosen, start = [], 0
        for count in counts:
            kept = torch.arange(count)
            if maximum is not None and count > maximum:
                kept = torch.randperm(count)[:maximum].sort().values
            chosen.append(kept + start)
            start += count
        objects = torch.cat(chosen)
        image = torch.arange(len(targets)).repeat_interleave(torch.tensor([len(kept) for kept in chosen]))
        slot = torch.cat([torch.arange(len(kept)) for kept in chosen])
        labels = torch.cat([target.labels for target in targets])
        boxes = torch.cat([target.boxes for target in targets])
        index = objects.to(boxes.device)
        return image, slot, objects, labels[index], boxes[index]

    def _blocked(self, groups: int, size: int, unused: Tensor) -> Tensor:
        """Return (1 or B, 1, D, D): groups of ``size`` queries see only themselves, and no unused slots if masked."""
        group = torch.arange(groups, device=unused.device).repeat_interleave(size)
        blocked = (group[:, None] != group)[None, None]
        if self.mask_unused:
            diagonal = torch.eye(groups * size, dtype=torch.bool, device=unused.device)
            blocked = blocked | (unused[:, None, None] & ~diagonal)
        return blocked


class ContrastiveDenoising(Denoising):
    """Denoising queries of DINO: a positive and a negative copy of every object in every group.

    Args as in :class:`Denoising`, but
        number: total number of positives per image: there are number // m groups, at least one, where m is the largest
            number of objects in an image.
        label_noise: half of this is the probability that the label of a copy is replaced.
        box_noise: maximum shift b of the corners of positives, in units of half a side; corners of negatives move by
            b to 2 b.
    """

    copies_per_group = 2

    def __init__(self, *, number: int = 100, label_noise: float = 0.5, box_noise: float = 1.0, **options: Any) -> None:
        super().__init__(number=number, label_noise=0.5 * label_noise, box_noise=box_noise, **options)

    def _groups(self, max_objects: int) -> int:
        groups = max(1, self.number // max_objects)
        if self.max_queries is None:
            return groups
        return min(groups, max(1, self.max_queries // (self.copies_per_group * max_objects)))

    def _min_copies(self) -> int:
        return self.copies_per_group

    def _add_noise(self, boxes: Tensor, noise: Noise, positive: Tensor) -> Tensor:
        half = boxes[:, 2:].repeat(1, 2) / 2
        moved = noise.signs * (noise.magnitudes + ~positive[:, None]) * half * self.box_noise
        return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moved).clamp(0, 1))
