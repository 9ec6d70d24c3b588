"""One forward pass, four answers: detections, instances, classes of pixels, panoptic segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from detrkit.errors import RunError
from detrkit.inference.detr_segmentation import DETRPanopticRules, detr_instance_masks, detr_panoptic_segments
from detrkit.inference.postprocess import Selected, default_categories, select, without_duplicates
from detrkit.inference.segmentation import (
    ImageMasks,
    PanopticRules,
    instance_masks,
    panoptic_segments,
    semantic_labels,
)
from detrkit.inference.tasks import Answer, check_task
from detrkit.losses.classes import ClassLoss, build_classes
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Categories, Detections, Masks, PanopticMap, Predictions, Segment, SemanticMap, Thresholds
from detrkit.structures.segment_maps import no_class

if TYPE_CHECKING:
    from detrkit.models.config import Architecture, DetectorConfig

__all__ = ["Frame", "answer", "best_of", "postprocess"]


@dataclass(frozen=True)
class Frame:
    """Sizes (height, width) of one image of a batch, in pixels."""

    canvas: tuple[int, int]
    """The padded batch."""

    valid: tuple[int, int]
    """The image on the canvas."""

    original: tuple[int, int]
    """The upright file."""


@dataclass(frozen=True)
class _Image:
    """The predictions of one image: the last layer."""

    logits: Tensor
    boxes: Tensor
    masks: ImageMasks | None
    frame: Frame
    config: DetectorConfig[Architecture]
    classes: ClassLoss
    categories: Categories
    threshold: float | None
    path: Path | None
    wanted: Sequence[int] | None
    most: int | None

    @property
    def all_masks(self) -> ImageMasks:
        """The masks of a model that has them."""
        assert self.masks is not None
        return self.masks

    @property
    def as_detr(self) -> bool:
        """Whether masks are read as DETR's are: those of its own head, which learned them cell by cell."""
        return self.config.objective.masks == "dense"

    @property
    def object_masks(self) -> ImageMasks:
        """The masks, cut off at the boxes of their queries if the configuration says so."""
        cut = self.config.postprocess.mask_in_box
        return replace(self.all_masks, boxes=cxcywh_to_xyxy(self.boxes)) if cut else self.all_masks

    def class_mask(self, *, things: bool) -> Tensor | None:
        """(K,) bool, the classes that may be returned; None: all."""
        usable = [category.name is not None and (category.is_thing or not things) for category in self.categories]
        return None if all(usable) else torch.tensor(usable, device=self.logits.device)

    @property
    def wanted_mask(self) -> Tensor | None:
        """(K,) bool, the classes that are asked for; None: all."""
        if self.wanted is None:
            return None
        asked = [label in self.wanted for label in range(len(self.categories))]
        return torch.tensor(asked, device=self.logits.device)


