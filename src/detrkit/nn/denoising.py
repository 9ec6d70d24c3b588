"""Denoising queries, in training only: objects with noised labels and boxes, which the decoder must restore.

Which query belongs to which object is known, so nothing is matched. DN-DETR (Li et al., CVPR 2022, section 4)
gives every object several times, near where it is. DINO (Zhang et al., ICLR 2023, section 3.3) gives it nearby (a
positive) and farther off (a negative, to be called background) by turns.
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
    """Random draws for N entries: flip (N,) bool, labels (N,) int64 (used where flip), signs (N, 4) of -1 and 1,
    magnitudes (N, 4) in [0, 1)."""

    flip: Tensor
    labels: Tensor
    signs: Tensor
    magnitudes: Tensor


def draw_noise(entries: int, num_classes: int, flip_probability: float, device: torch.device) -> Noise:
    """Fresh noise from torch's generator."""
    return Noise(
        flip=torch.rand(entries, device=device) < flip_probability,
        labels=torch.randint(0, num_classes, (entries,), device=device),
        signs=torch.randint(0, 2, (entries, 4), device=device).float() * 2 - 1,
        magnitudes=torch.rand(entries, 4, device=device),
    )


class DenoisingOptions(TypedDict):
    """What both kinds of denoising take, see :class:`Denoising`."""

    num_classes: int
    dim: int
    label_rows: int
    label_noise: float
    box_noise: float
    mask_unused: bool
    max_queries: int | None


class Denoising(nn.Module):
    """Makes denoising queries as in DN-DETR.

    Args:
        num_classes, dim: of the model. label_rows: rows of the label table (DINO: one more than classes).
        number: how often every object is given, as groups that do not see each other; 0 makes no queries.
        label_noise: probability that an entry's label is drawn anew.
        box_noise: centres move by up to this times half a side, sides change by up to this times themselves.
        indicator: the last channel tells denoising queries, 1, from matching ones, 0; the table has one less.
        mask_unused: slots of images with fewer objects take no part in attention and loss; published: they do.
        max_queries: an image with more objects than these suffice for is represented by as many as they do, chosen at
            random; None as published: by all of them. The losses are still divided by all objects.
        draw: makes the noise; replaceable to repeat recorded runs.
    """

    blocks = 1  # of slots in a group: an object stands once in each

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
        """Queries for the objects of a batch; None where there are none.

        Of D slots per image those beyond its objects hold nothing. The queries see the matching ones: they are allowed
        to, and it is how DINO was trained.
        """
        image, slot, objects, labels, boxes = self._objects(targets)
        if len(objects) == 0 or self.number == 0:
            return None
        device, batch = boxes.device, len(targets)
        most = int(slot.max()) + 1  # slots are made on the CPU: no device synchronisation
        groups = self._groups(most)
        blocks = groups * self.blocks
        block = torch.arange(blocks).repeat_interleave(len(objects))
        image, slot, objects = (index.repeat(blocks) for index in (image, slot, objects))
        labels, boxes = labels.repeat(blocks), boxes.repeat(blocks, 1)
        positive = block % self.blocks == 0

        noise = self.draw(len(labels), self.num_classes, self.label_noise, device)
        labels = torch.where(noise.flip, noise.labels, labels)
        noised = self._noised(boxes, noise, positive.to(device))

        query = block * most + slot
        place = (image.to(device), query.to(device))
        embedded = self.marked(self.label_encoder(labels), 1.0)
        content = embedded.new_zeros(batch, blocks * most, embedded.shape[-1]).index_put(place, embedded)
        logits = boxes.new_zeros(batch, blocks * most, 4).index_put(place, inverse_sigmoid(noised, eps=1e-3))
        unused = torch.ones(batch, blocks * most, dtype=torch.bool, device=device).index_put(
            place, torch.zeros((), dtype=torch.bool, device=device)
        )
        return Queries(
            name="denoising",
            content=content,
            reference=logits.sigmoid(),
            sees=(MATCHING,),
            blocked=self._blocked(groups, self.blocks * most, unused),
            pairs=(image[positive].to(device), query[positive].to(device), objects[positive].to(device)),
            normaliser=float(groups),
            ignored=unused if self.mask_unused else None,
        )

    def marked(self, content: Tensor, mark: float) -> Tensor:
        """Content (…, C) with the indicator as its last channel, where there is one."""
        return torch.cat((content, torch.full_like(content[..., :1], mark)), dim=-1) if self.indicator else content

    def _groups(self, most: int) -> int:
        """How often each of up to ``most`` objects of an image is restored."""
        return self.number

    def _least_copies(self) -> int:
        """How many queries an object takes at least."""
        return self.number

    def _noised(self, boxes: Tensor, noise: Noise, positive: Tensor) -> Tensor:
        """Boxes (N, 4) of which centre and size are moved."""
        reach = boxes[:, 2:].repeat(1, 2) * boxes.new_tensor([0.5, 0.5, 1.0, 1.0])
        return (boxes + noise.signs * noise.magnitudes * reach * self.box_noise).clamp(0, 1)

    def _objects(self, targets: list[Target]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Image, slot and index in the batch (on the CPU), label and box of every object that is restored."""
        counts = [len(target) for target in targets]
        most = None if self.max_queries is None else max(1, self.max_queries // max(1, self._least_copies()))
        chosen, start = [], 0
        for count in counts:
            kept = torch.arange(count)
            if most is not None and count > most:
                kept = torch.randperm(count)[:most].sort().values
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
        """(1 or B, 1, D, D): groups of ``size`` queries do not see each other, and where asked nobody unused slots."""
        group = torch.arange(groups, device=unused.device).repeat_interleave(size)
        blocked = (group[:, None] != group)[None, None]
        if self.mask_unused:
            itself = torch.eye(groups * size, dtype=torch.bool, device=unused.device)
            blocked = blocked | (unused[:, None, None] & ~itself)
        return blocked


class ContrastiveDenoising(Denoising):
    """Makes denoising queries as in DINO: positives and negatives by turns, as many groups as there is room for.

    Args as in :class:`Denoising`, but
        number: objects restored in all: number // m groups of m objects, m the largest image's, at least one group.
        label_noise: half of this is the probability that an entry's label is drawn anew.
        box_noise: corners move by up to this times half a side; negatives by as much again.
    """

    blocks = 2

    def __init__(self, *, number: int = 100, label_noise: float = 0.5, box_noise: float = 1.0, **options: Any) -> None:
        super().__init__(number=number, label_noise=0.5 * label_noise, box_noise=box_noise, **options)

    def _groups(self, most: int) -> int:
        groups = max(1, self.number // most)
        return groups if self.max_queries is None else min(groups, max(1, self.max_queries // (self.blocks * most)))

    def _least_copies(self) -> int:
        return self.blocks

    def _noised(self, boxes: Tensor, noise: Noise, positive: Tensor) -> Tensor:
        half = boxes[:, 2:].repeat(1, 2) / 2
        moved = noise.signs * (noise.magnitudes + ~positive[:, None]) * half * self.box_noise
        return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moved).clamp(0, 1))
