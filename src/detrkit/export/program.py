"""A detector as a program of torch.export: tensors in, tensors of the last decoder layer out.

The operator of deformable attention lowers itself to ``grid_sample`` while a program is exported
(:mod:`detrkit.ops.ms_deform_attn`), and a relation is a product of matrices, so that no runtime needs an operator of
ours.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.ops import nms

from detrkit.errors import DataError, RunError, first_line
from detrkit.inference.postprocess import default_categories
from detrkit.losses.classes import build_classes
from detrkit.models.detector import Detector
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Categories

__all__ = ["LEAST_SIDE", "Finished", "RawOutputs", "output_names", "trace"]

LEAST_SIDE = 96
"""Smallest side of a canvas of any size: the coarsest level, at a stride of 64, then has more than one cell; of one
cell a program is traced that takes no other size."""

_EXAMPLE = (192, 256)


class RawOutputs(nn.Module):
    """Images and padding mask -> logits (B, Q, C), boxes (B, Q, 4), and of models with masks their logits."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float32 normalised, (B, H, W) bool -> outputs of the last decoder layer."""
        out = self.model(images, padding_mask)
        found = (out.logits[-1], out.boxes[-1])
        return found if out.masks is None else (*found, out.masks.dense())


class Finished(nn.Module):
    """RGB values and padding mask -> boxes (B, K, 4) xyxy in [0, 1], scores (B, K), labels (B, K), best first.

    Normalises, then applies top-k and class-wise NMS as :func:`detrkit.inference.postprocess.select` does. The size of
    the output is fixed: suppressed objects, or missing ones, have score 0 and are last.
    """

    mean: Tensor
    std: Tensor
    usable: Tensor

    def __init__(self, model: Detector) -> None:
        super().__init__()
        config = model.config
        self.model = model
        self.classes = build_classes(config)
        self.rules = config.postprocess
        categories: Categories = model.categories or default_categories(config.architecture.num_classes)
        usable = torch.tensor([category.name is not None and category.is_thing for category in categories])
        self.register_buffer("usable", usable)
        for name, values in (("mean", config.input.image_mean), ("std", config.input.image_std)):
            self.register_buffer(name, torch.tensor(values or ())[:, None, None])

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) float32 in [0, 255], (B, H, W) bool -> boxes, scores, labels."""
        pixels = ((images / 255 - self.mean) / self.std).masked_fill(padding_mask[:, None], 0.0)
        out = self.model(pixels, padding_mask)
        probability = self.classes.scores(out.logits[-1].float()).masked_fill(~self.usable, 0.0)
        number = probability.shape[2]
        if self.classes.exclusive:
            scores, labels = probability.max(-1)
            scores, queries = scores.sort(dim=1, descending=True)
            labels = labels.gather(1, queries)
        else:
            # with NMS all candidates take part, as many as there are
            scores, flat = probability.flatten(1).sort(dim=1, descending=True)
            queries, labels = torch.div(flat, number, rounding_mode="floor"), flat % number
        boxes = cxcywh_to_xyxy(out.boxes[-1]).gather(1, queries[..., None].expand(-1, -1, 4))
        if self.rules.nms is not None:
            scores = self._suppressed(boxes, scores, labels, number)
            scores, order = scores.sort(dim=1, descending=True)
            boxes, labels = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
        top = slice(0, self.rules.top_k)
        return boxes[:, top].clamp(0, 1), scores[:, top], labels[:, top]

    def _suppressed(self, boxes: Tensor, scores: Tensor, labels: Tensor, number: int) -> Tensor:
        """Scores in which objects that a better one of their class and image covers are lowered, or 0."""
        assert self.rules.nms is not None
        image = torch.arange(boxes.shape[0])[:, None]
        group = (image * number + labels).to(boxes)[..., None] * 4.0  # boxes reach from -0.5 to 1.5
        kept = nms((boxes + group).flatten(0, 1), scores.flatten(), self.rules.nms)
        factor = torch.full_like(scores, self.rules.nms_decay or 0.0).flatten().index_fill(0, kept, 1.0)
        return scores * factor.view(scores.shape)


def output_names(model: Detector, *, with_postprocess: bool) -> list[str]:
    """Names of the outputs of a file."""
    if with_postprocess:
        return ["boxes", "scores", "labels"]
    return ["logits", "boxes"] if model.mask_head is None else ["logits", "boxes", "masks"]


def trace(
    model: Detector, *, batch: int | None, size: tuple[int, int] | None, with_postprocess: bool = False
) -> ExportedProgram:
    """Export a detector.

    Args:
        model: in evaluation mode, on the CPU.
        batch: images per call; None: any number.
        size: (height, width) of the canvas; None: any, from :data:`LEAST_SIDE` on.
        with_postprocess: :class:`Finished` instead of :class:`RawOutputs`.

    Raises:
        DataError: the backbone cannot be traced for any size.
        RunError: the model cannot be traced.
    """
    if size is None and model.config.architecture.backbone.startswith("swin"):
        raise DataError(f"'{model.name}': windows of Swin are traced for one size only; give --size H W")
    height, width = size or _EXAMPLE
    number = batch or 2  # one image would be traced as a program for one image
    images = torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(number, height, width, dtype=torch.bool)
    if number > 1:
        mask[-1, :, -width // 4 :] = True
    free = Dim.DYNAMIC if batch is None else Dim.STATIC
    side = Dim.DYNAMIC if size is None else Dim.STATIC
    shapes = {
        "images": {0: free, 2: side, 3: side},
        "padding_mask": {0: free, 1: side, 2: side},
    }
    module = Finished(model) if with_postprocess else RawOutputs(model)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torchvision's, of its own code
            return torch.export.export(module.eval(), (images, mask), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the exporter has many types
        hint = "" if batch is not None and size is not None else "; with --batch 1 and --size H W it may be"
        raise RunError(f"'{model.name}' cannot be traced for these sizes{hint} ({first_line(error)[:200]})") from error