def answer(
    predictions: Predictions,
    frames: Sequence[Frame],
    *,
    config: DetectorConfig[Architecture],
    categories: Categories | None = None,
    task: str | None = None,
    threshold: float | Thresholds | None = None,
    paths: Sequence[Path | None] | None = None,
    wanted: Sequence[int] | None = None,
    most: int | None = None,
) -> list[Answer]:
    """Answer a task for every image of a batch.

    Args:
        predictions: (L, B, Q, …); only the last layer is read.
        frames: sizes of the images.
        config: configuration of the model.
        categories: classes in label order; unnamed slots are never returned, stuff never as a detection.
        task: "det", "inst", "sem" or "pan"; None: the model's own.
        threshold: minimum score, inclusive, of detections, of segments, and of the class of a pixel; ``Thresholds``:
            of the detections of each class. None: all detections, segments by the configuration's threshold, and a
            class for every pixel.
        paths: files of the images, where known.
        wanted: labels of the classes to return; None: all. Top-k counts detections of these alone.
        most: detections of an image to return, instead of the configuration's top-k.

    Raises:
        DataError: the model does not answer the task.
        RunError: the predictions are NaN.
    """
    _check_numbers(predictions)
    if categories is None:
        categories = default_categories(config.architecture.num_classes)
    reader = _READERS[check_task(config.architecture.task, task)]
    least = threshold if not isinstance(threshold, Thresholds) else float(threshold.by_label.min())
    classes = build_classes(config)
    answers = []
    for index, frame in enumerate(frames):
        masks = predictions.masks
        image = _Image(
            logits=predictions.logits[-1, index].detach(),
            boxes=predictions.boxes[-1, index].detach(),
            masks=None if masks is None else ImageMasks(masks, index, frame.canvas, frame.valid, frame.original),
            frame=frame,
            config=config,
            classes=classes,
            categories=categories,
            threshold=least,
            path=None if paths is None else paths[index],
            wanted=wanted,
            most=most,
        )
        found = reader(image)
        if isinstance(found, Detections):
            found = best_of(found, threshold if isinstance(threshold, Thresholds) else None, most)
        elif wanted is not None:
            found = found.relabel([k if k in wanted else None for k in range(len(categories))], categories)
        answers.append(found)
    return answers


def best_of(found: Detections, threshold: float | Thresholds | None, most: int | None) -> Detections:
    """The detections whose scores reach a threshold (inclusive) or that of their class, at most so many."""
    if isinstance(threshold, Thresholds):
        found = found.keep(found.scores >= threshold.by_label.astype(np.float32)[found.labels])
    elif threshold is not None:
        found = found.keep(found.scores >= np.float32(threshold))
    return found if most is None else found.keep(slice(most))


def _check_numbers(predictions: Predictions) -> None:
    """NaN is no answer: every comparison with a threshold is false, and the image would seem to be empty."""
    logits, boxes = predictions.logits[-1], predictions.boxes[-1]
    if bool(logits.isnan().any() | ~boxes.isfinite().all()):
        raise RunError(
            "the model predicts NaN: its weights are damaged, its training diverged, or its numbers do not fit into "
            "the precision (choose fp32 or bf16)"
        )


def postprocess(
    predictions: Predictions,
    original_sizes: Sequence[tuple[int, int]],
    *,
    config: DetectorConfig[Architecture],
    categories: Categories | None = None,
) -> list[Detections]:
    """Boxes of every image of a batch, highest score first, in pixels of the original image and clipped to it.

    original_sizes: (height, width) of each upright original · others: see :func:`answer`.
    """
    frames = [Frame(size, size, size) for size in original_sizes]
    found = answer(predictions, frames, config=config, categories=categories, task="det")
    return [detections for detections in found if isinstance(detections, Detections)]


def _selected(image: _Image) -> Selected:
    """The best detections; those below the threshold are dropped, best first."""
    options = image.config.postprocess
    found = select(
        image.logits,
        image.boxes,
        classes=image.classes,
        top_k=options.top_k if image.most is None else max(image.most, options.top_k),
        nms=options.nms,
        nms_decay=options.nms_decay,
        class_mask=image.class_mask(things=True),
        wanted=image.wanted_mask,
    )
    if image.threshold is not None:
        kept = found.scores >= np.float32(image.threshold)
        found = Selected(*(value[kept] for value in found))
    order = found.scores.argsort(descending=True, stable=True)
    return Selected(*(value[order] for value in found))


def _detections(image: _Image) -> Detections:
    return _to_detections(image, _selected(image), None)


def _to_detections(image: _Image, found: Selected, masks: Masks | None) -> Detections:
    height, width = image.frame.original
    scale = found.boxes.new_tensor([width, height, width, height])
    boxes = (found.boxes * scale).clamp(min=0).minimum(scale)
    return Detections(
        boxes=boxes.cpu().numpy().astype(np.float32),
        scores=found.scores.cpu().numpy().astype(np.float32),
        labels=found.labels.cpu().numpy().astype(np.int64),
        categories=image.categories,
        image_size=image.frame.original,
        masks=masks,
        path=image.path,
    )


