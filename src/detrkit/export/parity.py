"""The proof that an exported model gives the boxes and scores of its checkpoint, on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrkit.export.program import Finished
from detrkit.losses.classes import build_classes
from detrkit.models.detector import Detector
from detrkit.ops.boxes import cxcywh_to_xyxy, iou
from detrkit.runtime.engines import Engine
from detrkit.runtime.prepare import on_canvas
from detrkit.structures import pad_images
from detrkit.weights.artefact import ArtefactDetector

__all__ = ["BOX_TOLERANCE", "SCORE_TOLERANCE", "SWAPS", "Comparison", "Parity", "prove", "prove_finished"]

BOX_TOLERANCE = 1e-3
"""Largest difference of a box, as a share of the side of the image."""
SCORE_TOLERANCE = 1e-4
"""Largest difference of a score."""
SWAPS = 0.05
"""Share of the queries of a two-stage model that may start from another proposal: those of two tokens with equal scores
are ranked by the last bits."""

_FOUND = 0.3  # score of the objects that are matched
_COMPARED = 0.05


@dataclass(frozen=True)
class Comparison:
    """Differences over some images, in batches of one size.

    Attributes:
        batch: images per batch.
        canvas: (height, width) of the first batch.
        images: number of images.
        queries: number of queries compared.
        swapped: queries of a two-stage model that differ by more than the tolerances; they are counted, and the
            differences are those of the others.
        boxes: largest difference of a box, as a share of the side.
        scores: largest difference of a score.
        masks: largest difference of a mask's probability; None without masks.
        objects: objects of the checkpoint with a score of at least 0.3.
        matched: of these, objects that the file gives with the same class and an IoU of at least 0.9.
    """

    batch: int
    canvas: tuple[int, int]
    images: int
    queries: int
    swapped: int
    boxes: float
    scores: float
    masks: float | None
    objects: int
    matched: int

    @property
    def agrees(self) -> bool:
        """Whether the differences are within the tolerances."""
        return self.boxes <= BOX_TOLERANCE and self.scores <= SCORE_TOLERANCE and self.swapped <= SWAPS * self.queries


@dataclass
class Parity:
    """The comparisons of one file, and AP where there are annotations."""

    file: str
    format: str
    precision: str
    comparisons: list[Comparison] = field(default_factory=list)
    ap: dict[str, float | None] | None = None
    """``{"checkpoint": AP, "file": AP}`` on ``data``."""
    metric: str = "AP"
    """What ``ap`` is where the data are of another protocol: "PQ" or "mIoU"."""
    data: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether all comparisons are within the tolerances."""
        return all(comparison.agrees for comparison in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        """The content of ``parity.json``."""
        return asdict(self) | {
            "agrees": self.agrees,
            "tolerances": {"boxes": BOX_TOLERANCE, "scores": SCORE_TOLERANCE, "swapped": SWAPS},
            "comparisons": [asdict(one) | {"agrees": one.agrees} for one in self.comparisons],
        }


def prove(
    model: Detector, exported: ArtefactDetector, images: Sequence[Tensor], *, batches: Sequence[int] = (1, 3)
) -> list[Comparison]:
    """Run both on the same images, in batches of several sizes.

    Args:
        model: the detector that was exported, in evaluation mode.
        exported: the file.
        images: prepared images (3, H_i, W_i) of any sizes that the file takes.
        batches: sizes of the batches.
    """
    found = []
    for batch in batches:
        parts = [_compare(model, exported, images[start : start + batch]) for start in range(0, len(images), batch)]
        masks = [part.masks for part in parts if part.masks is not None]
        found.append(
            Comparison(
                batch=batch,
                canvas=parts[0].canvas,
                images=len(images),
                queries=sum(part.queries for part in parts),
                swapped=sum(part.swapped for part in parts),
                boxes=max(part.boxes for part in parts),
                scores=max(part.scores for part in parts),
                masks=max(masks) if masks else None,
                objects=sum(part.objects for part in parts),
                matched=sum(part.matched for part in parts),
            )
        )
    return found


@torch.no_grad()
def prove_finished(
    model: Detector, engine: Engine, images: Sequence[Tensor], *, batches: Sequence[int] = (1, 3)
) -> list[Comparison]:
    """The same for a file with its post-processing inside: object by object, best first.

    images: RGB (3, H_i, W_i) from 0 to 255. Objects with a score below 0.05 are not compared: many are equally bad.
    """
    reference, found = Finished(model).eval(), []
    for batch in batches:
        boxes = scores = 0.0
        objects = matched = number = 0
        for start in range(0, len(images), batch):
            part = [image.numpy() for image in images[start : start + batch]]
            inputs = on_canvas(part, engine.info)
            wanted = [value.numpy()[: len(part)] for value in reference(*map(torch.from_numpy, inputs))]
            outputs = engine.run(*inputs)
            given = [outputs[name][: len(part)] for name in ("boxes", "scores", "labels")]
            counted = wanted[1] >= _COMPARED
            of_boxes = np.abs(wanted[0] - given[0]).max(-1)
            boxes = max(boxes, float(of_boxes[counted].max(initial=0.0)))
            scores = max(scores, float(np.abs(wanted[1] - given[1])[counted].max(initial=0.0)))
            number += int(counted.sum())
            good = wanted[1] >= _FOUND
            objects += int(good.sum())
            matched += int((good & (wanted[2] == given[2]) & (of_boxes <= BOX_TOLERANCE)).sum())
        canvas = (inputs[0].shape[2], inputs[0].shape[3])
        found.append(Comparison(batch, canvas, len(images), number, 0, boxes, scores, None, objects, matched))
    return found


@torch.no_grad()
def _compare(model: Detector, exported: ArtefactDetector, images: Sequence[Tensor]) -> Comparison:
    canvas, mask = pad_images(images, model.config.input.size_divisor)
    # both see the canvas that the file takes: without masking, models read the padding
    height, width = exported.full_canvas((canvas.shape[-2], canvas.shape[-1]))
    canvas = torch.nn.functional.pad(canvas, (0, width - canvas.shape[-1], 0, height - canvas.shape[-2]))
    mask = torch.nn.functional.pad(mask, (0, width - mask.shape[-1], 0, height - mask.shape[-2]), value=True)
    wanted, given = model(canvas, mask), exported(canvas, mask)
    classes = build_classes(model.config)
    scores = [classes.scores(out.logits[-1].float()) for out in (wanted, given)]
    corners = [cxcywh_to_xyxy(out.boxes[-1]) for out in (wanted, given)]
    of_boxes = (corners[0] - corners[1]).abs().amax(-1).nan_to_num(nan=torch.inf)
    of_scores = (scores[0] - scores[1]).abs().amax(-1).nan_to_num(nan=torch.inf)
    swapped = (of_boxes > BOX_TOLERANCE) | (of_scores > SCORE_TOLERANCE)
    reduced = exported.precision != "fp32"  # of which every difference is said
    if reduced or not getattr(model.config.architecture, "two_stage", False):
        swapped = torch.zeros_like(swapped)
    of_masks = None
    if wanted.masks is not None and given.masks is not None:
        pair = [out.dense().float().sigmoid() for out in (wanted.masks, given.masks)]
        of_masks = float((pair[0] - pair[1]).abs().amax((-2, -1)).masked_fill(swapped, 0.0).max())
    objects, matched = _matched(scores, corners)
    return Comparison(
        batch=len(images),
        canvas=(height, width),
        images=len(images),
        queries=of_boxes.numel(),
        swapped=int(swapped.sum()),
        boxes=float(of_boxes.masked_fill(swapped, 0.0).max()),
        scores=float(of_scores.masked_fill(swapped, 0.0).max()),
        masks=of_masks,
        objects=objects,
        matched=matched,
    )


def _matched(scores: Sequence[Tensor], corners: Sequence[Tensor]) -> tuple[int, int]:
    """Objects of the first outputs, and how many of them the second ones have, each used once."""
    objects = matched = 0
    for image in range(len(scores[0])):
        wanted, given = ((score[image].max(-1), box[image]) for score, box in zip(scores, corners, strict=True))
        free = np.ones(len(given[1]), bool)
        overlap = iou(wanted[1][:, None], given[1][None]).numpy()
        for query in (wanted[0].values >= _FOUND).nonzero()[:, 0].tolist():
            objects += 1
            fits = free & (given[0].indices == wanted[0].indices[query]).numpy() & (overlap[query] >= 0.9)
            if fits.any():
                matched += 1
                free[np.where(fits, overlap[query], -1).argmax()] = False
    return objects, matched