def _instances(image: _Image) -> Detections:
    """Detections with masks. A query may be several detections, of different classes; its mask is made once."""
    found = _selected(image)
    queries, place = found.queries.unique(return_inverse=True)
    runs: list[bytes] = []
    quality = torch.ones(len(queries), device=image.logits.device)
    if image.as_detr:  # scores are those of the class
        for _, inside in detr_instance_masks(image.all_masks, queries):
            runs += Masks.encode(inside.cpu().numpy())
    else:
        for part, inside, measured in instance_masks(image.object_masks, queries):
            runs += Masks.encode(inside.cpu().numpy())
            quality[part] = measured
    if image.config.postprocess.mask_quality:
        found = found._replace(scores=found.scores * quality[place])
    masks = Masks([runs[index] for index in place.tolist()], image.frame.original)
    detections = _to_detections(image, found, masks)
    order = np.argsort(-detections.scores, kind="stable")
    if image.threshold is not None:
        order = order[detections.scores[order] >= np.float32(image.threshold)]
    return detections.keep(order)


def _panoptic(image: _Image) -> PanopticMap:
    options = image.config.postprocess
    is_thing = torch.tensor([category.is_thing for category in image.categories])
    logits = _without(image.logits, image.class_mask(things=False))
    if options.nms is not None:
        logits = without_duplicates(logits, image.boxes, classes=image.classes, is_thing=is_thing, nms=options.nms)
    if image.as_detr:
        detr = DETRPanopticRules(threshold=options.panoptic_threshold)
        if image.threshold is not None:
            detr = replace(detr, threshold=_below(image.threshold))
        found = detr_panoptic_segments(image.all_masks, logits, classes=image.classes, is_thing=is_thing, rules=detr)
    else:
        rules = PanopticRules(threshold=options.panoptic_threshold, overlap=options.panoptic_overlap)
        if image.threshold is not None:
            rules = replace(rules, threshold=_below(image.threshold))
        found = panoptic_segments(image.object_masks, logits, classes=image.classes, is_thing=is_thing, rules=rules)
    segments = (
        Segment(number, label, score)
        for number, (label, score) in enumerate(zip(found.labels, found.scores, strict=True), start=1)
    )
    return PanopticMap(found.ids.cpu().numpy(), tuple(segments), image.categories, image.path)


def _below(threshold: float) -> float:
    """The number that scores must exceed to reach an inclusive threshold; a score of 0 is never enough."""
    return float(np.nextafter(np.float32(threshold), np.float32(0)))


def _semantic(image: _Image) -> SemanticMap:
    label_of = np.flatnonzero([category.name is not None for category in image.categories])
    columns = torch.tensor([*label_of, *range(len(image.categories), image.logits.shape[-1])])  # with no-object
    logits = image.logits[:, columns.to(image.logits.device)]
    labels, certainty = semantic_labels(image.all_masks, logits, classes=image.classes)
    small = label_of.astype(np.uint8 if len(image.categories) < 256 else np.uint16)[labels.cpu().numpy()]
    if image.threshold is not None:
        small[certainty.cpu().numpy() < np.float32(image.threshold)] = no_class(small)
    return SemanticMap(small, image.categories, image.path)


def _without(logits: Tensor, class_mask: Tensor | None) -> Tensor:
    """Logits (Q, C) in which classes that do not exist have no chance."""
    if class_mask is None:
        return logits
    missing = ~torch.nn.functional.pad(class_mask, (0, logits.shape[-1] - len(class_mask)), value=True)
    return logits.masked_fill(missing, torch.finfo(logits.dtype).min)


_READERS: dict[str, Callable[[_Image], Answer]] = {
    "det": _detections,
    "inst": _instances,
    "pan": _panoptic,
    "sem": _semantic,
}
